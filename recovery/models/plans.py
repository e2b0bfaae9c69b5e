"""Operators' plans: which rows are repaired, how fast, and how far it got."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self

from django.db import models
from django.db.models import Count, F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from recovery.clock import seconds_from_now
from recovery.fields import KeyField
from recovery.models.texts import stored_text

NOTE_MAX_LENGTH = 1_000


class PlanStatus(models.TextChoices):
    """Where a plan stands; docs/architecture.md has the table of transitions."""

    PLANNED = "planned", _("planned")
    RUNNING = "running", _("running")
    PAUSED = "paused", _("paused")
    HALTED = "halted", _("halted")
    DONE = "done", _("done")
    CANCELLED = "cancelled", _("cancelled")


STOPPED = (PlanStatus.PAUSED, PlanStatus.HALTED)
OPEN = (PlanStatus.PLANNED, PlanStatus.RUNNING, *STOPPED)


class PlanQuerySet(models.QuerySet["Plan"]):
    """Conditions of plans, and verbs: each one guarded UPDATE."""

    def running(self) -> Self:
        """Return the plans that are to be carried on."""
        return self.filter(status=PlanStatus.RUNNING)

    def carried_under(self, fence: int) -> Self:
        """Return the running plans that the carrier with this fence still carries."""
        return self.running().filter(fence=fence, carrier__gt="")

    def old(self, before: datetime) -> Self:
        """Return the plans made before that will not go on."""
        over = (PlanStatus.DONE, PlanStatus.CANCELLED, PlanStatus.PLANNED)
        return self.filter(status__in=over, created_at__lt=before)

    def start(self) -> bool:
        """Let plans that were only planned run; False: they were started or cancelled."""
        return bool(
            self.filter(status=PlanStatus.PLANNED).update(
                status=PlanStatus.RUNNING, started_at=Now()
            )
        )

    def pause(self) -> bool:
        """Stop running plans between two rows; False: they do not run."""
        return bool(self.running().update(status=PlanStatus.PAUSED, **_LET_GO))

    def resume(self, *, anew: bool) -> bool:
        """Let stopped plans go on where they stopped; ``anew``: from their first stage."""
        stage: dict[str, Any] = {"stage": 0, **_NEW_STAGE} if anew else {}
        return bool(
            self.filter(status__in=STOPPED).update(status=PlanStatus.RUNNING, note="", **stage)
        )

    def cancel(self) -> bool:
        """Give plans up that have not ended; what is done stays done. False: they have ended."""
        return bool(
            self.filter(status__in=OPEN).update(
                status=PlanStatus.CANCELLED, finished_at=Now(), **_LET_GO
            )
        )

    def take(self, carrier: str, *, ttl_s: float) -> bool:
        """Begin to carry running plans that nobody carries; the fence grows by one."""
        free = Q(carrier="") | Q(carrier_until__lte=Now())
        return bool(
            self.running()
            .filter(free)
            .update(carrier=carrier, fence=F("fence") + 1, carrier_until=seconds_from_now(ttl_s))
        )

    def renew(
        self,
        fence: int,
        *,
        ttl_s: float,
        tally: Mapping[str, int] | None = None,
        pause_s: float = 0,
    ) -> bool:
        """Hold on, and add to the counters in ``tally``; False: the plan is not to go on.

        ``pause_s``: so long the rate lets the next row wait, whoever does it.
        """
        changes: dict[str, Any] = {"carrier_until": seconds_from_now(ttl_s)}
        changes |= {name: F(name) + more for name, more in (tally or {}).items() if more}
        if pause_s:
            changes["next_row_at"] = seconds_from_now(pause_s)
        return bool(self.carried_under(fence).update(**changes))

    def let_go(self, fence: int) -> None:
        """Let another carrier go on at once."""
        self.carried_under(fence).update(**_LET_GO)

    def advance(self, fence: int, *, stage: int) -> bool:
        """Go on to a stage; False: the plan is not to go on."""
        return bool(self.carried_under(fence).update(stage=stage, **_NEW_STAGE))

    def count_again(self, rows: int) -> None:
        """Take rows that are to be done once more off the counter."""
        self.update(rows_done=F("rows_done") - rows)

    def halt(self, fence: int, note: str) -> bool:
        """Stop a plan that fails; False: it does not run under this fence."""
        return bool(
            self.carried_under(fence).update(
                status=PlanStatus.HALTED, note=stored_text(note, NOTE_MAX_LENGTH), **_LET_GO
            )
        )

    def finish(self, fence: int) -> bool:
        """End a plan that has gone through its rows; False: it does not run under this fence."""
        return bool(
            self.carried_under(fence).update(status=PlanStatus.DONE, finished_at=Now(), **_LET_GO)
        )


_LET_GO: dict[str, Any] = {"carrier": "", "carrier_until": None}
_NEW_STAGE: dict[str, Any] = {"stage_rows": 0, "stage_known": 0, "stage_failed": 0}


class Plan(models.Model):
    """A repair of many rows: a frozen list, a reason, a pace, and when to halt by itself."""

    action = models.CharField(_("action"), max_length=100)
    parameters = models.JSONField(_("parameters"), default=dict, blank=True)
    selection = models.JSONField(
        _("selection"), default=dict, blank=True, help_text=_("How the rows were chosen.")
    )
    actor = models.CharField(_("actor"), max_length=200)
    reason = models.TextField(_("reason"))
    request_key = models.CharField(
        _("request key"), max_length=64, null=True, blank=True, unique=True, editable=False
    )
    """Of the form it was asked for with: sent twice, it is one plan."""
    status = models.CharField(
        _("status"), max_length=10, choices=PlanStatus, default=PlanStatus.PLANNED
    )
    rate = models.FloatField(_("rows a second"), default=0, help_text=_("0: as fast as it goes."))
    canary = models.JSONField(
        _("canary"),
        default=list,
        blank=True,
        help_text=_("So many rows first, stage by stage, each looked at before the next."),
    )
    halt_share = models.FloatField(_("halts at a share of failures above"), default=0)
    stage = models.PositiveSmallIntegerField(_("stage"), default=0)
    stage_rows = models.PositiveIntegerField(_("rows applied in the stage"), default=0)
    stage_known = models.PositiveIntegerField(_("of these known how they ended"), default=0)
    stage_failed = models.PositiveIntegerField(_("of these failed"), default=0)
    rows_total = models.PositiveIntegerField(_("rows"), default=0)
    """Without those that were excluded when the list was frozen."""
    rows_done = models.PositiveIntegerField(_("rows done"), default=0)
    note = models.TextField(_("note"), blank=True, default="")
    carrier = models.CharField(_("carried by"), max_length=200, blank=True, default="")
    carrier_until = models.DateTimeField(_("carried until"), null=True, blank=True)
    fence = models.BigIntegerField(_("fence"), default=0)
    next_row_at = models.DateTimeField(_("next row at"), null=True, blank=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)
    started_at = models.DateTimeField(_("started at"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)

    objects = PlanQuerySet.as_manager()

    class Meta:
        """Newest first; found by status and by age."""

        ordering = ["-id"]
        indexes = [
            models.Index(fields=["status", "id"], name="plan_status_id"),
            models.Index(fields=["created_at"], name="plan_created_at"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(status__in=PlanStatus.values), name="plan_status_known"
            )
        ]
        verbose_name = _("plan")
        verbose_name_plural = _("plans")

    def __str__(self) -> str:
        """Return number and action."""
        return f"{self.pk} {self.action}"

    def quota(self) -> int | None:
        """Return how many rows the stage takes; None: it is the last one, which takes the rest."""
        return int(self.canary[self.stage]) if self.stage < len(self.canary) else None

    def has_ended(self) -> bool:
        """Tell whether nothing more will be done."""
        return self.status in (PlanStatus.DONE, PlanStatus.CANCELLED)


class ItemStatus(models.TextChoices):
    """What became of one row of a plan."""

    WAITING = "waiting", _("waiting")
    APPLIED = "applied", _("applied, its effect not seen yet")
    DONE = "done", _("done")
    FAILED = "failed", _("failed")
    UNDONE = "undone", _("failed and put back")
    DRIFTED = "drifted", _("changed since the preview: skipped")
    HELD = "held", _("held by another transaction: skipped")
    EXCLUDED = "excluded", _("did not fit: left out")


class ItemQuerySet(models.QuerySet["PlanItem"]):
    """Conditions of a plan's rows, and verbs."""

    def waiting(self) -> Self:
        """Return those that are still to be done."""
        return self.filter(status=ItemStatus.WAITING)

    def applied(self) -> Self:
        """Return those whose effect has not been seen yet."""
        return self.filter(status=ItemStatus.APPLIED)

    def counts(self) -> dict[str, int]:
        """Return how many there are by status; statuses that none has are left out."""
        return dict(self.order_by().values_list("status").annotate(n=Count("pk")))

    def become(
        self,
        status: str,
        *,
        note: str = "",
        result: Mapping[str, Any] | None = None,
        stage: int | None = None,
    ) -> int:
        """Note what became of them; return how many."""
        known: dict[str, Any] = {} if result is None else {"result": dict(result)}
        known |= {} if stage is None else {"stage": stage}
        note = stored_text(note, NOTE_MAX_LENGTH)
        return self.update(status=status, note=note, at=Now(), **known)

    def seen(self, status: str, note: str = "") -> int:
        """Note how applied ones ended; return how many were still open."""
        return self.applied().update(status=status, note=stored_text(note, NOTE_MAX_LENGTH))

    def wait_again(self, fingerprint: str) -> int:
        """Let those that failed be done once more, from the state they are in now."""
        return self.filter(status__in=(ItemStatus.FAILED, ItemStatus.UNDONE)).update(
            status=ItemStatus.WAITING, fingerprint=fingerprint, note="", at=None, stage=None
        )


