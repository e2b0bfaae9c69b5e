"""Failed log-ins in the admin: whoever is locked out is let in by deleting them."""

from collections.abc import Iterable, Mapping
from typing import Any

from axes.models import AccessAttempt
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.auth import get_permission_codename
from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext, gettext_noop
from django.utils.translation import gettext_lazy as _

from recovery.admin.recorded import OnTheRecord
from recovery.admin.rows import ReadOnlyAdmin, column
from recovery.admin.tables import moment, shown

NAMES = (gettext_noop("access attempt"), gettext_noop("access attempts"))
"""What axes calls them, which it has no Chinese for."""


@admin.register(AccessAttempt)
class AccessAttemptAdmin(OnTheRecord, ReadOnlyAdmin):
    """Log-ins that failed lately, by user name, address and browser."""

    list_display = ("tried", "name", "address", "failures", "browser")
    search_fields = ("username", "ip_address", "id")
    search_help_text = _("Exactly: a user name, an address or an id.")
    fieldsets = ((None, {"fields": (*list_display, "path")}),)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Tell whether the user may let people in again."""
        codename = get_permission_codename("delete", self.opts)
        return request.user.has_perm(f"{self.opts.app_label}.{codename}")

    def buttons(self, request: HttpRequest, row: AccessAttempt) -> Iterable[Mapping[str, Any]]:
        """Return the way to delete the attempt, for whoever may."""
        if self.has_delete_permission(request, row):
            url = reverse("admin:axes_accessattempt_delete", args=[quote(row.pk)])
            yield {"url": url, "label": gettext("Delete: they may try again"), "grave": True}

    @column(_("last tried at"))
    def tried(self, row: AccessAttempt) -> str:
        """Return when the last one was."""
        return moment(row.attempt_time)

    @column(_("user name"))
    def name(self, row: AccessAttempt) -> Any:
        """Return who it was meant to be."""
        return shown(row.username)

    @column(_("address"))
    def address(self, row: AccessAttempt) -> Any:
        """Return where it came from."""
        return shown(row.ip_address)

    @column(_("failures"))
    def failures(self, row: AccessAttempt) -> int:
        """Return how often it failed."""
        return int(row.failures_since_start)

    @column(_("browser"))
    def browser(self, row: AccessAttempt) -> str:
        """Return what it says of itself."""
        return str(row.user_agent)

    @column(_("page"))
    def path(self, row: AccessAttempt) -> str:
        """Return where it was tried."""
        return str(row.path_info)
