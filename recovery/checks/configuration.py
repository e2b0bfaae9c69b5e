"""Settings against each other."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004

from recovery import link, registry

PERIODS_UNTIL_LATE = 3


def is_server(url: str) -> bool:
    """Tell whether ``url`` is that of a database server, not of a SQLite file."""
    return url.startswith("mysql:")


def folder_of(alias: str) -> Path | None:
    """Return the folder of a storage; None: it is a bucket."""
    store = settings.STORAGES[alias]
    is_folder = store["BACKEND"].endswith(".FileSystemStorage")
    return Path(store["OPTIONS"]["location"]).resolve() if is_folder else None


@register()
def check_queue(app_configs: Sequence[AppConfig] | None, **_kwargs: Any) -> list[CheckMessage]:
    """Check what django-q2 does not: time-outs and workers."""
    return [*_repeated_tasks(), *_killed_runs(), *_missing_workers()]


def _repeated_tasks() -> Iterator[CheckMessage]:
    retry, timeout = settings.Q_CLUSTER["retry"], settings.Q_CLUSTER["timeout"]
    if retry <= timeout:
        yield Error(
            f"Q_CLUSTER retry={retry} is not longer than its timeout={timeout}:"
            " tasks that still run would be handed out a second time.",
            hint="Set retry to at least twice the timeout.",
            id="recovery.E001",
        )


def _killed_runs() -> Iterator[CheckMessage]:
    timeout = settings.Q_CLUSTER["timeout"]
    needed = settings.JOB_TIME_BUDGET_SEC + settings.JOB_LOCK_TTL_SEC
    if timeout <= needed:
        yield Error(
            f"JOB_TASK_TIMEOUT_SEC={timeout} kills runs that are within their time budget.",
            hint=f"Set it above {needed:g}: JOB_TIME_BUDGET_SEC + JOB_LOCK_TTL_SEC.",
            id="recovery.E002",
        )


def _missing_workers() -> Iterator[CheckMessage]:
    workers, jobs = settings.Q_CLUSTER["workers"], len(registry.all_jobs())
    if workers < jobs:
        yield Error(
            f"QCLUSTER_WORKERS={workers} is fewer than the {jobs} jobs there are:"
            " one would have to wait for another.",
            hint=f"Set QCLUSTER_WORKERS to at least {jobs}.",
            id="recovery.E003",
        )


@register()
def check_settings(app_configs: Sequence[AppConfig] | None, **_kwargs: Any) -> list[CheckMessage]:
    """Check settings against each other."""
    return [
        *_order_of_apps(),
        *_impatient_leases(),
        *_killed_waits(),
        *_false_alarms(),
        *_flat_backoff(),
        *_lonely_counters(),
        *_one_place_for_both_tiers(),
    ]


def _order_of_apps() -> Iterator[CheckMessage]:
    apps = list(settings.INSTALLED_APPS)
    if "django_q" in apps and apps.index("recovery") > apps.index("django_q"):
        yield Error(
            "django_q stands before recovery in INSTALLED_APPS:"
            " its qcluster would run, which ticks every 30 s at best.",
            hint="Move recovery in front of django_q.",
            id="recovery.E005",
        )


def _impatient_leases() -> Iterator[CheckMessage]:
    patience, ttl = settings.REDIS_TIMEOUT_SEC, settings.JOB_LOCK_TTL_SEC
    if link.configured() and patience >= ttl:
        yield Error(
            f"REDIS_TIMEOUT_SEC={patience:g} is not shorter than JOB_LOCK_TTL_SEC={ttl}:"
            " one call to a Redis that hangs would cost a run its lease.",
            hint="Lower REDIS_TIMEOUT_SEC (1 is plenty) or raise JOB_LOCK_TTL_SEC.",
            id="recovery.E009",
        )


def _killed_waits() -> Iterator[CheckMessage]:
    patience, timeout = settings.DATABASE_READ_TIMEOUT_SEC, settings.Q_CLUSTER["timeout"]
    if is_server(settings.DATABASE_URL) and patience >= timeout:
        yield Warning(
            f"DATABASE_READ_TIMEOUT_SEC={patience} is not shorter than"
            f" JOB_TASK_TIMEOUT_SEC={timeout}: a run that waits for a database that hangs is"
            " killed before it can give up in order.",
            hint=f"Set DATABASE_READ_TIMEOUT_SEC below {timeout}.",
            id="recovery.W003",
        )


def _false_alarms() -> Iterator[CheckMessage]:
    """Warn where a job is called late that only waits for a killed worker's lock to expire."""
    ttl = settings.JOB_LOCK_TTL_SEC
    for job in registry.all_jobs():
        late_s = PERIODS_UNTIL_LATE * job.period_s
        if ttl > late_s:
            yield Warning(
                f"{job.name} runs every {job.period_s} s ({job.period_setting}) and is reported"
                f" late after {late_s} s, but a killed worker blocks it for"
                f" JOB_LOCK_TTL_SEC={ttl}: a false alarm after each.",
                hint=f"Lower JOB_LOCK_TTL_SEC to {late_s} or raise {job.period_setting}.",
                id="recovery.W004",
            )


