"""Split orders in the admin: their parts, their story; and what all our admins have in common."""

import re
import uuid
from collections import Counter
from datetime import timedelta

import pytest
from django.contrib import admin
from django.db import transaction
from django.urls import reverse

from ledger.models import Account, OutboxEntry, Posting, Transaction
from ledger.outbox import payload_of
from recovery import audit
from recovery.clock import db_now
from recovery.models import AuditRecord, Job, JobRun
from splits import lifecycle, stuck
from splits.admin import story
from splits.holders import Holder
from splits.models import (
    Breaker,
    FinalizeStep,
    LineKind,
    Lot,
    SplitLine,
    SplitOrder,
    StuckSighting,
)
from tests.adminpages import MODELS, list_url, listed, page_url, staff, statements, text_of
from tests.factories import AUTHOR, LotFactory, SplitOrderFactory, hang
from tests.ledger.entries import drain, fresh, into, lines, put

pytestmark = pytest.mark.django_db(transaction=True)

by_name = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)


def timeline(client, order):
    """Return the timeline as the page shows it: what happened, newest first."""
    content = client.get(page_url(order)).content.decode()
    table = content.partition("<h2>Timeline</h2>")[2].partition("</tbody>")[0]
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td>", table, re.DOTALL)
    return [re.sub("<[^>]+>", "", what) for _at, what in rows]


# What all our admins have in common


@by_name
def test_list_can_be_read_and_searched(admin_client, model):
    Breaker.objects.create(endpoint="http://erp.example:80")
    hang(SplitOrderFactory())
    assert admin_client.get(list_url(model)).status_code == 200
    assert admin_client.get(list_url(model, q="x")).status_code == 200


@by_name
def test_nothing_can_be_added_changed_or_deleted(rf, admin_user, model):
    request = rf.get("/")
    request.user = admin_user
    model_admin = admin.site.get_model_admin(model)
    assert model_admin.has_view_permission(request)
    assert not model_admin.has_add_permission(request)
    assert not model_admin.has_change_permission(request)
    assert not model_admin.has_delete_permission(request)


@by_name
def test_list_keeps_to_what_indexes_serve(model):
    model_admin = admin.site.get_model_admin(model)
    assert model_admin.list_per_page == 100
    assert model_admin.date_hierarchy is None
    assert not model_admin.show_full_result_count
    assert len(model_admin.sortable_by) <= 1
    assert model_admin.search_help_text or not model_admin.search_fields


@by_name
def test_whoever_may_view_sees_list_and_page(model):
    order = SplitOrderFactory()
    put("k", into("OAK", "1"))
    drain()
    Breaker.objects.create(endpoint="http://erp.example:80")
    Job.objects.get_or_create(name="jobA")
    JobRun.objects.create(job_id="jobA", fence=1, host="h", pid=1)
    lifecycle.cancel(order.pk, author=AUTHOR)
    client = staff("ann", f"view_{model._meta.model_name}")
    assert client.get(list_url(model)).status_code == 200
    assert client.get(page_url(model.objects.first())).status_code == 200
    assert client.post(list_url(model), {"action": "x", "_selected_action": 1}).status_code == 403
    others = staff("bob")
    assert others.get(list_url(model)).status_code == 403
    assert others.get(page_url(model.objects.first())).status_code == 403


@by_name
def test_page_of_what_is_not_there_leads_home(admin_client, model):
    opts = model._meta
    url = reverse(f"admin:{opts.app_label}_{opts.model_name}_change", args=["999999"])
    assert admin_client.get(url).status_code == 302


def test_front_page_names_the_project(admin_client):
    shown = text_of(admin_client, reverse("admin:index"))
    assert "Split recovery" in shown
    assert "Django" not in shown


# Queries


def grow(count):
    """Make ``count`` more rows of each kind, and as many parts of the first of each."""
    started = Lot.objects.count()
    job, _is_new = Job.objects.get_or_create(name="processLedgerOutbox")
    Job.objects.get_or_create(name="other")
    for number in range(count):
        order = SplitOrderFactory(
            at="reversed", source_lot=LotFactory(sku=f"SKU-{started + number}")
        )
        AuditRecord.objects.create(
            actor="a", action="b", target_type="split-order", target_id=order.number
        )
        Breaker.objects.create(endpoint=f"http://erp{started + number}.example")
        Job.objects.create(name=f"job{started + number}")
    Account.objects.get_or_create(code="stock:ALL", unit="m2", defaults={"allow_negative": True})
    drain(rounds=1_000)
    for number in range(count):
        put(f"a{started + number}", lines(("stock:ALL", "1"), ("external:receipts", "-1")))
        run = JobRun.objects.create(job=job, fence=number, host="h", pid=1)
        AuditRecord.objects.create(actor="a", action="b", target_type="job", target_id=job.name)
        AuditRecord.objects.create(
            actor="a", action="b", target_type="x", target_id="y", run_id=run.run_id
        )
    drain()
    _grow_parts(count, job)


