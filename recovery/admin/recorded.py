"""Django's own forms, which people use for users and groups: what they change is audited."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models import Model
from django.http import HttpRequest

from recovery import audit
from recovery.admin import audited

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    _Admin = ModelAdmin[Any]
else:
    _Admin = object

FLAGS = ("is_active", "is_staff", "is_superuser")
LISTS = {"groups": "name", "user_permissions": "codename", "permissions": "codename"}
VERBS = ("added", "changed", "deleted")


class OnTheRecord(_Admin):
    """Writes an audit record of each change, in the transaction of Django's view."""

    def __init__(self, model: type[Model], admin_site: Any) -> None:
        """Let the records lead to their rows."""
        super().__init__(model, admin_site)
        kind = str(model._meta.model_name)
        find = model._default_manager.filter
        audited.register(
            kind,
            lambda pk: find(pk=pk).first() if pk.isdecimal() else None,
            actions=[f"{kind}-{verb}" for verb in VERBS],
        )

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Let an action of the list and its records be one transaction."""
        with transaction.atomic():
            return super().changelist_view(request, extra_context)

    def log_addition(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        """Record that a row was added."""
        self._record(request, obj, "added", message)
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        """Record that a row was changed, and which fields; a password's value is never known."""
        self._record(request, obj, "changed", message)
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: Iterable[Any]) -> Any:
        """Record that rows are to be deleted."""
        for row in queryset:
            self._record(request, row, "deleted", [])
        return super().log_deletions(request, queryset)  # type: ignore[arg-type]

    def _record(self, request: HttpRequest, row: Model, verb: str, message: Any) -> None:
        audit.record(
            actor=request.user.get_username(),
            action=f"{self.opts.model_name}-{verb}",
            target_type=str(self.opts.model_name),
            target_id=str(row.pk),
            after={} if verb == "deleted" else _standing(row),
            evidence={"name": str(row), "message": message},
        )


def _standing(row: Any) -> dict[str, Any]:
    """Return what decides on what a person, or who has a role, may do."""
    facts = {name: getattr(row, name) for name in FLAGS if hasattr(row, name)}
    lists = {name: column for name, column in LISTS.items() if hasattr(row, name)}
    return facts | {
        name: sorted(getattr(row, name).values_list(column, flat=True))
        for name, column in lists.items()
    }
