"""Judge a batch by running balances: what is posted, refused or has to wait. Writes nothing."""

import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from django.db import connection

from ledger.models import ErrorCode
from ledger.payloads import AccountKey, Movement, RefusedError
from ledger.rows import AccountRow, Claimed, Stored
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

BY_ACCOUNTS = (ErrorCode.ACCOUNT_CLOSED, ErrorCode.INSUFFICIENT_BALANCE)

STACKS_TOLD = 5
"""Of a batch."""
Accounts = dict[AccountKey, AccountRow]


@dataclass
class Case:
    """What is known of a batch's entries, by their ids, before any balance is looked at."""

    entries: Sequence[Claimed] = ()
    """In id order."""
    known: Mapping[int, bool] = field(default_factory=dict)
    """Whose key was posted before, and whether with the same content."""
    movements: dict[int, Movement] = field(default_factory=dict)
    refusals: dict[int, RefusedError] = field(default_factory=dict)
    postponed: set[int] = field(default_factory=set)
    suspects: set[int] = field(default_factory=set)
    guilty: Set[int] = frozenset()
    """Those of ``refusals`` that are not worked at all: it would do harm."""
    charged: bool = False
    """The attempts under way are counted already."""
    again: bool = False
    """The entries were judged before: fault points are not visited once more."""

    def facts(self, entry: Claimed, code: str = ErrorCode.UNEXPECTED) -> dict[str, Any]:
        """Return what log records say of an attempt that failed."""
        return {
            "entry": entry.id,
            "event_key": entry.event_key,
            "code": code,
            "attempt": self.attempt(entry),
        }

    def attempt(self, entry: Claimed) -> int:
        """Return the number of the attempt at ``entry`` that is under way."""
        return entry.attempts if self.charged else entry.attempts + 1

    def once_more(self, verdict: "Verdict") -> "Case":
        """Return the case to be judged by other balances; what failed unexpectedly still does."""
        failed = {it.id: why for it, why in verdict.refused if why.code is ErrorCode.UNEXPECTED}
        return replace(self, refusals=self.refusals | failed, again=True)


@dataclass
class Verdict:
    """What is to become of each entry; the accounts hold the balances that come of it."""

    posted: list[Claimed] = field(default_factory=list)
    duplicates: list[Claimed] = field(default_factory=list)
    refused: list[tuple[Claimed, RefusedError]] = field(default_factory=list)
    postponed: list[int] = field(default_factory=list)
    suspects: list[int] = field(default_factory=list)
    behind: dict[int, list[int]] = field(default_factory=dict)
    """Entries that must wait, by the id of the entry they wait for."""
    held_back: set[str] = field(default_factory=set)
    """Aggregates whose first entry left stays: its followers remain parked."""

    def is_by_accounts(self) -> bool:
        """Tell whether entries were refused for what accounts held: they may be good by now."""
        return any(why.code in BY_ACCOUNTS for _, why in self.refused)

    def agrees(self, other: "Verdict") -> bool:
        """Tell whether both post the same entries and refuse the same ones for the same reasons."""
        return self._outcome() == other._outcome()

    def _outcome(self) -> tuple[list[int], list[int], list[tuple[int, str]]]:
        return (
            [entry.id for entry in self.posted],
            [entry.id for entry in self.duplicates],
            [(entry.id, refusal.code) for entry, refusal in self.refused],
        )


def judge(case: Case, accounts: Accounts) -> Verdict:
    """Judge the entries in id order against the running balances, which are moved."""
    verdict = Verdict()
    heads: dict[str, int] = {}
    for entry in case.entries:
        head = heads.get(entry.aggregate)
        if head is not None:
            verdict.behind.setdefault(head, []).append(entry.id)
        elif not _settles(entry, case, accounts, verdict):
            heads[entry.aggregate] = entry.id
    verdict.held_back = set(heads)
    return verdict