class PlanItem(models.Model):
    """One row of a plan, with the state it had when the list was frozen."""

    plan = models.ForeignKey(Plan, models.CASCADE, related_name="items", verbose_name=_("plan"))
    row_id = models.BigIntegerField(_("row"))
    label = KeyField(_("name"), blank=True, default="")
    fingerprint = models.CharField(_("fingerprint"), max_length=64, blank=True, default="")
    status = models.CharField(
        _("status"), max_length=10, choices=ItemStatus, default=ItemStatus.WAITING
    )
    stage = models.PositiveSmallIntegerField(_("stage"), null=True, blank=True)
    note = models.TextField(_("note"), blank=True, default="")
    result = models.JSONField(_("result"), default=dict, blank=True)
    at = models.DateTimeField(_("at"), null=True, blank=True)

    objects = ItemQuerySet.as_manager()

    class Meta:
        """In the order they are done; each row once a plan."""

        ordering = ["plan_id", "id"]
        indexes = [models.Index(fields=["plan", "status", "id"], name="planitem_status")]
        constraints = [
            models.UniqueConstraint(fields=["plan", "row_id"], name="planitem_once"),
            models.CheckConstraint(
                condition=Q(status__in=ItemStatus.values), name="planitem_status_known"
            ),
        ]
        verbose_name = _("row of a plan")
        verbose_name_plural = _("rows of plans")

    def __str__(self) -> str:
        """Return the row's name."""
        return self.label
