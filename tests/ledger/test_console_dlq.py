"""Dead letters in the console: by cause, previewed, and repaired by one plan a request."""

import json
import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError
from django.test import Client
from django.utils.html import strip_tags

from ledger import dlq
from ledger.models import DeadLetter, EntryStatus, OutboxEntry
from ledger.outbox import payload_of
from recovery import foreground, plans
from recovery.admin import proposals
from recovery.clock import db_now
from recovery.models import AuditRecord, Plan, PlanStatus
from tests.adminpages import list_url, listed, page_url, staff, text_of
from tests.console import REASON, asked_for, carried, filled, messages_in, preview_url
from tests.ledger.entries import fresh, into, store
from tests.recovery.engine import in_threads

pytestmark = pytest.mark.django_db

URL = "/admin/dlq/"
REDRIVE, DISCARD, EDIT = "outbox.redrive", "outbox.discard", "outbox.edit"
SEES = ("view_outboxentry", "view_deadletter", "view_plan")
CLOSED = ("account_closed", "account stock:OAK is closed")
BROKEN = ("unexpected", "KeyError: 'unit'")


@pytest.fixture(autouse=True)
def _quick(settings, monkeypatch):
    settings.JOB_OUTBOX_MAX_ATTEMPTS = 3
    monkeypatch.setattr(foreground, "NUDGE_AFTER_S", 0.0)


@pytest.fixture
def ann():
    return staff(
        "ann",
        *SEES,
        "redrive_outboxentry",
        "discard_outboxentry",
        "edit_outboxentry",
        "view_payload",
    )


@pytest.fixture
def bob():
    return staff("bob", *SEES, "redrive_outboxentry", "discard_outboxentry")


@pytest.fixture
def viewer():
    return staff("eve", *SEES)


def dead(*keys, why=CLOSED, aggregate=None, died_at=None, **columns):
    """Return entries that have died, each of its own lot unless the aggregate is given."""
    code, error = why
    stored = store((key, aggregate or f"lot:{key}", into("OAK", "1")) for key in keys)
    ids = [it.pk for it in stored]
    OutboxEntry.objects.filter(pk__in=ids).update(
        status="dead", attempts=3, last_error_code=code, last_error=error, **columns
    )
    dlq.file((pk, code, error) for pk in ids)
    if died_at:
        DeadLetter.objects.filter(pk__in=ids).update(died_at=died_at)
    return list(OutboxEntry.objects.filter(pk__in=ids).order_by("pk"))


def group_of(entry):
    return DeadLetter.objects.get(pk=entry.pk).group


def ids_of(entries):
    return ",".join(str(it.pk) for it in entries)


def said(response):
    return re.sub(r"\s+", " ", strip_tags(response.content.decode().replace("<", " <")))


def actions_of(buttons):
    return [it["url"].partition("?")[0].split("/")[-2] for it in buttons]


# What is dead


def test_groups_are_shown_with_count_code_advice_list_and_example(viewer):
    broken = dead("x1", why=BROKEN)
    closed = dead("a1", "a2", "a3")
    context = viewer.get(URL).context
    assert context["total"] == 4
    assert [(it["count"], it["group"].code) for it in context["groups"]] == [
        ("3", "account_closed"),
        ("1", "unexpected"),
    ]
    first, second = context["groups"]
    assert "Closed accounts" in first["advice"]
    assert "The program failed" in second["advice"]
    assert first["example"] == page_url(closed[0])
    assert second["example"] == page_url(broken[0])
    assert viewer.get(first["example"]).status_code == 200
    shown = text_of(viewer, URL)
    assert "4 entries could not be posted" in shown
    assert "account stock:* is closed" in shown


def test_list_of_a_group_has_its_entries_only(viewer):
    dead("x1", why=BROKEN)
    closed = dead("a1", "a2")
    url = viewer.get(URL).context["groups"][0]["list"]
    assert url == list_url(DeadLetter, group=group_of(closed[0]))
    found = listed(viewer, DeadLetter, group=group_of(closed[0]))
    assert sorted(found) == [it.pk for it in closed]