def _grow_parts(count, job):
    order = SplitOrder.objects.earliest("id")
    first = order.lines.count()
    run = JobRun.objects.earliest("id")
    entry = OutboxEntry.objects.get(event_key=order.event_key)
    posted = Transaction.objects.get(event_key="a1")
    payload = payload_of(lines(*[(f"stock:P{n}", "1") for n in range(first + count)]))
    OutboxEntry.objects.filter(pk=entry.pk).update(payload=payload)
    for number in range(first + 1, first + count + 1):
        kind = LineKind.PIECE
        SplitLine.objects.create(order=order, line=number, kind=kind, sku="S", quantity=1)
        LotFactory(parent_order=order)
        SplitOrder.objects.create(number=f"again-{number}", source_lot=order.source_lot)
        account = Account.objects.create(code=f"stock:P{number}", unit="m2")
        Posting.objects.create(transaction=posted, line=number + 9, account=account, quantity=1)
        StuckSighting.objects.create(order_ref=order.pk, epoch=number)
        targets = [("split-order", order.number), ("outbox-entry", str(entry.pk))]
        for target_type, target_id in [*targets, ("account", "stock:ALL [m2]")]:
            AuditRecord.objects.create(
                actor="a", action="b", target_type=target_type, target_id=target_id,
                run_id=run.run_id,
            )  # fmt: skip


def counts(client):
    """Return how many statements each list and each page takes."""
    order = SplitOrder.objects.earliest("id")
    pages = {
        "order": order,
        "lot": order.source_lot,
        "entry": OutboxEntry.objects.get(event_key=order.event_key),
        "transaction": Transaction.objects.get(event_key="a1"),
        "account": Account.objects.get(code="stock:ALL"),
        "job": Job.objects.get(name="processLedgerOutbox"),
        "run": JobRun.objects.earliest("id"),
        "record": AuditRecord.objects.get(pk=AuditRecord.objects.earliest("id").pk),
        "breaker": Breaker.objects.first(),
    }
    found = {name: len(statements(client, page_url(row))) for name, row in pages.items()}
    for model in MODELS:
        found[f"list of {model.__name__}"] = len(statements(client, list_url(model)))
    return found


def test_pages_take_as_many_statements_for_30_rows_as_for_3(admin_client):
    grow(3)
    counts(admin_client)  # content types are looked up once a process
    few = counts(admin_client)
    grow(27)
    many = counts(admin_client)
    assert many == few
    lists = {name: count for name, count in few.items() if name.startswith("list")}
    assert max(lists.values()) < 10, lists
    assert max(few.values()) < 20, few


@pytest.mark.parametrize(
    ("model", "query"),
    [
        (OutboxEntry, {"status": "posted", "last_error_code": "unbalanced"}),
        (OutboxEntry, {"q": "123456"}),
        (OutboxEntry, {"q": "lot:B1", "status": "dead"}),
        (Transaction, {"q": "123456"}),
        (Account, {"q": "123456", "state": "closed"}),
        (Account, {"q": "a [b]"}),
        (SplitOrder, {"q": "123456", "status": "failed", "finalization": "stuck"}),
        (SplitOrder, {"q": "split-order:1:finalized"}),
        (Lot, {"q": "123456", "status": "available"}),
        (Lot, {"q": "lot:1"}),
        (JobRun, {"q": str(uuid.UUID(int=7)), "status": "ok"}),
        (AuditRecord, {"q": str(uuid.UUID(int=7)), "action": "job-paused"}),
        (AuditRecord, {"q": "split-order/1"}),
    ],
)
def test_filtered_and_searched_lists_stay_under_ten_statements(admin_client, model, query):
    SplitOrderFactory(at="finalized")
    put("k", into("OAK", "1"))
    Job.objects.get_or_create(name="jobA")
    assert len(statements(admin_client, list_url(model, **query))) < 10


# Orders


def test_order_shows_its_lines_and_steps(admin_client):
    order = SplitOrderFactory(at="finalized")
    shown = text_of(admin_client, page_url(order))
    assert "3 offcut OAK-OFF 1" in shown
    for step in ("validate", "consume source", "create outputs", "post ledger", "notify"):
        assert f"{step} done" in shown
    for lot in order.outputs.all():
        assert f'href="{page_url(lot)}"' in admin_client.get(page_url(order)).content.decode()


