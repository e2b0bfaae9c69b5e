"""Post due outbox entries: a transaction a batch, refusals known before anything is written."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter
from uuid import UUID

from django.db import DatabaseError, InterfaceError, connection, transaction

from ledger import parking, rows
from ledger.judging import Accounts, Case, Verdict, judge, keep_pace, moved
from ledger.models import ErrorCode, OutboxEntry
from ledger.payloads import AccountKey, RefusedError, UnknownVersionError, read
from recovery.clock import db_now
from recovery.errors import code_of, is_infrastructure, is_too_large, with_retries
from recovery.faultpoints import faultpoint

logger = logging.getLogger(__name__)

TOLD_ALONE = 20
"""So many refusals of a batch have a record each; the others share one."""


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
    run_id: UUID | None = None
    """Of the run, for the audit records."""
    seal: Callable[[], None] = lambda: None
    """Called as the last statement of each transaction: renews the lease, or raises."""
    committed: Callable[["Result"], None] = lambda _result: None
    """Called with what each transaction did, once it is committed: counts."""


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
    briefly: bool = False
    """Some of the parked wait for what another drain is just posting."""
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
        self.briefly |= other.briefly
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


class OvertakenError(Exception):
    """Another drain moved the accounts meanwhile, and the batch would be judged otherwise now."""


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
    locks_first: bool = False
    """Lock the accounts before they are read: slower, and nobody can overtake."""


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
        facts = Case(charged=work.charged).facts(entry)
        facts |= {"errno": code_of(refused.error)}
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
    """Post a batch, again after making accounts or being overtaken; each try may claim others."""
    made: set[AccountKey] = set()
    while True:
        try:
            return with_retries(partial(_committed, work))
        except MissingAccountsError as missing:
            if made >= missing.keys:
                raise
            made |= missing.keys
            with_retries(partial(_make_accounts, work.policy, missing.keys))
        except OvertakenError:
            work = replace(work, locks_first=True)


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
        # At once: whoever is killed later, or fails at another part, has counted this one.
        transaction.on_commit(
            lambda: work.policy.committed(replace(result, at=_now(result, begun))), robust=True
        )
    result.at = _now(result, begun)
    return result


def _now(result: Result, begun: float) -> datetime | None:
    """Return the database's time, reckoned from when the batch read it."""
    return result.at and result.at + timedelta(seconds=time.monotonic() - begun)


def _settle_followers(policy: Policy, result: Result) -> None:
    """Park those behind a failed entry, release those behind a posted one.

    After the commit, under the head's lock alone: holding accounts meanwhile could deadlock
    with a drain that holds a follower. A crash in between costs nothing: followers that
    are claimed too early are found blocked and parked then.
    """
    parked = parking.park_behind(result.behind, cap_s=policy.cap_s)
    healed = {entry.aggregate for entry in result.posted + result.duplicates if entry.attempts}
    healed -= result.held_back
    result.released = parking.release(healed) if healed else 0
    result.parked, result.briefly = parked


