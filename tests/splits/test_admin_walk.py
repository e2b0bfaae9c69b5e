"""Every address of the admin, for every role and method: who gets in, and that nothing changes."""

import pytest
from axes.models import AccessAttempt
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.test import Client, RequestFactory

from ledger import dlq
from ledger.models import OutboxEntry
from recovery import actions, audit, pauses, plans
from recovery.clock import db_now
from recovery.models import AuditArchive, AuditRecord, AuditSeal, Job, JobRun, RestoredRecord
from recovery.roles import ADMINISTRATOR, OPERATOR, VIEWER
from recovery.trail import seals
from splits.models import Breaker, OrderStatus, SplitOrder
from tests.everyurl import addresses, changed, stored
from tests.factories import SplitOrderFactory, hang
from tests.ledger.entries import drain, into, put
from tests.roles import MAY, NOBODY, grant_all, has_permission, logged_in

pytestmark = pytest.mark.django_db

ROLES = (NOBODY, VIEWER, OPERATOR, ADMINISTRATOR)
READING, WRITING = ("GET", "HEAD"), ("POST", "PUT", "DELETE")
ARGUMENTS = {
    "app_list": lambda: {"path": "ledger/"},
    "anything else": lambda: {"path": "no/such/page"},
    "view_on_site": lambda: {
        "content_type_id": ContentType.objects.get_for_model(User).pk,
        "object_id": User.objects.get(username="someone").pk,
    },
    "propose": lambda: {"name": "outbox.redrive"},
    "go_to": lambda: {"name": "SO-1"},
    "auth_user_password_change": lambda: {"id": User.objects.get(username="someone").pk},
}
"""What the addresses are about that belong to no model, or not as Django's own do."""
BRAKES = ("start", "pause", "resume", "cancel")
PERMISSIONS = {
    ("recovery.job", "pause"): "recovery.change_job",
    ("recovery.job", "resume"): "recovery.change_job",
    ("recovery.job", "run_now"): "recovery.change_job",
    ("ledger.account", "close"): "ledger.change_account",
    ("ledger.account", "reopen"): "ledger.change_account",
    **{("recovery.plan", name): "splits.retry_splitorder" for name in BRAKES},
    ("axes.accessattempt", "delete_selected"): "axes.delete_accessattempt",
    ("auth.user", "delete_selected"): "auth.delete_user",
    ("auth.group", "delete_selected"): "auth.delete_group",
}
"""What each action of a list takes; those that recovery actions are have their own."""


@pytest.fixture
def everything():
    """Store a row of every kind that the admin shows."""
    grant_all()
    User.objects.create_user("someone")
    for status in (OrderStatus.FINALIZED, OrderStatus.FAILED, OrderStatus.QUARANTINED):
        SplitOrderFactory(at=status)
    hang(SplitOrderFactory())
    put("lot:B-1:received", into("OAK", "10"))
    drain()
    put("dead", into("ASH", "-1"))
    OutboxEntry.objects.filter(event_key="dead").update(status="dead", last_error_code="unexpected")
    dlq.tidy()
    job = Job.objects.create(name="aJob")
    Job.objects.create(name="paused")
    pauses.pause("paused", actor="ann")
    JobRun.objects.create(job=job, fence=1, host="h", pid=1, status="failed", error="a\nb")
    audit.record(actor="ann", action="outbox-entry-edited", target_type="outbox-entry",
                 target_id="1", evidence={"original": {}})  # fmt: skip
    archive_of_records()
    Breaker.objects.create(endpoint="http://erp.example")
    failed = SplitOrder.objects.get(status="failed")
    plans.create(plans.Wanted(action="split.retry", ids=[failed.pk], actor="ann", reason="because"))
    AccessAttempt.objects.create(username="x", ip_address="10.0.0.1", failures_since_start=5)


def archive_of_records():
    """Store the manifest of a file that was never put in its place, and a copy of a record."""
    seals.seal_some(lambda: None)
    seal, now = AuditSeal.objects.get(), db_now()
    archive = AuditArchive.objects.create(
        name="2026/11/audit-2026-11-24-001.jsonl.gz", day=now.date(), part=1, count=1, size=1,
        sha256="0" * 64, first_id=1, last_id=1, first_at=now, last_at=now, last_seal=seal.number,
        seal_hash=seal.hash, terms=b"",
    )  # fmt: skip
    RestoredRecord.copy_of(AuditRecord.objects.earliest("id"), archive).save()


@pytest.fixture
def all_addresses(everything):
    return addresses(ARGUMENTS)


