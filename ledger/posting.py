"""Post due outbox entries: a transaction a batch, refusals known before anything is written."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

from django.db import DatabaseError, InterfaceError, connection, transaction

from ledger import parking, rows
from ledger.models import ErrorCode, OutboxEntry
from ledger.payloads import (
    AccountKey,
    Movement,
    RefusedError,
    UnknownVersionError,
    read,
)
from recovery.clock import db_now
from recovery.errors import code_of, is_infrastructure, is_too_large, with_retries
from recovery.faultpoints import faultpoint
from recovery.fields import (
    QUANTITY_PLACES,
    SQLITE_DIGITS,
    InexactQuantityError,
    storable_quantity,
)

logger = logging.getLogger(__name__)

KEPT_BY_ALL = Decimal(10) ** (SQLITE_DIGITS - QUANTITY_PLACES)
"""Below this, six decimals make no more digits than every database keeps exactly."""


@dataclass(frozen=True)
class Policy:
    """What a batch may not decide for itself; times in seconds."""

    max_attempts: int
    delay_sec: Callable[[int], float]
    """Seconds to wait after the failed attempt of this number."""
    cap_s: float
    """How long the followers of a dead entry are parked."""
    unknown_version_delay_s: float
    actor: str
    seal: Callable[[], None] = lambda: None
    """Called as the last statement of each transaction: renews the lease, or raises."""


@dataclass
class Result:
    """What a batch did, as counts of entries."""

    at: datetime | None = None
    """When it was committed, by the database's clock: the latest, where it did several parts."""
    claimed: int = 0
    posted: list[rows.Claimed] = field(default_factory=list)
    duplicates: list[rows.Claimed] = field(default_factory=list)
    failures: dict[int, RefusedError] = field(default_factory=dict)
    dead: list[int] = field(default_factory=list)
    postponed: list[int] = field(default_factory=list)
    behind: dict[int, list[int]] = field(default_factory=dict)
    """Entries that must wait, by the id of the entry they wait for."""
    held_back: set[str] = field(default_factory=set)
    """Aggregates whose first entry left was tried and stays: its followers remain parked."""
    suspects: list[int] = field(default_factory=list)
    """Entries whose last attempt killed its worker: not to be worked among others."""
    errors: list[DatabaseError] = field(default_factory=list)
    """Why entries could neither be posted nor charged."""
    parked: int = 0
    released: int = 0

    def progressed(self) -> bool:
        """Tell whether anything changed."""
        return bool(
            self.posted or self.duplicates or self.failures or self.postponed or self.parked
        )

    def add(self, other: "Result") -> None:
        """Take in what another part of the batch did."""
        self.at = other.at or self.at
        self.claimed += other.claimed
        self.posted += other.posted
        self.duplicates += other.duplicates
        self.failures |= other.failures
        self.dead += other.dead
        self.postponed += other.postponed
        self.suspects += other.suspects
        self.errors += other.errors
        self.parked += other.parked
        self.released += other.released

    def counts(self) -> dict[str, int]:
        """Return the counts worth reporting."""
        found = {
            "posted": len(self.posted),
            "duplicates": len(self.duplicates),
            "failed": len(self.failures),
            "dead": len(self.dead),
            "postponed": len(self.postponed),
            "parked": self.parked,
        }
        return {name: count for name, count in found.items() if count}


class MissingAccountsError(Exception):
    """Accounts must be made before the batch can lock them."""

    def __init__(self, keys: Set[AccountKey]) -> None:
        """Keep the accounts' codes and units."""
        super().__init__(f"{len(keys)} accounts are missing")
        self.keys = keys


class BatchRefusedError(Exception):
    """The database refused the batch for the sake of one of its entries."""

    def __init__(self, entries: Sequence[rows.Claimed], claimed: int, error: DatabaseError) -> None:
        """Keep the entries that were worked, how many were claimed, and the error."""
        super().__init__(str(error))
        self.entries = entries
        self.ids = [entry.id for entry in entries]
        self.claimed = claimed
        self.error = error


