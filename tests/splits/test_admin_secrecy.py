"""Payloads and stack traces are shown to those with the permission, to the others its name."""

import pytest

from recovery import audit
from recovery.admin import evidence, secrecy
from recovery.clock import db_now
from recovery.models import AuditRecord, Job, JobRun
from recovery.roles import ADMINISTRATOR, OPERATOR, VIEWER
from splits.models import StuckSighting
from tests.adminpages import list_url, page_url, staff, text_of
from tests.factories import SplitOrderFactory, hang
from tests.ledger.entries import into, put
from tests.roles import MAY, grant_all, logged_in, person

pytestmark = pytest.mark.django_db
PAYLOAD, STACK = "ledger.view_payload", "recovery.view_stacktrace"
ROLES = (VIEWER, OPERATOR, ADMINISTRATOR)
TRACE = "Traceback (most recent call last):\n  File secret.py, line 7\nValueError: it broke"


@pytest.fixture(autouse=True)
def _roles():
    grant_all()


def refusal(permission):
    return f"You need the permission {permission} to see this."


def assert_told(role, url, permission, secret):
    """Assert that the page tells the secret, or in its place which permission it takes."""
    text = text_of(logged_in(role), url)
    may = permission in MAY[role]
    assert (secret in text) is may, text
    assert (refusal(permission) in text) is not may


@pytest.mark.parametrize("role", ROLES)
def test_payload_of_an_entry(role):
    entry = put("k", into("OAK", "1"))
    assert_told(role, page_url(entry), PAYLOAD, "schema_version")
    asked_for = "stock:OAK" in text_of(logged_in(role), page_url(entry))
    assert asked_for is (PAYLOAD in MAY[role]), "the postings that it asks for are of the payload"


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("key", ["original", "edited", "diff", "payload"])
def test_payload_in_an_audit_record(role, key):
    evidence = {"plan": 7, "deep": [{key: ["hush"]}]}
    record = AuditRecord.objects.create(
        actor="ann", action="a", target_type="outbox-entry", target_id="1", evidence=evidence
    )
    assert_told(role, page_url(record), PAYLOAD, "hush")
    assert "&quot;plan&quot;: 7" in logged_in(role).get(page_url(record)).content.decode()


@pytest.mark.parametrize("role", ROLES)
def test_payload_in_the_timeline_of_an_order(role):
    order = SplitOrderFactory()
    entry = put(order.event_key, into("OAK", "1"))
    audit.record(
        actor="ann",
        action="outbox-entry-edited",
        target_type="outbox-entry",
        target_id=str(entry.pk),
        evidence={"original": "hush"},
    )
    assert_told(role, page_url(order), PAYLOAD, "hush")


@pytest.mark.parametrize("role", ROLES)
def test_statement_of_who_holds_an_order(role):
    order = SplitOrderFactory()
    held_by = {"connection": 7, "query": "UPDATE secret_table"}
    StuckSighting.objects.create(
        order_ref=order.pk, epoch=1, seen_at=db_now(), held_at=db_now(), held_by=held_by
    )
    assert_told(role, page_url(order), STACK, "secret_table")


@pytest.mark.parametrize("may", [True, False])
def test_preview_tells_the_holders_statement_to_who_may(monkeypatch, may):
    order = hang(SplitOrderFactory())
    facts = {"connection": 7, "query": "UPDATE secret_table"}
    held = evidence.Proof(evidence.HELD, "held", facts)
    monkeypatch.setattr(evidence, "proof", lambda *_: held)
    page = text_of(
        logged_in(ADMINISTRATOR if may else OPERATOR),
        f"/admin/actions/split.recover/?ids={order.pk}",
    )
    assert ("secret_table" in page) is may
    assert "connection: 7" in page


def test_only_rows_up_to_the_first_that_is_held_are_proven(monkeypatch):
    orders = [hang(SplitOrderFactory()) for _ in range(3)]
    asked = []
    proofs = [evidence.FREE, evidence.HELD, evidence.FREE]
    monkeypatch.setattr(
        evidence, "proof", lambda _, pk: asked.append(pk) or evidence.Proof(proofs.pop(0), "", {})
    )
    ids = ",".join(str(it.pk) for it in orders)
    text_of(logged_in(OPERATOR), f"/admin/actions/split.recover/?ids={ids}")
    assert asked == [it.pk for it in orders[:2]]


@pytest.mark.parametrize("permission", [PAYLOAD, "ledger.edit_outboxentry"])
def test_edit_takes_both_its_permission_and_that_for_payloads(settings, permission):
    settings.DLQ_EDIT_ENABLED = True
    entry = put("k", into("OAK", "1"))
    half = staff("half", permission.partition(".")[2], "view_outboxentry")
    assert half.get(f"/admin/actions/outbox.edit/?ids={entry.pk}").status_code == 403


@pytest.mark.parametrize("role", ROLES)
def test_stack_trace_of_a_run_and_of_its_job(role):
    job = Job.objects.create(name="aJob", last_error=TRACE, last_status="failed")
    run = JobRun.objects.create(job=job, fence=1, host="h", pid=1, status="failed", error=TRACE)
    for row in (run, job):
        assert_told(role, page_url(row), STACK, "secret.py")
        assert "ValueError: it broke" in text_of(logged_in(role), page_url(row))


@pytest.mark.parametrize("role", ROLES)
def test_error_of_one_line_is_for_everybody(role):
    job = Job.objects.create(name="aJob", last_error="ValueError: it broke")
    text = text_of(logged_in(role), page_url(job))
    assert "ValueError: it broke" in text
    assert "You need the permission" not in text


def test_lists_show_no_line_of_a_stack():
    job = Job.objects.create(name="aJob", last_error=TRACE)
    JobRun.objects.create(job=job, fence=1, host="h", pid=1, status="failed", error=TRACE)
    for url in (list_url(Job), list_url(JobRun), page_url(job)):
        assert "secret.py" not in text_of(logged_in(VIEWER), url)


def test_what_is_under_no_concealed_key_is_left_as_it_is():
    content = {"rows": [1, None, {"status": "dead"}], "reason": "original"}
    assert secrecy.masked(content, person(VIEWER)) == content
    assert secrecy.masked({"payload": 1}, person(OPERATOR)) == {"payload": 1}