def ask(client, method, url):
    return client.generic(method, url, content_type="application/x-www-form-urlencoded")


def is_sent_to_login(response):
    return response.status_code == 302 and "/admin/login/" in response.headers["Location"]


@pytest.mark.parametrize("role", ROLES)
def test_role_gets_in_where_it_may_and_nowhere_else(all_addresses, role):
    client = logged_in(role)
    before = stored()
    for address in all_addresses:
        response = client.get(address.path)
        assert response.status_code < 500, address
        if address.permission and address.permission not in MAY[role]:
            assert response.status_code == 403, address
        elif address.must_show:
            assert response.status_code == 200, address
        else:
            assert response.status_code in (200, 302, 301, 400, 403, 404), address
    assert changed(before) == [], "a GET changed rows"


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("method", ["HEAD", *WRITING])
def test_no_method_changes_anything_by_itself(all_addresses, role, method):
    client = logged_in(role)
    before = stored()
    for address in all_addresses:
        response = ask(client, method, address.path)
        assert response.status_code < 500, address
        if address.permission and address.permission not in MAY[role]:
            assert response.status_code == 403, address
    assert changed(before) == [], method


def test_stranger_is_sent_to_the_login_whatever_he_asks(all_addresses):
    before, stranger = stored(), Client()
    for address in all_addresses:
        for method in READING + WRITING:
            response = ask(stranger, method, address.path)
            assert is_sent_to_login(response), (method, address)
    assert changed(before) == []


def test_nothing_is_written_without_a_csrf_token(all_addresses):
    careful = logged_in(ADMINISTRATOR, enforce_csrf_checks=True)
    before = stored()
    for address in all_addresses:
        for method in WRITING:
            assert ask(careful, method, address.path).status_code == 403, (method, address)
    assert changed(before) == []


# Actions of lists


def actions_there_are():
    """Return each action of each list, as a superuser is offered it."""
    request = RequestFactory().get("/")
    request.user = User(is_superuser=True, is_active=True)
    for model, model_admin in admin.site._registry.items():
        for name in model_admin.get_actions(request):
            yield model, name


def test_each_action_has_its_permission_here():
    for model, name in actions_there_are():
        key = (model._meta.label_lower, name)
        assert permission_of(*key), f"{key}: PERMISSIONS of this test must say what it takes"
        assert has_permission(permission_of(*key))


def permission_of(label, name):
    return actions.get(name).permission if actions.has(name) else PERMISSIONS.get((label, name))


@pytest.mark.parametrize("role", ROLES)
def test_action_has_an_effect_with_the_permission_only(everything, role):
    for model, name in actions_there_are():
        client = logged_in(role)  # the one before may have deleted the role
        allowed = permission_of(model._meta.label_lower, name) in MAY[role]
        before = stored()
        response = client.post(list_of(model), confirmed(model, name))
        assert response.status_code in ((200, 302) if allowed else (302, 403)), (model, name)
        if actions.has(name):
            leads = response.headers.get("Location", "").startswith(f"/admin/actions/{name}/?ids=")
            assert leads is allowed, (model, name)
        assert bool(changed(before)) is (allowed and not actions.has(name)), (model, name)


def list_of(model):
    return f"/admin/{model._meta.app_label}/{model._meta.model_name}/"


def confirmed(model, name):
    rows = model._default_manager.order_by("pk").values_list("pk", flat=True)[:1]
    return {
        "action": name,
        "_selected_action": [str(pk) for pk in rows],
        "confirmed": "yes",
        "post": "yes",
        "reason": "forged or not",
    }


def test_deleting_takes_more_than_a_get(everything):
    client = logged_in(ADMINISTRATOR)
    url = f"/admin/axes/accessattempt/{AccessAttempt.objects.get().pk}/delete/"
    assert client.get(url).status_code == 200
    assert AccessAttempt.objects.exists()
    assert client.post(url, {"post": "yes"}).status_code == 302
    assert not AccessAttempt.objects.exists()
    assert LogEntry.objects.get().user.username == "administrator"


def test_refusals_say_what_to_do_in_the_language_of_the_reader(everything):
    viewer = logged_in(VIEWER)
    page = viewer.get("/admin/actions/outbox.redrive/?all=1")
    assert (page.status_code, "Your role lacks the permission" in page.content.decode()) == (
        403,
        True,
    )
    careful = logged_in(OPERATOR, enforce_csrf_checks=True)
    page = careful.post(
        "/admin/actions/outbox.redrive/?all=1", {}, headers={"Accept-Language": "zh-hans"}
    )
    assert (page.status_code, "重新加载页面" in page.content.decode()) == (403, True)