def test_empty_dlq_says_so(viewer):
    assert "Nothing is dead" in text_of(viewer, URL)
    assert viewer.get(URL).context["groups"] == []


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"code": "unexpected"}, 2),
        ({"code": "account_closed"}, 1),
        ({"type": "other"}, 1),
        ({"older_than": "2h"}, 1),
        ({"code": "unexpected", "older_than": "2h"}, 1),
        ({"code": "account_closed", "type": "other"}, 0),
        ({"code": "", "type": "", "older_than": ""}, 3),
    ],
)
def test_filters_narrow_the_groups_down(ann, query, count):
    dead("a1")
    dead("x1", why=BROKEN, created_at=db_now() - timedelta(hours=3))
    dead("x2", why=BROKEN, event_type="other")
    context = ann.get(URL, query).context
    assert (context["total"], context["problem"]) == (count, "")
    (redrive, *_) = context["buttons"]
    previewed = ann.get(redrive["url"])
    assert previewed.context["seen"].fitting == count


def test_what_a_filter_does_not_find_is_not_called_well(viewer):
    dead("a1")
    assert "Nothing matches." in text_of(viewer, f"{URL}?type=none")


@pytest.mark.parametrize(
    "query", [{"code": "nonsense"}, {"older_than": "soon"}, {"older_than": "999999999999w"}]
)
def test_unreadable_filter_says_so_and_shows_all(ann, query):
    dead("a1", "a2")
    response = ann.get(URL, query)
    assert "This filter cannot be read: all dead entries are shown." in said(response)
    assert response.context["total"] == 2
    assert "all=1" in response.context["buttons"][0]["url"]
    assert ann.get(preview_url(REDRIVE, **query)).status_code == 400


# Who may


@pytest.mark.parametrize(
    ("permission", "offered"),
    [
        ("view_payload", []),
        ("redrive_outboxentry", [REDRIVE]),
        ("discard_outboxentry", [DISCARD]),
    ],
)
def test_buttons_and_actions_are_of_those_who_may(settings, permission, offered):
    settings.DLQ_EDIT_ENABLED = True
    (entry,) = dead("a1")
    client = staff("dan", *SEES, permission)
    context = client.get(URL).context
    assert actions_of(context["buttons"]) == offered
    assert actions_of(context["groups"][0]["buttons"]) == offered
    assert actions_of(client.get(page_url(entry)).context["buttons"]) == offered
    form = client.get(list_url(DeadLetter)).context["action_form"]
    names = [name for name, _label in form.fields["action"].choices if name] if form else []
    assert names == offered


@pytest.mark.parametrize("action", [REDRIVE, DISCARD, EDIT])
def test_preview_and_post_without_the_permission_are_refused(viewer, settings, action):
    settings.DLQ_EDIT_ENABLED = True
    (entry,) = dead("a1")
    url = preview_url(action, ids=entry.pk)
    assert viewer.get(url).status_code == 403
    assert viewer.post(url, {"reason": "x", "go": "yes"}).status_code == 403
    assert asked_for() == (0, 0)


def test_unknown_action_is_not_found(ann):
    assert ann.get(preview_url("outbox.eat", all=1)).status_code == 404


# What would change


def test_preview_of_one_shows_what_changes_and_changes_nothing(ann):
    (entry,) = dead("a1")
    shown = text_of(ann, preview_url(REDRIVE, ids=entry.pk))
    assert "1 row would be changed." in shown
    assert "status: dead → pending" in shown
    assert "attempts: 3 → 0" in shown
    assert fresh(entry).status == EntryStatus.DEAD
    assert asked_for() == (0, 0)


def test_action_of_the_list_leads_to_the_preview_of_what_is_ticked(ann):
    first, _second, third = dead("a1", "a2", "a3")
    chosen = {"action": REDRIVE, "_selected_action": [third.pk, first.pk]}
    response = ann.post(list_url(DeadLetter), chosen)
    expected = preview_url(REDRIVE, ids=ids_of([first, third]))
    assert (response.status_code, response.headers["Location"]) == (302, expected)
    assert ann.get(expected).context["seen"].fitting == 2
    assert asked_for() == (0, 0)


