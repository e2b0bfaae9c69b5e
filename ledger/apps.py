"""The app's entry."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class LedgerConfig(AppConfig):
    """The stock ledger."""

    name = "ledger"
    verbose_name = _("Ledger")