def _flat_backoff() -> Iterator[CheckMessage]:
    base, cap = settings.JOB_BACKOFF_BASE_SEC, settings.JOB_BACKOFF_CAP_SEC
    if base > cap:
        yield Warning(
            f"JOB_BACKOFF_BASE_SEC={base:g} is longer than JOB_BACKOFF_CAP_SEC={cap:g}:"
            " every wait is the cap, and none grows.",
            hint="Lower the base or raise the cap.",
            id="recovery.W005",
        )


def _lonely_counters() -> Iterator[CheckMessage]:
    if settings.METRICS_ENABLED and not settings.METRICS_SHARED:
        yield Warning(
            f"{settings.METRICS_DIR} cannot be written: each process counts for itself, and"
            " /metrics of the web process shows no run of a job.",
            hint="Set PROMETHEUS_MULTIPROC_DIR to a folder that all processes of a host write to.",
            id="recovery.W014",
        )


@register()
def check_stack(app_configs: Sequence[AppConfig] | None, **_kwargs: Any) -> list[CheckMessage]:
    """Check that database and Redis are both those of production, or both the embedded ones."""
    server = is_server(settings.DATABASE_URL)
    if server == link.configured():
        return []
    return [_without_redis() if server else _without_database()]


def _without_redis() -> CheckMessage:
    return Warning(
        "DATABASE_URL is a server but REDIS_URL is empty: queue and locks go by the database,"
        f" idle workers ask it every {settings.Q_CLUSTER['poll']:g} s, and each process"
        " has a cache of its own.",
        hint="Set REDIS_URL=redis://host:6379/0.",
        id="recovery.W006",
    )


def _without_database() -> CheckMessage:
    return Warning(
        "REDIS_URL is set but the database is a SQLite file: a second host has another file, and"
        " its workers would take wake-ups from Redis for work that they cannot see.",
        hint="Set DATABASE_URL=mysql://user:password@host:3306/name, or unset REDIS_URL.",
        id="recovery.W007",
    )


def _one_place_for_both_tiers() -> Iterator[CheckMessage]:
    warm, cold = (_place_of(alias) for alias in ("audit_archive", "audit_cold"))
    if warm == cold:
        yield Error(
            f"AUDIT_ARCHIVE and AUDIT_COLD are one place, {warm}: an archive that is put away"
            " would be removed from where it was, and so be gone.",
            hint="Set each to a folder, or to a prefix, of its own.",
            id="recovery.E016",
        )


def _place_of(alias: str) -> str:
    options = settings.STORAGES[alias]["OPTIONS"]
    folder = folder_of(alias)
    return f"{folder}" if folder else f"s3://{options['bucket_name']}/{options['location']}"
