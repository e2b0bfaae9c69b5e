"""What people may do to dead outbox entries, as the console offers it."""

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.conf import settings
from django.http import QueryDict
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from ledger import dlq
from ledger.actions import Discard, Edit, Redrive, Restore
from ledger.admin import causes
from ledger.dlq import Filter
from ledger.models import ErrorCode, OutboxEntry
from recovery import ages
from recovery.admin.proposals import (
    Chosen,
    Offer,
    ProposalForm,
    WrongSelectionError,
    by_ids,
    offer,
)

ALL = "all"
PAYLOADS = "ledger.view_payload"


def filter_of(query: QueryDict) -> Filter:
    """Return the filter that an address asks for; raise WrongSelectionError."""
    code, age = query.get("code", ""), query.get("older_than", "").strip()
    if code and code not in ErrorCode.values:
        raise WrongSelectionError
    try:
        older_than_s = ages.seconds_of(age) if age else None
    except ValueError as error:
        raise WrongSelectionError from error
    return Filter((), code, query.get("type", "").strip(), query.get("group", ""), older_than_s)


def by_filter(query: QueryDict, seen_at: datetime) -> Chosen:
    """Return dead entries by id, or by a filter those that were dead at ``seen_at``."""
    if "ids" in query:
        return by_ids(query, seen_at)
    wanted = filter_of(query)
    given = wanted.given()
    if bool(given) == (ALL in query):
        raise WrongSelectionError
    found = wanted.entries().filter(letter__died_at__lte=seen_at)
    if wanted.older_than_s is not None:
        found = found.filter(created_at__lt=seen_at - timedelta(seconds=wanted.older_than_s))
    ids = list(found.values_list("pk", flat=True))
    text = ngettext("%(n)d dead entry", "%(n)d dead entries", len(ids)) % {"n": len(ids)}
    return Chosen(ids, given or {"all": True}, f"{text}: {said(wanted)}")


def said(wanted: Filter) -> str:
    """Return a filter in words."""
    parts = [
        (_("group"), wanted.group),
        (_("error code"), wanted.code),
        (_("event type"), wanted.type),
        (_("older than"), f"{wanted.older_than_s:g} s" if wanted.older_than_s is not None else ""),
    ]
    return ", ".join(f"{name} {value}" for name, value in parts if value) or _("the whole DLQ")


class EditForm(ProposalForm):
    """The new payload."""

    entry = forms.IntegerField(widget=forms.HiddenInput)
    content_hash = forms.CharField(widget=forms.HiddenInput, max_length=64)
    """Of the payload that the form began with."""
    payload = forms.CharField(
        label=gettext_lazy("Payload"),
        help_text=gettext_lazy("JSON. The event key stays, so that nothing can post twice."),
        widget=forms.Textarea(attrs={"rows": 16, "class": "code", "spellcheck": "false"}),
    )
    redrive = forms.BooleanField(
        label=gettext_lazy("Redrive it then"), required=False, initial=True
    )

    def clean_content_hash(self) -> str:
        """Return the hash; refuse a form whose entry has got another payload meanwhile."""
        seen = str(self.cleaned_data["content_hash"])
        this = OutboxEntry.objects.filter(pk=self.cleaned_data.get("entry") or 0, content_hash=seen)
        if not this.exists():
            text = _("The payload has been changed meanwhile: open the preview again.")
            self.add_error(None, text)
        return seen

    def clean_payload(self) -> Any:
        """Return the payload read; refuse what is not JSON."""
        try:
            return json.loads(self.cleaned_data["payload"])
        except (ValueError, RecursionError) as error:
            text = _("This is not JSON: %(error)s") % {"error": error}
            raise forms.ValidationError(text) from error

    @staticmethod
    def parameters_of(data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the payload and whether to redrive."""
        return {"payload": data["payload"], "redrive": data["redrive"]}


def payload_now(query: QueryDict, chosen: Chosen) -> dict[str, Any]:
    """Return the payload as it is stored, for people to change."""
    if len(chosen.ids) != 1:
        raise WrongSelectionError
    try:
        # The hash first: what changes in between must not pass for what was shown.
        row = OutboxEntry.objects.only("content_hash").get(pk=chosen.ids[0])
        text = dlq.stored_payload(row.pk)
    except OutboxEntry.DoesNotExist as error:
        raise WrongSelectionError from error
    with suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    return {"payload": text, "redrive": True, "entry": row.pk, "content_hash": row.content_hash}


offer(
    Offer(
        action=Redrive,
        title=gettext_lazy("Redrive"),
        explanation=gettext_lazy(
            "Dead entries get fresh attempts, due at once; what waits behind them goes on."
        ),
        choose=by_filter,
        advice=lambda before: causes.advice(before["code"]),
    )
)
offer(
    Offer(
        action=Discard,
        title=gettext_lazy("Discard"),
        explanation=gettext_lazy(
            "They are never posted; what waits behind them goes on. The ledger then lacks their"
            " movements: reconcile will say so."
        ),
        choose=by_filter,
        is_grave=True,
    )
)
offer(
    Offer(
        action=Restore,
        title=gettext_lazy("Restore"),
        explanation=gettext_lazy(
            "Discarded entries are dead again, to be redriven or edited; later entries of their"
            " aggregate wait behind them until then."
        ),
    )
)
offer(
    Offer(
        action=Edit,
        title=gettext_lazy("Edit"),
        explanation=gettext_lazy(
            "The payload is changed in place, under the same key; the original stays in the audit"
            " record."
        ),
        form=EditForm,
        initial=payload_now,
        is_judged_at_once=False,
        looks_again=True,
        also_needs=PAYLOADS,
        is_available=lambda: bool(settings.DLQ_EDIT_ENABLED),
    )
)
