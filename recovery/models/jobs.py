"""Jobs with their leases, and their runs."""

import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Self

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Greatest, Now
from django.utils.translation import gettext_lazy as _

from recovery.clock import seconds_from_now
from recovery.fields import KeyField
from recovery.models.texts import stored_text
from recovery.registry import base_of


class RunStatus(models.TextChoices):
    """What became of a run."""

    RUNNING = "running", _("running")
    OK = "ok", _("ok")
    FAILED = "failed", _("failed")
    DIED = "died", _("died")


class JobQuerySet(models.QuerySet["Job"]):
    """Conditions of jobs and the guarded updates of their leases."""

    def family(self, name: str) -> Self:
        """Return job ``name`` with its further lanes; of a lane: that one alone."""
        return self.filter(Q(name=name) | Q(name__startswith=f"{name}:"))

    def leased_under(self, fence: int) -> Self:
        """Return the job whose lease is still the one with this fence."""
        return self.filter(fence=fence, lease_owner__gt="")

    def leased(self) -> Self:
        """Return jobs whose lease is in force."""
        return self.filter(lease_expires_at__gt=Now())

    def acquire(self, *, owner: str, ttl_s: float) -> bool:
        """Take the lease if nobody holds it and the job is not paused; the fence grows by one."""
        free = Q(lease_expires_at=None) | Q(lease_expires_at__lte=Now())
        return bool(
            self.filter(free, paused_at=None).update(
                lease_owner=owner,
                fence=F("fence") + 1,
                lease_expires_at=seconds_from_now(ttl_s),
                last_started_at=Now(),
                last_status=RunStatus.RUNNING,
            )
        )

    def renew(self, *, fence: int, ttl_s: float) -> bool:
        """Extend the lease with this fence and beat; False: it is lost."""
        return bool(
            self.leased_under(fence).update(
                lease_expires_at=seconds_from_now(ttl_s), heartbeat_at=Now()
            )
        )

    def beat(self, *, fence: int, host: str, pid: int, run_id: uuid.UUID) -> None:
        """Say who works under this fence."""
        self.leased_under(fence).update(
            heartbeat_at=Now(), heartbeat_host=host, heartbeat_pid=pid, heartbeat_run_id=run_id
        )

    def release(self, *, fence: int, status: str, error: str, duration_s: float) -> bool:
        """Give the lease with this fence back and keep how the run ended; False: it was lost."""
        return bool(
            self.leased_under(fence).update(
                lease_owner="",
                lease_expires_at=None,
                heartbeat_at=Now(),
                last_finished_at=Now(),
                last_status=status,
                last_error=stored_text(error),
                last_duration_s=duration_s,
            )
        )

    def fence_off(self, fence: int) -> None:
        """Raise the fences to ``fence`` at least and take the leases from whoever has them."""
        self.update(fence=Greatest(F("fence") + 1, fence), lease_owner="", lease_expires_at=None)

    def ask_to_wake(self) -> bool:
        """Set the wake-up flag; False: it was set already."""
        return bool(self.filter(wake_requested_at=None).update(wake_requested_at=Now()))

    def clear_wake(self) -> None:
        """Clear the wake-up flag."""
        self.exclude(wake_requested_at=None).update(wake_requested_at=None)

    def pause(self) -> bool:
        """Pause; False: all were paused already."""
        return bool(self.filter(paused_at=None).update(paused_at=Now()))

    def resume(self) -> bool:
        """Resume; False: none was paused."""
        return bool(self.exclude(paused_at=None).update(paused_at=None))

    def make(self, names: Iterable[str]) -> None:
        """Make the rows of jobs, unless there are any; a lane is paused where its job is."""
        paused = dict(self.values_list("name", "paused_at"))
        self.bulk_create(
            [Job(name=name, paused_at=paused.get(base_of(name))) for name in names],
            ignore_conflicts=True,
        )


