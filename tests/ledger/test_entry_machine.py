"""The life of outbox entries against a model: every state compared after every step.

``MACHINE_EXAMPLES=500`` tries more of it.
"""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from unittest import mock

import pytest
from django.db import OperationalError, transaction
from django.test import override_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ledger import accounts, jobs, judging, posting
from ledger.models import Account, OutboxEntry, Transaction
from ledger.outbox import JOB, KeyConflictError, Line, publish
from ledger.rows import DIED
from recovery import errors, runner
from recovery.clock import db_now
from recovery.leases import LeaseLostError
from recovery.models import AuditRecord, Job, JobRun
from tests.ledger import entries
from tests.ledger.entry_model import ATTEMPTS, WORLD, Entry, Ledger, RunEndedError
from tests.machines import TIMEOUT_S, Killed, forget_everything, run_machine
from tests.recovery.engine import expire

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(TIMEOUT_S)]

LATER_S = 100_000
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
STOCKS = ("stock:A", "stock:B")
AGGREGATES = ("lot:1", "lot:2", "lot:3")
FLAWS: dict[str, dict[str, Any]] = {
    "payload_invalid": {"schema_version": 1, "postings": "none"},
    "unbalanced": {
        "schema_version": 1,
        "postings": [{"account": name, "quantity": "1", "unit": "m2"} for name in STOCKS],
    },
    "unknown_version": {"schema_version": 2},
}
REAL: dict[str, Callable[[], BaseException]] = {
    "kill": Killed,
    "deadlock once": lambda: OperationalError(1213, "deadlock"),
    "broken setup": lambda: OperationalError(1146, "no such table"),
    "lease lost": LeaseLostError,
    "raise": lambda: RuntimeError("no"),
}
MODEL: dict[str, Callable[[], Exception]] = {
    "kill": lambda: RunEndedError("died"),
    "broken setup": lambda: RunEndedError("failed"),
    "lease lost": lambda: RunEndedError("failed"),
    "raise": lambda: RuntimeError("no"),
}
AT_COMMIT = ("kill", "deadlock once", "broken setup", "lease lost")
moves = st.sampled_from(["in", "out", "over"])
limits = st.sampled_from([1, 3, 500])
aggregates = st.sampled_from(AGGREGATES)
draws = st.data()


def test_entries_live_as_the_model_says():
    run_machine(EntryMachine, examples=16, steps=25)


class Fault:
    """What happens at one fault point of a run."""

    def __init__(self, point: str, kind: str, kinds: Any) -> None:
        self.point, self.kind, self.kinds = point, kind, kinds
        self.met = False

    def __call__(self, name: str) -> None:
        once = self.kind in ("kill", "deadlock once")
        if name != self.point or (once and self.met) or self.kind not in self.kinds:
            return
        self.met = True
        raise self.kinds[self.kind]()


