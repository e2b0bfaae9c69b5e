"""Orders that need a person, in the console: what hangs, the proof, and what may be done."""

import re
from contextlib import suppress

import pytest
from django.db import DatabaseError
from django.db.models.functions import Now
from django.utils.html import strip_tags

from recovery import foreground
from recovery.models import AuditRecord, ItemStatus, Plan, PlanStatus
from splits.models import FinalizeStep, OrderStatus, SplitOrder
from tests.adminpages import list_url, page_url, staff, text_of
from tests.console import REASON, asked_for, carried, filled, preview_url
from tests.factories import SplitOrderFactory, hang

pytestmark = pytest.mark.django_db

URL = "/admin/stuck/"
RECOVER, RETRY, RELEASE = "split.recover", "split.retry", "split.release"
CANCEL, REVERSE = "split.cancel", "split.reverse"
SEES = ("view_splitorder", "view_plan")
MAY = {
    name: f"{name.rpartition('.')[2]}_splitorder"
    for name in (RECOVER, RETRY, RELEASE, CANCEL, REVERSE)
}


@pytest.fixture(autouse=True)
def _quick(settings, monkeypatch):
    settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC = 300
    monkeypatch.setattr(foreground, "NUDGE_AFTER_S", 0.0)


@pytest.fixture
def ann():
    return staff("ann", *SEES, *MAY.values())


@pytest.fixture
def viewer():
    return staff("eve", *SEES)


def sections(client):
    return {it["section"].name: it for it in client.get(URL).context["sections"]}


def numbers(section):
    return [row["order"].number for row in section["rows"]]


def actions_of(buttons):
    return [it["url"].partition("?")[0].split("/")[-2] for it in buttons]


def said(response):
    return re.sub(r"\s+", " ", strip_tags(response.content.decode().replace("<", " <")))


def fresh(order):
    return SplitOrder.objects.get(pk=order.pk)


def send(client, url, **changes):
    """Send the form of a preview; return the plan it made, carried to its end."""
    response = client.post(url, filled(client, url, **changes))
    assert response.status_code == 302, said(response)
    return carried(Plan.objects.latest("id"))


def record(action):
    return AuditRecord.objects.get(action=action)


# What is in trouble


def test_orders_are_shown_by_trouble_the_longest_stuck_first(viewer):
    young = hang(SplitOrderFactory(), age_s=5)
    stuck = hang(SplitOrderFactory(), age_s=1_000)
    longest = hang(SplitOrderFactory(), age_s=9_000)
    failed = SplitOrderFactory(at=OrderStatus.FAILED)
    quarantined = SplitOrderFactory(at=OrderStatus.QUARANTINED)
    SplitOrderFactory()
    SplitOrderFactory(at=OrderStatus.FINALIZED)
    found = sections(viewer)
    assert numbers(found["in_progress"]) == [longest.number, stuck.number, young.number]
    assert [row["stuck"] for row in found["in_progress"]["rows"]] == [True, True, False]
    assert numbers(found["failed"]) == [failed.number]
    assert numbers(found["quarantined"]) == [quarantined.number]


def test_row_says_age_last_step_epoch_and_owner(viewer):
    order = hang(SplitOrderFactory(), age_s=9_000)
    for name in ("validate", "consume_source"):
        FinalizeStep.objects.create(order=order, name=name, epoch=1, completed_at=Now())
    (row,) = sections(viewer)["in_progress"]["rows"]
    assert (row["age"], row["step"], row["steps"]) == ("2 h", "consume source", "2/5")
    shown = text_of(viewer, URL)
    assert f"{order.number} stuck 2 h consume source 2/5" in shown
    assert f"{order.finalize_epoch} dead-host:1:token" in shown


def test_nothing_in_trouble_is_said(viewer):
    shown = text_of(viewer, URL)
    for text in (
        "No order is being finalized.",
        "No order is quarantined.",
        "No order has failed.",
    ):
        assert text in shown


