"""The trace of an order: from who submits it, through its finalization, into the ledger."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from ledger.models import OutboxEntry
from recovery import plans, runner, tracing
from recovery.foreground import Follower
from splits import lifecycle
from splits.models import OrderStatus, SplitOrder, StepName
from tests.factories import AUTHOR, SplitOrderFactory, hang
from tests.ledger.entries import fresh, into, make_due, put
from tests.splits.plans import imported, order, plan
from tests.splits.state import assert_finalized_once
from tests.tracing import PARENT, REMOTE, TRACE, id_of, links_of, parent_of, trace_of, traced

pytestmark = pytest.mark.django_db(transaction=True)

FINALIZE, POST = "split_order.finalize", "outbox_entry.post"


@pytest.fixture(autouse=True)
def _quick(settings, no_redis):
    settings.JOB_BACKOFF_BASE_SEC = 0.001
    settings.SPLIT_COMPLETION_WEBHOOK = ""


@pytest.fixture
def alone(settings):
    """Let each order go alone, step by step."""
    settings.JOB_FINALIZE_BATCH_SIZE = 1


def submitted(number, *, within=REMOTE):
    """Return an order that was submitted in a trace."""
    made = SplitOrderFactory(number=number, at=OrderStatus.DRAFT)
    with tracing.attempt("GET admin", traceparent=within, first=True):
        lifecycle.submit(made.pk)
    return made


def work():
    for name in ("finalizeRetryWorker", "processLedgerOutbox"):
        outcome = runner.run_job(name)
        assert outcome.status == "ok", outcome


def stock():
    put("stock", into("OAK", "100"))
    runner.run_job("processLedgerOutbox")


def assert_goes_through(seen, made):
    """Assert that one trace leads from the request to the posting, each the child of the last."""
    web, attempt = seen.one("GET admin"), seen.one(FINALIZE, order=made.number)
    posting = seen.one(POST, event_key=made.event_key)
    assert {trace_of(it) for it in (web, attempt, posting)} == {TRACE}
    assert parent_of(web) == PARENT
    assert parent_of(attempt) == id_of(web)
    assert not any(map(links_of, (attempt, posting)))
    return attempt, posting


def test_one_trace_from_the_request_through_each_step_to_the_posting(alone):
    with traced() as seen:
        stock()
        made = submitted("SO-1")
        work()
        attempt, posting = assert_goes_through(seen, made)
        steps = [seen.one(f"split_order.{name}") for name in StepName]
    assert {parent_of(it) for it in steps} == {id_of(attempt)}
    (of_ledger,) = (it for it in steps if it.name.endswith(StepName.POST_LEDGER))
    assert parent_of(posting) == id_of(of_ledger)
    assert attempt.attributes["attempt"] == 1
    assert attempt.attributes["ending"] == "finalized"
    assert_finalized_once(made)


def test_orders_of_a_convoy_keep_their_traces_apart():
    other = "00-11111111111111111111111111111111-2222222222222222-01"
    with traced() as seen:
        stock()
        first, second = submitted("SO-1"), submitted("SO-2", within=other)
        work()
        attempts = [seen.one(FINALIZE, order=it.number) for it in (first, second)]
        postings = [seen.one(POST, event_key=it.event_key) for it in (first, second)]
    assert [trace_of(it) for it in attempts] == [TRACE, "1" * 32]
    assert [it.attributes["convoy"] for it in attempts] == [2, 2]
    assert [parent_of(it) for it in postings] == [id_of(it) for it in attempts]


def test_attempt_that_is_turned_back_leaves_no_span_of_the_convoy():
    with traced() as seen:
        stock()
        good, bad = submitted("SO-1"), submitted("SO-2")
        SplitOrder.objects.get(pk=bad.pk).lines.all().delete()
        work()
    assert seen.one(FINALIZE, order=good.number).status.is_ok
    failed = seen.one(FINALIZE, order=bad.number, attempt=1)
    assert failed.attributes["code"] == "no_lines"


def test_retry_is_a_trace_of_its_own_linked_to_the_first(alone, settings):
    with traced() as seen:
        stock()
        made = submitted("SO-1")
        settings.RECOVERY_FAULTPOINTS = f"finalize.before_step.{StepName.CREATE_OUTPUTS}=raise@1"
        runner.run_job("finalizeRetryWorker")
        settings.RECOVERY_FAULTPOINTS = ""
        SplitOrder.objects.filter(pk=made.pk).update(next_finalize_at=made.created_at)
        work()
        web, (failed, retried) = seen.one("GET admin"), seen.all(FINALIZE)
        posting = seen.one(POST, event_key=made.event_key)
    assert (trace_of(failed), failed.attributes["code"]) == (TRACE, "unexpected")
    assert not failed.status.is_ok
    assert trace_of(retried) != TRACE
    assert (parent_of(retried), links_of(retried)) == ("", [(TRACE, id_of(web))])
    assert retried.attributes["attempt"] == 2
    assert trace_of(posting) == trace_of(retried), "goes on with the attempt that told it"
    assert_finalized_once(made)


def test_order_that_was_recovered_is_linked(alone):
    with traced() as seen:
        stock()
        made = submitted("SO-1")
        hang(SplitOrder.objects.get(pk=made.pk))
        runner.run_job("recoverFinalizeStuck")
        work()
    retried = seen.one(FINALIZE, order=made.number)
    assert (parent_of(retried), len(links_of(retried))) == ("", 1)


@pytest.mark.parametrize("freed", ["retry", "release"])
def test_fresh_attempts_that_people_give_an_order_are_linked(alone, freed):
    at = {"retry": OrderStatus.FAILED, "release": OrderStatus.QUARANTINED}[freed]
    with traced() as seen:
        stock()
        with tracing.attempt("GET admin", traceparent=REMOTE, first=True):
            made = SplitOrderFactory(number="SO-1", at=at)
        assert getattr(lifecycle, freed)(made.pk, author=AUTHOR)
        work()
    attempt, web = seen.one(FINALIZE, order=made.number), seen.one("GET admin")
    assert attempt.attributes["attempt"] == 1
    assert trace_of(attempt) != TRACE
    assert (parent_of(attempt), links_of(attempt)) == ("", [(TRACE, id_of(web))])
    assert_finalized_once(made)


def test_convoy_is_a_span_linked_to_what_its_orders_came_with():
    with traced() as seen:
        stock()
        first, second = submitted("SO-1"), submitted("SO-2")
        SplitOrder.objects.filter(pk=second.pk).update(traceparent="no trace")
        work()
    convoy, run = seen.one("split_order.convoy"), seen.one("job finalizeRetryWorker")
    assert convoy.attributes["orders"] == 2
    stored = SplitOrder.objects.get(pk=first.pk).traceparent
    assert links_of(convoy) == [tuple(stored.split("-")[1:3])]
    assert parent_of(convoy) == id_of(run)


def test_batch_is_a_span_of_the_run_and_an_empty_one_is_none():
    with traced() as seen:
        put("k", into("OAK", "1"))
        runner.run_job("processLedgerOutbox")
        runner.run_job("processLedgerOutbox")
    batch = seen.one("outbox_entry.batch")
    assert (batch.attributes["claimed"], batch.attributes["posted"]) == (1, 1)
    assert parent_of(batch) == id_of(seen.one("job processLedgerOutbox"))


def test_redriven_entry_is_linked_not_continued(settings):
    settings.JOB_OUTBOX_MAX_ATTEMPTS = 1
    with traced() as seen:
        entry = put("k", into("OAK", "-1"), traceparent=REMOTE)
        runner.run_job("processLedgerOutbox")
        assert fresh(entry).status == "dead"
        stock()
        plan = plans.create(plans.Wanted("outbox.redrive", [entry.pk], "anna", "stock came"))
        plans.start(plan.pk, actor="anna", here=True)
        Follower(plan.pk).to_its_end()
        runner.run_job("processLedgerOutbox")
    refused, posted = seen.all(POST, event_key="k")
    assert (trace_of(refused), parent_of(refused)) == (TRACE, PARENT)
    assert (posted.attributes["attempt"], fresh(entry).status) == (1, "posted")
    assert trace_of(posted) != TRACE
    assert (parent_of(posted), links_of(posted)) == ("", [(TRACE, PARENT)])


@pytest.mark.parametrize("kept", ["", "no trace", "ü" * 55, "00-"])
def test_what_names_no_trace_outlives_fresh_attempts(kept):
    made = SplitOrderFactory(number="SO-1", at=OrderStatus.FAILED)
    SplitOrder.objects.filter(pk=made.pk).update(traceparent=kept)
    with traced() as seen:
        stock()
        assert lifecycle.retry(made.pk, author=AUTHOR)
        work()
    assert links_of(seen.one(FINALIZE, order=made.number)) == []
    assert_finalized_once(made)


def test_code_that_knows_no_traces_still_inserts_orders():
    made = SplitOrderFactory(number="SO-1", at=OrderStatus.DRAFT)
    columns = [
        it.column
        for it in SplitOrder._meta.concrete_fields
        if it.name not in {"id", "number", "live_lot", "traceparent"}
    ]
    names = ", ".join(columns)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {SplitOrder._meta.db_table} (number, {names})"
            f" SELECT 'SO-OLD', {names} FROM {SplitOrder._meta.db_table} WHERE id = %s",
            [made.pk],
        )
    assert SplitOrder.objects.get(number="SO-OLD").traceparent == ""


def test_entry_that_is_refused_and_tried_again_is_linked():
    with traced() as seen:
        entry = put("k", into("OAK", "-1"), traceparent=REMOTE)
        runner.run_job("processLedgerOutbox")
        put("stock", into("OAK", "100"))
        make_due()
        runner.run_job("processLedgerOutbox")
        make_due()
        runner.run_job("processLedgerOutbox")
    refused, *_others, posted = seen.all(POST, event_key="k")
    assert (trace_of(refused), parent_of(refused)) == (TRACE, PARENT)
    assert refused.attributes["code"] == "insufficient_balance"
    assert (parent_of(posted), links_of(posted)) == ("", [(TRACE, PARENT)])
    assert posted.status.is_ok
    assert fresh(entry).status == "posted"


def test_entry_of_a_trace_that_nobody_keeps_makes_no_span():
    with traced() as seen:
        entry = put("k", into("OAK", "1"), traceparent=f"{REMOTE[:-2]}00")
        runner.run_job("processLedgerOutbox")
    assert fresh(entry).status == "posted"
    assert not seen.all(POST)


def test_import_makes_a_trace_an_order():
    with traced() as seen:
        imported(plan(*order("SO-1"), *order("SO-2", board="B-2")), finalize=True)
        imports = seen.all("split_order.import")
    stored = dict(SplitOrder.objects.values_list("number", "traceparent"))
    assert [it.attributes["order"] for it in imports] == ["SO-1", "SO-2"]
    for span in imports:
        assert stored[span.attributes["order"]].split("-")[1:3] == [trace_of(span), id_of(span)]
    received = OutboxEntry.objects.values_list("traceparent", flat=True)
    assert {it.split("-")[1] for it in received} == {trace_of(it) for it in imports}
    assert len({trace_of(it) for it in imports}) == 2


def test_switched_off_nothing_is_stored():
    made = SplitOrderFactory(number="SO-1", at=OrderStatus.DRAFT)
    lifecycle.submit(made.pk)
    put("k", into("OAK", "1"))
    assert set(SplitOrder.objects.values_list("traceparent", flat=True)) == {""}
    assert set(OutboxEntry.objects.values_list("traceparent", flat=True)) == {""}


def test_tracing_costs_the_drain_one_statement_a_batch():
    def statements():
        put(f"k{OutboxEntry.objects.count()}", into("OAK", "1"), traceparent=REMOTE)
        with CaptureQueriesContext(connection) as queries:
            runner.run_job("processLedgerOutbox")
        return len(queries)

    statements()
    off = statements()
    with traced():
        assert statements() == off + 1