@dataclass(frozen=True)
class _Work:
    """Which entries to post, and what is known of them beforehand."""

    policy: Policy
    limit: int
    ids: Sequence[int] | None = None
    """None: those that are due."""
    seen: dict[int, int] = field(default_factory=dict)
    """Attempts by id, as first claimed: whatever has others now was charged since."""
    charged: bool = False
    guilty: Mapping[int, RefusedError] = field(default_factory=dict)

    def attempt(self, entry: rows.Claimed) -> int:
        """Return the number of the attempt at ``entry`` that is under way."""
        return entry.attempts if self.charged else entry.attempts + 1

    def facts(self, entry: rows.Claimed, code: str = ErrorCode.UNEXPECTED) -> dict[str, Any]:
        """Return what log records say of an attempt that failed."""
        return {
            "entry": entry.id,
            "key": entry.event_key,
            "code": code,
            "attempt": self.attempt(entry),
        }


def post_due(policy: Policy, *, limit: int) -> Result:
    """Post up to ``limit`` due entries in one transaction; only the guilty fail.

    Infrastructure errors are retried. Raises what ``policy.seal`` raises and infrastructure
    errors that stay; nothing is committed then, or a part where the batch had to be halved.
    """
    return _isolated(_Work(policy, limit))


def post_these(
    policy: Policy,
    ids: Sequence[int],
    *,
    charged: bool = False,
    guilty: Mapping[int, RefusedError] | None = None,
) -> Result:
    """Post these pending entries, due or not.

    ``charged``: their attempt is counted already; ``guilty``: those to be refused, and why.
    """
    return _isolated(_Work(policy, len(ids), ids, charged=charged, guilty=guilty or {}))


def _isolated(work: _Work) -> Result:
    """Post a batch; halve it where only the database can tell which entry is guilty."""
    try:
        return _settled(work)
    except BatchRefusedError as refused:
        if len(refused.ids) == 1:
            return _blamed(work, refused.ids[0], refused.error)
        result = Result()
        middle = len(refused.ids) // 2
        for half in (refused.ids[:middle], refused.ids[middle:]):
            result.add(_isolated(replace(work, ids=half, limit=len(half))))
        result.claimed = refused.claimed
        return result


def _blamed(work: _Work, pk: int, error: DatabaseError) -> Result:
    """Charge the one entry the database refuses; where even that is refused it stays as it is."""
    refusal = RefusedError(ErrorCode.UNEXPECTED, f"{type(error).__name__}: {error}")
    try:
        return _settled(replace(work, ids=[pk], limit=1, guilty={pk: refusal}))
    except BatchRefusedError as refused:
        (entry,) = refused.entries
        facts = {**work.facts(entry), "errno": code_of(refused.error), "detail": refusal.text}
        logger.exception("entry_not_charged", extra=facts)
        return Result(claimed=1, errors=[refused.error])


def _settled(work: _Work) -> Result:
    """Post a batch, making missing accounts first; then park and release followers."""
    result = _posted(work)
    if result.claimed:
        faultpoint("outbox.after_commit")
    try:
        with_retries(lambda: _settle_followers(work.policy, result))
    except (DatabaseError, InterfaceError) as error:
        # What was posted is to be counted all the same; those claimed too early wait then.
        logger.warning("followers_not_settled", extra={"error": str(error)})
    return result


def _posted(work: _Work) -> Result:
    """Post a batch, again after making accounts; each try may claim others."""
    made: set[AccountKey] = set()
    while True:
        try:
            return with_retries(lambda: _committed(work))
        except MissingAccountsError as missing:
            if made >= missing.keys:
                raise
            made |= missing.keys
            with_retries(partial(_make_accounts, work.policy, missing.keys))


def _make_accounts(policy: Policy, keys: Set[AccountKey]) -> None:
    with transaction.atomic():
        rows.make_accounts(keys)
        policy.seal()


def _committed(work: _Work) -> Result:
    """Post a batch in one transaction."""
    begun = time.monotonic()
    with transaction.atomic():
        result = _Batch(work).post()
        faultpoint("outbox.before_commit")
        if result.claimed:
            work.policy.seal()
    if result.at:
        result.at += timedelta(seconds=time.monotonic() - begun)
    return result


