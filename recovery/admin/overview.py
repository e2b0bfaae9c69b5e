"""The overview: whether all is well, and where to look if it is not."""

from collections.abc import Iterable, Sequence
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.db.models import OuterRef, Subquery
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.translation import gettext as _
from django_q.models import Schedule

from recovery import console, registry
from recovery.admin import panels
from recovery.admin.jobs import PAUSE, RESUME, RUN_NOW, Health, health_of
from recovery.admin.panels import Concern, Panel, Reading
from recovery.admin.plans import meter
from recovery.admin.secrecy import first_line
from recovery.admin.tables import dated, list_of, page_of, span, state
from recovery.models import AuditRecord, Job, Plan, PlanStatus
from recovery.wakeups import TASK

REFRESH_S = 5
SHOWN_RECORDS = 10
SHOWN_PLANS = 10
SHOWN_ERROR = 160
STALE_PERIODS = 3


@console.front_page
def overview(request: HttpRequest) -> HttpResponse:
    """Show the whole of it."""
    user: Any = request.user
    reading = Reading(user)
    shown = panels.built(reading)
    jobs = _jobs(request) if user.has_perm("recovery.view_job") else []
    plans = _plans() if user.has_perm("recovery.view_plan") else []
    records = _records() if user.has_perm("recovery.view_auditrecord") else []
    history = reading.history
    concerns = [*_concerns_of_jobs(jobs), *_concerns_of_plans(plans), *_concerns(reading, shown)]
    context = {
        "title": _("Overview"),
        "concerns": concerns,
        "is_bad": any(it.is_bad for it in concerns),
        "panels": [_panel(it, reading) for it in shown],
        "jobs": jobs,
        "plans": [{"plan": it, "url": page_of(it), "meter": _meter(it)} for it in plans],
        "records": [{"record": it, "url": page_of(it), "at": dated(it.at)} for it in records],
        "all_records": list_of(AuditRecord),
        "all_plans": list_of(Plan),
        "refresh_s": REFRESH_S,
        "sampled": dated(reading.sampled_at) if reading.sampled_at else "",
        "metrics_enabled": settings.METRICS_ENABLED,
        "has_history": bool(history and history.moments),
    }
    site: Any = admin.site
    response: HttpResponse = site.render(request, "admin/recovery/overview.html", context)
    return response


def _panel(it: Panel, reading: Reading) -> dict[str, Any]:
    history = reading.history
    charts = [panels.drawn(chart, history) for chart in it.charts] if history else []
    return {"panel": it, "charts": charts}


# What is wrong


def _concerns(reading: Reading, shown: Iterable[Panel]) -> Iterable[Concern]:
    for it in shown:
        yield from it.concerns
    if reading.count("job_lock_degraded"):
        text = _("Redis does not answer: jobs are locked by the database alone")
        yield Concern(text, list_of(Job))
    if not settings.METRICS_ENABLED:
        text = _("METRICS_ENABLED is false: nobody counts what waits, is dead or stuck")
        yield Concern(text, list_of(Job), is_bad=False)
    age_s, most_s = reading.age_s(), STALE_PERIODS * settings.JOB_METRICS_PERIOD_SEC
    if settings.METRICS_ENABLED and (age_s is None or age_s > most_s):
        text = _("The figures are old: metricsCollect has not sampled lately")
        yield Concern(text, reverse("admin:recovery_job_changelist"))


def _concerns_of_jobs(jobs: Iterable[dict[str, Any]]) -> Iterable[Concern]:
    texts = {
        Health.LATE: _("Job %(name)s is late"),
        Health.FAILING: _("Job %(name)s fails"),
        Health.PAUSED: _("Job %(name)s is paused"),
    }
    for it in jobs:
        text = texts.get(it["health"])
        if text:
            is_bad = it["health"] != Health.PAUSED
            yield Concern(text % {"name": it["job"].name}, it["url"], is_bad)


def _concerns_of_plans(plans: Sequence[Plan]) -> Iterable[Concern]:
    for it in plans:
        if it.status == PlanStatus.HALTED:
            yield Concern(_("Plan %(plan)d has halted by itself") % {"plan": it.pk}, page_of(it))


# What there is


def _jobs(request: HttpRequest) -> list[dict[str, Any]]:
    """Return the jobs that run here, each as a card."""
    ticks = Schedule.objects.filter(func=TASK, name=OuterRef("name")).order_by("pk")
    next_run = Subquery(ticks.values("next_run")[:1])
    rows: Any = Job.objects.annotate(next_run_at=next_run, now=Now()).order_by("name")
    known = {job.name for job in registry.all_jobs()}
    found = {row.name: row for row in rows}
    may = request.user.has_perm("recovery.change_job")
    return [_card(found[name], may=may) for name in sorted(known & found.keys())]


def _card(row: Any, *, may: bool) -> dict[str, Any]:
    health = health_of(row)
    operations = [it for it in (RUN_NOW, PAUSE, RESUME) if may and it.fits(row)]
    error = first_line(row.last_error)[:SHOWN_ERROR] if health == Health.FAILING else ""
    took = "" if row.last_duration_s is None else f"{row.last_duration_s:.2f} s"
    return {
        "job": row,
        "url": page_of(row),
        "health": health,
        "state": state(health.value, health.label),
        "is_bad": health in (Health.LATE, Health.FAILING),
        "last": dated(row.last_started_at) if row.last_started_at else _("never ran"),
        "took": took,
        "next": dated(row.next_run_at) if row.next_run_at and not row.paused_at else "",
        "lease": _lease(row),
        "error": error,
        "buttons": [{"url": list_of(Job), "operation": it, "pk": row.pk} for it in operations],
    }


def _lease(row: Any) -> str:
    if row.lease_owner and row.lease_expires_at and row.lease_expires_at > row.now:
        facts = {"owner": row.lease_owner, "span": span(row.lease_expires_at - row.now)}
        return _("%(owner)s, %(span)s left") % facts
    return _("free")


def _plans() -> list[Plan]:
    """Return the plans that have not ended and are not just planned, halted ones first."""
    rows = Plan.objects.defer("parameters", "selection").order_by("-id")
    halted = list(rows.filter(status=PlanStatus.HALTED)[:SHOWN_PLANS])
    others = rows.filter(status__in=(PlanStatus.RUNNING, PlanStatus.PAUSED))
    return halted + list(others[: SHOWN_PLANS - len(halted)])


def _meter(plan: Plan) -> Any:
    return meter(plan.rows_done, plan.rows_total)


def _records() -> list[AuditRecord]:
    records = AuditRecord.objects.defer("before", "after", "evidence")
    return list(records.order_by("-id")[:SHOWN_RECORDS])