def test_more_than_can_be_named_in_an_address_is_refused(ann, monkeypatch):
    monkeypatch.setattr(proposals, "MOST_IDS", 1)
    entries = dead("a1", "a2")
    chosen = {"action": REDRIVE, "_selected_action": [it.pk for it in entries]}
    response = ann.post(list_url(DeadLetter), chosen, follow=True)
    assert messages_in(response) == ["Choose between 1 and 1 rows. Nothing has been changed."]
    assert ann.get(preview_url(REDRIVE, ids=ids_of(entries))).status_code == 400


def test_preview_asks_whether_the_cause_has_gone_once_a_cause(ann):
    dead("a1", "a2")
    page = said(ann.get(preview_url(REDRIVE, all=1)))
    assert page.count("Reopen the account, or find out why it is closed") == 1
    assert "Has the cause gone?" in page
    assert "Has the cause gone?" not in said(ann.get(preview_url(DISCARD, all=1)))


def test_preview_of_a_group_and_of_all_say_what_is_meant(ann):
    dead("x1", why=BROKEN)
    closed = dead("a1", "a2")
    group = group_of(closed[0])
    of_group = text_of(ann, preview_url(REDRIVE, group=group))
    assert f"2 dead entries: group {group}" in of_group
    assert "2 rows would be changed." in of_group
    of_all = text_of(ann, preview_url(REDRIVE, all=1))
    assert "3 dead entries: the whole DLQ" in of_all
    assert "3 rows would be changed." in of_all


@pytest.mark.parametrize(
    "query",
    [{}, {"ids": ""}, {"ids": "x"}, {"ids": "1,-2"}, {"all": "1", "code": "unexpected"}],
)
def test_address_that_names_no_rows_says_so(ann, query):
    dead("a1")
    url = preview_url(REDRIVE, **query)
    for response in (ann.get(url), ann.post(url, {"reason": "x", "go": "yes"})):
        assert response.status_code == 400
        assert "This address names no rows" in said(response)
    assert asked_for() == (0, 0)


def test_preview_says_how_many_are_left_out_and_why(ann):
    one, other = dead("a1", "a2")
    OutboxEntry.objects.filter(pk=other.pk).update(status="pending")
    response = ann.get(preview_url(REDRIVE, ids=ids_of([one, other])))
    seen = response.context["seen"]
    assert (seen.asked, seen.fitting, dict(seen.misfits)) == (
        2,
        1,
        {"it is pending, not dead": 1},
    )
    assert "1: it is pending, not dead" in said(response)


def test_entry_behind_a_dead_one_is_left_out_unless_both_are_redriven(ann):
    head, behind = dead("a1", "a2", aggregate="lot:B")
    why = f"it would wait for entry {head.pk} before it, which is dead"
    alone = ann.get(preview_url(REDRIVE, ids=behind.pk))
    assert dict(alone.context["seen"].misfits) == {why: 1}
    assert "Nothing is left to do" in said(alone)
    both = ann.get(preview_url(REDRIVE, ids=ids_of([head, behind]))).context["seen"]
    assert (both.fitting, dict(both.misfits)) == (2, {})


def test_preview_of_many_looks_at_the_first_and_says_so(ann, monkeypatch):
    monkeypatch.setattr(proposals, "LOOKED_AT_ROWS", 2)
    monkeypatch.setattr(proposals, "SHOWN_ROWS", 1)
    entries = dead("a1", "a2", "a3")
    shown = text_of(ann, preview_url(REDRIVE, all=1))
    assert "Only the first 2 of 3 were looked at here" in shown
    assert "These are the first rows." in shown
    OutboxEntry.objects.filter(pk__in=[it.pk for it in entries[:2]]).update(status="pending")
    url = preview_url(REDRIVE, ids=ids_of(entries))
    assert not ann.get(url).context["seen"].is_in_vain()
    ann.post(url, filled(ann, url))
    assert Plan.objects.get().rows_total == 1


# One plan a request


@pytest.mark.parametrize("reason", [None, "", "   "])
def test_without_a_reason_nothing_is_made_and_the_form_says_so(ann, reason):
    dead("a1")
    url = preview_url(REDRIVE, all=1)
    response = ann.post(url, filled(ann, url, reason=reason))
    assert response.status_code == 200
    assert "This field is required." in said(response)
    assert response.context["seen"].fitting == 1
    assert asked_for() == (0, 0)


