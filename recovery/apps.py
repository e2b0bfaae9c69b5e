"""The app's entry: finds what every app registers: jobs, actions, gauges, rules, checks…."""

from django.apps import AppConfig
from django.conf import settings
from django.db.models.signals import post_migrate
from django.utils.module_loading import autodiscover_modules
from django.utils.translation import gettext_lazy as _


class RecoveryConfig(AppConfig):
    """The recovery engine."""

    name = "recovery"
    verbose_name = _("Recovery")

    def ready(self) -> None:
        """Import what every app registers, from files of the same names in each."""
        from recovery import metrics, registry, sqlite, tallies  # noqa: F401
        from recovery.trail import gauges, guards  # noqa: F401 - the former registers

        autodiscover_modules("jobs", "actions", "metrics", "retention", "checks", "selfcheck")
        post_migrate.connect(guards.after_migrate, sender=self)
        if settings.METRICS_ENABLED:
            metrics.announce({job.base for job in registry.all_jobs()})
        if place := tallies.directory():
            tallies.merge_a_crowd(place)
