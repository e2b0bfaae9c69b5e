"""The postings that a payload asks for, as a table; a payload may hold anything."""

import json
from collections.abc import Iterable
from typing import Any

from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext

from ledger.models import Account
from ledger.outbox import quantity_text
from recovery.admin.tables import Table, link, state

SHOWN_LINES = 200


def lines_table(payload: str) -> Table:
    """Return the postings that a payload asks for, with their accounts as they are."""
    lines = _lines(payload)
    accounts = _accounts(lines[:SHOWN_LINES])
    note = gettext("The first %(shown)d of %(all)d.") % {"shown": SHOWN_LINES, "all": len(lines)}
    return Table(
        title=gettext("Postings asked for"),
        columns=(
            "",
            gettext("Account"),
            gettext("Quantity"),
            gettext("Unit"),
            gettext("The account now"),
        ),
        rows=[
            _line_row(number, line, accounts)
            for number, line in enumerate(lines[:SHOWN_LINES], start=1)
        ],
        empty=gettext("The payload holds no postings that could be read."),
        note=note if len(lines) > SHOWN_LINES else "",
        numeric=frozenset({2}),
    )


def _lines(payload: str) -> list[dict[str, str]]:
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        return []
    lines = content.get("postings") if isinstance(content, dict) else None
    return [_line(it) for it in lines] if isinstance(lines, list) else []


def _line(item: Any) -> dict[str, str]:
    if not isinstance(item, dict):
        return {"account": f"{item!r:.200}", "quantity": "", "unit": ""}
    return {name: f"{item.get(name, '')!s:.200}" for name in ("account", "quantity", "unit")}


def _accounts(lines: Iterable[dict[str, str]]) -> dict[tuple[str, str], Account]:
    codes = {line["account"] for line in lines}
    return {(it.code, it.unit): it for it in Account.objects.filter(code__in=codes)}


def _line_row(
    number: int, line: dict[str, str], accounts: dict[tuple[str, str], Account]
) -> tuple[Any, ...]:
    account = accounts.get((line["account"], line["unit"]))
    if account is None:
        return (number, line["account"], line["quantity"], line["unit"], gettext("not there yet"))
    return (number, link(account, account.code), line["quantity"], line["unit"], standing(account))


def standing(account: Account) -> SafeString:
    """Return whether an account takes postings, and its balance."""
    closed = (
        state("closed", gettext("closed")) if account.closed_at else state("ok", gettext("open"))
    )
    return format_html("{} {}", closed, f"{quantity_text(account.balance)} {account.unit}")
