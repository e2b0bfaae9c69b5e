"""Users and groups, in the skin of the other pages."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.db import transaction
from django.http import HttpRequest
from django.utils.decorators import method_decorator
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from recovery.admin.recorded import OnTheRecord
from recovery.admin.skin import SkinnedAdmin

if TYPE_CHECKING:
    _UserAdmin = UserAdmin[Any]
else:
    _UserAdmin = UserAdmin

admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class PersonAdmin(OnTheRecord, _UserAdmin, SkinnedAdmin):
    """People who may log in."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "first_name", "last_name", "is_active", "is_staff", "last_login")

    @method_decorator(transaction.atomic)
    def user_change_password(self, *args: Any, **kwargs: Any) -> Any:
        """Let a new password and its record be one transaction."""
        return super().user_change_password(*args, **kwargs)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[Any, ...]:
        """Let only superusers give what goes beyond roles: to themselves, too."""
        fields = tuple(super().get_readonly_fields(request, obj))
        return fields if _is_above(request) else (*fields, "is_superuser", "user_permissions")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Keep superusers, and with them their passwords, from those who are none."""
        return super().has_change_permission(request, obj) and _may_touch(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Keep superusers from those who are none."""
        return super().has_delete_permission(request, obj) and _may_touch(request, obj)


@admin.register(Group)
class RoleAdmin(OnTheRecord, GroupAdmin, SkinnedAdmin):
    """Roles."""


def _may_touch(request: HttpRequest, person: User | None) -> bool:
    return person is None or not person.is_superuser or _is_above(request)


def _is_above(request: HttpRequest) -> bool:
    return bool(getattr(request.user, "is_superuser", False))
