"""The console's forms as people fill them in and send them."""

from typing import Any

from django.test import Client
from django.urls import reverse
from django.utils.http import urlencode

from recovery.foreground import Follower
from recovery.models import AuditRecord, Plan

REASON = "INC-7: mended"


def preview_url(action: str, **query: Any) -> str:
    """Return the address of the preview of an action on some rows."""
    return f"{reverse('admin:propose', args=[action])}?{urlencode(query)}"


def filled(client: Client, url: str, **changes: Any) -> dict[str, Any]:
    """Return the form of a preview filled in, to be sent; None takes a field out of it."""
    form = client.get(url).context["form"]
    values = {name: form[name].value() for name in form.fields}
    sent = {**values, "reason": REASON, "go": "yes", **changes}
    return {name: value for name, value in sent.items() if value not in (None, False)}


def messages_in(response: Any) -> list[str]:
    """Return the messages that a page shows."""
    return [str(it) for it in response.context["messages"]]


def carried(plan: Plan) -> Plan:
    """Carry a plan that runs to its end."""
    return Follower(plan.pk).to_its_end()


def asked_for() -> tuple[int, int]:
    """Return how many plans and audit records there are."""
    return Plan.objects.count(), AuditRecord.objects.count()