def test_more_than_are_shown_are_behind_a_link(viewer, monkeypatch):
    monkeypatch.setattr("splits.admin.trouble.SHOWN_ORDERS", 1)
    SplitOrderFactory.create_batch(2, at=OrderStatus.FAILED)
    section = sections(viewer)["failed"]
    assert (len(section["rows"]), section["is_more"]) == (1, True)
    assert section["list"] == list_url(SplitOrder, status="failed")


def test_page_takes_the_permission_to_see_orders():
    assert staff("bob", "view_job").get(URL).status_code == 403


# Who may do what


def test_buttons_are_of_those_who_may(viewer):
    hang(SplitOrderFactory())
    SplitOrderFactory.create_batch(2, at=OrderStatus.FAILED)
    SplitOrderFactory(at=OrderStatus.QUARANTINED)
    for section in sections(viewer).values():
        assert not section["buttons"]
        assert not any(row["buttons"] for row in section["rows"])
    found = sections(staff("dan", *SEES, MAY[RETRY]))
    assert actions_of(found["failed"]["buttons"]) == [RETRY]
    assert actions_of(found["failed"]["rows"][0]["buttons"]) == [RETRY]
    assert not found["quarantined"]["buttons"]
    assert not found["in_progress"]["rows"][0]["buttons"]


def test_only_stuck_orders_have_the_buttons_of_a_recovery(ann):
    hang(SplitOrderFactory(), age_s=5)
    section = sections(ann)["in_progress"]
    assert (section["buttons"], section["rows"][0]["buttons"]) == ([], [])
    hang(SplitOrderFactory())
    section = sections(ann)["in_progress"]
    assert actions_of(section["buttons"]) == [RECOVER]
    again, later = section["rows"][0]["buttons"]
    assert (str(again["label"]), str(later["label"])) == ("Recover", "Recover without a retry")


@pytest.mark.parametrize("action", list(MAY))
def test_preview_and_post_without_the_permission_are_refused(viewer, action):
    url = preview_url(action, ids=SplitOrderFactory().pk)
    assert viewer.get(url).status_code == 403
    assert viewer.post(url, {"reason": "x", "go": "yes"}).status_code == 403
    assert asked_for() == (0, 0)


@pytest.mark.parametrize(
    ("status", "offered"),
    [
        (OrderStatus.DRAFT, [CANCEL]),
        (OrderStatus.READY, [CANCEL]),
        (OrderStatus.FAILED, [RETRY, CANCEL]),
        (OrderStatus.QUARANTINED, [RELEASE, CANCEL]),
        (OrderStatus.FINALIZED, [REVERSE]),
        (OrderStatus.REVERSED, []),
        (OrderStatus.CANCELLED, []),
    ],
)
def test_page_of_an_order_has_the_buttons_that_fit_its_status(ann, viewer, status, offered):
    order = SplitOrderFactory(at=status)
    assert actions_of(ann.get(page_url(order)).context["buttons"]) == offered
    assert viewer.get(page_url(order)).context["buttons"] == []


def test_page_of_an_order_in_progress_offers_its_recovery_once_it_is_stuck(ann):
    young, old = hang(SplitOrderFactory(), age_s=5), hang(SplitOrderFactory())
    assert ann.get(page_url(young)).context["buttons"] == []
    assert actions_of(ann.get(page_url(old)).context["buttons"]) == [RECOVER]


def test_action_of_the_list_leads_to_the_preview(ann):
    first, second = hang(SplitOrderFactory()), hang(SplitOrderFactory())
    chosen = {"action": RECOVER, "_selected_action": [second.pk, first.pk]}
    response = ann.post(list_url(SplitOrder), chosen)
    expected = preview_url(RECOVER, ids=f"{first.pk},{second.pk}")
    assert (response.status_code, response.headers["Location"]) == (302, expected)


# The proof