def test_post_makes_one_plan_and_starts_it(ann):
    entries = dead("a1", "a2")
    group = group_of(entries[0])
    url = preview_url(REDRIVE, group=group)
    response = ann.post(url, filled(ann, url, rate="2.5"), follow=True)
    plan = Plan.objects.get()
    assert response.redirect_chain == [(page_url(plan), 302)]
    assert messages_in(response) == [f"Plan {plan.pk} runs: 2 rows."]
    assert (plan.action, plan.actor, plan.reason) == (REDRIVE, "ann", REASON)
    assert (plan.status, plan.selection, plan.rate) == (PlanStatus.RUNNING, {"group": group}, 2.5)
    assert plan.canary == [1, 10, 100]
    assert sorted(plan.items.values_list("row_id", flat=True)) == [it.pk for it in entries]
    records = AuditRecord.objects.order_by("id").values_list("action", "actor", "reason")
    assert list(records) == [("plan-created", "ann", REASON), ("plan-started", "ann", REASON)]


def test_canary_and_rate_are_offered_where_they_make_sense(ann):
    one, _other = dead("a1", "a2")
    assert "canary" not in ann.get(preview_url(REDRIVE, ids=one.pk)).context["form"].fields
    assert "canary" not in ann.get(preview_url(DISCARD, all=1)).context["form"].fields
    url = preview_url(REDRIVE, all=1)
    ann.post(url, filled(ann, url, canary=None))
    assert Plan.objects.get().canary == []


@pytest.mark.parametrize("rate", ["-1", "0", "fast"])
def test_wrong_rate_makes_nothing(ann, rate):
    dead("a1", "a2")
    url = preview_url(REDRIVE, all=1)
    response = ann.post(url, filled(ann, url, rate=rate))
    assert response.context["form"].errors["rate"]
    assert asked_for() == (0, 0)


def test_same_form_sent_again_leads_to_the_plan_it_made(ann):
    dead("a1", "a2")
    url = preview_url(REDRIVE, all=1)
    form = filled(ann, url)
    ann.post(url, form)
    plan, before = Plan.objects.get(), asked_for()
    for again in (form, {**form, "reason": "another one"}):
        response = ann.post(url, again, follow=True)
        assert response.redirect_chain == [(page_url(plan), 302)]
        assert messages_in(response)[-1] == f"This was sent already: it is plan {plan.pk}, 2 rows."
    assert asked_for() == before
    assert Plan.objects.get().reason == REASON


@pytest.mark.django_db(transaction=True)
def test_form_sent_twice_at_once_makes_one_plan(ann):
    dead("a1", "a2")
    url = preview_url(REDRIVE, all=1)
    form, cookies = filled(ann, url), ann.cookies

    def send():
        client = Client()
        client.cookies = cookies
        return client.post(url, form).headers["Location"]

    first, second = in_threads(send, send)
    plan = Plan.objects.get()
    assert (first, second) == (page_url(plan), page_url(plan))
    assert plan.status == PlanStatus.RUNNING
    made = AuditRecord.objects.order_by("id").values_list("action", flat=True)
    assert list(made) == ["plan-created", "plan-started"]


@pytest.mark.django_db(transaction=True)
def test_form_sent_again_while_its_plan_is_made_leads_to_the_plan(ann, monkeypatch):
    """The second looks for a plan before there is one, and at the rows when it has them."""
    dead("a1")
    url = preview_url(REDRIVE, all=1)
    form = filled(ann, url)
    assert ann.post(url, form).status_code == 302
    of_request, answers = plans.of_request, iter([None])
    monkeypatch.setattr(
        plans, "of_request", lambda *key, **whose: next(answers, of_request(*key, **whose))
    )
    assert ann.post(url, form).headers["Location"] == page_url(Plan.objects.get())


@pytest.mark.django_db(transaction=True)
def test_second_operator_is_told_that_nothing_is_left_and_who_was_first(ann, bob):
    (entry,) = dead("a1")
    url = preview_url(DISCARD, group=group_of(entry))
    one = preview_url(DISCARD, ids=entry.pk)
    late, later = filled(bob, url), filled(bob, one)
    ann.post(url, filled(ann, url))
    assert carried(Plan.objects.get()).status == PlanStatus.DONE
    assert fresh(entry).status == EntryStatus.DISCARDED
    before = asked_for()
    for sent_to, form in ((url, late), (one, later)):
        response = bob.post(sent_to, form)
        assert response.status_code == 409
        assert "Nothing is left to do" in said(response)
        assert b'name="go"' not in response.content
    assert "Last: outbox-entry-discarded by ann" in said(response)
    assert REASON in said(response)
    assert asked_for() == before