class _Batch:
    """One batch within its transaction.

    Balances are read without locks, the batch is judged by them and its rows are written. Only
    then are the accounts locked that must not go below zero, and the verdict is confirmed by what
    they hold now; the others change by difference at the very end. So drains at work on the same
    accounts wait for one another no longer than the last statements take.
    """

    def __init__(self, work: _Work) -> None:
        self.work = work
        self.policy = work.policy
        self.now = db_now()
        self.result = Result(self.now)
        self.case = Case(
            refusals=dict(work.guilty), guilty=work.guilty.keys(), charged=work.charged
        )

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
        self._read(entries)
        accounts = self._accounts()
        verdict = judge(self.case, accounts)
        self._write(verdict, accounts)
        self._balance(verdict, accounts)
        self._report(verdict)

    def _in_order(self, entries: Sequence[rows.Claimed]) -> list[rows.Claimed]:
        """Return the entries by id, less those behind an entry outside the batch."""
        barriers = parking.barriers(entries)
        workable = []
        for entry in sorted(entries, key=attrgetter("id")):
            barrier = barriers.get(entry.aggregate)
            if barrier is not None and barrier < entry.id:
                self.result.behind.setdefault(barrier, []).append(entry.id)
            else:
                workable.append(entry)
        return workable

    def _read(self, entries: Sequence[rows.Claimed]) -> None:
        case, vendor = self.case, connection.vendor
        case.entries = entries
        case.known = rows.posted_before([entry.id for entry in entries])
        for entry in entries:
            if entry.killed and not self.work.charged:
                case.suspects.add(entry.id)
            elif entry.id not in case.refusals and entry.id not in case.known:
                try:
                    case.movements[entry.id] = read(entry.payload, vendor)
                except RefusedError as refusal:
                    case.refusals[entry.id] = refusal
                except UnknownVersionError:
                    case.postponed.add(entry.id)

    def _accounts(self) -> Accounts:
        wanted = {key for movement in self.case.movements.values() for key in movement.changes}
        accounts = rows.read_accounts(wanted)
        if len(accounts) < len(wanted):
            raise MissingAccountsError(wanted - accounts.keys())
        if self.work.locks_first:
            for guarded in (True, False):  # the order in which every batch locks them
                accounts = _as_locked(accounts, self._lock(accounts, guarded=guarded))
        return accounts

    @staticmethod
    def _lock(accounts: Accounts, *, guarded: bool) -> dict[int, rows.Stored]:
        return rows.lock_accounts(it for it in accounts.values() if _is_guarded(it) is guarded)

    def _write(self, verdict: Verdict, accounts: Accounts) -> None:
        """Write all but the balances."""
        posted = [entry.id for entry in verdict.posted]
        rows.insert_transactions(posted, self.now)
        rows.insert_postings(((pk, self.case.movements[pk].lines) for pk in posted), accounts)
        rows.mark_posted(posted + [entry.id for entry in verdict.duplicates], self.now)
        charges = [self._charge(entry, refusal) for entry, refusal in verdict.refused]
        rows.store_charges(charges, actor=self.policy.actor, run_id=self.policy.run_id)
        if verdict.postponed:
            until = self.now + timedelta(seconds=self.policy.unknown_version_delay_s)
            OutboxEntry.objects.park(verdict.postponed, until)

    def _balance(self, verdict: Verdict, accounts: Accounts) -> None:
        """Confirm the verdict by the accounts as they are now, and store their balances."""
        if not self.work.locks_first:
            locked = self._lock(accounts, guarded=True)
            if not keep_pace(accounts.values(), locked, verdict):
                accounts = _as_locked(accounts, locked)
                if not judge(self.case.once_more(verdict), accounts).agrees(verdict):
                    raise OvertakenError
        changed = moved(accounts.values())
        rows.store_balances([account for account in changed if _is_guarded(account)])
        if not rows.change_balances([it for it in changed if not _is_guarded(it)]):
            raise OvertakenError

    def _charge(self, entry: rows.Claimed, refusal: RefusedError) -> rows.Charge:
        attempts = self.case.attempt(entry)
        return rows.Charge(
            entry=entry,
            attempts=attempts,
            next_attempt_at=self.now + timedelta(seconds=self.policy.delay_sec(attempts)),
            code=refusal.code,
            text=refusal.text,
            dead=attempts >= self.policy.max_attempts,
        )

    def _report(self, verdict: Verdict) -> None:
        result = self.result
        result.posted, result.duplicates = verdict.posted, verdict.duplicates
        result.postponed, result.suspects = verdict.postponed, verdict.suspects
        result.held_back = verdict.held_back
        for head, waiting in verdict.behind.items():
            result.behind.setdefault(head, []).extend(waiting)
        for nth, (entry, refusal) in enumerate(verdict.refused):
            result.failures[entry.id] = refusal
            dead = self.case.attempt(entry) >= self.policy.max_attempts
            if dead:
                result.dead.append(entry.id)
            if nth < TOLD_ALONE:
                self._tell(entry, refusal, dead=dead)
        if len(verdict.refused) > TOLD_ALONE:
            _tell_together(verdict.refused[TOLD_ALONE:])

    def _tell(self, entry: rows.Claimed, refusal: RefusedError, *, dead: bool) -> None:
        log = logger.warning if refusal.code is ErrorCode.UNEXPECTED else logger.info
        # Not why: texts of refusals tell accounts and quantities. The entry's last error has it.
        log("entry_refused", extra={**self.case.facts(entry, refusal.code), "dead": dead})


def _tell_together(refused: Sequence[tuple[rows.Claimed, RefusedError]]) -> None:
    """Log in one record what would be thousands where a common cause refuses all."""
    codes = Counter(refusal.code.value for _, refusal in refused)
    keys = " ".join(entry.event_key for entry, _ in refused)
    logger.warning("entries_refused", extra={"codes": dict(codes), "event_keys": keys})


def _as_locked(accounts: Accounts, locked: Mapping[int, rows.Stored]) -> Accounts:
    """Return the accounts unmoved, with what they hold now where they are locked."""
    now = {key: locked.get(account.id, account.stored) for key, account in accounts.items()}
    return {
        key: rows.AccountRow(account.id, now[key], now[key][0], now[key][0])
        for key, account in accounts.items()
    }


def _is_guarded(account: rows.AccountRow) -> bool:
    """Tell whether the account is to be locked; on SQLite who writes has all of them locked."""
    return not account.stored[2] or not connection.features.has_select_for_update