def _settle_followers(policy: Policy, result: Result) -> None:
    """Park those behind a failed entry, release those behind a posted one.

    After the commit, under the head's lock alone: holding accounts meanwhile could deadlock
    with a drain that holds a follower. A crash in between costs nothing: followers that
    are claimed too early are found blocked and parked then.
    """
    parked = parking.park_behind(result.behind, cap_s=policy.cap_s) if result.behind else 0
    healed = {entry.aggregate for entry in result.posted + result.duplicates if entry.attempts}
    healed -= result.held_back
    result.released = parking.release(healed) if healed else 0
    result.parked = parked


class _Batch:
    """One batch within its transaction."""

    def __init__(self, work: _Work) -> None:
        self.work = work
        self.policy = work.policy
        self.now = db_now()
        self.result = Result(self.now)
        self.movements: dict[int, Movement] = {}
        self.refusals: dict[int, RefusedError] = dict(work.guilty)
        self.postponed: set[int] = set()
        self.charges: list[rows.Charge] = []

    def post(self) -> Result:
        """Claim, judge and write one batch."""
        entries = self._claim()
        self.result.claimed = len(entries)
        workable = self._in_order(entries) if entries else []
        try:
            if workable:
                self._work(workable)
        except DatabaseError as error:
            if is_infrastructure(error) and not is_too_large(error):
                raise
            raise BatchRefusedError(workable, len(entries), error) from error
        return self.result

    def _claim(self) -> list[rows.Claimed]:
        """Claim, less what was charged meanwhile: by us, where the answer to a COMMIT was lost."""
        ids, seen = self.work.ids, self.work.seen
        entries = rows.claim(self.work.limit) if ids is None else rows.claim_these(ids)
        return [it for it in entries if seen.setdefault(it.id, it.attempts) == it.attempts]

    def _work(self, entries: Sequence[rows.Claimed]) -> None:
        known = rows.posted_hashes([entry.event_key for entry in entries])
        self._read(entries, known)
        accounts = self._lock_accounts()
        self._walk(entries, known, accounts)
        self._write(accounts)

    def _in_order(self, entries: Sequence[rows.Claimed]) -> list[rows.Claimed]:
        """Return the entries by id, less those behind an entry outside the batch."""
        barriers = parking.barriers(entries)
        workable = []
        for entry in sorted(entries, key=lambda entry: entry.id):
            barrier = barriers.get(entry.aggregate)
            if barrier is not None and barrier < entry.id:
                self.result.behind.setdefault(barrier, []).append(entry.id)
            else:
                workable.append(entry)
        return workable

    def _read(self, entries: Iterable[rows.Claimed], known: dict[str, str]) -> None:
        vendor = connection.vendor
        for entry in entries:
            settled = entry.id in self.refusals or entry.event_key in known
            if settled or self._is_suspect(entry):
                continue
            try:
                self.movements[entry.id] = read(entry.payload, vendor)
            except RefusedError as refusal:
                self.refusals[entry.id] = refusal
            except UnknownVersionError:
                self.postponed.add(entry.id)

    def _lock_accounts(self) -> dict[AccountKey, rows.AccountRow]:
        wanted = {key for movement in self.movements.values() for key in movement.changes}
        accounts = rows.lock_accounts(wanted)
        if len(accounts) < len(wanted):
            raise MissingAccountsError(wanted - accounts.keys())
        return accounts

    def _walk(
        self,
        entries: Iterable[rows.Claimed],
        known: dict[str, str],
        accounts: dict[AccountKey, rows.AccountRow],
    ) -> None:
        """Judge the entries in id order against the running balances."""
        heads: dict[str, int] = {}
        for entry in entries:
            head = heads.get(entry.aggregate)
            if head is not None:
                self.result.behind.setdefault(head, []).append(entry.id)
                continue
            if not self._settles(entry, known, accounts):
                heads[entry.aggregate] = entry.id
        self.result.held_back = set(heads)

    def _is_suspect(self, entry: rows.Claimed) -> bool:
        return entry.killed and not self.work.charged

    def _settles(
        self,
        entry: rows.Claimed,
        known: dict[str, str],
        accounts: dict[AccountKey, rows.AccountRow],
    ) -> bool:
        """Judge one entry; False: it stays, and those behind it must wait."""
        if self._is_suspect(entry):
            self.result.suspects.append(entry.id)
            return False
        if entry.id in self.postponed:
            self.result.postponed.append(entry.id)
            return False
        try:
            self._judge(entry, known, accounts)
        except RefusedError as refusal:
            self.result.failures[entry.id] = refusal
            self._charge(entry, refusal)
            return False
        return True

    def _judge(
        self,
        entry: rows.Claimed,
        known: dict[str, str],
        accounts: dict[AccountKey, rows.AccountRow],
    ) -> None:
        """Move the balances as the entry asks, or refuse it and move nothing."""
        try:
            if entry.id not in self.work.guilty:
                faultpoint(f"outbox.entry:{entry.event_key}")
            self._move_or_refuse(entry, known, accounts)
        except RefusedError:
            raise
        except Exception as error:
            logger.exception("entry_failed", extra=self.work.facts(entry))
            text = f"{type(error).__name__}: {error}"
            raise RefusedError(ErrorCode.UNEXPECTED, text) from error

    def _move_or_refuse(
        self,
        entry: rows.Claimed,
        known: dict[str, str],
        accounts: dict[AccountKey, rows.AccountRow],
    ) -> None:
        if entry.id in self.refusals:
            raise self.refusals[entry.id]
        if entry.event_key not in known:
            _move(self.movements[entry.id], accounts)
            self.result.posted.append(entry)
        elif known[entry.event_key] == entry.content_hash:
            self.result.duplicates.append(entry)
        else:
            text = "this key was posted before with other content"
            raise RefusedError(ErrorCode.KEY_CONFLICT, text)

    def _charge(self, entry: rows.Claimed, refusal: RefusedError) -> None:
        attempts = self.work.attempt(entry)
        dead = attempts >= self.policy.max_attempts
        if dead:
            self.result.dead.append(entry.id)
        log = logger.info if refusal.code is not ErrorCode.UNEXPECTED else logger.warning
        facts = {**self.work.facts(entry, refusal.code), "detail": refusal.text, "dead": dead}
        log("entry_refused", extra=facts)
        self.charges.append(
            rows.Charge(
                entry=entry,
                attempts=attempts,
                next_attempt_at=self.now + timedelta(seconds=self.policy.delay_sec(attempts)),
                code=refusal.code,
                text=refusal.text,
                dead=dead,
            )
        )

    def _write(self, accounts: dict[AccountKey, rows.AccountRow]) -> None:
        result = self.result
        rows.insert_transactions(result.posted, self.now)
        rows.insert_postings(
            (entry.id, line, accounts[key].id, quantity)
            for entry in result.posted
            for line, (key, quantity) in enumerate(self.movements[entry.id].lines, start=1)
        )
        rows.store_balances([account for account in accounts.values() if account.moved])
        rows.mark_posted([entry.id for entry in result.posted + result.duplicates], self.now)
        rows.store_charges(self.charges, actor=self.policy.actor)
        if result.postponed:
            until = self.now + timedelta(seconds=self.policy.unknown_version_delay_s)
            OutboxEntry.objects.park(result.postponed, until)


