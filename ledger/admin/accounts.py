"""Accounts in the admin, to be looked at, closed and reopened."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet, Subquery
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ledger import accounts
from ledger.models import Account, Posting
from ledger.outbox import quantity_text
from recovery.admin import audited
from recovery.admin.lists import ChoiceFilter
from recovery.admin.operations import OperatedAdmin, Operation
from recovery.admin.rows import column
from recovery.admin.search import newest
from recovery.admin.tables import Table, link, moment_of, state

SHOWN_POSTINGS = 50
NAMED = re.compile(r"(?P<code>.+) \[(?P<unit>.+)\]")


def find(name: str) -> Account | None:
    """Return the account called ``<code> [<unit>]``."""
    named = NAMED.fullmatch(name)
    return Account.objects.filter(**named.groupdict()).first() if named else None


audited.register(
    accounts.TARGET, find, actions=(accounts.CLOSED, accounts.REOPENED, accounts.CORRECTED)
)

CLOSE = Operation(
    name="close",
    label=_("Close"),
    explanation=_(
        "A closed account takes no postings: outbox entries that touch it are refused,"
        " and dead once their attempts are used up."
    ),
    apply=lambda account, **author: accounts.close(account.code, account.unit, **author),
    done=_("Account %(name)s is closed."),
    already=_("Account %(name)s was closed already; nothing has been changed."),
    fits=lambda account: account.closed_at is None,
)
REOPEN = Operation(
    name="reopen",
    label=_("Reopen"),
    explanation=_(
        "The account takes postings again. Entries that wait are tried when they are due;"
        " dead ones stay dead until they are redriven."
    ),
    apply=lambda account, **author: accounts.reopen(account.code, account.unit, **author),
    done=_("Account %(name)s is open again."),
    already=_("Account %(name)s was open; nothing has been changed."),
    fits=lambda account: account.closed_at is not None,
)


class ClosedFilter(ChoiceFilter):
    """The closed ones."""

    title = _("state")
    parameter_name = "state"
    values = (("closed", _("closed")),)

    def narrowed(self, queryset: QuerySet[Any], value: str) -> QuerySet[Any]:
        """Return the closed ones: they are few and have an index."""
        return queryset.exclude(closed_at=None)


@admin.register(Account)
class AccountAdmin(OperatedAdmin):
    """Accounts and their balances."""

    named_by, named_rank = "code", 5

    ordering = ("code", "unit")
    operations = (CLOSE, REOPEN)
    list_display = ("code", "unit", "balance_shown", "takes_postings", "closed", "allow_negative")
    list_filter = (ClosedFilter,)
    sortable_by = ("code",)
    search_fields = ("code", "id")
    search_help_text = _("Exactly: a code such as stock:OAK or OAK, stock:OAK [m2], or an id.")
    fieldsets = (
        (None, {"fields": ("code", "unit", "balance_shown", "takes_postings", "closed")}),
        (_("Rules"), {"fields": ("allow_negative",)}),
    )
    closed = moment_of(Account, "closed_at")

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the order of the index that serves the filter."""
        return ("-closed_at", "-id") if "state" in request.GET else self.ordering

    def matches(self, term: str) -> Iterator[Iterable[Any]]:
        """Yield what the fields say, the stock of SKU ``term``, and the account of that name."""
        yield from super().matches(term)
        yield newest(Account.objects.filter(code=f"stock:{term}"))
        named = NAMED.fullmatch(term)
        if named:
            yield newest(Account.objects.filter(**named.groupdict()))

    def tables(self, row: Account) -> Iterable[Table]:
        """Return the latest postings and the audit records."""
        target_id = accounts.target_id(row)
        return postings_table(row), audited.records_table(accounts.TARGET, target_id)

    @column(_("balance"))
    def balance_shown(self, row: Account) -> str:
        """Return the balance without superfluous zeros."""
        return f"{quantity_text(row.balance)} {row.unit}"

    @column(_("state"))
    def takes_postings(self, row: Account) -> SafeString:
        """Return whether the account takes postings."""
        return state("closed", gettext("closed")) if row.closed_at else state("ok", gettext("open"))


def postings_table(account: Account) -> Table:
    """Return the account's latest postings, with the balance after each."""
    this = Account.objects.filter(pk=account.pk)
    postings = (
        Posting.objects.filter(account=account)
        .order_by("-id")
        # In the same statement, so that balance and postings are of one moment.
        .annotate(balance=Subquery(this.values("balance")))
        .prefetch_related("transaction")
    )
    return Table(
        title=gettext("Latest postings"),
        columns=(
            gettext("Posted"),
            gettext("Transaction"),
            gettext("Quantity"),
            gettext("Balance after"),
        ),
        rows=list(_running(postings[:SHOWN_POSTINGS])),
        empty=gettext("Nothing has been posted to this account."),
        note=gettext("The latest %(count)d, newest first.") % {"count": SHOWN_POSTINGS},
        numeric=frozenset({2, 3}),
    )


def _running(postings: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    balance = None
    for it in postings:
        balance = it.balance if balance is None else balance
        quantity, after = quantity_text(it.quantity), quantity_text(balance)
        yield (it.transaction.posted_at, link(it.transaction), quantity, after)
        balance -= it.quantity
