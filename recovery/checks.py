"""System checks: settings that Django or django-q2 would accept and that would hurt."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004
from django.db import connections

from recovery import registry


@register()
def check_queue(app_configs: Sequence[AppConfig] | None, **_kwargs: Any) -> list[CheckMessage]:
    """Check what django-q2 does not: time-outs, workers, replayed ticks."""
    cluster = settings.Q_CLUSTER
    found: list[CheckMessage] = []
    if cluster["retry"] <= cluster["timeout"]:
        found.append(
            Error(
                "Q_CLUSTER retry is not longer than its timeout: tasks would run twice.",
                hint="Set retry to at least twice the timeout.",
                id="recovery.E001",
            )
        )
    if cluster["timeout"] <= settings.JOB_TIME_BUDGET_SEC + settings.JOB_LOCK_TTL_SEC:
        found.append(
            Error(
                f"JOB_TASK_TIMEOUT_SEC={cluster['timeout']} kills runs within their time budget.",
                hint="Make it longer than JOB_TIME_BUDGET_SEC + JOB_LOCK_TTL_SEC.",
                id="recovery.E002",
            )
        )
    if cluster["workers"] < len(registry.all_jobs()):
        found.append(
            Error(
                f"QCLUSTER_WORKERS={cluster['workers']} is fewer than the jobs there are.",
                hint=f"Every job needs a worker: set at least {len(registry.all_jobs())}.",
                id="recovery.E003",
            )
        )
    return found


@register()
def check_settings(app_configs: Sequence[AppConfig] | None, **_kwargs: Any) -> list[CheckMessage]:
    """Check settings against each other."""
    found: list[CheckMessage] = []
    longest_step = settings.SPLIT_COMPLETION_TIMEOUT_SEC + 2 * settings.JOB_LOCK_TTL_SEC
    if settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC <= longest_step:
        found.append(
            Warning(
                "JOB_FINALIZE_STUCK_THRESHOLD_SEC is within the longest step of a finalization.",
                hint=f"Set it above {longest_step:g} s, or healthy orders are reset.",
                id="recovery.W001",
            )
        )
    if settings.SPLIT_COMPLETION_TIMEOUT_SEC >= settings.JOB_LOCK_TTL_SEC:
        found.append(
            Error(
                "SPLIT_COMPLETION_TIMEOUT_SEC is not shorter than JOB_LOCK_TTL_SEC: "
                "a slow endpoint would cost the job its lease.",
                hint="Lower the time-out or raise the TTL.",
                id="recovery.E004",
            )
        )
    apps = list(settings.INSTALLED_APPS)
    if "django_q" in apps and apps.index("recovery") > apps.index("django_q"):
        found.append(
            Error(
                "django_q stands before recovery in INSTALLED_APPS: its qcluster would run.",
                hint="Move recovery in front of django_q.",
                id="recovery.E005",
            )
        )
    return found


@register(Tags.security, deploy=True)
def check_faultpoints(
    app_configs: Sequence[AppConfig] | None, **_kwargs: Any
) -> list[CheckMessage]:
    """Warn of fault points in production."""
    if not settings.RECOVERY_FAULTPOINTS:
        return []
    return [
        Warning(
            "RECOVERY_FAULTPOINTS is set: this process breaks on purpose.",
            hint="Unset it outside tests and drills.",
            id="recovery.W002",
        )
    ]


@register(Tags.database)
def check_database(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **_kwargs: Any
) -> list[CheckMessage]:
    """Check the session of each database in use: isolation, clock, character set."""
    found: list[CheckMessage] = []
    for alias in databases or ():
        connection: Any = connections[alias]  # its vendor's own attributes are not declared
        if connection.vendor != "mysql":
            continue
        with connection.cursor() as cursor:
            isolation_variable = "tx" if connection.mysql_is_mariadb else "transaction"
            cursor.execute(
                f"SELECT @@{isolation_variable}_isolation, @@session.time_zone,"
                " @@character_set_connection"
            )
            isolation, time_zone, charset = cursor.fetchone()
        if isolation != "READ-COMMITTED":
            found.append(
                Error(
                    f"The session isolation of database {alias!r} is {isolation}.",
                    hint="READ COMMITTED: under REPEATABLE READ a claim blocks all publishers.",
                    id="recovery.E006",
                )
            )
        if time_zone not in ("+00:00", "UTC"):
            found.append(
                Error(
                    f"The session time zone of database {alias!r} is {time_zone}.",
                    hint="Set time_zone='+00:00' in init_command: rows hold UTC.",
                    id="recovery.E007",
                )
            )
        if charset != "utf8mb4":
            found.append(
                Error(
                    f"The character set of database {alias!r} is {charset}.",
                    hint="Use utf8mb4, or names outside the basic plane are refused.",
                    id="recovery.E008",
                )
            )
    return found
