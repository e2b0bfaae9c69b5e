"""Lists of the admin: their size, order, filters and search; nothing reads a whole table."""

import re
import uuid

import django_q.admin
import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.sites import AdminSite
from django.contrib.auth.models import User
from django.db import connection
from django.urls import NoReverseMatch, reverse
from django.utils import translation
from django.utils.module_loading import autodiscover_modules

from recovery.admin import hide, paging, search
from recovery.admin.paging import estimated_rows, grouped
from recovery.models import AuditRecord, Job, JobRun
from tests.adminpages import list_url, listed, size_shown, statements, text_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def small_limits(monkeypatch):
    """Count up to 20 rows, and let searches find ten."""
    monkeypatch.setattr(paging, "COUNTED_ROWS", 20)
    monkeypatch.setattr(search, "FOUND_ROWS", 10)


def make_records(count, **changes):
    facts = {"actor": "ann", "action": "job-paused", "target_type": "job", "target_id": "a"}
    facts |= changes
    AuditRecord.objects.bulk_create(AuditRecord(**facts) for _ in range(count))
    return list(AuditRecord.objects.order_by("-id").values_list("pk", flat=True)[:count])


def make_runs(count, **changes):
    job, _is_new = Job.objects.get_or_create(name=changes.pop("job", "jobA"))
    facts = {"fence": 1, "host": "h", "pid": 1, "status": "ok"} | changes
    runs = JobRun.objects.bulk_create(JobRun(job=job, **facts) for _ in range(count))
    ids = JobRun.objects.filter(run_id__in=[run.run_id for run in runs]).order_by("-id")
    return list(ids.values_list("pk", flat=True))


# Size


def test_small_table_is_counted_exactly(admin_client, small_limits):
    make_records(20)
    assert size_shown(admin_client, AuditRecord) == "20 audit records"


def test_large_table_shows_the_databases_estimate(admin_client, small_limits, monkeypatch):
    make_records(21)
    monkeypatch.setattr(paging, "estimated_rows", lambda _model: 1_003_412)
    assert size_shown(admin_client, AuditRecord) == "about 1,003,000 audit records"


def test_estimate_below_what_was_counted_is_not_believed(admin_client, small_limits, monkeypatch):
    make_records(21)
    monkeypatch.setattr(paging, "estimated_rows", lambda _model: 3)
    assert size_shown(admin_client, AuditRecord) == "more than 20 audit records"


def test_filtered_list_is_counted_up_to_the_limit(admin_client, small_limits, monkeypatch):
    monkeypatch.setattr(paging, "estimated_rows", lambda _model: pytest.fail("not asked for"))
    make_records(21)
    shown = size_shown(admin_client, AuditRecord, action="job-paused")
    assert shown == "more than 20 audit records"
    make_records(20, action="job-resumed")
    assert size_shown(admin_client, AuditRecord, action="job-resumed") == "20 audit records"


def test_list_without_a_match_says_so(admin_client):
    make_records(1)
    assert size_shown(admin_client, AuditRecord, q="nobody") == "Nothing matches."
    assert size_shown(admin_client, AuditRecord, action="job-resumed") == "Nothing matches."


def test_empty_list_says_so(admin_client):
    assert size_shown(admin_client, AuditRecord) == "0 audit records"


def test_other_admins_keep_their_pages_and_search(admin_client):
    User.objects.create(username="ann")
    assert "2 users" in text_of(admin_client, list_url(User))
    assert listed(admin_client, User, q="an") == [User.objects.get(username="ann").pk]


def test_count_never_reads_more_than_the_limit(admin_client):
    make_records(3)
    counts = [it for it in statements(admin_client, list_url(AuditRecord)) if "COUNT(" in it]
    assert len(counts) == 1
    assert "LIMIT 10001" in counts[0]
    assert "ORDER BY" not in counts[0]


def test_estimate_is_about_what_is_there():
    make_records(100)
    before = rows_by_status()
    estimate = estimated_rows(AuditRecord)
    assert estimate in (before, rows_by_status())  # a server counts anew when it likes