def _settles(entry: Claimed, case: Case, accounts: Accounts, verdict: Verdict) -> bool:
    """Judge one entry; False: it stays, and those behind it must wait."""
    if entry.id in case.suspects:
        verdict.suspects.append(entry.id)
        return False
    if entry.id in case.postponed:
        verdict.postponed.append(entry.id)
        return False
    try:
        if not case.again and entry.id not in case.guilty:
            faultpoint(f"outbox.entry:{entry.event_key}")
        _move_or_refuse(entry, case, accounts, verdict)
    except RefusedError as refusal:
        verdict.refused.append((entry, refusal))
        return False
    except Exception as error:
        # A bug that many entries meet: the stacks of the first are enough.
        if sum(it.code is ErrorCode.UNEXPECTED for _, it in verdict.refused) < STACKS_TOLD:
            logger.exception("entry_failed", extra=case.facts(entry))
        text = f"{type(error).__name__}: {error}"
        verdict.refused.append((entry, RefusedError(ErrorCode.UNEXPECTED, text)))
        return False
    return True


def _move_or_refuse(entry: Claimed, case: Case, accounts: Accounts, verdict: Verdict) -> None:
    """Move the balances as the entry asks, or refuse it and move nothing."""
    if entry.id in case.refusals:
        raise case.refusals[entry.id]
    if entry.id not in case.known:
        _move(case.movements[entry.id], accounts)
        verdict.posted.append(entry)
    elif case.known[entry.id]:
        verdict.duplicates.append(entry)
    else:
        text = "this key was posted before with other content"
        raise RefusedError(ErrorCode.KEY_CONFLICT, text)


def _move(movement: Movement, accounts: Accounts) -> None:
    """Apply the changes to the running balances; refuse all of them or none."""
    after: list[tuple[AccountRow, Decimal]] = []
    for key, change in movement.changes.items():
        account = accounts[key]
        _, closed, allow_negative = account.stored
        balance = account.balance + change
        if closed:
            raise RefusedError(ErrorCode.ACCOUNT_CLOSED, f"account {key[0]} [{key[1]}] is closed")
        if balance < 0 and change < 0 and not allow_negative:
            raise RefusedError(
                ErrorCode.INSUFFICIENT_BALANCE,
                f"account {key[0]} [{key[1]}] holds {account.balance:f},"
                f" which {change:f} would take below zero",
            )
        if not -KEPT_BY_ALL < balance < KEPT_BY_ALL:
            balance = _storable(key, balance)
        after.append((account, balance))
    for account, balance in after:
        if balance < account.lowest and balance < account.balance:
            account.lowest = balance
        account.balance = balance


def _storable(key: AccountKey, balance: Decimal) -> Decimal:
    """Return ``balance``, a sum of quantities with six decimals, if the database keeps it."""
    try:
        return storable_quantity(balance, connection.vendor)
    except InexactQuantityError as error:
        raise RefusedError(
            ErrorCode.UNEXPECTED, f"the balance of {key[0]} [{key[1]}]: {error}"
        ) from error


def keep_pace(
    accounts: Iterable[AccountRow], locked: Mapping[int, Stored], verdict: Verdict
) -> bool:
    """Move the running balances along with what the locked accounts hold by now.

    False: by these balances entries might be judged otherwise; nothing is moved then.
    """
    changed = [(it, locked[it.id]) for it in accounts if locked.get(it.id, it.stored) != it.stored]
    if changed and (verdict.is_by_accounts() or not all(_stands(it, now) for it, now in changed)):
        return False
    for account, now in changed:
        account.balance += now[0] - account.stored[0]
        account.stored = now
    return True


def _stands(account: AccountRow, now: Stored) -> bool:
    """Tell whether nothing is refused though the account holds what it does ``now``."""
    shift = now[0] - account.stored[0]
    is_small = abs(account.balance) + abs(shift) < KEPT_BY_ALL
    return now[1:] == account.stored[1:] and is_small and account.lowest + shift >= 0


def moved(accounts: Iterable[AccountRow]) -> list[AccountRow]:
    """Return the accounts whose balance is not what is stored."""
    return [account for account in accounts if account.balance != account.stored[0]]