def test_order_shows_the_steps_that_are_not_done_yet(admin_client):
    order = SplitOrderFactory()
    FinalizeStep.objects.create(order=order, name="validate", epoch=1)
    shown = text_of(admin_client, page_url(order))
    assert "validate done" in shown
    for step in ("consume source", "create outputs", "post ledger", "notify"):
        assert f"{step} not yet" in shown
    assert "None yet: the step" in shown


def test_order_cannot_be_saved_by_post(admin_client):
    order = SplitOrderFactory()
    assert admin_client.post(page_url(order), {"status": "finalized"}).status_code == 403


def test_timeline_tells_the_whole_story_newest_first(admin_client):
    put("in", into("OAK", "100"))
    drain()
    order = SplitOrderFactory(at="finalized")
    drain()
    lifecycle.reverse(order.pk, author=AUTHOR)
    drain()
    events = timeline(admin_client, order)
    assert (events[0], events[-1]) == ("posted to the ledger", "created")
    assert [it for it in events[::-1] if it.startswith("step")] == [
        f"step done: {step}"
        for step in ("validate", "consume source", "create outputs", "post ledger", "notify")
    ]
    assert Counter(it for it in events[1:-1] if not it.startswith("step")) == {
        "posted to the ledger": 1,
        "published to the outbox": 2,
        "finalized": 1,
        "split-order-reversed": 1,
    }
    page = admin_client.get(page_url(order)).content.decode()
    reversal = OutboxEntry.objects.get(event_key=order.reversal_key)
    record = AuditRecord.objects.get()
    for row in (reversal, Transaction.objects.get(pk=reversal.pk), record):
        assert f'href="{page_url(row)}"' in page
    shown = text_of(admin_client, page_url(order))
    assert "split-order-reversed cli:tester because status: finalized → reversed" in shown


def test_timeline_shows_recovery_with_its_proof(admin_client):
    order = hang(SplitOrderFactory())
    request = stuck.Request(author=AUTHOR, threshold_s=300)
    (found,) = stuck.find(request)
    stuck.recover(found, request)
    events = timeline(admin_client, order)
    assert sorted(events[:2]) == ["found stuck", "split-order-finalize-stuck-recovered"]
    shown = text_of(admin_client, page_url(order))
    assert "in_progress: true → false" in shown
    assert "was granted" in shown
    assert "dead-host:1:token" in shown


def test_timeline_shows_who_held_the_order(admin_client):
    order = hang(SplitOrderFactory())
    StuckSighting.objects.first_time(order.pk, order.finalize_epoch)
    sightings = StuckSighting.objects.of(order.pk, order.finalize_epoch)
    sightings.note_holder(Holder(connection_id=4711, user="erp").as_dict())
    assert timeline(admin_client, order)[0] == "held by a live transaction"
    assert "4711" in text_of(admin_client, page_url(order))


def test_timeline_shows_the_death_of_the_orders_entry(admin_client):
    order = SplitOrderFactory(at="finalized")
    drain(max_attempts=1)
    entry = OutboxEntry.objects.get(event_key=order.event_key)
    assert fresh(entry).status == "dead"
    assert timeline(admin_client, order)[0] == "outbox-entry-dead"
    shown = text_of(admin_client, page_url(order))
    assert f"{order.event_key} {entry.pk} dead" in shown
    assert "balance would fall below zero" in shown


def test_timeline_ignores_other_orders(admin_client):
    order = SplitOrderFactory(number="SO-1")
    other = SplitOrderFactory(number="SO-10")
    lifecycle.cancel(other.pk, author=AUTHOR)
    AuditRecord.objects.create(actor="a", action="b", target_type="lot", target_id="SO-1")
    assert timeline(admin_client, order) == ["created"]


def test_reason_and_evidence_are_escaped(admin_client):
    order = SplitOrderFactory()
    with transaction.atomic():
        audit.record(
            actor="<b>ann</b>",
            action="split-order-cancelled",
            target_type="split-order",
            target_id=order.number,
            reason="<script>alert(1)</script>",
            before={"<i>": 1},
            after={"<i>": "<img>"},
            evidence={"x": "<script>alert(2)</script>"},
        )
    page = admin_client.get(page_url(order)).content.decode()
    record = admin_client.get(page_url(AuditRecord.objects.get())).content.decode()
    for text in (page, record, admin_client.get(list_url(AuditRecord)).content.decode()):
        for tag in ("<script>alert", "<b>ann", "<img>", "<i>"):
            assert tag not in text


