"""Jobs in the admin: what is seen of them; pausing and resuming by hand, on the record."""

import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, OperationalError
from django.test import Client
from django.utils.html import strip_tags
from django_q.models import Schedule

from recovery import pauses, schedules, wakeups
from recovery.admin import operations
from recovery.clock import db_now
from recovery.models import AuditRecord, Job, JobRun
from recovery.wakeups import TASK
from tests.adminpages import list_url, page_url, staff, text_of
from tests.recovery.engine import NAME, in_threads, register, row

URL = "/admin/recovery/job/"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def job(monkeypatch):
    return register(monkeypatch)


@pytest.fixture
def operator():
    return staff("ann", "view_job", "change_job")


@pytest.fixture
def onlooker():
    return staff("bob", "view_job")


def chosen(*names, action="pause", **more):
    return {"action": action, "_selected_action": list(names), **more}


def confirmed(*names, action="pause", reason="stocktaking", **more):
    return chosen(*names, action=action, confirmed="yes", reason=reason, **more)


def messages_in(response):
    return [str(it) for it in response.context["messages"]]


def records():
    columns = ("action", "actor", "target_type", "target_id", "reason")
    return list(AuditRecord.objects.order_by("id").values_list(*columns))


# What is seen


def test_list_shows_the_state_of_each_job(admin_client):
    now = db_now()
    Job.objects.filter(name=NAME).update(
        heartbeat_at=now - timedelta(seconds=10_000),
        lease_owner="host:1:t",
        lease_expires_at=now + timedelta(seconds=1_010),
        last_status="failed",
        last_duration_s=1.25,
        last_finished_at="2026-01-02T03:04:05Z",
        last_error="Boom: it broke",
    )
    Schedule.objects.create(name=NAME, func=TASK, next_run="2026-01-02T03:05:00Z")
    shown = text_of(admin_client, URL)
    for text in (
        "at work",
        "2 h ago",
        "host:1:t, 16 min left",
        "2026-01-02 03:05:00",
        "failed 1.250 s",
        "2026-01-02 03:04:05",
        "Boom: it broke",
    ):
        assert text in shown, text


def test_name_in_the_heading_is_the_one_to_copy(admin_client):
    heading = admin_client.get(page_url(row())).content.decode().partition("<main")[0]
    assert re.search(rf">\s*{NAME}\s*</", heading)
    assert f"{NAME[0].upper()}{NAME[1:]}" not in heading


def test_job_that_never_ran_is_shown(admin_client):
    shown = text_of(admin_client, URL)
    assert "never ran" in shown
    assert "free" in shown
    assert "never ran" in text_of(admin_client, page_url(row()))


@pytest.mark.parametrize(("age_s", "late"), [(10_700, False), (10_801, True)])
def test_heartbeat_older_than_three_periods_is_marked(admin_client, settings, age_s, late):
    settings.JOB_OUTBOX_PERIOD_SEC = 3_600
    Job.objects.filter(name=NAME).update(heartbeat_at=db_now() - timedelta(seconds=age_s))
    assert (b"state-late" in admin_client.get(URL).content) is late
    pauses.pause(NAME, actor="ann")
    assert b"state-late" not in admin_client.get(URL).content


def test_lease_that_expired_is_free(admin_client):
    Job.objects.filter(name=NAME).update(
        lease_owner="host:1:t", lease_expires_at="2026-01-01T00:00:00Z"
    )
    shown = text_of(admin_client, URL)
    assert "free; expired under host:1:t" in shown
    assert "at work" not in shown


def test_job_of_another_version_is_shown(admin_client):
    Job.objects.create(name="bygone", heartbeat_at="2026-01-01T00:00:00Z")
    assert "bygone" in text_of(admin_client, URL)
    page = text_of(admin_client, page_url(row("bygone")))
    assert "This version of the program has no such job." in page


def test_page_shows_the_latest_runs_and_leads_to_the_rest(admin_client, job):
    for number in range(25):
        JobRun.objects.create(
            job=job, fence=number, host="h", pid=number, status="ok", counts={"posted": number}
        )
    page = admin_client.get(page_url(job)).content.decode()
    assert page.count("/admin/recovery/jobrun/") >= 20
    assert "posted 24" in page
    assert "posted 5<" in page
    assert "posted 4<" not in page
    assert f'href="{list_url(JobRun, job=NAME)}"' in page


def test_page_of_a_run_shows_error_and_audit_records(admin_client, job):
    run = JobRun.objects.create(
        job=job, fence=1, host="h", pid=7, status="failed", error="Traceback <b>\n  here"
    )
    record = AuditRecord.objects.create(
        actor="system:x", action="y", target_type="split-order", target_id="SO-9", run_id=run.run_id
    )
    page = admin_client.get(page_url(run)).content.decode()
    assert "Traceback &lt;b&gt;\n  here" in page
    assert f'href="{page_url(record)}"' in page
    assert f'href="{page_url(job)}"' in page