def rows_by_status():
    """Return how many audit records the server believes there are; SQLite knows."""
    if connection.vendor != "mysql":
        return AuditRecord.objects.count()
    with connection.cursor() as cursor:
        cursor.execute("SHOW TABLE STATUS LIKE 'recovery_auditrecord'")
        names = [column[0] for column in cursor.description]
        return dict(zip(names, cursor.fetchone(), strict=True))["Rows"]


def test_estimate_of_an_empty_table_is_nothing():
    assert estimated_rows(AuditRecord) in (0, 1)  # the statistics of an empty table may lag


@pytest.mark.sqlite
def test_estimate_leaves_out_what_retention_removed():
    runs = make_runs(50)
    JobRun.objects.filter(pk__in=runs[30:]).delete()
    assert estimated_rows(JobRun) == 30


@pytest.mark.parametrize(("language", "text"), [("en", "1,003,000"), ("zh-hans", "1003000")])
def test_numbers_are_grouped_as_the_language_does(settings, language, text):
    with translation.override(language):
        assert grouped(1_003_000) == text


# Order


def test_newest_come_first_and_the_click_turns_the_list_round(admin_client):
    newest_first = make_records(5)
    assert listed(admin_client, AuditRecord) == newest_first
    assert listed(admin_client, AuditRecord, o="0") == newest_first[::-1]
    assert listed(admin_client, AuditRecord, o="-0") == newest_first


@pytest.mark.parametrize("order", ["1", "-2", "3.1", "99", "x", "-", "0.1"])
def test_no_other_column_can_be_sorted_by(admin_client, order):
    make_records(3, actor="b")
    newest_first = [*make_records(3, actor="a"), *listed(admin_client, AuditRecord)[3:]]
    assert listed(admin_client, AuditRecord, o=order) == newest_first


def test_arrow_shows_the_direction(admin_client):
    make_records(2)
    page = admin_client.get(list_url(AuditRecord)).content.decode()
    assert re.search(r"sortable column-at_shown sorted descending\b", page)
    page = admin_client.get(list_url(AuditRecord, o="0")).content.decode()
    assert re.search(r"sortable column-at_shown sorted ascending\b", page)


def test_runs_of_one_job_and_status_are_in_the_order_of_their_index(admin_client):
    first, second = make_runs(1, fence=1)[0], make_runs(1, fence=2)[0]
    make_runs(1, job="jobB")
    found = statements(admin_client, list_url(JobRun, job="jobA", status="ok"))
    assert any("fence` DESC" in it or 'fence" DESC' in it for it in found)
    assert listed(admin_client, JobRun, job="jobA", status="ok") == [second, first]
    assert listed(admin_client, JobRun, job="jobA", status="ok", o="1") == [second, first]
    assert listed(admin_client, JobRun, job="jobA", status="ok", o="0") == [first, second]


# Filters


def test_filters_narrow_down(admin_client):
    died = make_runs(2, status="died")
    other = make_runs(1, status="died", job="jobB")
    make_runs(3)
    assert listed(admin_client, JobRun, status="died") == other + died
    assert listed(admin_client, JobRun, status="died", job="jobA") == died
    assert listed(admin_client, JobRun, status="failed") == []


@pytest.mark.parametrize(
    "query",
    [
        {"status": "nonsense"},
        {"job": "' OR 1"},
        {"status": ""},
    ],
)
def test_unknown_value_of_a_filter_is_refused(admin_client, query):
    make_runs(1)
    response = admin_client.get(list_url(JobRun, **query))
    assert (response.status_code, response.headers["Location"]) == (302, list_url(JobRun, e="1"))


@pytest.mark.parametrize(
    "query", [{"error__icontains": "x"}, {"host": "h"}, {"job__paused_at__isnull": "1"}]
)
def test_column_without_a_filter_cannot_be_asked_for(admin_client, query):
    make_runs(1)
    assert admin_client.get(list_url(JobRun, **query)).status_code == 400


def test_facets_are_off(admin_client):
    make_runs(3)
    assert b"Show counts" not in admin_client.get(list_url(JobRun)).content
    plain = len(statements(admin_client, list_url(JobRun)))
    assert len(statements(admin_client, list_url(JobRun, _facets="True"))) == plain