def test_rows_that_wait_in_another_plan_are_left_out_and_the_plan_is_named(ann, bob):
    first, second = dead("a1", "a2")
    url = preview_url(DISCARD, ids=first.pk)
    form = filled(bob, url)
    ann.post(url, filled(ann, url))
    plan = Plan.objects.get()
    response = bob.post(url, form)
    assert (response.status_code, Plan.objects.count()) == (409, 1)
    assert f"it waits in plan {plan.pk}" in said(response)
    assert ann.get(preview_url(REDRIVE, ids=first.pk)).context["seen"].fitting == 1
    both = ann.get(preview_url(DISCARD, ids=f"{first.pk},{second.pk}")).context["seen"]
    assert (both.fitting, both.left_out()) == (1, [(f"it waits in plan {plan.pk}", 1)])
    carried(plan)
    assert f"it waits in plan {plan.pk}" not in said(ann.get(url))


def test_entries_that_died_after_the_preview_are_not_in_the_plan(ann):
    early = dead("a1", "a2", died_at=db_now() - timedelta(minutes=5))
    url = preview_url(REDRIVE, group=group_of(early[0]))
    form = filled(ann, url)
    dead("a3", died_at=db_now() + timedelta(seconds=1))
    ann.post(url, form)
    rows = Plan.objects.get().items.values_list("row_id", flat=True)
    assert sorted(rows) == [it.pk for it in early]


def test_entries_that_grew_old_enough_after_the_preview_are_not_in_the_plan(ann):
    now = db_now()
    hours_ago = now - timedelta(hours=3)
    (old,) = dead("a1", created_at=hours_ago, died_at=hours_ago)
    url = preview_url(REDRIVE, older_than="2h")
    form = filled(ann, url)
    young = now - timedelta(hours=2, seconds=5)
    dead("a2", created_at=young, died_at=young + timedelta(minutes=1))
    form["seen_at"] = (now - timedelta(seconds=10)).isoformat()
    ann.post(url, form)
    assert list(Plan.objects.get().items.values_list("row_id", flat=True)) == [old.pk]


def test_form_without_its_hidden_fields_makes_nothing(ann):
    dead("a1")
    url = preview_url(REDRIVE, all=1)
    for name in ("request_key", "seen_at"):
        response = ann.post(url, filled(ann, url, **{name: None}))
        assert response.context["form"].errors[name]
    assert asked_for() == (0, 0)


@pytest.mark.parametrize(
    "shift", [timedelta(hours=1), -timedelta(days=3), timedelta(days=-700_000)]
)
def test_form_of_another_time_makes_nothing(ann, shift):
    dead("a1")
    url = preview_url(REDRIVE, all=1)
    forged = (db_now() + shift).isoformat()
    response = ann.post(url, filled(ann, url, seen_at=forged))
    assert "This form is too old" in str(response.context["form"].errors["seen_at"])
    assert asked_for() == (0, 0)


@pytest.mark.parametrize("stray", ["user=1", "names=1", "action=1", "all=1", "ids=7", "x=y"])
def test_buttons_of_the_dlq_carry_its_filter_and_nothing_else(ann, stray):
    dead("a1")
    page = ann.get(f"/admin/dlq/?code=account_closed&{stray}")
    assert page.status_code == 200
    urls = {it["url"].partition("?")[2] for it in page.context["buttons"]}
    assert urls == {"code=account_closed"}


def test_plan_page_says_that_redriven_entries_failed_again(ann):
    (entry,) = dead("a1")
    url = preview_url(REDRIVE, ids=entry.pk)
    ann.post(url, filled(ann, url))
    plan = carried(Plan.objects.get())
    page = ann.get(page_url(plan))
    assert (page.context["refresh_s"], page.context["failed_again"]) == (2, 0)
    OutboxEntry.objects.filter(pk=entry.pk).update(attempts=1, last_error_code="account_closed")
    page = ann.get(page_url(plan))
    assert "1 row has failed again since: the cause is still there." in said(page)
    assert page.context["refresh_s"] == 0