def test_preview_proves_that_nobody_holds_the_order_and_changes_nothing(ann):
    order = hang(SplitOrderFactory())
    before = SplitOrder.objects.values().get(pk=order.pk)
    response = ann.get(preview_url(RECOVER, ids=order.pk))
    (row,) = response.context["rows"]
    assert row["proof"].state == "none"
    assert "no live transaction holds it" in said(response)
    assert f"epoch: {order.finalize_epoch} → {order.finalize_epoch + 1}" in said(response)
    assert SplitOrder.objects.values().get(pk=order.pk) == before
    assert asked_for() == (0, 0)


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_order_that_a_live_transaction_holds_is_shown_and_left_alone(ann, second_connection):
    order = hang(SplitOrderFactory())
    url = preview_url(RECOVER, ids=order.pk)
    second_connection.set_autocommit(False)
    with second_connection.cursor() as cursor:
        cursor.execute("SELECT id FROM splits_splitorder WHERE id = %s FOR UPDATE", [order.pk])
        cursor.execute("SELECT CONNECTION_ID()")
        (connection_id,) = cursor.fetchone()
    try:
        response = ann.get(url)
        (row,) = response.context["rows"]
        assert row["proof"].state == "held"
        assert row["proof"].facts["connection_id"] == connection_id
        assert "held by a live transaction: it would be left alone" in said(response)
        assert f"connection_id: {connection_id}" in said(response)
        plan = send(ann, url)
        assert plan.items.get().status == ItemStatus.HELD
    finally:
        with suppress(DatabaseError):
            second_connection.rollback()
    left = fresh(order)
    assert (left.finalize_in_progress, left.finalize_epoch) == (True, order.finalize_epoch)


@pytest.mark.django_db(transaction=True)
def test_recovery_resets_the_order_with_reason_and_actor_on_the_record(ann):
    order = hang(SplitOrderFactory())
    plan = send(ann, preview_url(RECOVER, ids=order.pk))
    assert (plan.status, plan.selection) == (PlanStatus.DONE, {"ids": [order.pk]})
    left = fresh(order)
    assert not left.finalize_in_progress
    assert left.finalize_epoch == order.finalize_epoch + 1
    assert left.next_finalize_at is not None
    made = record("split-order-finalize-stuck-recovered")
    assert (made.actor, made.reason, made.target_id) == ("ann", REASON, order.number)
    assert made.evidence["plan"] == plan.pk


@pytest.mark.django_db(transaction=True)
def test_recovery_without_a_retry_waits_for_an_operator(ann):
    order = hang(SplitOrderFactory())
    (_again, later) = sections(ann)["in_progress"]["rows"][0]["buttons"]
    assert ann.get(later["url"]).context["form"]["no_retry"].value() is True
    plan = send(ann, later["url"])
    assert plan.parameters["no_retry"] is True
    left = fresh(order)
    assert (left.finalize_in_progress, left.next_finalize_at) == (False, None)


@pytest.mark.django_db(transaction=True)
def test_recovery_of_all_leaves_young_ones_alone(ann):
    young = hang(SplitOrderFactory(), age_s=5)
    stuck = [hang(SplitOrderFactory()) for _ in range(2)]
    (button,) = sections(ann)["in_progress"]["buttons"]
    plan = send(ann, button["url"])
    rows = plan.items.values_list("row_id", flat=True)
    assert sorted(rows) == [it.pk for it in stuck]
    assert fresh(young).finalize_in_progress


def test_order_that_hangs_since_the_preview_is_not_in_the_plan_for_all(ann):
    stuck = hang(SplitOrderFactory())
    url = preview_url(RECOVER, all=1)
    form = filled(ann, url)
    hang(SplitOrderFactory(), age_s=301)
    shown_then = fresh(stuck).finalize_progress_at
    form["seen_at"] = shown_then.replace(microsecond=0).isoformat()
    assert ann.post(url, form).status_code == 409
    assert asked_for() == (0, 0)


