"""Post due outbox entries: one transaction a batch, each refusal known before anything is written."""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal

from django.db import DatabaseError, connection, transaction

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
from recovery.errors import is_infrastructure
from recovery.faultpoints import faultpoint
from recovery.fields import InexactQuantityError, storable_quantity

logger = logging.getLogger(__name__)

MISSING_ACCOUNT_ROUNDS = 5


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

    claimed: int = 0
    posted: list[rows.Claimed] = field(default_factory=list)
    duplicates: list[rows.Claimed] = field(default_factory=list)
    failures: dict[int, RefusedError] = field(default_factory=dict)
    dead: list[int] = field(default_factory=list)
    postponed: list[int] = field(default_factory=list)
    behind: dict[int, list[int]] = field(default_factory=dict)
    """Entries that must wait, by the id of the entry they wait for."""
    parked: int = 0
    released: int = 0

    def progressed(self) -> bool:
        """Tell whether anything changed."""
        return bool(
            self.posted or self.duplicates or self.failures or self.postponed or self.parked
        )

    def add(self, other: "Result") -> None:
        """Take in what another part of the batch did."""
        self.claimed += other.claimed
        self.posted += other.posted
        self.duplicates += other.duplicates
        self.failures |= other.failures
        self.dead += other.dead
        self.postponed += other.postponed
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

    def __init__(self, keys: Collection[AccountKey]) -> None:
        """Keep the accounts' codes and units."""
        super().__init__(f"{len(keys)} accounts are missing")
        self.keys = keys


class BatchRefusedError(Exception):
    """The database refused the batch for the sake of one of its entries."""

    def __init__(self, ids: Sequence[int], error: DatabaseError) -> None:
        """Keep the claimed ids and the error."""
        super().__init__(str(error))
        self.ids = ids
        self.error = error


def post_due(policy: Policy, *, limit: int) -> Result:
    """Post up to ``limit`` due entries in one transaction; only the guilty fail.

    Raises what ``policy.seal`` raises and infrastructure errors; nothing is committed then.
    """
    return _isolated(policy, ids=None, limit=limit)


def post_these(policy: Policy, ids: Sequence[int], *, charged: bool = False) -> Result:
    """Post these pending entries, due or not; ``charged``: their attempt is counted already."""
    return _isolated(policy, ids=ids, limit=len(ids), charged=charged)


def _isolated(
    policy: Policy, *, ids: Sequence[int] | None, limit: int, charged: bool = False
) -> Result:
    """Post a batch; halve it where only the database can tell which entry is guilty."""
    try:
        result = _settled(policy, ids=ids, limit=limit, charged=charged)
    except BatchRefusedError as refused:
        if len(refused.ids) == 1:
            error = RefusedError(
                ErrorCode.UNEXPECTED, f"{type(refused.error).__name__}: {refused.error}"
            )
            return _settled(
                policy, ids=refused.ids, limit=1, charged=charged, guilty={refused.ids[0]: error}
            )
        result = Result()
        middle = len(refused.ids) // 2
        for half in (refused.ids[:middle], refused.ids[middle:]):
            result.add(_isolated(policy, ids=half, limit=len(half), charged=charged))
    return result


def _settled(
    policy: Policy,
    *,
    ids: Sequence[int] | None,
    limit: int,
    charged: bool,
    guilty: dict[int, RefusedError] | None = None,
) -> Result:
    """Post a batch, making missing accounts first; then park and release followers."""
    for _ in range(MISSING_ACCOUNT_ROUNDS):
        try:
            with transaction.atomic():
                result = _Batch(policy, charged=charged, guilty=guilty or {}).post(
                    ids=ids, limit=limit
                )
                faultpoint("outbox.before_commit")
                if result.claimed:
                    policy.seal()
            break
        except MissingAccountsError as missing:
            rows.make_accounts(missing.keys)
    else:
        raise RuntimeError("accounts that were made are still missing")
    if result.claimed:
        faultpoint("outbox.after_commit")
    _settle_followers(policy, result)
    return result


