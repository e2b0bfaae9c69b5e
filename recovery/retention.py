"""Retention: rows past their days are deleted, a few at a time; each app registers its rules."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.db.models import Exists, Model, OuterRef, QuerySet
from django_q.models import Task

from recovery.errors import with_retries
from recovery.models import JobRun, Plan, PlanItem
from recovery.pacing import next_size

FIRST_ROWS, LEAST_ROWS, MOST_ROWS = 100, 10, 999
"""MariaDB makes a join of an ``IN`` with 1,000 values."""
LONGEST_S = 0.2
"""A transaction that took longer is followed by one of half as many rows."""

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

    def sweep(self, now: datetime, *, seal: Callable[[], None]) -> Iterator[int]:
        """Delete batch after batch; yield how many rows after each commit.

        Rows are found by a plain read, which goes on behind the last one: those that somebody
        has locked are left for the next sweep, and nobody is waited for. ``seal`` is called as
        the last statement of each transaction. On SQLite, where nobody else has rows locked and
        times compare as texts of three decimals or of six, each read begins anew.
        """
        days = getattr(settings, self.days_setting) if self.days_setting else 0
        rows = self.expired(now - timedelta(days=days)).order_by(self.by, "pk")
        rest, size = rows, FIRST_ROWS
        while found := list(rest.values_list(self.by, "pk")[:size]):
            started = time.monotonic()
            deleted = with_retries(partial(_delete, rows.model, [pk for _, pk in found], seal))
            took_s = time.monotonic() - started
            size = next_size(size, took_s, least=LEAST_ROWS, most=MOST_ROWS, longest_s=LONGEST_S)
            yield deleted
            if not connection.features.has_select_for_update:
                continue
            moment, last = found[-1]
            rest = rows.filter(**{f"{self.by}__gte": moment})
            rest = rest.exclude(**{self.by: moment}, pk__lte=last)


def _delete(model: type[Model], ids: Sequence[Any], seal: Callable[[], None]) -> int:
    skip_locked = connection.features.has_select_for_update_skip_locked
    rows = model._default_manager.order_by()
    with transaction.atomic():
        free = rows.select_for_update(skip_locked=skip_locked).filter(pk__in=ids)
        deleted, _by_model = rows.filter(pk__in=list(free.values_list("pk", flat=True))).delete()
        seal()
    return deleted


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