def test_unfinished_run_and_strange_counts_are_shown(admin_client, job):
    run = JobRun.objects.create(job=job, fence=1, host="h", pid=7, counts=["what", "ever"])
    assert "running" in text_of(admin_client, list_url(JobRun))
    assert "&quot;ever&quot;" in admin_client.get(page_url(run)).content.decode()
    assert "running" in text_of(admin_client, page_url(job))


def test_page_of_a_record_shows_what_changed_and_leads_to_the_job(admin_client, job):
    pauses.pause(NAME, actor="ann", reason="because")
    record = AuditRecord.objects.get()
    page = admin_client.get(page_url(record)).content.decode()
    assert "&quot;state&quot;: &quot;paused&quot;" in page
    assert f'href="{page_url(job)}"' in page


def test_record_about_what_is_gone_is_shown(admin_client):
    for kind, target in (("job", "gone"), ("outbox-entry", "x"), ("account", "x"), ("plan", "1")):
        record = AuditRecord.objects.create(
            actor="a", action="b", target_type=kind, target_id=target, evidence={"deep": [1, {}]}
        )
        assert f"{kind}/{target}" in text_of(admin_client, page_url(record))


# Pausing and resuming


def test_pause_asks_for_the_reason_first(operator):
    response = operator.post(URL, chosen(NAME))
    assert response.status_code == 200
    assert response.template_name == "admin/recovery/operation.html"
    assert NAME in strip_tags(response.content.decode())
    assert row().paused_at is None
    assert records() == []


def test_pause_with_a_reason_is_done_and_on_the_record(operator):
    response = operator.post(URL, confirmed(NAME), follow=True)
    assert row().paused_at
    assert messages_in(response) == [f"Job {NAME} is paused."]
    assert records() == [("job-paused", "ann", "job", NAME, "stocktaking")]


@pytest.mark.parametrize("reason", ["", "   ", "\n", "nul\0", "x" * 4_001])
def test_no_reason_no_pause(operator, reason):
    response = operator.post(URL, confirmed(NAME, reason=reason))
    assert response.status_code == 200
    assert response.context["form"].errors
    assert row().paused_at is None
    assert records() == []


def test_resume_wakes_the_job(operator, monkeypatch):
    pauses.pause(NAME, actor="ann", reason="x")
    woken = []
    monkeypatch.setattr(pauses, "enqueue", woken.append)
    response = operator.post(URL, confirmed(NAME, action="resume", reason="done"), follow=True)
    assert messages_in(response) == [f"Job {NAME} runs again."]
    assert row().paused_at is None
    assert woken == [NAME]
    assert records()[-1] == ("job-resumed", "ann", "job", NAME, "done")


def test_what_was_so_already_is_said_per_job(operator, monkeypatch):
    register(monkeypatch, name="other")
    pauses.pause("other", actor="bob", reason="x")
    response = operator.post(URL, confirmed(NAME, "other"), follow=True)
    assert messages_in(response) == [
        "Job other was paused already; nothing has been changed.",
        f"Job {NAME} is paused.",
    ]
    assert [it[0] for it in records()] == ["job-paused", "job-paused"]
    response = operator.post(URL, confirmed(NAME, action="resume"), follow=True)
    response = operator.post(URL, confirmed(NAME, action="resume"), follow=True)
    assert messages_in(response) == [f"Job {NAME} was not paused; nothing has been changed."]


def test_two_operators_at_once_pause_and_record_once(operator):
    other = staff("carl", "view_job", "change_job")
    clients = (operator, other)
    first, second = in_threads(
        *[lambda client=client: client.post(URL, confirmed(NAME)).status_code for client in clients]
    )
    assert (first, second) == (302, 302)
    assert row().paused_at
    assert len(records()) == 1


def test_no_record_no_pause(operator, monkeypatch):
    def refuse(**_kwargs):
        raise RuntimeError("the audit table is gone")

    monkeypatch.setattr(pauses.audit, "record", refuse)
    with pytest.raises(RuntimeError):
        operator.post(URL, confirmed(NAME))
    assert row().paused_at is None


