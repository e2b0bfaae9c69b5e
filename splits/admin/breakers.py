"""The breaker of the completion endpoint in the admin."""

from typing import Any

from django.contrib import admin
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from recovery.admin.rows import ReadOnlyAdmin, column
from recovery.admin.tables import moment_of, state
from splits.models import Breaker


@admin.register(Breaker)
class BreakerAdmin(ReadOnlyAdmin):
    """Completion endpoints and whether they are worth calling."""

    ordering = ("endpoint",)
    list_display = ("endpoint", "is_open", "failures", "opened", "next_try")
    fieldsets = ((None, {"fields": list_display}),)
    opened = moment_of(Breaker, "opened_at")
    next_try = moment_of(Breaker, "next_try_at")

    @column(_("state"))
    def is_open(self, row: Any) -> SafeString:
        """Return whether calls are held back."""
        if row.opened_at:
            return state("open_breaker", gettext("open: nothing is sent until the next try"))
        return state("ok", gettext("closed: endpoint is called"))
