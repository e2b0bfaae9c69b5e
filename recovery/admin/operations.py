"""Hand edits that are allowed: confirmed on a page that asks for the reason, and audited."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth import get_permission_codename
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, InterfaceError
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from recovery.admin.rows import ReadOnlyAdmin
from recovery.admin.tables import list_of, page_of
from recovery.errors import is_infrastructure
from recovery.models import ERROR_MAX_LENGTH

logger = logging.getLogger(__name__)

CONFIRMED = "confirmed"
FROM_PAGE = "from_page"
MOST_AT_ONCE = 100


@dataclass(frozen=True)
class Operation:
    """One thing to do to chosen rows; texts may hold ``%(name)s``."""

    name: str
    label: Any
    explanation: Any
    apply: Callable[..., bool]
    """Takes the row, ``actor`` and ``reason``; False: it was so already."""
    done: Any
    already: Any
    fits: Callable[[Any], bool]
    """Whether the page of a row offers it."""
    refusals: tuple[type[Exception], ...] = ()
    """What ``apply`` raises where it will not; their texts are for people."""


class ReasonForm(forms.Form):
    """Why something is done by hand."""

    reason = forms.CharField(
        label=gettext_lazy("Reason"),
        help_text=gettext_lazy("Kept in the audit record."),
        max_length=ERROR_MAX_LENGTH,
        widget=forms.Textarea(attrs={"rows": 3, "cols": 60, "autofocus": True}),
    )


class OperatedAdmin(ReadOnlyAdmin):
    """Rows to which people with the permission to change them may do a few things."""

    operations: tuple[Operation, ...] = ()

    def has_operate_permission(self, request: HttpRequest, row: Any = None) -> bool:
        """Tell whether the user may change ``row``; without one: rows of this kind at all."""
        codename = get_permission_codename("change", self.opts)
        return request.user.has_perm(f"{self.opts.app_label}.{codename}")

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Return the operations as Django's actions: POST only, none without the permission."""
        if not self.has_operate_permission(request):
            return {}
        return {it.name: (_action(it), it.name, it.label) for it in self.operations}

    def buttons(self, request: HttpRequest, row: Any) -> Iterable[Mapping[str, Any]]:
        """Return the operations that fit ``row``, as POSTs to the list's action."""
        if self.has_operate_permission(request, row):
            for operation in self.operations:
                if operation.fits(row):
                    yield {"url": list_of(self.model), "operation": operation, "pk": row.pk}

    def operate(
        self, request: HttpRequest, queryset: QuerySet[Any], operation: Operation
    ) -> HttpResponse | None:
        """Ask for the reason, then apply ``operation`` to each chosen row."""
        rows = list(queryset.order_by("pk")[: MOST_AT_ONCE + 1])
        if not rows or len(rows) > MOST_AT_ONCE:
            text = _("Choose between 1 and %(most)d rows. Nothing has been changed.")
            self.message_user(request, text % {"most": MOST_AT_ONCE}, messages.ERROR)
            return None
        if not all(self.has_operate_permission(request, row) for row in rows):
            raise PermissionDenied
        form = ReasonForm(request.POST if CONFIRMED in request.POST else None)
        if not form.is_valid():
            return self._confirmation(request, operation, rows, form)
        for row in rows:
            self._apply(request, operation, row, form.cleaned_data["reason"])
        back = FROM_PAGE in request.POST and len(rows) == 1
        return HttpResponseRedirect(page_of(rows[0])) if back else None

    def _confirmation(
        self,
        request: HttpRequest,
        operation: Operation,
        rows: Sequence[Model],
        form: ReasonForm,
    ) -> HttpResponse:
        from_page = FROM_PAGE in request.POST and len(rows) == 1
        context = {
            **self.admin_site.each_context(request),
            "title": operation.label,
            "opts": self.opts,
            "media": self.media,
            "operation": operation,
            "rows": rows,
            "form": form,
            "checkbox_name": ACTION_CHECKBOX_NAME,
            "from_page": from_page,
            "back": page_of(rows[0]) if from_page else list_of(self.model),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/recovery/operation.html", context)

    def _apply(self, request: HttpRequest, operation: Operation, row: Model, reason: str) -> None:
        try:
            changed = operation.apply(row, actor=request.user.get_username(), reason=reason)
        except operation.refusals as error:
            self.message_user(request, str(error), messages.ERROR)
            return
        except (DatabaseError, InterfaceError) as error:
            if not is_infrastructure(error):
                raise
            logger.warning("operation_refused", extra={"row": str(row), "error": str(error)})
            text = _("The database is busy: %(name)s has not been changed. Try again.")
            self.message_user(request, text % {"name": row}, messages.ERROR)
            return
        level = messages.SUCCESS if changed else messages.WARNING
        text = str(operation.done if changed else operation.already)
        self.message_user(request, text % {"name": row}, level)


def _action(operation: Operation) -> Callable[..., HttpResponse | None]:
    def act(
        model_admin: OperatedAdmin, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponse | None:
        return model_admin.operate(request, queryset, operation)

    return act
