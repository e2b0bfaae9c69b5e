"""What the demo makes of rows: states of its stories, what it delivers, what it waits for."""

import signal
from collections import deque

import pytest

from ledger import accounts, outbox
from ledger.models import EntryStatus, OutboxEntry, Transaction
from recovery import pauses, schedules
from recovery.runner import run_job
from splits import lifecycle
from splits.demo import boards, deliveries, scenes, stage, stories, verdict
from splits.demo.deliveries import Deliveries
from splits.demo.progress import progress
from splits.demo.scenes import CLOSED_ACCOUNT, CLOSED_SKU, CLOSED_UNIT, Role, State, number_of
from splits.demo.stage import Patience, Stage, StalledError
from splits.leash import KILLED
from splits.lifecycle import FINALIZE_JOB
from splits.models import Breaker, OrderStatus, SplitOrder
from tests.factories import AUTHOR

pytestmark = pytest.mark.django_db(transaction=True)

ENDPOINT = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _one_attempt(settings):
    """Let an entry die at its first refusal."""
    settings.JOB_OUTBOX_MAX_ATTEMPTS = 1


def close():
    boards.deliver({"FIRST": CLOSED_SKU})
    work()
    assert accounts.close(CLOSED_ACCOUNT, CLOSED_UNIT, actor="demo", reason="test")


def reopen():
    assert accounts.reopen(CLOSED_ACCOUNT, CLOSED_UNIT, actor="demo", reason="test")


def work():
    """Let finalizer and ledger do what is due."""
    assert run_job(FINALIZE_JOB).status == "ok"
    assert run_job(outbox.JOB).status == "ok"


def deliver_closed(take=1):
    boards.deliver(
        {number_of(take, Role.CLOSED): CLOSED_SKU, number_of(take, Role.OTHER): "SHEET-40x40"}
    )


class Scripted(Stage):
    """A stage whose processes end with the statuses given."""

    def __init__(self, statuses):
        super().__init__(
            children=None,
            say=self.keep,
            endpoint=ENDPOINT,
            switch=lambda on: None,
            logs=None,
        )
        self.lines = []
        self.statuses = deque(statuses)
        self.runs = []

    def keep(self, text):
        self.lines.append(text)

    def run_manage(self, _name, *arguments, **environ):
        self.runs.append((arguments, environ))
        return self.statuses.popleft()


def test_story_of_the_closed_account_is_played_once_all_of_it_happened():
    assert scenes.read(ENDPOINT).closed.state is State.WAITING
    close()
    deliver_closed()
    assert scenes.read(ENDPOINT).closed.state is State.UNDER_WAY
    run_job(outbox.JOB)
    assert scenes.read(ENDPOINT).closed.state is State.UNDER_WAY  # its order is not finalized
    work()
    scene = scenes.read(ENDPOINT).closed
    assert scene.state is State.PLAYED
    assert scene.movement.status == EntryStatus.PENDING


def test_story_of_the_closed_account_went_otherwise_where_the_receipt_was_posted():
    close()
    deliver_closed()
    reopen()
    work()
    scene = scenes.read(ENDPOINT).closed
    assert scene.state is State.OTHERWISE
    told = [line.text for line in stories.tales.of_closed_account(scene)]
    assert any("posted after all" in text for text in told)


def test_newest_take_is_the_one_that_counts():
    close()
    deliver_closed()
    work()
    deliver_closed(take=2)
    scene = scenes.read(ENDPOINT).closed
    assert (scene.take, scene.order.number, scene.state) == (2, "DEMO-2-CLOSED", State.UNDER_WAY)
    assert stories.take_after(scene) == 3


def test_numbers_of_others_do_not_disturb_the_stories():
    boards.deliver(
        {"DEMO-x-CLOSED": "SHEET-10x10", "DEMO-": "SHEET-10x10", "demo-1-OTHER": "SHEET-10x10"}
    )
    assert scenes.read(ENDPOINT).closed.state is State.WAITING


def test_story_of_the_endpoint_went_otherwise_where_nothing_failed():
    boards.deliver({number_of(1, Role.NOTIFY, nth): "SHEET-10x10" for nth in (1, 2)})
    assert scenes.read(ENDPOINT).deaf.state is State.UNDER_WAY
    work()
    scene = scenes.read(ENDPOINT).deaf
    assert scene.state is State.OTHERWISE
    assert stories.take_after(scene) == 2


def test_breaker_of_another_endpoint_is_not_this_storys():
    Breaker.objects.create(endpoint="http://127.0.0.1:2")
    assert scenes.read(ENDPOINT).deaf.breaker is None


def test_draft_of_a_story_that_was_cut_short_is_taken_up_again():
    boards.deliver({number_of(1, Role.KILLED, 1): "SHEET-10x10"}, finalize=False)
    scene = scenes.read(ENDPOINT).killed
    assert scene.state is State.WAITING
    assert stories.take_after(scene) == 1


def test_another_order_is_tried_where_the_workers_were_faster():
    on_stage = Scripted([1, KILLED + signal.SIGKILL])
    stories._kill_a_finalizer(on_stage, 1)
    assert [arguments for arguments, _environ in on_stage.runs] == [
        ("finalize", "DEMO-1-KILLED-1"),
        ("finalize", "DEMO-1-KILLED-2"),
    ]
    crash = {"RECOVERY_FAULTPOINTS": "finalize.after_step.create_outputs=crash"}
    assert [environ for _arguments, environ in on_stage.runs] == [crash, crash]
    assert SplitOrder.objects.get(number="DEMO-1-KILLED-2").status == OrderStatus.DRAFT


