"""The app's entry."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class SplitsConfig(AppConfig):
    """Split orders and lots."""

    name = "splits"
    verbose_name = _("Split orders")
