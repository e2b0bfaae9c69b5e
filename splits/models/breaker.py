"""The breaker of the completion endpoint, shared by every worker on every host."""

from django.db import models
from django.db.models import F
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from recovery.clock import seconds_from_now
from recovery.fields import KeyField


class BreakerQuerySet(models.QuerySet["Breaker"]):
    """The guarded updates of breakers; the database's clock decides."""

    def count_failure(self) -> int:
        """Count one more failure in a row."""
        return self.update(failures=F("failures") + 1)

    def open_after(self, failures: int, *, open_s: float) -> bool:
        """Open a closed breaker that has counted ``failures``; False: not so, or open already."""
        return bool(
            self.filter(opened_at=None, failures__gte=failures).update(
                opened_at=Now(), next_try_at=seconds_from_now(open_s)
            )
        )

    def take_try(self, *, open_s: float) -> bool:
        """Take the one try an open breaker allows once its time has come; False: not ours."""
        return bool(
            self.exclude(opened_at=None)
            .filter(next_try_at__lte=Now())
            .update(next_try_at=seconds_from_now(open_s))
        )

    def stay_open(self, *, open_s: float) -> int:
        """Put the next try off after one that failed."""
        return self.exclude(opened_at=None).update(next_try_at=seconds_from_now(open_s))

    def close(self) -> int:
        """Close, and forget the failures counted."""
        return self.update(failures=0, opened_at=None, next_try_at=None)


class Breaker(models.Model):
    """Whether an endpoint is worth calling, for every worker on every host."""

    endpoint = KeyField(_("endpoint"), primary_key=True)
    failures = models.PositiveIntegerField(_("failures in a row"), default=0)
    opened_at = models.DateTimeField(_("opened at"), null=True, blank=True)
    next_try_at = models.DateTimeField(_("next try at"), null=True, blank=True)

    objects = BreakerQuerySet.as_manager()

    class Meta:
        """One row an endpoint."""

        verbose_name = _("breaker")
        verbose_name_plural = _("breakers")

    def __str__(self) -> str:
        """Return the endpoint."""
        return self.endpoint
