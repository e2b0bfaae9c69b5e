"""Write docs/environment.md from what the settings ask the environment for.

``python -m settings.reference`` (or ``make reference``). What each variable means stands here; what
it may be, and what it is where it is not set, the settings say themselves.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "environment.md"
PRODUCTION = {
    "DATABASE_URL": "mysql://user:password@db.example/name",
    "REDIS_URL": "redis://cache.example/0",
    "SECRET_KEY": "only-to-read-the-settings",
    "DEBUG": "false",
}
"""So that what only production reads is read."""
ASK = "import json; from settings.base import env; print(json.dumps(env.known))"

HEAD = """\
# The environment

Made from the settings' code by `make reference`; do not edit. Everything is set by environment variables, the same
for web, workers and commands. A wrong value stops the start with one line that names the key, the value
and what is accepted; so does a name that is nearly one of these.
"""

GROUPS: Mapping[str, Mapping[str, str]] = {
    "Where things are": {
        "DATABASE_URL": "the database; empty: a SQLite file under `VAR_DIR`",
        "REDIS_URL": "Redis; empty: locks, wake-ups and queue go by the database",
        "VAR_DIR": "where the process may write; empty: `var/` beside `manage.py`",
        "STATIC_DIR": "where `collectstatic` puts files; empty: `static/` in `VAR_DIR`",
        "PROMETHEUS_MULTIPROC_DIR": "where processes count, one a host; empty: `metrics/` in `VAR_DIR`",
    },
    "The site": {
        "SECRET_KEY": "signs sessions and queued tasks; must be set with a database server or Redis",
        "SECRET_KEY_FALLBACKS": "keys of before, while they are being replaced",
        "ALLOWED_HOSTS": "host names that are served",
        "CSRF_TRUSTED_ORIGINS": "origins that may send forms, with scheme",
        "DEBUG": "show errors with their variables; never in production",
        "DEMO": "the guide at `/demo/`; `manage.py demo` sets it",
        "TIME_ZONE": "of times on pages; stored in UTC",
        "LANGUAGE_CODE": "where a browser asks for neither of the two",
        "SECURE_SSL_REDIRECT": "lead plain HTTP to HTTPS",
        "SECURE_HSTS_SECONDS": "browsers insist on HTTPS for so long",
        "PROXY_COUNT": "proxies of yours in front that add to `X-Forwarded-For`; 0: it is not believed",
        "LOGIN_FAILURE_LIMIT": "failed log-ins of a name at an address until both are locked out",
        "LOGIN_COOLOFF_SEC": "for so long, in s",
        "SESSION_MAX_SEC": "a log-in ends after so long, in s",
        "SESSION_IDLE_SEC": "and after so long without a page, in s",
        "SILENCED_SYSTEM_CHECKS": "ids of checks that you live with on purpose",
    },
    "Database and Redis": {
        "DATABASE_READ_TIMEOUT_SEC": "a statement is given up after so long, in s (MariaDB, MySQL)",
        "DATABASE_IDLE_TRANSACTION_SEC": "MariaDB ends a transaction whose client is silent, in s",
        "REDIS_TIMEOUT_SEC": "Redis is given up after so long, in s",
    },
    "Workers": {
        "QCLUSTER_NAME": "clusters of one name share a queue",
        "QCLUSTER_WORKERS": "worker processes of a cluster: one a lane of each job, and one to spare",
        "QCLUSTER_POLL_SEC": "how often the queue in the database is looked at, in s",
        "JOB_TASK_TIMEOUT_SEC": "a run that takes longer is ended, in s",
        "JOB_TIME_BUDGET_SEC": "a run stops taking batches after so long, in s",
        "JOB_LOCK_TTL_SEC": "a killed holder blocks its job for so long, in s",
        "JOB_RUN_RETENTION_DAYS": "runs are kept for so many days",
    },
    "The ledger": {
        "JOB_OUTBOX_PERIOD_SEC": "period of `processLedgerOutbox`, in s",
        "JOB_OUTBOX_BATCH_SIZE": "entries in a run's first batch; later ones adapt, up to four times as many",
        "JOB_OUTBOX_DRAINS": "how many drains post at once; on SQLite one",
        "JOB_OUTBOX_MAX_ATTEMPTS": "then an entry is `dead`",
        "JOB_OUTBOX_UNKNOWN_VERSION_DELAY_SEC": "entries of newer code are looked at again after so long, in s",
        "OUTBOX_MAX_PAYLOAD_BYTES": "larger payloads are refused when they are published",
        "OUTBOX_RETENTION_DAYS": "posted entries are kept for so many days",
        "JOB_BACKOFF_BASE_SEC": "delay after the first failure, in s; each one doubles it",
        "JOB_BACKOFF_CAP_SEC": "the longest delay, in s",
        "JOB_BACKOFF_JITTER": "share of a delay that is left to chance",
        "DLQ_EDIT_ENABLED": "dead entries may be edited",
    },
    "Split orders": {
        "JOB_FINALIZE_PERIOD_SEC": "period of `finalizeRetryWorker`, in s",
        "JOB_FINALIZE_BATCH_SIZE": "orders finalized in one transaction; 1: each alone",
        "JOB_FINALIZE_RETRY_LIMIT": "attempts, then an order is `failed`",
        "JOB_FINALIZE_STUCK_THRESHOLD_SEC": "without progress for longer: stuck, in s",
        "JOB_STUCK_PERIOD_SEC": "period of `recoverFinalizeStuck`, in s",
        "JOB_STUCK_ALERT_THRESHOLD": "resets until an order is quarantined",
        "JOB_STUCK_ALERT_WINDOW_SEC": "counted within so long, in s",
        "JOB_STUCK_RETENTION_DAYS": "sightings of stuck orders are kept for so many days",
        "SPLIT_COMPLETION_WEBHOOK": "is told of each finalized order, at least once; empty: nobody is",
        "SPLIT_COMPLETION_TIMEOUT_SEC": "it has so long to answer, in s",
        "SPLIT_COMPLETION_BREAKER_FAILURES": "failures in a row until it is left alone",
        "SPLIT_COMPLETION_BREAKER_OPEN_SEC": "for so long, in s",
    },
    "Plans": {
        "JOB_PLANS_PERIOD_SEC": "period of `runRecoveryPlans`, in s",
        "JOB_PLAN_RATE_PER_SEC": "rows a second where a plan says nothing; 0: no limit",
        "JOB_PLAN_HALT_SHARE": "a plan halts once a larger share of a stage fails",
        "JOB_PLAN_FOREGROUND_SEC": "a command leaves a plan that takes longer to the workers, in s",
        "JOB_PLAN_CANARY_WAIT_SEC": "a stage's rows are waited for so long, in s",
        "JOB_PLAN_RETENTION_DAYS": "finished plans are kept for so many days",
    },
    "Audit": {
        "JOB_ARCHIVE_PERIOD_SEC": "period of `auditArchive`, in s",
        "JOB_SEAL_PERIOD_SEC": "period of `auditSeal`, in s",
        "AUDIT_SEAL_KEYS": "keys of the seals, the newest first; empty: made of `SECRET_KEY`",
        "AUDIT_TRIGGERS": "`migrate` makes triggers that keep audit records (MariaDB, MySQL)",
        "AUDIT_HOT_DAYS": "days that audit records stay in the database",
        "AUDIT_WARM_DAYS": "days that archives are kept at hand",
        "AUDIT_ARCHIVE": "archives at hand: a shared folder or `s3://bucket/prefix`; empty: `audit/warm/` in `VAR_DIR`",
        "AUDIT_COLD": "archives put away, likewise; empty: `audit/cold/` in `VAR_DIR`",
        "AUDIT_S3_ENDPOINT": "of a store that speaks S3 and is not Amazon's",
    },
    "Seen from outside": {
        "METRICS_ENABLED": "count, sample, answer `/metrics`",
        "METRICS_TOKEN": "`/metrics` wants `Authorization: Bearer` with it; empty: open to all",
        "JOB_METRICS_PERIOD_SEC": "period of `metricsCollect`, in s",
        "LOG_FORMAT": "`auto`: text on a terminal, else JSON",
        "LOG_LEVEL": "the least that is logged",
        "TRACING_ENABLED": "make spans ([tracing.md](tracing.md)); needs the extra `tracing`",
        "RECOVERY_FAULTPOINTS": "break on purpose, in tests and drills",
    },
}
OTHERS: Mapping[str, tuple[str, str, str]] = {
    "DJANGO_SETTINGS_MODULE": ("a module", "settings.base", "Django's"),
    "WEB_BIND": (
        "host:port",
        "127.0.0.1:8000",
        "gunicorn listens there (`deploy/gunicorn.conf.py`)",
    ),
    "WEB_CONCURRENCY": ("a whole number", "2", "gunicorn's processes"),
    "WEB_THREADS": ("a whole number", "4", "threads of each"),
    "OTEL_EXPORTER_OTLP_ENDPOINT": (
        "a URL",
        "",
        "the collector; OpenTelemetry's other `OTEL_…` count, too",
    ),
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ("a URL", "", "the same for spans alone"),
    "OTEL_EXPORTER_OTLP_TIMEOUT": (
        "seconds",
        "3",
        "a collector that is away keeps an ending process so long",
    ),
    "OTEL_SERVICE_NAME": ("a text", "split-recovery", "what spans call the system"),
}
"""Read elsewhere than in the settings: (accepted, default, meaning)."""


def asked() -> dict[str, list[str]]:
    """Return, by variable, what it may be and its default, as the settings ask in production."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=ROOT,
        env=kept | PRODUCTION,
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def text() -> str:
    """Return the reference; raise KeyError where a variable has no meaning, or is not asked for."""
    found = asked()
    meanings = {key for group in GROUPS.values() for key in group}
    if meanings != set(found):
        raise KeyError(sorted(meanings ^ set(found)))
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, list[str]]) -> Iterator[str]:
    yield HEAD
    for title, group in GROUPS.items():
        rows = ((key, *found[key], meaning) for key, meaning in group.items())
        yield from _table(title, rows)
    yield from _table("Read by others", ((key, *facts) for key, facts in OTHERS.items()))


def _table(title: str, rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| variable | default | accepted | meaning |"
    yield "| --- | --- | --- | --- |"
    for key, accepted, default, meaning in rows:
        shown = f"`{default}`" if default else "empty"
        yield f"| `{key}` | {shown} | {re.sub(r'[|]', ', ', accepted)} | {meaning} |"
    yield ""


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