def test_actions_of_all_apps_can_be_filtered_by(admin_client):
    page = admin_client.get(list_url(AuditRecord)).content.decode()
    for action in ("job-paused", "outbox-entry-dead", "account-closed", "split-order-reversed"):
        assert f"?action={action}" in page


# Search


def test_record_is_found_by_anything_exact(admin_client):
    run = uuid.uuid4()
    (pk,) = make_records(1, actor="bob", action="job-resumed", target_id="jobB", run_id=run)
    make_records(5)
    for term in (str(pk), "bob", "job-resumed", "jobB", "job/jobB", str(run), run.hex, " bob "):
        assert listed(admin_client, AuditRecord, q=term) == [pk], term


def test_target_is_found_by_its_type_even_if_nobody_registered_it(admin_client):
    (pk,) = make_records(1, target_type="plan", target_id="a/b")
    make_records(1, target_id="a/b")
    assert listed(admin_client, AuditRecord, q="plan/a/b") == [pk]


def test_run_is_found_by_its_uuid_through_the_index(admin_client):
    make_runs(3)
    run = JobRun.objects.latest("id")
    assert listed(admin_client, JobRun, q=str(run.run_id)) == [run.pk]
    found = statements(admin_client, list_url(JobRun, q=str(run.run_id)))
    assert not [it for it in found if "CAST" in it.upper()]


@pytest.mark.parametrize(
    "term",
    ["nobody", "9" * 30, "-1", "٣", "½", "12.5", "'", '"', "%", "a\\", "x" * 5_000, "😀", "b"],
)
def test_what_cannot_be_a_value_finds_nothing(admin_client, term):
    make_records(2)
    make_runs(2)
    assert listed(admin_client, AuditRecord, q=term) == []
    assert listed(admin_client, JobRun, q=term) == []


def test_search_has_no_or_and_each_field_its_own_statement(admin_client):
    make_records(2)
    found = statements(admin_client, list_url(AuditRecord, q="ann"))
    assert not [it for it in found if " OR " in it]
    assert len([it for it in found if "LIMIT 1000" in it]) >= 2


def test_blank_search_is_no_search(admin_client):
    records = make_records(2)
    assert listed(admin_client, AuditRecord, q="  ") == records


def test_newest_of_too_many_are_shown_and_it_is_said(admin_client, small_limits):
    newest_first = make_records(12)
    response = admin_client.get(list_url(AuditRecord, q="ann"))
    shown = [row.pk for row in response.context["cl"].result_list]
    assert shown == newest_first[:10]
    (message,) = response.context["messages"]
    assert str(message) == "More than 10 rows match: these are the newest."


def test_nothing_is_said_of_as_many_as_are_shown(admin_client, small_limits):
    make_records(10)
    response = admin_client.get(list_url(AuditRecord, q="ann"))
    assert len(response.context["cl"].result_list) == 10
    assert list(response.context["messages"]) == []


def test_search_and_filter_work_together(admin_client):
    make_records(2)
    resumed = make_records(1, action="job-resumed")
    assert listed(admin_client, AuditRecord, q="ann", action="job-resumed") == resumed


# django-q2's own models


@pytest.mark.parametrize("name", ["schedule", "ormq", "success", "failure"])
def test_queue_cannot_be_edited_by_hand(admin_client, name):
    assert not admin.site.is_registered(apps.get_model("django_q", name))
    with pytest.raises(NoReverseMatch):
        reverse(f"admin:django_q_{name}_changelist")
    assert admin_client.get(f"/admin/django_q/{name}/").status_code == 404


def test_discovering_admins_again_brings_nothing_back():
    autodiscover_modules("admin", register_to=admin.site)
    assert not admin.site.is_registered(django_q.admin.Schedule)


def test_models_are_hidden_whether_or_not_they_were_registered(monkeypatch):
    site = AdminSite()
    monkeypatch.setattr(admin, "site", site)
    site.register(django_q.admin.Schedule)
    hide("django_q")
    hide("django_q")
    assert not site.is_registered(django_q.admin.Schedule)
