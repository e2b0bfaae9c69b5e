"""Runs of jobs in the admin."""

from collections.abc import Iterable, Sequence
from typing import Any

from django.contrib import admin
from django.db.models.functions import Left
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from recovery.admin.lists import Choice, ChoiceFilter
from recovery.admin.rows import ReadOnlyAdmin, column
from recovery.admin.secrecy import error_for, first_line
from recovery.admin.tables import (
    NOTHING,
    Table,
    above,
    link,
    list_of,
    moment,
    moment_of,
    page_of_key,
    pretty,
    state,
    unbroken,
)
from recovery.models import AuditRecord, Job, JobRun, RunStatus

SHOWN_RUNS = 20
SHOWN_ERROR = 120


def runs_table(job: Job) -> Table:
    """Return the job's latest runs."""
    runs: Any = (
        job.runs.order_by("-id").annotate(error_begins=Left("error", SHOWN_ERROR)).defer("error")
    )
    return Table(
        title=gettext("Latest runs"),
        columns=(
            gettext("Started"),
            gettext("Status"),
            gettext("Took"),
            gettext("Host"),
            gettext("Counts"),
            gettext("Error"),
        ),
        rows=[
            (
                link(run, moment(run.started_at)),
                status(run),
                took(run),
                f"{run.host}:{run.pid}",
                counts(run),
                first_line(run.error_begins),
            )
            for run in runs[:SHOWN_RUNS]
        ],
        empty=gettext("It never ran."),
        more=(list_of(JobRun, job=job.name), gettext("All runs")),
    )


def status(run: JobRun) -> SafeString:
    """Return how a run ended."""
    return state(run.status, run.get_status_display())


def took(run: JobRun) -> str:
    """Return how long a run took."""
    if not run.finished_at:
        return NOTHING
    return unbroken(f"{(run.finished_at - run.started_at).total_seconds():.3f} s")


def counts(run: JobRun) -> str:
    """Return what a run did, in one line."""
    items = run.counts.items() if isinstance(run.counts, dict) else ()
    return ", ".join(f"{name} {count}" for name, count in items) or NOTHING


class RunJobFilter(ChoiceFilter):
    """By job."""

    title = _("job")
    parameter_name = "job"
    column = "job_id"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[Choice]:
        """Return the jobs there are, also those no longer registered."""
        return [(name, name) for name in Job.objects.values_list("name", flat=True)]


class RunStatusFilter(ChoiceFilter):
    """By how they ended."""

    title = _("status")
    parameter_name = column = "status"
    values = RunStatus.choices


@admin.register(JobRun)
class JobRunAdmin(ReadOnlyAdmin):
    """Runs of jobs."""

    named_by, named_rank = "run_id", 7

    list_display = ("started", "job_link", "ended", "lasted", "where", "outcome")
    list_filter = (RunJobFilter, RunStatusFilter)
    sortable_by = ("started",)
    search_fields = ("run_id", "id")
    search_help_text = _("Exactly: a run (UUID) or an id.")
    fieldsets = (
        (None, {"fields": ("run_id", "job", "ended", "started", "finished", "lasted")}),
        (_("Where"), {"fields": ("where", "fence")}),
        (_("What came of it"), {"fields": ("counts_shown", "error_shown")}),
    )
    started = moment_of(JobRun, "started_at")
    finished = moment_of(JobRun, "finished_at")

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the order of the index that serves the filters."""
        both = {"job", "status"} <= set(request.GET)
        return ("-job_id", "-status", "-fence", "-id") if both else super().get_ordering(request)

    def for_list(self, queryset: Any) -> Any:
        """Read the beginning of the error."""
        return queryset.defer("error").annotate(error_begins=Left("error", SHOWN_ERROR))

    def tables(self, row: JobRun) -> Iterable[Table]:
        """Return the audit records that the run wrote."""
        records = AuditRecord.objects.filter(run_id=row.run_id).order_by("-id")
        records = records.defer("before", "after", "evidence")
        yield Table(
            title=gettext("Audit records of this run"),
            columns=(gettext("At"), gettext("Action"), gettext("Target"), gettext("Reason")),
            rows=[
                (it.at, link(it, it.action), f"{it.target_type}/{it.target_id}", it.reason)
                for it in records[:SHOWN_RUNS]
            ],
            empty=gettext("It changed nothing that is audited."),
            more=(
                list_of(AuditRecord, q=str(row.run_id)),
                gettext("All audit records of this run"),
            ),
        )

    @column(_("job"))
    def job_link(self, row: JobRun) -> SafeString:
        """Return the job with a link to its page; its name is its key."""
        return format_html('<a href="{}">{}</a>', page_of_key(Job, row.job_id), row.job_id)

    @column(_("status"))
    def ended(self, row: JobRun) -> SafeString:
        """Return how the run ended."""
        return status(row)

    @column(_("took"))
    def lasted(self, row: JobRun) -> str:
        """Return how long the run took."""
        return took(row)

    @column(_("host, process"))
    def where(self, row: JobRun) -> str:
        """Return where it ran."""
        return f"{row.host}, {row.pid}"

    @column(_("counts, error"))
    def outcome(self, row: Any) -> Any:
        """Return what the run did, and the beginning of the error."""
        return above(counts(row), first_line(row.error_begins))

    @column(_("counts"))
    def counts_shown(self, row: JobRun) -> SafeString | str:
        """Return what the run did."""
        return pretty(row.counts)

    @column(_("error"))
    def error_shown(self, row: Any) -> SafeString | str:
        """Return why the run failed."""
        return error_for(row.reader, row.error)
