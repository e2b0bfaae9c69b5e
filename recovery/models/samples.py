"""The newest samples of the gauges."""

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
