"""Retention: rows past their days are deleted, a few at a time; each app registers its rules."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.db.models import Exists, Model, OuterRef, QuerySet
from django_q.models import Task

from recovery import audit
from recovery.errors import with_retries
from recovery.models import AppendOnly, JobRun, Plan, PlanItem
from recovery.pacing import next_size

FIRST_ROWS, LEAST_ROWS, MOST_ROWS = 100, 10, 999
"""MariaDB makes a join of an ``IN`` with 1,000 values."""
LONGEST_S = 0.2
"""A transaction that took longer is followed by one of half as many rows."""

APPLIED = "retention-applied"
TARGET = "retention"
KEPT = {"recovery.AuditSeal", "recovery.AuditSealSpan", "recovery.AuditArchive"}

Expired = Callable[[datetime], "QuerySet[Any]"]


@dataclass(frozen=True)
class Rule:
    """Which rows go: nobody changes, or asks for, what ``expired`` returns for a moment."""

    name: str
    days_setting: str
    """Empty: what expires goes at once."""
    by: str
    """The column whose index finds them, oldest first; it is never empty."""
    expired: Expired

    @property
    def days(self) -> int:
        """Return how many days are kept; 0: what expires goes at once."""
        return int(getattr(settings, self.days_setting)) if self.days_setting else 0

    @property
    def policy(self) -> str:
        """Return what the records of deletions give as their reason."""
        return f"{self.days_setting}={self.days}" if self.days_setting else "expired"

    def due(self, now: datetime) -> "QuerySet[Any]":
        """Return the rows that are past their days."""
        return self.expired(now - timedelta(days=self.days))

    def sweep(
        self, now: datetime, *, seal: Callable[[], None], tell: Callable[[], None] | None = None
    ) -> Iterator[int]:
        """Delete batch after batch; yield how many rows after each commit.

        ``tell`` is called in the transaction of the first batch that deletes anything, to put it
        on the record: without the record nothing goes.
        Rows are found by a plain read, which goes on behind the last one: those that somebody
        has locked are left for the next sweep, and nobody is waited for. ``seal`` is called as
        the last statement of each transaction. On SQLite, where nobody else has rows locked and
        times compare as texts of three decimals or of six, each read begins anew.
        """
        require_deletable(self, now)
        rows = self.due(now).order_by(self.by, "pk")
        rest, size = rows, FIRST_ROWS
        while found := list(rest.values_list(self.by, "pk")[:size]):
            started = time.monotonic()
            ids = [pk for _, pk in found]
            deleted = with_retries(partial(_delete, rows.model, ids, seal=seal, tell=tell))
            tell = None if deleted else tell
            took_s = time.monotonic() - started
            size = next_size(size, took_s, least=LEAST_ROWS, most=MOST_ROWS, longest_s=LONGEST_S)
            yield deleted
            if not connection.features.has_select_for_update:
                continue
            moment, last = found[-1]
            rest = rows.filter(**{f"{self.by}__gte": moment})
            rest = rest.exclude(**{self.by: moment}, pk__lte=last)


def _delete(
    model: type[Model],
    ids: Sequence[Any],
    *,
    seal: Callable[[], None],
    tell: Callable[[], None] | None,
) -> int:
    skip_locked = connection.features.has_select_for_update_skip_locked
    rows = model._default_manager.order_by()
    with transaction.atomic():
        free = rows.select_for_update(skip_locked=skip_locked).filter(pk__in=ids)
        deleted, _by_model = rows.filter(pk__in=list(free.values_list("pk", flat=True))).delete()
        if deleted and tell:
            tell()
        seal()
    return deleted


def on_record(rule: Rule, now: datetime, *, actor: str, run_id: UUID) -> Callable[[], None]:
    """Return what records that rows past their days are deleted: which ones, and by which policy.

    One record a rule and run: it covers all that the run deletes, whose count its row has.
    """

    def tell() -> None:
        audit.record(
            actor=actor,
            action=APPLIED,
            target_type=TARGET,
            target_id=rule.name,
            reason=rule.policy,
            evidence={
                "table": rule.due(now).model._meta.db_table,
                "before": (now - timedelta(days=rule.days)).isoformat(),
            },
            run_id=run_id,
        )

    return tell


@dataclass(frozen=True)
class Preview:
    """What a rule would delete now."""

    name: str
    policy: str
    table: str
    before: datetime
    rows: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**vars(self), "before": self.before.isoformat()}


def previews(now: datetime) -> list[Preview]:
    """Return what each rule would delete now; it is counted, which takes its time."""
    found = []
    for rule in all_rules():
        due = rule.due(now)
        before = now - timedelta(days=rule.days)
        table = due.model._meta.db_table
        found.append(Preview(rule.name, rule.policy, table, before, due.count()))
    return found


class MustStayError(TypeError):
    """A law, or the trail itself, wants these rows to stay: no rule deletes them."""

    def __init__(self, table: str) -> None:
        """Name the table."""
        super().__init__(f"{table}: {type(self).__doc__}")


def require_deletable(rule: Rule, now: datetime) -> None:
    """Raise MustStayError where a rule is about rows that are kept for ever."""
    model = rule.due(now).model
    if issubclass(model, AppendOnly) or model._meta.label in KEPT:
        raise MustStayError(model._meta.db_table)


def keep_for_ever(*labels: str) -> None:
    """Register models, ``app.Model``, whose rows no rule may delete; append-only ones never go."""
    KEPT.update(labels)


_rules: dict[str, Rule] = {}


def retention(name: str, *, days_setting: str, by: str) -> Callable[[Expired], Expired]:
    """Register the decorated function as what expires of ``name``; see ``Rule``.

    ``days_setting`` names the setting that holds how many days are kept; empty: none.
    """

    def register(expired: Expired) -> Expired:
        _rules[name] = Rule(name, days_setting, by, expired)
        return expired

    return register


def all_rules() -> list[Rule]:
    """Return every registered rule by name."""
    return [_rules[name] for name in sorted(_rules)]


@retention("job_runs", days_setting="JOB_RUN_RETENTION_DAYS", by="started_at")
def old_runs(before: datetime) -> "QuerySet[JobRun]":
    """Runs of jobs."""
    return JobRun.objects.older_than(before)


@retention("failed_tasks", days_setting="JOB_RUN_RETENTION_DAYS", by="pk")
def failed_tasks(before: datetime) -> "QuerySet[Task]":
    """What django-q2 keeps of tasks that failed outside a run: few, so that no index is needed."""
    rows: QuerySet[Task] = Task.objects.filter(stopped__lt=before)
    return rows


@retention("expired_sessions", days_setting="", by="expire_date")
def expired_sessions(before: datetime) -> "QuerySet[Session]":
    """Log-ins that are over."""
    return Session.objects.filter(expire_date__lt=before)


@retention("plan_rows", days_setting="JOB_PLAN_RETENTION_DAYS", by="plan_id")
def rows_of_old_plans(before: datetime) -> "QuerySet[PlanItem]":
    """Rows of plans that have ended, or were never started."""
    return PlanItem.objects.filter(plan__in=Plan.objects.old(before))


@retention("plans", days_setting="JOB_PLAN_RETENTION_DAYS", by="created_at")
def old_plans(before: datetime) -> "QuerySet[Plan]":
    """The plans themselves, once their rows are gone; what they did is in the audit records."""
    return Plan.objects.old(before).filter(~Exists(PlanItem.objects.filter(plan=OuterRef("pk"))))
