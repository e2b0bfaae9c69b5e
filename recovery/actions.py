"""What operators may do to rows: each action defined once, found in ``<app>/actions.py``."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Generic, TypeVar
from uuid import UUID

from django.db import OperationalError, connection, models

from recovery.errors import is_row_locked

Row = TypeVar("Row", bound=models.Model)

IDS_AT_ONCE = 500


class ActionError(Exception):
    """An action cannot be had, or not as it was asked for."""


class UnknownActionError(ActionError):
    """No action of this name is registered."""

    def __init__(self, name: str) -> None:
        """Name the actions there are."""
        names = ", ".join(it.name for it in all_actions())
        super().__init__(f"no action is named {name!r}; there are: {names}")


class WrongParametersError(ActionError):
    """These parameters do not belong to the action, or not with these values."""


class RefusedError(ActionError):
    """The row does not allow the action: nothing of it has been changed."""


class RowHeldError(ActionError):
    """Another database transaction has the row locked."""


@dataclass(frozen=True)
class By:
    """Who does it, why, and within what."""

    actor: str
    reason: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    plan_id: int | None = None
    run_id: UUID | None = None

    def evidence(self) -> dict[str, Any]:
        """Return what each audit record says of the plan."""
        return {} if self.plan_id is None else {"plan": self.plan_id}


class Sight(StrEnum):
    """How the first attempt after an action ended, as far as it is known."""

    UNKNOWN = "unknown"
    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True)
class Seen:
    """What was seen of one row after the action."""

    sight: Sight
    note: str = ""


@dataclass(frozen=True)
class Target:
    """A row of a plan, as an action is asked about it after it was applied."""

    row_id: int
    after: Mapping[str, Any]
    """The row's state just after the action."""


class Action(ABC, Generic[Row]):
    """One thing that may be done to one row; what a subclass says is all that is needed.

    Commands, plans and admin go by it: which rows it fits, what a row would become, the change
    itself with its audit record, and how the row fared afterwards.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    permission: ClassVar[str]
    """What a user of the admin needs, as ``app.codename``."""
    target_type: ClassVar[str]
    """What audit records call such a row."""
    audit_action: ClassVar[str]
    key_name: ClassVar[str] = "id"
    """What people name a row by."""
    followed_job: ClassVar[str] = ""
    """The job whose next run shows whether the action helped; empty: nothing shows it."""
    patience_s: ClassVar[tuple[float, ...]] = (0.02, 0.1, 0.3)
    """Pauses between tries for a row that another transaction has locked."""
    parameter_names: ClassVar[Collection[str]] = ()

    @abstractmethod
    def rows(self) -> "models.QuerySet[Row]":
        """Return all rows of the kind, without columns that neither preview nor change needs."""

    @abstractmethod
    def candidates(self, parameters: Mapping[str, Any]) -> "models.QuerySet[Row]":
        """Return the rows that the action is for: those meant by «all»."""

    @abstractmethod
    def find(self, keys: Sequence[str]) -> tuple[list[int], list[str]]:
        """Return the ids of the rows that people name so, and the names nobody knows."""

    @abstractmethod
    def label(self, row: Row) -> str:
        """Return what people call the row."""

    @abstractmethod
    def state(self, row: Row) -> dict[str, Any]:
        """Return what previews show and fingerprints are made of, as JSON."""

    @abstractmethod
    def misfit(self, row: Row, parameters: Mapping[str, Any]) -> str:
        """Return why the action does not fit the row; empty: it does."""

    @abstractmethod
    def becomes(self, row: Row, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return what would change of the row's state."""

    @abstractmethod
    def apply(self, row: Row, by: By) -> str:
        """Change the locked row and write the audit record; return a word on how it ended.

        Raises RefusedError.
        """

    def after(self, row: Row) -> dict[str, Any]:
        """Return the state of a row that was just changed, by what is stored now."""
        now = self.at([row.pk]).get(row.pk)
        return self.state(now) if now else {}

    def target_id(self, row: Row) -> str:
        """Return what audit records call this row."""
        return self.label(row)

    def checked(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters as they are kept; raise WrongParametersError, RefusedError."""
        unknown = sorted(set(parameters) - set(self.parameter_names))
        if unknown:
            known = ", ".join(self.parameter_names) or "none"
            raise WrongParametersError(f"{self.name} has no {unknown[0]!r}; it takes: {known}")
        return dict(parameters)

    def misfits(
        self, rows: Sequence[Row], parameters: Mapping[str, Any], chosen: Collection[int]
    ) -> dict[int, str]:
        """Return which of ``rows`` are to be left out, and why; ``chosen`` are all of the plan."""
        found = ((row.pk, self.misfit(row, parameters)) for row in rows)
        return {pk: why for pk, why in found if why}

    def lock(self, row_id: int) -> Row | None:
        """Return the row, locked without waiting; None: it is gone.

        Raises RowHeldError: the caller's transaction is to be rolled back.
        """
        nowait = connection.features.has_select_for_update_nowait
        try:
            return self.rows().select_for_update(nowait=nowait).filter(pk=row_id).first()
        except OperationalError as error:
            if is_row_locked(error):
                raise RowHeldError from error
            raise

    def holder(self, row_id: int) -> dict[str, Any] | None:
        """Return who holds the row's lock, where that can be found out."""
        return None

    def settle(self, row_id: int, result: Mapping[str, Any]) -> None:
        """Do what belongs after the commit; it may be done twice, or, after a crash, never."""

    def look(self, targets: Sequence[Target]) -> dict[int, Seen]:
        """Return how the rows fared since they were changed, by id."""
        return {it.row_id: Seen(Sight.GOOD) for it in targets}

    def put_back(self, row_id: int, by: By) -> bool:
        """Undo the action on a row that it did not help; False: it cannot be, or need not."""
        return False

    def at(self, ids: Sequence[int]) -> dict[int, Row]:
        """Return the rows of ``ids`` there are, by id."""
        return {row.pk: row for row in self.rows().filter(pk__in=ids)}

    def fingerprint(self, row: Row) -> str:
        """Return a hash of the row's state (SHA-256, hexadecimal)."""
        text = json.dumps(self.state(row), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(f"{row.pk}:{text}".encode("utf-8", "replace")).hexdigest()


def moment(value: datetime | None) -> str | None:
    """Return a time as it stands in a state."""
    return value.isoformat() if value else None


def in_chunks(ids: Iterable[int], size: int = IDS_AT_ONCE) -> Iterable[list[int]]:
    """Yield ``ids``, ``size`` at a time."""
    some: list[int] = []
    for pk in ids:
        some.append(pk)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


_actions: dict[str, Action[Any]] = {}

AnyAction = TypeVar("AnyAction", bound=type[Action[Any]])


def action(cls: AnyAction) -> AnyAction:
    """Register the decorated class as an action."""
    _actions[cls.name] = cls()
    return cls


def get(name: str) -> Action[Any]:
    """Return the action called ``name``; raise UnknownActionError."""
    if name not in _actions:
        raise UnknownActionError(name)
    return _actions[name]


def has(name: str) -> bool:
    """Tell whether an action is called ``name``."""
    return name in _actions


def all_actions() -> list[Action[Any]]:
    """Return every registered action by name."""
    return [_actions[name] for name in sorted(_actions)]
