"""Jobs in the admin, to be looked at, paused and resumed."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery, TextChoices
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from django_q.models import Schedule

from recovery import pauses, registry, restoring
from recovery.admin import audited
from recovery.admin.operations import OperatedAdmin, Operation
from recovery.admin.rows import column
from recovery.admin.runs import runs_table
from recovery.admin.secrecy import error_for, first_line
from recovery.admin.tables import (
    NOTHING,
    Table,
    above,
    moment,
    moment_of,
    shown,
    span,
    state,
    unbroken,
)
from recovery.console import Shortcut, shortcut
from recovery.models import Job, RunStatus
from recovery.selfcheck import trails
from recovery.trail import guards
from recovery.wakeups import TASK

SHOWN_ERROR = 120
LATE_PERIODS = 3

audited.register(
    "job",
    lambda name: Job.objects.filter(pk=name).first(),
    actions=(pauses.PAUSED, pauses.RESUMED, pauses.RUN_REQUESTED, trails.PROBED),
)
audited.register(
    restoring.TARGET,
    lambda _name: None,  # it has no page
    actions=(restoring.DATABASE_RESTORED, guards.LOWERED, guards.RAISED),
)

shortcut(Shortcut(4, _("Jobs"), "manufacturing", "recovery_job_changelist", "recovery.view_job"))


class Health(TextChoices):
    """How a job fares, for people."""

    HEALTHY = "healthy", _("healthy")
    LATE = "late", _("late")
    FAILING = "failing", _("failing")
    PAUSED = "paused", _("paused")


def health_of(row: Any) -> Health:
    """Return how a job fares; ``row`` has the database's time as ``now``.

    Late: without a heartbeat for three periods, or as long since its row was made.
    """
    if row.paused_at:
        return Health.PAUSED
    if _is_late(row, row.now - (row.heartbeat_at or row.created_at)):
        return Health.LATE
    failed = row.last_status in (RunStatus.FAILED, RunStatus.DIED)
    return Health.FAILING if failed else Health.HEALTHY


RUN_NOW = Operation(
    name="run_now",
    label=_("Run now"),
    explanation=_("A worker is woken, which runs the job at once, as a tick would."),
    apply=lambda job, **author: pauses.run_now(job.name, **author),
    done=_("Job %(name)s has been asked to run."),
    already=_("Job %(name)s is paused: resume it first. Nothing has been changed."),
    fits=lambda job: job.paused_at is None,
)
PAUSE = Operation(
    name="pause",
    label=_("Pause"),
    explanation=_(
        "Ticks, wake-ups and run_job pass a paused job by. A run under way ends its batch."
    ),
    apply=lambda job, **author: pauses.pause(job.name, **author),
    done=_("Job %(name)s is paused."),
    already=_("Job %(name)s was paused already; nothing has been changed."),
    fits=lambda job: job.paused_at is None,
)
RESUME = Operation(
    name="resume",
    label=_("Resume"),
    explanation=_("The job runs again, at once and at every tick."),
    apply=lambda job, **author: pauses.resume(job.name, **author),
    done=_("Job %(name)s runs again."),
    already=_("Job %(name)s was not paused; nothing has been changed."),
    fits=lambda job: job.paused_at is not None,
)


@admin.register(Job)
class JobAdmin(OperatedAdmin):
    """Jobs: whether they run, when they last did, when they will."""

    named_by, named_rank = "name", 6

    ordering = ("name",)
    operations = (RUN_NOW, PAUSE, RESUME)
    list_display = (
        "name",
        "state",
        "heartbeat",
        "lease",
        "next_run",
        "last_run",
        "last_error_start",
    )
    fieldsets = (
        (None, {"fields": ("name", "does", "period", "state", "next_run", "wake_shown")}),
        (_("Heartbeat and lease"), {"fields": ("heartbeat", "heart", "lease", "fence")}),
        (_("Last run"), {"fields": ("last_run", "started_shown", "error")}),
    )
    started_shown = moment_of(Job, "last_started_at")
    wake_shown = moment_of(Job, "wake_requested_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Job]:
        """Return the jobs with their next tick and the database's time."""
        ticks = Schedule.objects.filter(func=TASK, name=OuterRef("name")).order_by("pk")
        rows: QuerySet[Job] = (
            super()
            .get_queryset(request)
            .annotate(next_run_at=Subquery(ticks.values("next_run")[:1]), now=Now())
        )
        return rows

    def tables(self, row: Job) -> Iterable[Table]:
        """Return the latest runs and the audit records."""
        return runs_table(row), audited.records_table("job", row.name)

    @column(_("does"))
    def does(self, row: Job) -> str:
        """Return what the job is for."""
        known = _registered(row)
        return known.summary if known else gettext("This version of the program has no such job.")

    @column(_("period"))
    def period(self, row: Job) -> str:
        """Return the time between two ticks."""
        known = _registered(row)
        return span(timedelta(seconds=known.period_s)) if known else NOTHING

    @column(_("state"))
    def state(self, row: Any) -> Any:
        """Return whether the job is paused, at work, or waits."""
        if row.paused_at:
            since = gettext("since %(moment)s") % {"moment": moment(row.paused_at)}
            return above(state("paused", gettext("paused")), since)
        return (
            state("running", gettext("at work")) if _is_held(row) else state("ok", gettext("waits"))
        )

    @column(_("heartbeat"))
    def heartbeat(self, row: Any) -> SafeString | str:
        """Return the age of the heartbeat, marked where it is older than three periods."""
        if not row.heartbeat_at:
            return NOTHING
        age = row.now - row.heartbeat_at
        text = gettext("%(age)s ago") % {"age": span(age)}
        return state("late", text) if _is_late(row, age) else text

    @column(_("heartbeat from"))
    def heart(self, row: Job) -> Any:
        """Return who beat last."""
        if not row.heartbeat_host:
            return NOTHING
        process = gettext("process")
        return f"{row.heartbeat_host}, {process} {row.heartbeat_pid}"

    @column(_("lease"))
    def lease(self, row: Any) -> str:
        """Return who holds the lease and for how long."""
        if _is_held(row):
            facts = {"owner": row.lease_owner, "span": span(row.lease_expires_at - row.now)}
            return gettext("%(owner)s, %(span)s left") % facts
        if row.lease_owner:
            return gettext("free; expired under %(owner)s") % {"owner": row.lease_owner}
        return gettext("free")

    @column(_("next run"))
    def next_run(self, row: Any) -> Any:
        """Return the next tick."""
        return shown(row.next_run_at)

    @column(_("last run"))
    def last_run(self, row: Job) -> Any:
        """Return how the last run ended and how long it took."""
        if not row.last_status:
            return gettext("never ran")
        label = state(row.last_status, row.get_last_status_display())
        if row.last_duration_s is None or row.last_status == RunStatus.RUNNING:
            return label
        took = unbroken(f"{row.last_duration_s:.3f} s")
        return above(format_html("{} {}", label, took), moment(row.last_finished_at))

    @column(_("last error"))
    def last_error_start(self, row: Job) -> Any:
        """Return the beginning of the last error."""
        return shown(first_line(row.last_error)[:SHOWN_ERROR])

    @column(_("last error"))
    def error(self, row: Any) -> Any:
        """Return the last error."""
        return error_for(row.reader, row.last_error)


def _registered(row: Job) -> registry.Job | None:
    try:
        return registry.get(row.name)
    except registry.UnknownJobError:
        return None


def _is_held(row: Any) -> bool:
    return bool(row.lease_owner and row.lease_expires_at and row.lease_expires_at > row.now)


def _is_late(row: Job, age: timedelta) -> bool:
    known = _registered(row)
    late = known is not None and age.total_seconds() > LATE_PERIODS * known.period_s
    return late and row.paused_at is None