class Job(models.Model):
    """A registered job: its pause, its lease and its last run."""

    name = KeyField(_("name"), primary_key=True, max_length=100)
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)
    paused_at = models.DateTimeField(_("paused at"), null=True, blank=True)
    lease_owner = models.CharField(_("lease owner"), max_length=200, blank=True, default="")
    fence = models.BigIntegerField(_("fence"), default=0)
    lease_expires_at = models.DateTimeField(_("lease expires at"), null=True, blank=True)
    wake_requested_at = models.DateTimeField(_("wake-up requested at"), null=True, blank=True)
    heartbeat_at = models.DateTimeField(_("heartbeat at"), null=True, blank=True)
    heartbeat_host = models.CharField(_("heartbeat host"), max_length=200, blank=True, default="")
    heartbeat_pid = models.IntegerField(_("heartbeat process"), null=True, blank=True)
    heartbeat_run_id = models.UUIDField(_("heartbeat run"), null=True, blank=True)
    last_started_at = models.DateTimeField(_("last started at"), null=True, blank=True)
    last_finished_at = models.DateTimeField(_("last finished at"), null=True, blank=True)
    last_status = models.CharField(
        _("last status"), max_length=10, choices=RunStatus, blank=True, default=""
    )
    last_error = models.TextField(_("last error"), blank=True, default="")
    last_duration_s = models.FloatField(_("last duration, s"), null=True, blank=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        """Jobs by name."""

        ordering = ["name"]
        verbose_name = _("job")
        verbose_name_plural = _("jobs")

    def __str__(self) -> str:
        """Return the job's name."""
        return self.name


LULL_S = 15
"""An outage is noticed so long after the last sign of life of what it cuts off."""
WATCH_S = 60
RUNS_OF_A_MINUTE = 3
"""So many runs at least begin within a minute while workers run: the outbox alone has six."""


class JobRunQuerySet(models.QuerySet["JobRun"]):
    """Conditions of runs and what closes them."""

    def died_before(self, job: str, fence: int) -> Self:
        """Return the runs that never finished though a later one holds the lease."""
        return self.filter(job_id=job, status=RunStatus.RUNNING, fence__lt=fence)

    def bury(self) -> int:
        """Mark runs as died."""
        return self.update(status=RunStatus.DIED, finished_at=Now())

    def finish(
        self,
        *,
        status: str,
        counts: dict[str, Any],
        error: str,
        finished_at: datetime | None = None,
    ) -> bool:
        """Record how a run that is still running ended; False: it was taken for dead meanwhile.

        True as well where it is recorded already: a COMMIT whose answer was lost is repeated.
        """
        ended = self.filter(status=RunStatus.RUNNING).update(
            status=status,
            counts=counts,
            error=stored_text(error),
            finished_at=finished_at or Now(),
        )
        return bool(ended) or self.filter(status=status).exists()

    def latest_endings(self, job: str, *, look_back: int = 20) -> list[str]:
        """Return how the job's latest finished runs ended, the newest first."""
        # A range of one job: told that they are equal, MariaDB may walk the runs of all jobs.
        runs = self.filter(job_id__gte=job, job_id__lte=job).exclude(status=RunStatus.RUNNING)
        latest = runs.order_by("-job_id", "-id")
        return list(latest.values_list("status", flat=True)[:look_back])

    def older_than(self, moment: datetime) -> Self:
        """Return the runs that started before ``moment``."""
        return self.filter(started_at__lt=moment)

    def stood_still_after(self, moment: datetime, *, now: datetime) -> bool:
        """Tell whether runs began before ``moment``, and for most of the minute after it none did.

        Then the database, or every host with a worker, was away. False within that minute.
        """
        lull, watch = timedelta(seconds=LULL_S), timedelta(seconds=WATCH_S)
        if now < moment + watch:
            return False
        before = self.filter(started_at__gt=moment - watch, started_at__lte=moment)
        after = self.filter(started_at__gt=moment + lull, started_at__lte=moment + watch)
        return len(before.order_by()[:RUNS_OF_A_MINUTE]) == RUNS_OF_A_MINUTE and not after.exists()


class JobRun(models.Model):
    """One guarded run of a job."""

    run_id = models.UUIDField(_("run"), unique=True, default=uuid.uuid4, editable=False)
    job = models.ForeignKey(Job, models.CASCADE, related_name="runs", verbose_name=_("job"))
    fence = models.BigIntegerField(_("fence"))
    host = models.CharField(_("host"), max_length=200)
    pid = models.IntegerField(_("process"))
    status = models.CharField(
        _("status"), max_length=10, choices=RunStatus, default=RunStatus.RUNNING
    )
    started_at = models.DateTimeField(_("started at"), db_default=Now())
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)
    counts = models.JSONField(_("counts"), default=dict, blank=True)
    error = models.TextField(_("error"), blank=True, default="")

    objects = JobRunQuerySet.as_manager()

    class Meta:
        """Newest first; found by job and by age."""

        ordering = ["-id"]
        indexes = [
            models.Index(fields=["job", "status", "fence"], name="jobrun_job_status_fence"),
            models.Index(fields=["job", "id"], name="jobrun_job_id"),
            models.Index(fields=["started_at"], name="jobrun_started_at"),
            models.Index(fields=["status", "id"], name="jobrun_status_id"),  # the admin's filter
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(status__in=RunStatus.values), name="jobrun_status_known"
            )
        ]
        permissions = [("view_stacktrace", "Can see stack traces")]
        verbose_name = _("job run")
        verbose_name_plural = _("job runs")

    def __str__(self) -> str:
        """Return job and run."""
        return f"{self.job_id} {self.run_id}"