def _settle_followers(policy: Policy, result: Result) -> None:
    """Park those behind a failed entry, release those behind a posted one.

    After the commit, under the head's lock alone: holding accounts meanwhile could deadlock
    with a drain that holds a follower. A crash in between costs nothing: followers that
    are claimed too early are found blocked and parked then.
    """
    for head in result.failures:
        result.parked += parking.park_all_behind(head, cap_s=policy.cap_s)
    for head, waiting in result.behind.items():
        if head not in result.failures:
            result.parked += parking.park_behind(head, waiting, cap_s=policy.cap_s)
    healed = [entry.aggregate for entry in result.posted if entry.attempts]
    if healed:
        result.released = parking.release(healed)


class _Batch:
    """One batch within its transaction."""

    def __init__(self, policy: Policy, *, charged: bool, guilty: dict[int, RefusedError]) -> None:
        self.policy = policy
        self.charged = charged
        self.guilty = guilty
        self.now = db_now()
        self.result = Result()
        self.movements: dict[int, Movement] = {}
        self.refusals: dict[int, RefusedError] = {}
        self.postponed: set[int] = set()
        self.charges: list[rows.Charge] = []

    def post(self, *, ids: Sequence[int] | None, limit: int) -> Result:
        """Claim, judge and write one batch."""
        entries = rows.claim(limit) if ids is None else rows.claim_these(ids)
        self.result.claimed = len(entries)
        if not entries:
            return self.result
        workable = self._in_order(entries)
        known = rows.posted_hashes([entry.event_key for entry in workable])
        self._read(workable, known)
        accounts = self._lock_accounts()
        self._walk(workable, known, accounts)
        try:
            self._write(accounts)
        except DatabaseError as error:
            if is_infrastructure(error):
                raise
            raise BatchRefusedError([entry.id for entry in workable], error) from error
        return self.result

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
        self.refusals |= self.guilty
        for entry in entries:
            if entry.id in self.refusals or entry.event_key in known:
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
            if entry.id in self.postponed:
                self.result.postponed.append(entry.id)
                heads[entry.aggregate] = entry.id
                continue
            try:
                self._judge(entry, known, accounts)
            except RefusedError as refusal:
                self.result.failures[entry.id] = refusal
                heads[entry.aggregate] = entry.id
                self._charge(entry, refusal)

    def _judge(
        self,
        entry: rows.Claimed,
        known: dict[str, str],
        accounts: dict[AccountKey, rows.AccountRow],
    ) -> None:
        """Move the balances as the entry asks, or refuse it and move nothing."""
        try:
            faultpoint(f"outbox.entry:{entry.event_key}")
            if entry.id in self.refusals:
                raise self.refusals[entry.id]
            if entry.event_key in known:
                self._judge_known(entry, known[entry.event_key])
            else:
                _move(self.movements[entry.id], accounts)
                self.result.posted.append(entry)
        except RefusedError:
            raise
        except Exception as error:
            logger.exception(
                "entry_failed",
                extra={
                    "code": ErrorCode.UNEXPECTED,
                    "attempt": entry.attempts + 1,
                    "entry": entry.id,
                },
            )
            text = f"{type(error).__name__}: {error}"
            raise RefusedError(ErrorCode.UNEXPECTED, text) from error

    def _judge_known(self, entry: rows.Claimed, posted_hash: str) -> None:
        if posted_hash != entry.content_hash:
            raise RefusedError(
                ErrorCode.KEY_CONFLICT, "this key was posted before with other content"
            )
        self.result.duplicates.append(entry)

    def _charge(self, entry: rows.Claimed, refusal: RefusedError) -> None:
        attempts = entry.attempts if self.charged else entry.attempts + 1
        if attempts >= self.policy.max_attempts:
            self.result.dead.append(entry.id)
        log = logger.info if refusal.code is not ErrorCode.UNEXPECTED else logger.warning
        log(
            "entry_refused",
            extra={"entry": entry.id, "key": entry.event_key, "code": refusal.code.value,
                   "attempt": attempts, "detail": refusal.text},
        )  # fmt: skip
        self.charges.append(
            rows.Charge(
                entry=entry,
                attempts=attempts,
                next_attempt_at=self.now + timedelta(seconds=self.policy.delay_sec(attempts)),
                code=refusal.code,
                text=refusal.text,
                dead=attempts >= self.policy.max_attempts,
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
            OutboxEntry.objects.filter(pk__in=result.postponed).park(until)


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
    try:
        return storable_quantity(balance, connection.vendor)
    except InexactQuantityError as error:
        raise RefusedError(
            ErrorCode.UNEXPECTED, f"the balance of {key[0]} [{key[1]}]: {error}"
        ) from error
