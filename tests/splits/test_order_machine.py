"""The life of split orders against a model: every state compared after every step.

``MACHINE_EXAMPLES=500`` tries more of it.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from unittest import mock

import pytest
from django.conf import settings as django_settings
from django.db import IntegrityError, OperationalError, connection, transaction
from django.test import override_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ledger.models import Account, OutboxEntry, Transaction
from recovery import errors
from recovery.clock import db_now
from recovery.leases import LeaseLostError
from recovery.models import AuditRecord
from splits import lifecycle, stuck
from splits.cutplans import Board
from splits.errors import SplitError
from splits.imports import receive
from splits.lifecycle import NewLine
from splits.models import Breaker, FinalizeStep, Lot, SplitOrder, StuckSighting
from splits.reconcile import Report, reconcile
from splits.stuck import Found, Request
from tests.factories import AUTHOR
from tests.ledger import entries
from tests.machines import TIMEOUT_S, Killed, forget_everything, run_machine
from tests.splits import endpoint, finalizer, order_model
from tests.splits.order_model import Attempt, Order, RefusedError, World

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(TIMEOUT_S)]

LATER_S = 100_000
THRESHOLD_S = 300
SKUS = ("OAK", "OAK-S", "OAK-OFF")
TROUBLES: dict[str, Callable[[], BaseException]] = {
    "kill": Killed,
    "unexpected": lambda: RuntimeError("no"),
    "infrastructure": lambda: OperationalError(1146, "no such table"),
    "LeaseLostError": LeaseLostError,
}
TRIED_AGAIN: dict[str, Callable[[finalizer.Finalizer], None]] = {
    "deadlock": lambda real: real.fail_inside(OperationalError(1213, "deadlock")),
    "commit unanswered": finalizer.Finalizer.go_unanswered,
}
ACTIONS: dict[str, Callable[[int], bool]] = {
    "submit": lifecycle.submit,
    "retry": partial(lifecycle.retry, author=AUTHOR),
    "release": partial(lifecycle.release, author=AUTHOR),
    "cancel": partial(lifecycle.cancel, author=AUTHOR),
    "reverse": partial(lifecycle.reverse, author=AUTHOR),
}
FITS = {
    "submit": ["draft"],
    "retry": ["failed"],
    "release": ["quarantined"],
    "cancel": ["draft", "ready", "failed", "quarantined"],
    "reverse": ["finalized"],
}
troubles = st.sampled_from(sorted(TROUBLES))
ALL = len(order_model.POINTS)
points = st.one_of(st.just(ALL), st.integers(0, ALL))
draws = st.data()


def test_orders_live_as_the_model_says():
    run_machine(OrderMachine, examples=20, steps=40)


class OrderMachine(RuleBasedStateMachine):
    """Drives the product and the model alike."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.attempts: list[tuple[Attempt, finalizer.Finalizer]] = []
        self.found: list[tuple[Order, Found]] = []
        self.exits = ExitStack()
        self.endpoint = self.exits.enter_context(endpoint.serving())
        self.exits.enter_context(finalizer.stepping())
        self.exits.enter_context(mock.patch.object(errors, "PAUSE_S", 0.0))
        self.exits.enter_context(
            override_settings(
                JOB_FINALIZE_RETRY_LIMIT=order_model.ATTEMPTS,
                JOB_STUCK_ALERT_THRESHOLD=order_model.RESETS,
                JOB_BACKOFF_BASE_SEC=LATER_S,
                JOB_BACKOFF_CAP_SEC=LATER_S,
                SPLIT_COMPLETION_WEBHOOK=self.endpoint.url,
                SPLIT_COMPLETION_BREAKER_FAILURES=order_model.BREAKER_FAILURES,
                SPLIT_COMPLETION_BREAKER_OPEN_SEC=LATER_S,
                SPLIT_COMPLETION_TIMEOUT_SEC=60,
            )
        )

    def teardown(self) -> None:
        try:
            for _attempt, real in self.attempts:
                real.kill()
            if sys.exc_info()[0] is None:
                self.drain(500)
                self.books_agree()
        finally:
            self.exits.close()
            forget_everything()

    def pick(self, data: Any, things: list[Any], name: str, fits: Any = lambda _it: True) -> Any:
        """Draw one of ``things``, mostly one that fits."""
        fitting = [it for it in things if fits(it)]
        if fitting and data.draw(st.integers(0, 5), label=f"odd {name}") < 5:
            things = fitting
        index = data.draw(st.integers(0, len(things) - 1), label=name)
        return things[-1 - index]

    def same(self, expected: Callable[[], Any], real: Callable[[], Any]) -> Any:
        """Do both; they end alike, be it by the same refusal."""
        try:
            wanted = expected()
        except RefusedError as refusal:
            code = str(refusal)
            with pytest.raises(SplitError, check=lambda error: error.code == code):
                real()
            return None
        result = real()
        if wanted is not None:
            assert result == wanted
        return result

    @initialize(quantity=st.integers(2, 30), data=draws)
    def first_order_is_ready(self, quantity: int, data: Any) -> None:
        self.board_is_received("B1", quantity)
        self.order_is_created(data, ready=True)

    @rule(code=st.sampled_from(["B1", "B2", "B1-001", "B2-001"]), quantity=st.integers(2, 30))
    def board_is_received(self, code: str, quantity: int) -> None:
        board = Board(code, SKUS[0], Decimal(quantity), "m2")
        try:
            self.world.receive(code, board.sku, board.quantity)
        except RefusedError:
            with pytest.raises(IntegrityError), transaction.atomic():
                receive(board)
            return
        with transaction.atomic():
            receive(board)

    @rule(data=draws, ready=st.booleans())
    def order_is_created(self, data: Any, ready: bool) -> None:
        lot = self.pick(data, self.world.lots, "lot", self.world.is_free)
        taken = [order.number for order in self.world.orders]
        number = data.draw(st.sampled_from([f"S{len(taken) + 1}", *taken[:1]]), label="number")
        lines = self.lines(data, lot.quantity)
        row = Lot.objects.get(code=lot.code)
        wanted = [NewLine(n, "piece", sku, part) for n, (sku, part) in enumerate(lines, start=1)]
        self.same(
            lambda: self.world.create(number, lot, lines),
            lambda: lifecycle.create_order(number=number, source_lot=row, lines=wanted),
        )
        order = self.world.orders[-1]
        if ready and order.status == "draft":
            pk = real_id(order)
            self.same(lambda: self.world.submit(order), lambda: lifecycle.submit(pk))

    def lines(self, data: Any, quantity: Decimal) -> list[tuple[str, Decimal]]:
        """Return lines that add up, now and then not."""
        parts = data.draw(st.integers(1, 3), label="lines")
        error = data.draw(st.sampled_from([0] * 7 + [1]), label="too much by")
        share = (quantity / (parts + 1)).quantize(Decimal("0.01"))
        shares = [share] * (parts - 1)
        shares.append(quantity - sum(shares, Decimal(0)) + error)
        return [(SKUS[(n + 1) % len(SKUS)], part) for n, part in enumerate(shares)]

    def order(self, data: Any, fits: Any = lambda _it: True) -> tuple[Order, int]:
        order = self.pick(data, self.world.orders, "order", fits)
        return order, real_id(order)

    @rule(data=draws, action=st.sampled_from(sorted(ACTIONS)))
    def operator_acts(self, data: Any, action: str) -> None:
        order, pk = self.order(data, lambda it: it.status in FITS[action])
        self.same(lambda: getattr(self.world, action)(order), lambda: ACTIONS[action](pk))

    @precondition(lambda self: any(claimable(order) for order in self.world.orders))
    @rule(data=draws, now=st.booleans(), points=points)
    def finalizer_claims(self, data: Any, now: bool, points: int) -> None:
        self.claims(*self.order(data, claimable), now=now, points=points)

    def claims(self, order: Order, pk: int, *, now: bool, points: int) -> None:
        attempt = self.world.claim(order, now=now)
        real = finalizer.Finalizer(pk, now=now)
        assert real.at == (attempt.at if attempt else "")
        if attempt is None:
            assert (real.outcome, real.error) == (None, None)
            return
        self.attempts.append((attempt, real))
        self.goes(attempt, real, points=points)

    def attempt(self, data: Any) -> tuple[Attempt, finalizer.Finalizer]:
        return self.pick(data, self.attempts, "finalizer")

    @precondition(lambda self: self.attempts)
    @rule(data=draws, points=points)
    def finalizer_goes_on(self, data: Any, points: int) -> None:
        self.goes(*self.attempt(data), points=points)

    def goes(self, attempt: Attempt, real: finalizer.Finalizer, *, points: int) -> None:
        for _point in range(points):
            if attempt.at:
                self.world.go(attempt)
                real.go()
                self.stands(attempt, real)

    @precondition(lambda self: any(claimable(order) for order in self.world.orders))
    @rule(
        data=draws,
        points=st.integers(0, ALL - 1),
        trouble=st.sampled_from([*TROUBLES, *TRIED_AGAIN]),
        inside=st.booleans(),
    )
    def finalizer_claims_and_meets_trouble(
        self, data: Any, points: int, trouble: str, inside: bool
    ) -> None:
        self.claims(*self.order(data, claimable), now=True, points=points)
        if self.attempts:
            self.meets(*self.attempts[-1], trouble=trouble, inside=inside)

    @precondition(lambda self: self.attempts)
    @rule(data=draws, trouble=st.sampled_from([*TROUBLES, *TRIED_AGAIN]), inside=st.booleans())
    def finalizer_meets_trouble(self, data: Any, trouble: str, inside: bool) -> None:
        self.meets(*self.attempt(data), trouble=trouble, inside=inside)

    def meets(
        self, attempt: Attempt, real: finalizer.Finalizer, *, trouble: str, inside: bool
    ) -> None:
        if attempt.at.startswith("after_step.") and (inside or trouble in TRIED_AGAIN):
            self.goes(attempt, real, points=1)  # to where a transaction begins
        if trouble in TRIED_AGAIN:
            self.world.go(attempt)
            TRIED_AGAIN[trouble](real)
        elif inside:
            self.world.go(attempt, inside=trouble)
            real.fail_inside(TROUBLES[trouble]())
        else:
            self.world.meet(attempt, trouble)
            real.fail(TROUBLES[trouble]())
        self.stands(attempt, real)

    def stands(self, attempt: Attempt, real: finalizer.Finalizer) -> None:
        """Assert that the finalizer is where the model says."""
        assert real.at == attempt.at
        if not attempt.at:
            self.attempts.remove((attempt, real))
            raised = {"killed": Killed}.get(attempt.ending)
            if isinstance(real.error, LeaseLostError):
                assert attempt.ending in ("postponed", "fenced")
            elif raised:
                assert isinstance(real.error, raised)
            else:
                assert real.error is None, real.error
                assert real.outcome is not None
                assert real.outcome.ending == attempt.ending

    @precondition(lambda self: any(order.running for order in self.world.orders))
    @rule(data=draws)
    def finalizer_hangs(self, data: Any) -> None:
        """Time passes without progress of one order."""
        self.hangs(self.order(data, is_running)[0])

    def hangs(self, order: Order) -> None:
        order.fresh = False
        long_ago = db_now() - timedelta(seconds=2 * THRESHOLD_S)
        this = SplitOrder.objects.filter(number=order.number)
        this.update(finalize_progress_at=long_ago)

    @precondition(lambda self: any(it.running or it.resets for it in self.world.orders))
    @rule(data=draws, force=st.booleans(), due=st.booleans())
    def order_is_recovered(self, data: Any, force: bool, due: bool) -> None:
        order, _pk = self.order(data, is_running)
        request = self.request(force=force, due=due)
        seen = list(stuck.find(request, [order.number]))
        hangs = order.running and (force or not order.fresh)
        assert bool(seen) == (hangs or (force and order.status == "quarantined"))
        if seen:
            self.found.append((order, seen[0]))
            self.recovers(order, seen[0], request)

    @precondition(lambda self: any(order.status == "ready" for order in self.world.orders))
    @rule(data=draws, dies_at=st.integers(0, ALL - 1), points=st.integers(0, ALL - 1))
    def finalizer_is_taken_for_dead_and_goes_on(self, data: Any, dies_at: int, points: int) -> None:
        """It hangs, the order is reset, another one gets so far, and then it wakes."""
        order, pk = self.order(data, lambda it: claimable(it) and it.attempts < 2)
        if not order.running:
            self.claims(order, pk, now=True, points=dies_at)
        zombies = [pair for pair in self.attempts if pair[0].order is order and pair[0].holds]
        if order.running:
            self.hangs(order)
            request = self.request()
            (found,) = stuck.find(request, [order.number])
            self.found.append((order, found))
            self.recovers(order, found, request)
        self.claims(order, pk, now=True, points=points)
        for zombie in zombies:
            self.goes(*zombie, points=2)

    @precondition(lambda self: self.found)
    @rule(data=draws, force=st.booleans(), due=st.booleans())
    def late_recoverer_goes_on(self, data: Any, force: bool, due: bool) -> None:
        """What it found was reset meanwhile, and may hang again."""
        order, found = self.pick(data, self.found, "found", lambda it: it[0].running)
        self.recovers(order, found, self.request(force=force, due=due))

    def request(self, **kwargs: Any) -> Request:
        return Request(author=AUTHOR, threshold_s=THRESHOLD_S, **kwargs)

    def recovers(self, order: Order, found: Found, request: Request) -> None:
        result = self.world.recover(order, found.epoch, force=request.force, due=request.due)
        assert stuck.recover(found, request).result == result

    @precondition(lambda self: self.attempts and connection.vendor == "mysql")
    @rule(data=draws, trouble=troubles)
    def order_is_held_by_an_open_transaction(self, data: Any, trouble: str) -> None:
        """A recoverer comes while the finalizer stands inside its step."""
        attempt, real = self.attempt(data)
        if not (attempt.holds and attempt.at.startswith("before_step.")):
            return
        self.world.go(attempt, inside=trouble)
        real.go_inside()
        if real.at.startswith("in_step."):
            order = attempt.order
            found = Found(real_id(order), order.number, attempt.epoch, attempt.number)
            held = stuck.recover(found, self.request(force=True))
            assert held.result == "held"
            self.world.sightings.add((order.number, attempt.epoch))
            real.fail(TROUBLES[trouble]())
        self.stands(attempt, real)

    @rule(data=draws, what=st.sampled_from([204, 204, 503, 400, "time", "time", "window"]))
    def circumstances_change(self, data: Any, what: int | str) -> None:
        if what == "time":
            self.time_passes()
        elif what == "window":
            self.window_passes(*self.order(data, lambda it: it.recent_resets))
        else:
            self.world.endpoint.status = self.endpoint.status = int(what)

    def time_passes(self) -> None:
        """Let what waits for its time be due."""
        moment = db_now() - timedelta(seconds=1)
        SplitOrder.objects.exclude(next_finalize_at=None).update(next_finalize_at=moment)
        Breaker.objects.exclude(next_try_at=None).update(next_try_at=moment)
        for order in self.world.orders:
            order.due = order.due if order.due is None else True
        self.world.endpoint.try_due = self.world.endpoint.open

    def window_passes(self, order: Order, pk: int) -> None:
        """Let the resets of one order be older than the alert window."""
        order.recent_resets = 0
        this = SplitOrder.objects.filter(pk=pk)
        window = timedelta(seconds=django_settings.JOB_STUCK_ALERT_WINDOW_SEC + 60)
        count = len(this.get().recovered_at)
        this.update(recovered_at=[(db_now() - window).isoformat()] * count)

    @rule(limit=st.sampled_from([1, 2, 500]))
    def drain(self, limit: int) -> None:
        """All that is published is posted, nothing is refused, and balances are the stock."""
        result = entries.drain(limit, delay_sec=lambda _attempt: LATER_S)
        assert (result.failures, result.errors) == ({}, [])
        assert not OutboxEntry.objects.exclude(status="posted").exists()
        assert not OutboxEntry.objects.exclude(attempts=0).exists()
        keys = [key for key, _aggregate, _stock in self.world.entries]
        assert list(Transaction.objects.order_by("id").values_list("event_key", flat=True)) == keys
        stock = Account.objects.filter(code__startswith="stock:")
        expected = {code: balance for code, balance in self.world.stock().items() if balance}
        assert {it.code: it.balance for it in stock if it.balance} == expected
        entries.assert_books_balance()

    @invariant()
    def all_rows_are_as_the_model_says(self) -> None:
        assert orders_there() == {it.number: order_wanted(it) for it in self.world.orders}
        lots = Lot.objects.order_by("id").values_list(
            "code", "sku", "quantity", "status", "root_code", "parent_order__number"
        )
        assert list(lots) == [
            (it.code, it.sku, it.quantity, it.status, it.root, it.parent and it.parent.number)
            for it in self.world.lots
        ]
        published = OutboxEntry.objects.order_by("id").values_list("event_key", "aggregate")
        assert list(published) == [(key, agg) for key, agg, _ in self.world.entries]
        self.other_rows_are_as_the_model_says()

    def other_rows_are_as_the_model_says(self) -> None:
        steps: dict[str, list[str]] = {it.number: [] for it in self.world.orders}
        rows = FinalizeStep.objects.order_by("id").values_list("order__number", "name")
        for number, name in rows:
            steps[number].append(name)
        assert steps == {it.number: it.steps for it in self.world.orders}
        audit: dict[str, list[str]] = {it.number: [] for it in self.world.orders}
        for number, action in AuditRecord.objects.order_by("id").values_list("target_id", "action"):
            audit[number].append(action)
        assert audit == {it.number: it.audit for it in self.world.orders}
        numbers = dict(SplitOrder.objects.values_list("pk", "number"))
        sightings = StuckSighting.objects.values_list("order_ref", "epoch")
        assert {(numbers[ref], epoch) for ref, epoch in sightings} == self.world.sightings
        door = self.world.endpoint
        assert len(self.endpoint.bodies) == len(door.told)
        breaker = Breaker.objects.values_list("failures", "opened_at").first() or (0, None)
        assert (breaker[0], breaker[1] is not None) == (door.failures, door.open)

    @invariant()
    def stock_is_conserved(self) -> None:
        """Of each board there is as much as was received, less what is between two steps."""
        sums: dict[str, Decimal] = {}
        for root, quantity in Lot.objects.available().values_list("root_code", "quantity"):
            sums[root] = sums.get(root, Decimal(0)) + quantity
        for order in self.world.orders:
            if "consume_source" in order.steps and "create_outputs" not in order.steps:
                sums[order.lot.root] = sums.get(order.lot.root, Decimal(0)) + order.lot.quantity
        boards = Lot.objects.filter(parent_order=None).values_list("code", "quantity")
        assert sums == dict(boards)

    def books_agree(self) -> None:
        """The product's own check finds nothing either."""
        findings: list[Any] = []
        reconcile(Report(on_finding=findings.append))
        assert not findings


def is_running(order: Order) -> bool:
    return order.running


def claimable(order: Order) -> bool:
    return order.status == "ready" and not order.running


def real_id(order: Order) -> int:
    return SplitOrder.objects.get(number=order.number).pk


COLUMNS = (
    "status", "finalize_in_progress", "finalize_epoch", "finalize_attempts",
    "last_finalize_error_code", "recovery_count", "live_lot__code",
)  # fmt: skip


def order_wanted(order: Order) -> tuple[Any, ...]:
    """Return the columns, whether somebody owns it, and whether it is due."""
    live_lot = order.lot.code if order.live else None
    row = (order.status, order.running, order.epoch, order.attempts, order.code, order.resets)
    return (*row, live_lot, order.running, order.due)


def orders_there() -> dict[str, tuple[Any, ...]]:
    now = db_now()
    rows = SplitOrder.objects.values_list("number", "finalize_owner", "next_finalize_at", *COLUMNS)
    return {
        number: (*columns, bool(owner), None if due_at is None else due_at <= now)
        for number, owner, due_at, *columns in rows
    }
