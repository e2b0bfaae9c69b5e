"""Write the dashboard: an overview, and a row a job. ``python deploy/grafana/make_dashboard.py``.

Grafana keeps a dashboard as one long file; this says what is in it. The file is written beside it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "dashboards" / "recovery.json"
JOBS = (
    "processLedgerOutbox",
    "finalizeRetryWorker",
    "recoverFinalizeStuck",
    "runRecoveryPlans",
    "metricsCollect",
    "auditSeal",
    "auditArchive",
)
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
FROM = 'installation=~"$installation", instance=~"$instance"'
RANGE = "$__rate_interval"
WIDTH, STAT_WIDTH, STAT_HEIGHT, HEIGHT = 24, 3, 4, 7
GOOD, BAD = "green", "red"

Json = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """A picture of some expressions, each with its legend."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    about: str = ""
    bad_from: float | None = None
    """A single figure, red from here on; None: lines over time."""
    bad_below: float | None = None
    width: int = 8

    @property
    def is_figure(self) -> bool:
        """Tell whether it is one figure."""
        return self.bad_from is not None or self.bad_below is not None


@dataclass(frozen=True)
class Row:
    """Panels under a title."""

    title: str
    panels: Sequence[Panel] = field(default_factory=tuple)
    is_open: bool = False


def state(name: str, labels: str = "", by: str = "") -> str:
    """Return the expression of a state, which is the same at every target."""
    within = ", ".join(filter(None, (labels, FROM)))
    return f"max by ({by}) ({name}{{{within}}})"


def rate(name: str, labels: str = "", by: str = "") -> str:
    """Return the expression of a counter's rate, a second, of all hosts together."""
    within = ", ".join(filter(None, (labels, FROM)))
    return f"sum by ({by}) (rate({name}{{{within}}}[{RANGE}]))"


def share(of: float, histogram: str, labels: str = "") -> str:
    """Return the expression of a quantile of a histogram."""
    return f"histogram_quantile({of}, {rate(f'{histogram}_bucket', labels, 'le')})"


def figure(title: str, expression: str, unit: str = "short", *, bad_from: float = 1) -> Panel:
    """Return one figure, red from a value on."""
    return Panel(title, [(expression, "")], unit, bad_from=bad_from, width=STAT_WIDTH)


def quantiles(title: str, histogram: str, labels: str = "") -> Panel:
    """Return the median and the slowest of a histogram."""
    found = [(share(it, histogram, labels), f"p{it * 100:g}") for it in (0.5, 0.95, 0.99)]
    return Panel(title, found, "s")


FIGURES = (
    figure("Alarms firing", 'count(ALERTS{alertstate="firing"}) or vector(0)'),
    figure(
        "Jobs that are silent",
        "count("
        + f"min by (job) (job_heartbeat_age_seconds{{{FROM}}})"
        + f" > clamp_min(3 * {state('job_period_seconds', by='job')}, 120)) or vector(0)",
    ),
    figure("Jobs paused", f"sum({state('job_paused', by='job')})"),
    figure("Due for", state("outbox_oldest_due_age_seconds"), "s", bad_from=300),
    figure("Dead letters", state("outbox_entries", 'status="dead"')),
    figure("Orders stuck", state("split_orders", 'state="stuck"')),
    figure("Orders quarantined", state("split_orders", 'state="quarantined"')),
    figure("Orders failed", state("split_orders", 'state="failed"')),
    figure("Orders overdue", state("split_orders_overdue")),
    figure("Audit unsealed for", state("audit_unsealed_age_seconds"), "s", bad_from=3_600),
    figure("Redis away", state("job_lock_degraded")),
    figure("Age of the states", state("metrics_sample_age_seconds"), "s", bad_from=120),
    Panel(
        "Database", [(state("metrics_database_up"), "")], bad_below=1, width=STAT_WIDTH,
        about="1: at least one process reaches it.",
    ),
)  # fmt: skip

OUTBOX = (
    Panel(
        "Outbox: what is not posted",
        [(state("outbox_entries", by="status"), "{{status}}")],
        about="`dead` needs a person: /admin/dlq/.",
    ),
    Panel(
        "Outbox: oldest entry",
        [
            (state("outbox_oldest_due_age_seconds"), "due, not taken"),
            (state("outbox_oldest_pending_age_seconds"), "not posted"),
        ],
        "s",
    ),
    Panel("Posted a second", [(rate("outbox_posted_total"), "posted")], "ops"),
    Panel(
        "Attempts that failed, by code", [(rate("outbox_failures_total", by="code"), "{{code}}")]
    ),
    quantiles("From commit to posted", "outbox_post_latency_seconds"),
)

ORDERS = (
    Panel("Orders by state", [(state("split_orders", by="state"), "{{state}}")]),
    quantiles("An attempt that finalizes takes", "finalize_duration_seconds"),
    Panel(
        "Trouble with orders, a second",
        [
            (rate("finalize_retry_attempts_total"), "attempts after the first"),
            (rate("job_stuck_detected_total"), "found stuck"),
            (rate("finalize_recoveries_total"), "reset"),
        ],
    ),
)

WEB = (
    Panel(
        "Responses a second, by status",
        [(rate("django_http_responses_total_by_status_total", by="status"), "{{status}}")],
        "reqps",
    ),
    quantiles("A response takes", "django_http_requests_latency_including_middlewares_seconds"),
    Panel(
        "Database: statements and errors a second",
        [
            (rate("django_db_execute_total"), "statements"),
            (f"{rate('django_db_errors_total')} or vector(0)", "errors"),
        ],
        "ops",
    ),
)