class EntryMachine(RuleBasedStateMachine):
    """Drives the product and the model alike."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.deaths = 0
        self.keys = 0
        self.exits = ExitStack()
        self.exits.enter_context(mock.patch.object(errors, "PAUSE_S", 0.0))
        # On any machine each batch is quick, so that the next one is of twice as many entries.
        self.exits.enter_context(mock.patch.object(jobs, "LONGEST_BATCH_S", 600.0))
        self.exits.enter_context(mock.patch.object(runner, "_close", _close_if_alive))
        self.exits.enter_context(
            override_settings(
                JOB_OUTBOX_MAX_ATTEMPTS=ATTEMPTS,
                JOB_OUTBOX_UNKNOWN_VERSION_DELAY_SEC=LATER_S,
                JOB_BACKOFF_BASE_SEC=LATER_S,
                JOB_BACKOFF_CAP_SEC=LATER_S,
            )
        )

    def teardown(self) -> None:
        self.exits.close()
        forget_everything()
        Job.objects.filter(name=JOB).delete()
        expire(JOB)

    def key(self) -> str:
        self.keys += 1
        return f"e{self.keys}"

    @initialize(quantity=st.integers(1, 9))
    def something_is_there(self, quantity: int) -> None:
        self.publish(quantity, "lot:1", "in", STOCKS[0])

    @rule(
        quantity=st.integers(1, 9), aggregate=aggregates, move=moves, stock=st.sampled_from(STOCKS)
    )
    def publish(self, quantity: int, aggregate: str, move: str, stock: str) -> None:
        """Take in, send out, or move over from one account to the other."""
        amount = Decimal(quantity)
        other = STOCKS[1 - STOCKS.index(stock)] if move == "over" else WORLD
        sign = 1 if move == "in" else -1
        moved = [(stock, sign * amount), (other, -sign * amount)]
        entry = Entry(self.key(), aggregate, f"{aggregate} {moved}", moved)
        self.put(entry)
        self.ledger.add(entry)

    def put(self, entry: Entry) -> Any:
        lines = [Line(account, quantity, "m2") for account, quantity in entry.moves]
        with transaction.atomic():
            return publish(
                event_key=entry.key, event_type="test", aggregate=entry.aggregate, lines=lines
            )

    @rule(aggregate=aggregates, flaw=st.sampled_from(sorted(FLAWS)))
    def another_program_publishes(self, aggregate: str, flaw: str) -> None:
        entry = Entry(self.key(), aggregate, f"{aggregate} {flaw}", [], flaw)
        entries.junk(entry.key, FLAWS[flaw], aggregate=aggregate)
        self.ledger.add(entry)

    def pick(self, data: Any, found: list[Entry]) -> Entry | None:
        if not found:
            return None
        return found[data.draw(st.integers(0, len(found) - 1), label="entry")]

    @rule(data=draws, same=st.booleans())
    def publish_again(self, data: Any, same: bool) -> None:
        """The same key with the same content is one entry; with other content, an error."""
        entry = self.pick(data, [it for it in self.ledger.entries if it.moves])
        if entry is None:
            return
        if same:
            assert self.put(entry).event_key == entry.key
            return
        with pytest.raises(KeyConflictError):
            self.put(Entry(entry.key, entry.aggregate, "", [(a, 2 * q) for a, q in entry.moves]))

    @rule(data=draws, same=st.booleans(), aggregate=aggregates)
    def another_program_repeats_what_is_long_posted(
        self, data: Any, same: bool, aggregate: str
    ) -> None:
        """Retention has removed the entry; the transaction still knows the key."""
        posted = [it for it in self.ledger.entries if it.status == "posted" and it.moves]
        entry = self.pick(data, posted)
        if entry is None:
            return
        OutboxEntry.objects.filter(event_key=entry.key).delete()
        self.ledger.forget(entry)
        moved = entry.moves if same else [(a, 2 * q) for a, q in entry.moves]
        again = Entry(
            entry.key, entry.aggregate, entry.content if same else f"not {entry.content}", moved
        )
        lines = [Line(account, quantity, "m2") for account, quantity in moved]
        entries.store([(again.key, again.aggregate, lines)])
        self.ledger.add(again)

    @rule(limit=limits)
    def run_goes_well(self, limit: int) -> None:
        self.run(limit)

    @rule(limit=limits, kind=st.sampled_from(AT_COMMIT))
    def run_meets_trouble_before_a_commit(self, limit: int, kind: str) -> None:
        self.run(limit, "outbox.before_commit", kind)

    @rule(limit=limits)
    def run_is_killed_after_a_commit(self, limit: int) -> None:
        self.run(limit, "outbox.after_commit", "kill")

    @rule(kind=st.sampled_from(AT_COMMIT), after_s=st.booleans())
    def run_after_two_deaths_meets_trouble(self, kind: str, after_s: bool) -> None:
        """It works one entry at a time."""
        for _run in range(2):
            self.run(500, "outbox.before_commit", "kill")
        if after_s:
            self.time_passes()
        self.run(500, "outbox.before_commit", kind)

    @rule(data=draws, limit=limits, kind=st.sampled_from(["kill", "raise"]))
    def run_meets_an_entry_that_breaks_it(self, data: Any, limit: int, kind: str) -> None:
        entry = self.pick(data, [it for it in self.ledger.entries if it.status == "pending"])
        if entry is not None:
            self.run(limit, f"outbox.entry:{entry.key}", kind)

    @rule(data=draws)
    def entry_kills_every_worker(self, data: Any) -> None:
        """However often it is tried, it ends, and the others were posted meanwhile."""
        entry = self.pick(data, [it for it in self.ledger.entries if it.status == "pending"])
        if entry is None:
            return
        for _try in range(2 + ATTEMPTS):
            self.time_passes()
            self.run(500, f"outbox.entry:{entry.key}", "kill")

    def run(self, limit: int, point: str = "", kind: str = "") -> None:
        ending = self.ledger.run(limit, Fault(point, kind, MODEL))
        fault = Fault(point, kind, REAL)
        with (
            override_settings(JOB_OUTBOX_BATCH_SIZE=limit),
            mock.patch.object(posting, "faultpoint", fault),
            mock.patch.object(judging, "faultpoint", fault),
        ):
            try:
                found = runner.run_job(JOB).status
            except Killed:
                expire(JOB)
                found = "died"
        assert found == ending

    @rule(stock=st.sampled_from(STOCKS), aggregate=aggregates, flawed=st.booleans(), data=draws)
    def account_is_closed_until_its_entry_was_refused(
        self, stock: str, aggregate: str, flawed: bool, data: Any
    ) -> None:
        """Those behind it wait, and follow at once when it is posted; not past one that fails."""
        self.publish(2, aggregate, "in", stock)
        if flawed:
            self.another_program_publishes(aggregate, "unbalanced")
        self.publish(1, aggregate, "in", stock)
        self.account_is_closed(stock)
        self.run(500)
        self.accounts_are_reopened()
        if flawed:
            self.time_passes()
            self.publish(1, aggregate, "in", stock)
        else:
            self.refused_entry_is_hurried(data)
        self.run(500)

    @rule(stock=st.sampled_from(STOCKS))
    def account_is_closed(self, stock: str) -> None:
        if accounts.close(stock, "m2", actor="cli:tester", reason="because"):
            self.ledger.closed.add(stock)

    @precondition(lambda self: self.ledger.closed)
    @rule()
    def accounts_are_reopened(self) -> None:
        for stock in self.ledger.closed:
            assert accounts.reopen(stock, "m2", actor="cli:tester", reason="because")
        self.ledger.closed.clear()

    @rule()
    def time_passes(self) -> None:
        """What waits for its time is due, in the order of the ids."""
        OutboxEntry.objects.pending().update(next_attempt_at=LONG_AGO)
        self.ledger.time_passes()

    @rule(data=draws)
    def refused_entry_is_hurried(self, data: Any) -> None:
        """Its time comes before that of those that were parked behind it."""
        tried = [it for it in self.ledger.entries if it.status == "pending" and it.attempts]
        entry = self.pick(data, tried)
        if entry is not None:
            this = OutboxEntry.objects.filter(event_key=entry.key)
            this.update(next_attempt_at=LONG_AGO)
            entry.due = 0

    @invariant()
    def entries_are_as_the_model_says(self) -> None:
        now, clock = db_now(), self.ledger.clock
        rows = OutboxEntry.objects.order_by("id").values_list(
            "event_key", "status", "attempts", "last_error_code", "last_error", "next_attempt_at"
        )
        found = [
            (key, status, attempts, code, error == DIED, status == "pending" and due <= now)
            for key, status, attempts, code, error, due in rows
        ]
        assert found == [
            (it.key, it.status, it.attempts, it.code, it.killer,
             it.status == "pending" and it.due <= clock)
            for it in self.ledger.entries
        ]  # fmt: skip

    @invariant()
    def nothing_is_posted_twice_or_lost(self) -> None:
        keys = Transaction.objects.values_list("event_key", flat=True)
        assert sorted(keys) == sorted(self.ledger.posted)
        balances = {it.code: it.balance for it in Account.objects.all() if it.balance}
        assert balances == {code: it for code, it in self.ledger.balances.items() if it}
        total = Account.objects.values_list("code", "balance", "postings__quantity")
        sums: dict[str, Decimal] = {}
        for code, balance, quantity in total:
            sums[code] = sums.get(code, -balance) + (quantity or 0)
        assert not any(sums.values())

    @invariant()
    def entries_of_an_aggregate_are_posted_in_order(self) -> None:
        for aggregate in AGGREGATES:
            rows = OutboxEntry.objects.filter(aggregate=aggregate).order_by("id")
            statuses = list(rows.values_list("status", flat=True))
            posted = statuses.count("posted")
            assert statuses[:posted] == ["posted"] * posted
            times = rows.filter(status="posted").values_list("posted_at", flat=True)
            assert list(times) == sorted(at for at in times if at)

    @invariant()
    def entries_die_by_their_attempts_alone(self) -> None:
        dead = OutboxEntry.objects.dead()
        assert not dead.exclude(attempts=ATTEMPTS).exists()
        records = AuditRecord.objects.filter(action="outbox-entry-dead")
        assert sorted(records.values_list("target_id", flat=True)) == sorted(
            str(pk) for pk in dead.values_list("pk", flat=True)
        )


_close = runner._close


def _close_if_alive(run: runner.Run, status: Any, error: str) -> None:
    """End a run, unless its process was killed."""
    if error.startswith(Killed.__name__):
        assert JobRun.objects.get(run_id=run.run_id).status == "running"
        return
    _close(run, status, error)
