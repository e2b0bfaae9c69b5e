"""The engine's rows in Django's admin, and what the apps above build their own from."""

import django_q.admin  # registers django-q2's models, whatever the order of the apps
from django.apps import apps
from django.contrib import admin

from recovery.admin import (
    archives,
    audit,
    going,
    jobs,
    logins,
    overview,
    people,
    plans,
    proposals,
    runs,
    trail,
)

__all__ = [
    "archives",
    "audit",
    "going",
    "jobs",
    "logins",
    "overview",
    "people",
    "plans",
    "proposals",
    "runs",
    "trail",
]


def hide(app_label: str) -> None:
    """Take an app's models out of the admin."""
    for model in apps.get_app_config(app_label).get_models():
        if admin.site.is_registered(model):
            admin.site.unregister(model)


# A schedule, task or queue entry edited by hand breaks what jobs promise; schedules are mended
# from the registry. Autodiscovery imports django_q.admin once, which has happened above.
hide(django_q.admin.Schedule._meta.app_label)