# What goes wrong


def refusing(*refusals):
    """Return what stands for a function that raises these, one a call."""
    left = list(refusals)

    def refuse(*_args, **_kwargs):
        raise left.pop(0)

    return refuse


def test_plan_that_a_crash_left_unstarted_is_started_by_the_next_send(ann, monkeypatch):
    dead("a1", "a2")
    url = preview_url(REDRIVE, all=1)
    form = filled(ann, url)
    with monkeypatch.context() as crashing:
        crashing.setattr(plans, "start", refusing(RuntimeError("the process died")))
        with pytest.raises(RuntimeError):
            ann.post(url, form)
    plan = Plan.objects.get()
    assert plan.status == PlanStatus.PLANNED
    response = ann.post(url, form, follow=True)
    assert messages_in(response) == [f"This was sent already: it is plan {plan.pk}, 2 rows."]
    assert Plan.objects.get().status == PlanStatus.RUNNING


BUSY = OperationalError(1205, "Lock wait timeout exceeded")


def test_plan_that_could_not_be_started_is_made_and_says_so(ann, monkeypatch):
    dead("a1")
    url = preview_url(REDRIVE, all=1)
    form = filled(ann, url)
    with monkeypatch.context() as busy:
        busy.setattr(plans, "start", refusing(BUSY))
        response = ann.post(url, form, follow=True)
    plan = Plan.objects.get()
    text = f"Plan {plan.pk} is made, 1 row; the database was too busy to start it."
    assert (messages_in(response), plan.status) == ([text], PlanStatus.PLANNED)
    assert b'value="start"' in response.content
    ann.post(url, form)
    assert Plan.objects.get().status == PlanStatus.RUNNING


def test_form_of_somebody_else_or_of_another_action_makes_and_starts_nothing(ann, bob):
    dead("a1", "a2")
    url, other = preview_url(REDRIVE, all=1), preview_url(DISCARD, all=1)
    form = filled(ann, url)
    ann.post(url, form)
    Plan.objects.update(status=PlanStatus.PLANNED)
    before = asked_for()
    for client, address in ((bob, url), (ann, other)):
        assert client.post(address, form).status_code == 400
    assert asked_for() == before
    assert Plan.objects.get().status == PlanStatus.PLANNED


def test_busy_database_is_said_and_the_same_form_works_later(ann, monkeypatch):
    dead("a1")
    url = preview_url(REDRIVE, all=1)
    form = filled(ann, url)
    with monkeypatch.context() as busy:
        busy.setattr(plans, "create", refusing(BUSY))
        response = ann.post(url, form)
    assert response.status_code == 503
    assert "The database is busy; nothing has been changed. Try again." in said(response)
    assert form["request_key"] in response.content.decode()
    ann.post(url, form)
    assert Plan.objects.get().status == PlanStatus.RUNNING


def test_session_that_ends_in_the_middle_leads_through_the_login_back_to_the_preview(ann):
    (entry,) = dead("a1")
    url = preview_url(REDRIVE, ids=entry.pk)
    form = filled(ann, url)
    ann.logout()
    response = ann.post(url, form)
    assert response.status_code == 302
    location = response.headers["Location"]
    assert location == f"/admin/login/?next={url.replace('?', '%3F').replace('=', '%3D')}"
    assert asked_for() == (0, 0)
    ann.force_login(User.objects.get(username="ann"))
    assert ann.get(url).context["seen"].fitting == 1
    assert fresh(entry).status == EntryStatus.DEAD
    assert asked_for() == (0, 0)


# Other content


@pytest.fixture
def editing(settings):
    settings.DLQ_EDIT_ENABLED = True


def payload_text(quantity):
    return json.dumps(payload_of(into("OAK", quantity)))


def test_edit_shows_the_payload_that_is_stored(ann, editing):
    (entry,) = dead("a1")
    form = ann.get(preview_url(EDIT, ids=entry.pk)).context["form"]
    assert json.loads(form["payload"].value()) == entry.payload
    assert form["redrive"].value() is True


