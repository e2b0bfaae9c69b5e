"""Retention: rows past their days are deleted, a few at a time; each app registers its rules."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.db.models import CASCADE, Count, Exists, Min, Model, OuterRef, QuerySet
from django_q.conf import Conf
from django_q.models import OrmQ, Task

from recovery import audit
from recovery.errors import with_retries
from recovery.models import (
    AppendOnly,
    AuditArchive,
    AuditRecord,
    AuditSeal,
    AuditSealSpan,
    JobRun,
    Plan,
    PlanItem,
    SampleMoment,
)
from recovery.pacing import next_size

ACTOR = "system:auditArchive"
APPLIED = "retention-applied"
TARGET = "retention"

FIRST_ROWS, LEAST_ROWS, MOST_ROWS = 100, 10, 999
"""MariaDB makes a join of an ``IN`` with 1,000 values."""
LONGEST_S = 0.2
"""A transaction that took longer is followed by one of half as many rows."""
SAMPLE_DAYS = 2

Expired = Callable[[datetime], "QuerySet[Any]"]


class MustStayError(TypeError):
    """Its rows must stay: retention never deletes them."""

    def __init__(self, rule: "Rule", table: type[Model]) -> None:
        """Name the rule and the table that it would empty."""
        super().__init__(f"retention {rule.name!r}, {table._meta.label}: {type(self).__doc__}")


@dataclass(frozen=True)
class Preview:
    """What the next run deletes by one rule."""

    rule: str
    setting: str
    """The setting that says for how many days; empty: none does."""
    days: int
    table: str
    before: datetime
    """The cut-off: what is older goes."""
    rows: int
    oldest: datetime | None
    """When the oldest of them was; None: there is none, or its table does not tell."""


@dataclass(frozen=True)
class Rule:
    """Which rows go: nobody changes, or asks for, what ``expired`` returns for a moment.

    Raises MustStayError for a table whose rows stay for ever.
    """

    name: str
    by: str
    """The column whose index finds them, oldest first; it is never empty."""
    expired: Expired
    days_setting: str = ""
    days: int = 0
    """Where no setting says it; 0: what expires goes at once."""
    dated: str = ""
    """The column with their moment, where ``by`` is another one; of a table without: ``pk``."""
    foreseen: Expired | None = None
    """What expires once the rules before this one are through."""

    def __post_init__(self) -> None:
        """Refuse a table whose rows stay, or that would take such rows along."""
        for table in _with_what_follows(self.table):
            if table in _kept or issubclass(table, AppendOnly):
                raise MustStayError(self, table)

    @property
    def table(self) -> type[Model]:
        """Return the model whose rows go."""
        model: type[Model] = self.expired(datetime.fromtimestamp(0, UTC)).model
        return model._meta.concrete_model or model

    @property
    def kept_days(self) -> int:
        """Return for how many days rows are kept."""
        return int(getattr(settings, self.days_setting)) if self.days_setting else self.days

    @property
    def policy(self) -> str:
        """Return what decides, in words: ``OUTBOX_RETENTION_DAYS=30``."""
        if self.days_setting:
            return f"{self.days_setting}={self.kept_days}"
        return f"{self.days} days" if self.days else "at once"

    def before(self, now: datetime) -> datetime:
        """Return the moment before which rows are expired at ``now``."""
        return now - timedelta(days=self.kept_days)

    def preview(self, now: datetime) -> Preview:
        """Tell what a sweep deletes; deletes nothing."""
        before, dated = self.before(now), self.dated or self.by
        wanted: dict[str, Any] = {"n": Count("pk")}
        if dated != "pk":
            wanted["oldest"] = Min(dated)
        found = (self.foreseen or self.expired)(before).order_by().aggregate(**wanted)
        return Preview(
            rule=self.name,
            setting=self.days_setting,
            days=self.kept_days,
            table=self.table._meta.db_table,
            before=before,
            rows=found["n"],
            oldest=found.get("oldest"),
        )

    def sweep(self, now: datetime, *, run_id: UUID, seal: Callable[[], None]) -> Iterator[int]:
        """Delete batch after batch; yield how many rows after each commit.

        Rows are found by a plain read, which goes on behind the last one: those that somebody
        has locked are left for the next sweep, and nobody is waited for. The first batch of a
        run that deletes anything is audited in its transaction; ``seal`` is called as the
        last statement of each. On SQLite, where nobody else has rows locked and
        times compare as texts of three decimals or of six, each read begins anew.
        """
        before = self.before(now)
        rows = self.expired(before).order_by(self.by, "pk")
        record = partial(self._record_once, before, run_id)
        rest, size = rows, FIRST_ROWS
        while found := list(rest.values_list(self.by, "pk")[:size]):
            started = time.monotonic()
            ids = [pk for _, pk in found]
            deleted = with_retries(partial(_delete, rows.model, ids, record=record, seal=seal))
            took_s = time.monotonic() - started
            size = next_size(size, took_s, least=LEAST_ROWS, most=MOST_ROWS, longest_s=LONGEST_S)
            yield deleted
            if not connection.features.has_select_for_update:
                continue
            moment, last = found[-1]
            rest = rows.filter(**{f"{self.by}__gte": moment})
            rest = rest.exclude(**{self.by: moment}, pk__lte=last)

    def _record_once(self, before: datetime, run_id: UUID) -> None:
        """Audit that the rule is applied, unless this run did: a lost COMMIT is repeated, too."""
        done: dict[str, Any] = {
            "run_id": run_id,
            "action": APPLIED,
            "target_type": TARGET,
            "target_id": self.name,
        }
        if AuditRecord.objects.filter(**done).exists():
            return
        summary = (self.expired.__doc__ or "").strip().partition("\n")[0]
        evidence = {
            "before": before.isoformat(),
            "days": self.kept_days,
            "table": self.table._meta.db_table,
        }
        audit.record(
            actor=ACTOR,
            reason=f"{self.policy}: {summary}",
            before={"state": "there"},
            after={"state": "gone"},
            evidence=evidence,
            **done,
        )


def _with_what_follows(table: type[Model]) -> list[type[Model]]:
    """Return ``table``, then whatever Django deletes along with its rows."""
    found = [table]
    for each in found:
        ends = (it for it in each._meta.related_objects if it.on_delete is CASCADE)
        along = [*each._meta.get_parent_list(), *(it.related_model for it in ends)]
        found += [it for it in along if it not in found]
    return found


def _delete(
    model: type[Model],
    ids: Sequence[Any],
    *,
    record: Callable[[], None],
    seal: Callable[[], None],
) -> int:
    skip_locked = connection.features.has_select_for_update_skip_locked
    rows = model._default_manager.order_by()
    with transaction.atomic():
        free = rows.select_for_update(skip_locked=skip_locked).filter(pk__in=ids)
        deleted, _by_model = rows.filter(pk__in=list(free.values_list("pk", flat=True))).delete()
        if deleted:
            record()
        seal()
    return deleted


_rules: dict[str, Rule] = {}
_kept: set[type[Model]] = {AuditArchive, AuditSeal, AuditSealSpan}


def retention(
    name: str,
    *,
    by: str,
    days_setting: str = "",
    days: int = 0,
    dated: str = "",
    foreseen: Expired | None = None,
) -> Callable[[Expired], Expired]:
    """Register the decorated function as what expires of ``name``; see ``Rule``.

    Raises MustStayError.
    """

    def register(expired: Expired) -> Expired:
        _rules[name] = Rule(name, by, expired, days_setting, days, dated, foreseen)
        return expired

    return register


def keep_for_ever(*tables: type[Model]) -> None:
    """Refuse rules over these tables, as over all that are append-only; raise MustStayError."""
    _kept.update(tables)
    for rule in all_rules():
        rule.__post_init__()


def all_rules() -> list[Rule]:
    """Return every registered rule by name."""
    return [_rules[name] for name in sorted(_rules)]


def preview(now: datetime) -> list[Preview]:
    """Tell rule by rule what a run at ``now`` deletes; deletes nothing."""
    return [rule.preview(now) for rule in all_rules()]


@retention("job_runs", days_setting="JOB_RUN_RETENTION_DAYS", by="started_at")
def old_runs(before: datetime) -> "QuerySet[JobRun]":
    """Runs of jobs."""
    return JobRun.objects.older_than(before)


@retention("failed_tasks", days_setting="JOB_RUN_RETENTION_DAYS", by="pk", dated="stopped")
def failed_tasks(before: datetime) -> "QuerySet[Task]":
    """What django-q2 keeps of tasks that failed outside a run: few, so that no index is needed."""
    rows: QuerySet[Task] = Task.objects.filter(stopped__lt=before)
    return rows


@retention("left_tasks", days_setting="JOB_RUN_RETENTION_DAYS", by="pk")
def left_tasks(before: datetime) -> "QuerySet[OrmQ]":
    """Wake-ups that no cluster takes any more: queued under another QCLUSTER_NAME."""
    rows: QuerySet[OrmQ] = OrmQ.objects.filter(lock__lt=before)
    return rows.exclude(key=Conf.CLUSTER_NAME)


@retention("sample_moments", days=SAMPLE_DAYS, by="at")
def left_moments(before: datetime) -> "QuerySet[SampleMoment]":
    """Moments that metricsCollect, which drops them after a day, has left: it is switched off."""
    return SampleMoment.objects.filter(is_coarse__in=(False, True), at__lt=before)


@retention("expired_sessions", by="expire_date")
def expired_sessions(before: datetime) -> "QuerySet[Session]":
    """Log-ins that are over."""
    return Session.objects.filter(expire_date__lt=before)


@retention(
    "plan_rows", days_setting="JOB_PLAN_RETENTION_DAYS", by="plan_id", dated="plan__created_at"
)
def rows_of_old_plans(before: datetime) -> "QuerySet[PlanItem]":
    """Rows of plans that have ended, or were never started."""
    return PlanItem.objects.filter(plan__in=Plan.objects.old(before))


@retention(
    "plans",
    days_setting="JOB_PLAN_RETENTION_DAYS",
    by="created_at",
    foreseen=Plan.objects.old,
)
def old_plans(before: datetime) -> "QuerySet[Plan]":
    """The plans themselves, once their rows are gone; what they did is in the audit records."""
    return Plan.objects.old(before).filter(~Exists(PlanItem.objects.filter(plan=OuterRef("pk"))))