def _move(movement: Movement, accounts: dict[AccountKey, rows.AccountRow]) -> None:
    """Apply the changes to the running balances; refuse all of them or none."""
    after: list[tuple[rows.AccountRow, Decimal]] = []
    for key, change in movement.changes.items():
        account = accounts[key]
        if account.closed:
            raise RefusedError(ErrorCode.ACCOUNT_CLOSED, f"account {key[0]} [{key[1]}] is closed")
        balance = account.balance + change
        if balance < 0 and change < 0 and not account.allow_negative:
            raise RefusedError(
                ErrorCode.INSUFFICIENT_BALANCE,
                f"account {key[0]} [{key[1]}] holds {account.balance:f},"
                f" which {change:f} would take below zero",
            )
        after.append((account, _storable(key, balance)))
    for account, balance in after:
        account.balance = balance
        account.moved = True


def _storable(key: AccountKey, balance: Decimal) -> Decimal:
    """Return ``balance``, a sum of quantities with six decimals, if the database keeps it."""
    if -KEPT_BY_ALL < balance < KEPT_BY_ALL:
        return balance
    try:
        return storable_quantity(balance, connection.vendor)
    except InexactQuantityError as error:
        raise RefusedError(
            ErrorCode.UNEXPECTED, f"the balance of {key[0]} [{key[1]}]: {error}"
        ) from error