OF_JOB = {
    "processLedgerOutbox": (OUTBOX[2], OUTBOX[4]),
    "finalizeRetryWorker": ORDERS[1:],
    "recoverFinalizeStuck": (ORDERS[0], ORDERS[2]),
    "metricsCollect": (
        Panel("Age of the states", [(state("metrics_sample_age_seconds"), "age")], "s"),
    ),
    "auditSeal": (
        Panel(
            "Oldest record in no seal", [(state("audit_unsealed_age_seconds"), "unsealed for")], "s"
        ),
        Panel(
            "Newest seal",
            [(state("audit_seal_number"), "number")],
            about="Where it falls, the database was restored or seals are gone.",
        ),
        Panel(
            "Newest seal: the first 48 bits of its hash",
            [(state("audit_seal_fingerprint"), "fingerprint")],
            "none",
            about="What the chain must have been, to compare with: the runbook says how.",
        ),
    ),
    "auditArchive": (
        Panel(
            "Records past their days for",
            [(state("audit_archive_overdue_seconds"), "overdue")],
            "s",
            about="Up to a day is normal.",
        ),
    ),
}
"""What belongs to one job, beyond what each has."""


def row_of(job: str) -> Row:
    """Return the row of a job."""
    mine = f'job="{job}"'
    lanes = f'job=~"{job}(:.*)?"'
    return Row(
        job,
        [
            Panel(
                "Runs and failures a minute",
                [
                    (f"60 * {rate('job_runs_total', mine)}", "runs"),
                    (f"60 * {rate('job_failures_total', mine)}", "failures"),
                ],
            ),
            quantiles("A run takes", "job_duration_seconds", mine),
            Panel(
                "Last sign of life",
                [
                    (f"min by (job) (job_heartbeat_age_seconds{{{lanes}, {FROM}}})", "{{job}}"),
                    (f"3 * {state('job_period_seconds', mine)}", "three periods"),
                ],
                "s",
            ),
            Panel(
                "Runs that did not take place, a minute",
                [(f"60 * {rate('job_skipped_total', mine, 'reason')}", "{{reason}}")],
                about="`locked` and `paused` are normal; `no_lock`: the database did not answer.",
            ),
            *OF_JOB.get(job, ()),
        ],
    )


ROWS = (
    Row("Overview", (*FIGURES, *OUTBOX[:4], *ORDERS[:1], OUTBOX[4]), is_open=True),
    *map(row_of, JOBS),
    Row("Web and database", WEB),
)


def dashboard() -> Json:
    """Return the dashboard as Grafana keeps it."""
    return {
        "uid": "split-recovery",
        "title": "Split recovery",
        "description": "Jobs, ledger and split orders: what stands still, and since when.",
        "tags": ["recovery"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [_alarms()]},
        "templating": {"list": [_source(), *map(_choice, ("installation", "instance"))]},
        "panels": list(_laid_out(ROWS)),
    }


def _alarms() -> Json:
    return {
        "name": "Alarms",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": BAD,
        "expr": 'ALERTS{alertstate="firing", severity="critical"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{job}}",
    }


def _source() -> Json:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source"}


def _choice(label: str) -> Json:
    within = "" if label == "installation" else '{installation=~"$installation"}'
    return {
        "name": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": f"label_values(metrics_database_up{within}, {label})", "refId": label},
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _laid_out(rows: Sequence[Row]) -> Iterator[Json]:
    number, top = 0, 0
    for row in rows:
        inner, height = [], 0
        for panel, place in _places(row.panels, top + 1):
            number += 1
            inner.append(_panel(panel, number, place))
            height = max(height, place["y"] + place["h"] - top - 1)
        number += 1
        place = {"h": 1, "w": WIDTH, "x": 0, "y": top}
        head = {"id": number, "type": "row", "title": row.title, "gridPos": place}
        # A closed row keeps its panels, an open one is followed by them.
        yield head | {"collapsed": not row.is_open, "panels": [] if row.is_open else inner}
        yield from inner if row.is_open else ()
        top += 1 + (height if row.is_open else 0)


def _places(panels: Sequence[Panel], top: int) -> Iterator[tuple[Panel, Json]]:
    """Yield where each panel stands: from left to right, then in the next line."""
    left, line = 0, 0
    for panel in panels:
        height = STAT_HEIGHT if panel.is_figure else HEIGHT
        if left + panel.width > WIDTH or (line and height != line):
            left, top = 0, top + line
        yield panel, {"h": height, "w": panel.width, "x": left, "y": top}
        left, line = left + panel.width, height


def _panel(panel: Panel, number: int, place: Json) -> Json:
    targets = [
        {"refId": chr(ord("A") + nth), "datasource": SOURCE, "expr": it, "legendFormat": legend}
        for nth, (it, legend) in enumerate(panel.queries)
    ]
    found = {
        "id": number,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": targets,
    }
    return found | (_figure(panel) if panel.is_figure else _lines(panel))


def _figure(panel: Panel) -> Json:
    below, limit = panel.bad_below is not None, panel.bad_from or panel.bad_below
    first, then = (BAD, GOOD) if below else (GOOD, BAD)
    steps = [{"color": first, "value": None}, {"color": then, "value": limit}]
    return {
        "type": "stat",
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background"},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "decimals": 0,
                "noValue": "nothing is scraped",
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
    }


def _lines(panel: Panel) -> Json:
    return {
        "type": "timeseries",
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": {"fillOpacity": 8}},
            "overrides": [],
        },
    }


def text() -> str:
    """Return the file."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