def test_long_story_is_cut_to_the_newest_records(admin_client, monkeypatch):
    monkeypatch.setattr(story, "SHOWN_RECORDS", 2)
    order = SplitOrderFactory()
    for number in range(5):
        AuditRecord.objects.create(
            actor="a", action=f"b{number}", target_type="split-order", target_id=order.number
        )
    assert timeline(admin_client, order) == ["b4", "b3", "created"]
    page = admin_client.get(page_url(order)).content.decode()
    assert f'href="{list_url(AuditRecord, q=f"split-order/{order.number}")}"' in page


@pytest.mark.parametrize(("age_s", "stands"), [(200, "in progress"), (301, "stuck")])
def test_stuck_order_is_told_from_one_in_progress(admin_client, settings, age_s, stands):
    settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC = 300
    order = hang(SplitOrderFactory(), age_s=age_s)
    SplitOrderFactory()
    assert stands in text_of(admin_client, page_url(order))
    assert "dead-host:1:token" in text_of(admin_client, page_url(order))
    assert listed(admin_client, SplitOrder, finalization="in_progress") == [order.pk]
    expected = [order.pk] if stands == "stuck" else []
    assert listed(admin_client, SplitOrder, finalization="stuck") == expected


def test_order_shows_why_its_last_attempt_failed(admin_client):
    order = SplitOrderFactory(at="failed")
    SplitOrder.objects.filter(pk=order.pk).update(last_finalize_error="endpoint said 400")
    for url in (list_url(SplitOrder), page_url(order)):
        shown = text_of(admin_client, url)
        assert "endpoint said 400" in shown
        assert "5/5" in shown


def test_orders_are_found_by_number_lot_event_key_and_id(admin_client):
    order = SplitOrderFactory(number="SO:1", source_lot=LotFactory(code="B-1"))
    SplitOrderFactory(number="SO:10", source_lot=LotFactory(code="B-10"))
    for term in ("SO:1", "B-1", "lot:B-1", order.event_key, order.reversal_key, str(order.pk)):
        assert listed(admin_client, SplitOrder, q=term) == [order.pk], term
    for term in ("so:1", "B", "lot:", "split-order:", "split-order:SO:1"):
        assert listed(admin_client, SplitOrder, q=term) == [], term


def test_orders_are_filtered_by_status(admin_client):
    failed = SplitOrderFactory(at="failed")
    SplitOrderFactory()
    assert listed(admin_client, SplitOrder, status="failed") == [failed.pk]


# Lots and breakers


def test_lot_leads_to_who_made_and_who_split_it(admin_client):
    order = SplitOrderFactory(at="finalized")
    again = SplitOrderFactory(source_lot=order.outputs.first())
    child = order.outputs.first()
    page = admin_client.get(page_url(child)).content.decode()
    assert f'href="{page_url(order)}"' in page
    assert f'href="{page_url(again)}"' in page
    assert f'href="{list_url(OutboxEntry, q=child.aggregate)}"' in page
    page = admin_client.get(page_url(order.source_lot)).content.decode()
    assert f'href="{page_url(order)}"' in page


def test_lots_are_found_by_code_sku_root_and_id(admin_client):
    order = SplitOrderFactory(source_lot=LotFactory(code="B-1", sku="ASH"), at="finalized")
    LotFactory(code="B-2", sku="OAK")
    family = [*order.outputs.order_by("-id").values_list("pk", flat=True), order.source_lot_id]
    assert listed(admin_client, Lot, q="B-1") == family
    assert listed(admin_client, Lot, q="lot:B-1") == family
    assert listed(admin_client, Lot, q="B-1-002") == [Lot.objects.get(code="B-1-002").pk]
    assert listed(admin_client, Lot, q="ASH") == [order.source_lot_id]
    assert listed(admin_client, Lot, q="B") == []
    assert listed(admin_client, Lot, q="B-1", status="consumed") == [order.source_lot_id]


def test_breaker_says_whether_it_is_open(admin_client):
    Breaker.objects.create(endpoint="http://a.example:80")
    assert "closed: endpoint is called" in text_of(admin_client, list_url(Breaker))
    Breaker.objects.update(opened_at=db_now(), next_try_at=db_now() + timedelta(seconds=30))
    breaker = Breaker.objects.get()
    assert "open: nothing is sent" in text_of(admin_client, page_url(breaker))
