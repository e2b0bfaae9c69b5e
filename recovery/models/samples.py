"""Samples of the gauges: the newest ones, and what charts are drawn from."""

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from recovery.fields import KeyField


class Sample(models.Model):
    """The newest value of one gauge, as metricsCollect found it."""

    name = models.CharField(_("name"), max_length=100)
    labels = KeyField(_("labels"), blank=True, default="")
    value = models.FloatField(_("value"))
    at = models.DateTimeField(_("at"), db_default=Now())

    class Meta:
        """One row a gauge and label set."""

        ordering = ["name", "labels"]
        constraints = [models.UniqueConstraint(fields=["name", "labels"], name="sample_once")]
        verbose_name = _("sample")
        verbose_name_plural = _("samples")

    def __str__(self) -> str:
        """Return the sample as Prometheus would print it."""
        return f"{self.name}{{{self.labels}}} {self.value:g}"


class SampleMoment(models.Model):
    """What was sampled at one moment, all gauges and flows in one row; a day of them is kept."""

    at = models.DateTimeField(_("at"))
    is_coarse = models.BooleanField(_("kept for a day"), default=False)
    """One a minute is; the others are kept for an hour."""
    values = models.JSONField(_("values"), default=dict)

    class Meta:
        """In the order of time."""

        ordering = ["at"]
        indexes = [models.Index(fields=["is_coarse", "at"], name="samplemoment_coarse_at")]
        verbose_name = _("moment of samples")
        verbose_name_plural = _("moments of samples")

    def __str__(self) -> str:
        """Return the time."""
        return f"{self.at:%Y-%m-%d %H:%M:%S}"