@pytest.mark.django_db(transaction=True)
def test_young_order_is_reset_by_force_only(ann):
    order = hang(SplitOrderFactory(), age_s=5)
    url = preview_url(RECOVER, ids=order.pk)
    response = ann.post(url, filled(ann, url))
    assert response.status_code == 409
    assert re.search(r"it made progress \d+ s ago, within 300 s", said(response))
    assert asked_for() == (0, 0)
    look = ann.post(url, filled(ann, url, go=None, look="yes", reason=None, force="on"))
    assert look.context["seen"].fitting == 1
    assert "This field is required." not in said(look)
    plan = send(ann, url, force="on")
    assert plan.parameters["force"] is True
    assert not fresh(order).finalize_in_progress


def test_preview_in_vain_can_be_looked_at_again_where_that_may_help(ann):
    young = preview_url(RECOVER, ids=hang(SplitOrderFactory(), age_s=5).pk)
    response = ann.get(young)
    assert b'name="look"' in response.content
    assert b'name="go"' not in response.content
    ready = preview_url(RETRY, ids=SplitOrderFactory().pk)
    assert b'name="look"' not in ann.get(ready).content


# The other ways out


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("action", "status", "becomes", "audited"),
    [
        (RETRY, OrderStatus.FAILED, OrderStatus.READY, "split-order-retried"),
        (RELEASE, OrderStatus.QUARANTINED, OrderStatus.READY, "split-order-released"),
        (CANCEL, OrderStatus.QUARANTINED, OrderStatus.CANCELLED, "split-order-cancelled"),
        (CANCEL, OrderStatus.DRAFT, OrderStatus.CANCELLED, "split-order-cancelled"),
        (REVERSE, OrderStatus.FINALIZED, OrderStatus.REVERSED, "split-order-reversed"),
    ],
)
def test_order_leaves_its_trouble_on_the_record(ann, action, status, becomes, audited):
    order = SplitOrderFactory(at=status)
    plan = send(ann, preview_url(action, ids=order.pk))
    assert plan.status == PlanStatus.DONE
    assert fresh(order).status == becomes
    made = record(audited)
    assert (made.actor, made.reason) == ("ann", REASON)


@pytest.mark.parametrize("section", ["failed", "quarantined"])
def test_all_of_a_section_are_those_of_its_status(ann, section):
    SplitOrderFactory(at=OrderStatus.DRAFT)
    SplitOrderFactory()
    for status in (OrderStatus.FAILED, OrderStatus.QUARANTINED):
        SplitOrderFactory.create_batch(2, at=status)
    shown = sections(ann)[section]
    expected = sorted(row["order"].pk for row in shown["rows"])
    assert len(shown["buttons"]) == 2
    for button in shown["buttons"]:
        assert sorted(ann.get(button["url"]).context["chosen"].ids) == expected
    cancel = shown["buttons"][-1]["url"]
    ann.post(cancel, filled(ann, cancel))
    plan = Plan.objects.get()
    assert (plan.action, plan.selection) == (CANCEL, {"all": True, "status": section})
    assert sorted(plan.items.values_list("row_id", flat=True)) == expected


def test_orders_that_failed_after_the_preview_are_looked_at_first(ann):
    first = SplitOrderFactory(at=OrderStatus.FAILED)
    url = preview_url(CANCEL, all=1, status="failed")
    form = filled(ann, url)
    second = SplitOrderFactory(at=OrderStatus.FAILED)
    response = ann.post(url, form)
    assert "These are other rows than before" in said(response)
    assert second.number in said(response)
    assert Plan.objects.count() == 0
    again = response.context["form"].data.dict()
    ann.post(url, again)
    rows = Plan.objects.get().items.values_list("row_id", flat=True)
    assert sorted(rows) == [first.pk, second.pk]


@pytest.mark.parametrize("status", ["finalized", "nonsense"])
def test_all_of_a_status_that_does_not_fit_are_none(ann, status):
    SplitOrderFactory(at=OrderStatus.FINALIZED)
    assert ann.get(preview_url(CANCEL, all=1, status=status)).status_code == 400
