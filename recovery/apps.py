"""The app's entry: finds every app's jobs, actions, gauges, retention rules and checks."""

from django.apps import AppConfig
from django.conf import settings
from django.utils.module_loading import autodiscover_modules
from django.utils.translation import gettext_lazy as _


class RecoveryConfig(AppConfig):
    """The recovery engine."""

    name = "recovery"
    verbose_name = _("Recovery")

    def ready(self) -> None:
        """Import ``jobs``, ``actions``, ``metrics``, ``retention``, ``checks`` of every app."""
        from recovery import metrics, registry, sqlite, tallies  # noqa: F401

        autodiscover_modules("jobs", "actions", "metrics", "retention", "checks")
        if settings.METRICS_ENABLED:
            metrics.announce({job.base for job in registry.all_jobs()})
        if place := tallies.directory():
            tallies.merge_a_crowd(place)
