"""What usually helps, by why an entry died."""

from typing import Any

from django.utils.html import format_html
from django.utils.translation import gettext as _

from ledger.models import Account, ErrorCode
from recovery.admin.tables import list_of


def advice(code: str) -> Any:
    """Return what to do about entries that died of ``code``; empty: nothing is known."""
    if code == ErrorCode.ACCOUNT_CLOSED:
        text = _("Reopen the account, or find out why it is closed; then redrive.")
        url = list_of(Account, state="closed")
        return format_html('{} <a href="{}">{}</a>', text, url, _("Closed accounts"))
    return {
        ErrorCode.INSUFFICIENT_BALANCE: _(
            "The account holds too little: look whether a receipt is missing or dead itself,"
            " mend that first, then redrive."
        ),
        ErrorCode.UNBALANCED: _(
            "Its lines do not add up to zero: edit the payload, or discard it."
        ),
        ErrorCode.PAYLOAD_INVALID: _("The payload cannot be read: edit or discard it."),
        ErrorCode.KEY_CONFLICT: _(
            "The ledger has a transaction of this key with other content: compare, then discard."
        ),
        ErrorCode.UNEXPECTED: _(
            "The program failed: read the error, mend the cause, then redrive with a canary."
        ),
    }.get(code, "")  # type: ignore[call-overload]