def test_each_thing_that_happens_is_told_once():
    on_stage = Scripted([])
    lines = [stories.tales.Line("a", "first"), stories.tales.Line("a", "again")]
    assert on_stage.tell_new(lines)
    assert not on_stage.tell_new(lines)
    assert [line.partition("  ")[2] for line in on_stage.lines] == ["first"]


def test_finalizer_that_cannot_be_killed_is_an_error():
    with pytest.raises(stories.UnkilledError):
        stories._kill_a_finalizer(Scripted([1] * stories.KILL_TRIES), 1)


def test_same_number_brings_the_same_board():
    boards.deliver({"A-1": "SHEET-10x10"})
    boards.deliver({"A-1": "SHEET-10x10"})
    assert SplitOrder.objects.count() == 1


def test_board_that_is_refused_says_why():
    boards.deliver({"A-1": "SHEET-10x10"})
    with pytest.raises(boards.RefusedBoardError, match=r"A-1: .* exists with other content"):
        boards.deliver({"A-1": "SHEET-40x40"})


def test_entries_behind_a_dead_one_are_not_waited_for():
    close()
    deliver_closed()
    work()
    now = progress()
    assert (now.pending, now.held_back) == (0, 1)
    assert not now.waiting
    assert now.done


def test_verdict_accounts_for_the_storys_dead_entry_alone():
    close()
    deliver_closed()
    boards.deliver({"NOT-OF-THE-DEMO": CLOSED_SKU})
    work()
    found = verdict.reach()
    assert [it.target.split()[1] for it in found.explained] == ["lot:BOARD-DEMO-1-CLOSED:received"]
    assert [it.target.split()[1] for it in found.unexplained] == [
        "lot:BOARD-NOT-OF-THE-DEMO:received"
    ]
    assert not found.as_told


def test_stalled_work_is_an_error_that_names_what_waits(monkeypatch):
    boards.deliver({"A-1": "SHEET-10x10"})
    monkeypatch.setattr(stage, "STALL_DEADLINE_S", 0)
    with pytest.raises(StalledError, match=r"Nothing has moved[^$]*A-1: no error"):
        Patience(lambda text: None).check()


def test_paused_job_is_named_once_and_waited_for(monkeypatch):
    schedules.ensure_rows()
    monkeypatch.setattr(stage, "STALL_DEADLINE_S", 0)
    pauses.pause(outbox.JOB, actor="demo")
    said = []
    patience = Patience(said.append)
    patience.check()
    patience.check()
    assert len(said) == 1
    assert said[0].startswith("Paused: processLedgerOutbox.")
    pauses.resume(outbox.JOB, actor="demo")
    with pytest.raises(StalledError):
        patience.check()


def test_board_arrives_now_and_then_but_none_whose_account_is_closed(monkeypatch):
    close()
    monkeypatch.setattr(deliveries, "EVERY_S", 0)
    monkeypatch.setattr(deliveries, "AT_MOST", 2 * len(boards.skus()))
    turns = Deliveries(lambda text: None)
    for _turn in range(3 * len(boards.skus())):
        turns.turn()
    arrived = SplitOrder.objects.filter(number__startswith="LIVE-")
    assert arrived.count() == 2 * len(boards.skus())  # then no more
    assert not arrived.filter(source_lot__sku=CLOSED_SKU).exists()
    assert set(arrived.values_list("source_lot__sku", flat=True)) == {*boards.skus()} - {CLOSED_SKU}


def test_reopened_account_is_answered_by_a_board_of_its_sku(monkeypatch):
    close()
    said = []
    turns = Deliveries(said.append)
    turns.turn()
    assert not said
    reopen()
    turns.turn()
    assert "is open again: the next board of that SKU arrives, with LIVE-1." in said[0]
    turns.turn()
    assert len(said) == 1
    run_job(outbox.JOB)
    turns.turn()
    posted = Transaction.objects.get(event_key="lot:BOARD-LIVE-1:received")
    assert said[1] == f"Its receipt is posted: transaction {posted.pk}, {posted.event_key}."


def test_refused_delivery_costs_one_board_and_not_the_demo(monkeypatch):
    monkeypatch.setattr(deliveries, "EVERY_S", 0)
    monkeypatch.setattr(deliveries, "_next_number", lambda: "A-1")
    boards.deliver({"A-1": "SHEET-40x40"})
    said = []
    turns = Deliveries(said.append)
    for _sku in boards.skus():
        turns.turn()
    assert any(text.startswith("No board this time: A-1: ") for text in said)


def test_dead_receipt_that_was_mended_later_stays_a_story_that_was_played():
    close()
    deliver_closed()
    work()
    reopen()
    OutboxEntry.objects.dead().update(status=EntryStatus.PENDING)
    run_job(outbox.JOB)
    run_job(outbox.JOB)
    assert scenes.read(ENDPOINT).closed.state is State.PLAYED
    assert verdict.reach().report.ok


def test_submitted_twice_or_cancelled_orders_do_not_stop_the_tale():
    boards.deliver({number_of(1, Role.NOTIFY, 1): "SHEET-10x10"})
    lifecycle.cancel(SplitOrder.objects.get().pk, author=AUTHOR)
    scene = scenes.read(ENDPOINT).deaf
    assert scene.state is State.UNDER_WAY
    assert list(stories.tales.of_deaf_endpoint(scene))