def test_look_shows_the_diff_and_makes_nothing(ann, editing):
    (entry,) = dead("a1")
    url = preview_url(EDIT, ids=entry.pk)
    look = filled(ann, url, payload=payload_text("7"), go=None, look="yes", reason=None)
    response = ann.post(url, look)
    assert response.status_code == 200
    lines = response.context["rows"][0]["diff"]
    assert [it.strip() for it in lines if it.startswith("+ ")] == [
        '+      "quantity": "7",',
        '+      "quantity": "-7",',
    ]
    assert "status: dead → pending" in said(response)
    assert fresh(entry).payload == entry.payload
    assert asked_for() == (0, 0)


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ("{", "This is not JSON"),
        ("", "This field is required."),
        ("[" * 100_000, "This is not JSON"),
        ("[]", "the payload is not a JSON object"),
        ("{}", "the payload cannot be posted"),
    ],
)
def test_payload_that_cannot_be_is_refused(ann, editing, payload, problem):
    (entry,) = dead("a1")
    url = preview_url(EDIT, ids=entry.pk)
    response = ann.post(url, filled(ann, url, payload=payload))
    assert response.status_code == 200
    assert problem in said(response)
    assert asked_for() == (0, 0)


def test_form_of_a_payload_that_was_changed_meanwhile_makes_nothing(ann, editing):
    (entry,) = dead("a1")
    url = preview_url(EDIT, ids=entry.pk)
    form = filled(ann, url, payload=payload_text("7"))
    OutboxEntry.objects.filter(pk=entry.pk).update(content_hash="1" * 64)
    response = ann.post(url, form)
    assert "The payload has been changed meanwhile" in said(response)
    assert asked_for() == (0, 0)
    ann.post(url, filled(ann, url, payload=payload_text("7")))
    assert Plan.objects.count() == 1


def test_payload_that_is_the_same_leaves_nothing_to_do(ann, editing):
    (entry,) = dead("a1")
    url = preview_url(EDIT, ids=entry.pk)
    response = ann.post(url, filled(ann, url))
    assert response.status_code == 409
    assert "it has this payload already: redrive it" in said(response)
    assert asked_for() == (0, 0)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("redrive", "status"), [("on", "pending"), (None, "dead")])
def test_go_edits_the_entry_by_a_plan(ann, editing, redrive, status):
    (entry,) = dead("a1")
    url = preview_url(EDIT, ids=entry.pk)
    ann.post(url, filled(ann, url, payload=payload_text("7"), redrive=redrive))
    plan = carried(Plan.objects.get())
    assert (plan.action, plan.status, plan.rows_done) == (EDIT, PlanStatus.DONE, 1)
    edited = fresh(entry)
    assert (edited.payload, edited.status) == (payload_of(into("OAK", "7")), status)
    record = AuditRecord.objects.get(action="outbox-entry-edited")
    assert (record.actor, record.reason) == ("ann", REASON)
    assert record.evidence["original"] == entry.payload


def test_edit_is_of_one_entry(ann, editing):
    entries = dead("a1", "a2")
    for query in ({}, {"ids": ids_of(entries)}, {"ids": entries[-1].pk + 1}):
        assert ann.get(preview_url(EDIT, **query)).status_code == 400
    one = preview_url(EDIT, ids=entries[0].pk)
    form = filled(ann, one, payload=payload_text("7"))
    response = ann.post(preview_url(EDIT, ids=ids_of(entries)), form)
    assert "one payload is for one entry" in said(response)
    assert asked_for() == (0, 0)


def test_edit_that_is_off_is_neither_offered_nor_done(ann, settings):
    settings.DLQ_EDIT_ENABLED = True
    (entry,) = dead("a1")
    url = preview_url(EDIT, ids=entry.pk)
    form = filled(ann, url, payload=payload_text("7"))
    assert EDIT in actions_of(ann.get(page_url(entry)).context["buttons"])
    settings.DLQ_EDIT_ENABLED = False
    assert EDIT not in actions_of(ann.get(page_url(entry)).context["buttons"])
    assert ann.get(url).status_code == 403
    assert ann.post(url, form).status_code == 403
    assert asked_for() == (0, 0)