def test_busy_database_is_said_and_changes_nothing(operator, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OperationalError(1205, "Lock wait timeout exceeded")

    monkeypatch.setattr(pauses, "pause", refuse)
    response = operator.post(URL, confirmed(NAME), follow=True)
    assert messages_in(response) == [
        f"The database is busy: {NAME} has not been changed. Try again."
    ]


def test_other_errors_of_the_database_are_not_hidden(operator, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise IntegrityError(1062, "Duplicate entry")

    monkeypatch.setattr(pauses, "pause", refuse)
    with pytest.raises(IntegrityError):
        operator.post(URL, confirmed(NAME))


def test_button_on_the_page_leads_through_the_same_question_and_back(operator, job):
    page = operator.get(page_url(job)).content.decode()
    run_now, form = re.findall(
        r'<form method="post" action="/admin/recovery/job/">.*?</form>', page, re.S
    )
    assert 'value="run_now"' in run_now
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form))
    token = fields.pop("csrfmiddlewaretoken")
    assert token
    assert fields == {"action": "pause", "_selected_action": NAME, "from_page": "yes"}
    question = operator.post(URL, fields)
    assert 'name="from_page"' in question.content.decode()
    response = operator.post(URL, confirmed(NAME, from_page="yes"))
    assert (response.status_code, response.headers["Location"]) == (302, page_url(job))
    assert b'value="resume"' in operator.get(page_url(job)).content


def test_run_now_wakes_the_job_and_is_on_the_record(operator, job, monkeypatch):
    woken = []
    monkeypatch.setattr(pauses, "enqueue", woken.append)
    operator.post(URL, confirmed(NAME, action="run_now"))
    assert woken == [NAME]
    assert records() == [("job-run-requested", "ann", "job", NAME, "stocktaking")]


def test_paused_job_is_not_asked_to_run(operator, job, monkeypatch):
    woken = []
    monkeypatch.setattr(pauses, "enqueue", woken.append)
    Job.objects.filter(name=NAME).pause()
    response = operator.post(URL, confirmed(NAME, action="run_now"), follow=True)
    assert "is paused: resume it first" in response.content.decode()
    assert not woken
    assert not AuditRecord.objects.exists()


# Who may


def test_onlooker_sees_no_action_and_no_button(onlooker, job):
    response = onlooker.get(URL)
    assert response.context["action_form"] is None
    assert b'value="pause"' not in response.content
    page = onlooker.get(page_url(job)).content
    assert b'action="/admin/recovery/job/"' not in page


@pytest.mark.parametrize("data", [chosen(NAME), confirmed(NAME), confirmed(NAME, index="0")])
def test_forged_post_of_an_onlooker_is_refused(onlooker, data):
    assert onlooker.post(URL, data).status_code == 403
    assert row().paused_at is None
    assert records() == []


def test_permission_for_other_rows_does_not_help():
    client = staff("eve", "view_job", "change_jobrun", "change_account", "add_job", "delete_job")
    assert client.post(URL, confirmed(NAME)).status_code == 403


def test_stranger_is_sent_to_the_login():
    response = Client().post(URL, confirmed(NAME))
    assert (response.status_code, "/admin/login/" in response.headers["Location"]) == (302, True)
    assert row().paused_at is None


def test_post_without_a_csrf_token_is_refused(operator):
    careful = Client(enforce_csrf_checks=True)
    careful.force_login(User.objects.get(username="ann"))
    assert careful.post(URL, confirmed(NAME)).status_code == 403
    assert row().paused_at is None


def test_get_changes_nothing(operator):
    operator.get(URL, confirmed(NAME))
    operator.get(page_url(row()), confirmed(NAME))
    assert row().paused_at is None


def test_permission_to_change_does_not_open_the_form(operator, job):
    assert (
        operator.post(page_url(job), {"name": NAME, "paused_at_0": "2026-01-01"}).status_code == 403
    )
    page = operator.get(page_url(job)).content
    assert b'name="_save"' not in page
    assert b'name="fence"' not in page


def test_nobody_deletes_by_action(admin_client):
    admin_client.post(URL, confirmed(NAME, action="delete_selected", post="yes"))
    assert Job.objects.filter(name=NAME).exists()


# Too many, too few


def test_action_without_a_choice_changes_nothing(operator):
    response = operator.post(URL, {"action": "pause", "index": "0"}, follow=True)
    assert len(messages_in(response)) == 1
    assert records() == []


def test_row_that_is_gone_is_said(operator):
    response = operator.post(URL, confirmed("gone"), follow=True)
    assert messages_in(response) == ["Choose between 1 and 100 rows. Nothing has been changed."]


def test_more_than_a_page_cannot_be_changed_at_once(operator, monkeypatch):
    monkeypatch.setattr(operations, "MOST_AT_ONCE", 1)
    Job.objects.create(name="other")
    response = operator.post(URL, confirmed(NAME, select_across="1"), follow=True)
    assert messages_in(response) == ["Choose between 1 and 1 rows. Nothing has been changed."]
    assert not Job.objects.exclude(paused_at=None).exists()


def test_schedules_show_for_every_registered_job(admin_client):
    schedules.mend()
    shown = text_of(admin_client, URL)
    for tick in Schedule.objects.filter(func=wakeups.TASK):
        assert tick.name in shown
        assert tick.next_run.strftime("%Y-%m-%d %H:%M:%S") in shown
