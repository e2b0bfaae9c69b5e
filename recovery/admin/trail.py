"""``/admin/audit/``: search all audit records, those of the table and those of archives."""

import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.text import Truncator
from django.utils.timezone import localtime
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from recovery import ages
from recovery.admin import audited
from recovery.admin.secrecy import bared
from recovery.admin.tables import Table, above, dated, link, unbroken
from recovery.clock import db_now
from recovery.console import Shortcut, page, shortcut
from recovery.models import AuditArchive, AuditEntry, AuditRecord
from recovery.search import Leaf, Search, UnboundedError, behind, leaf
from recovery.trail.reading import Key

MAY_SEE, MAY_SEE_ARCHIVES = "recovery.view_auditrecord", "recovery.view_auditarchive"
PAGE_RECORDS = 50
WAIT_S = 5
"""After so long no archive is opened, and no more of the table is looked through."""
SHOWN_REASON = 120
SHORT = 30
BELOW = "below"
"""Parameter of the address: the place that the page goes on from."""
LONGEST_TEXT = 300
_PLACE = re.compile(r"(?:(-?\d{1,18})_)?(\d{1,18})", re.ASCII).fullmatch


def search_url(**query: Any) -> str:
    """Return the address of the search for what ``query`` says."""
    given = {name: value for name, value in query.items() if value}
    url = reverse("admin:audit")
    return f"{url}?{urlencode(given)}" if given else url


def length_of(name: str) -> int:
    """Return how long a value of an audit record may be."""
    field: Any = AuditEntry._meta.get_field(name)
    return int(field.max_length)


class SearchForm(forms.Form):
    """Which records are looked for."""

    since = forms.CharField(label=gettext_lazy("Since"), required=False, max_length=40)
    until = forms.CharField(label=gettext_lazy("Before"), required=False, max_length=40)
    actor = forms.CharField(
        label=gettext_lazy("Actor"), required=False, max_length=length_of("actor")
    )
    action = forms.CharField(
        label=gettext_lazy("Action"),
        required=False,
        max_length=length_of("action"),
        widget=forms.TextInput({"list": "actions"}),
    )
    target = forms.CharField(
        label=gettext_lazy("Target"),
        required=False,
        max_length=length_of("target_type") + 1 + length_of("target_id"),
    )
    run = forms.UUIDField(label=gettext_lazy("Run"), required=False)
    text = forms.CharField(label=gettext_lazy("Text"), required=False, max_length=LONGEST_TEXT)

    def __init__(self, data: Any, now: datetime) -> None:
        """Read ``data``; ages are as of ``now``."""
        super().__init__(data, auto_id="audit-%s")
        self.now = now

    def clean_since(self) -> datetime | None:
        """Return the moment."""
        return self._moment("since")

    def clean_until(self) -> datetime | None:
        """Return the moment."""
        return self._moment("until")

    def _moment(self, name: str) -> datetime | None:
        text = self.cleaned_data[name]
        try:
            # As the address of the next page has it: the calendar of the site's zone ends, too.
            return localtime(ages.moment_of(text, self.now)) if text else None
        except (ValueError, OverflowError) as error:
            advice = _("Give a time such as 2026-11-24 12:30, or an age such as %(ages)s.")
            raise forms.ValidationError(advice % {"ages": ages.FORM}) from error

    def clean(self) -> dict[str, Any]:
        """Refuse a time that ends before it begins."""
        given: dict[str, Any] = super().clean() or self.cleaned_data
        since, until = given.get("since"), given.get("until")
        if since and until and since >= until:
            self.add_error("until", _("This is not after the beginning."))
        return given

    def search(self, below: Key | None, reader: Any) -> Search:
        """Return what is looked for, as ``reader`` may see it."""
        given = self.cleaned_data
        return Search(
            since=given["since"],
            until=given["until"],
            actor=given["actor"],
            action=given["action"],
            target=given["target"],
            run_id=given["run"],
            text=given["text"],
            below=below,
            shown=partial(bared, reader=reader),
        )

    def query(self) -> dict[str, str]:
        """Return what was asked for, as an address has it: ages as the times they stand for."""
        return {name: _said(value) for name, value in self.cleaned_data.items() if value}


def _said(value: Any) -> str:
    return localtime(value).isoformat(" ") if isinstance(value, datetime) else str(value)


shortcut(Shortcut(6, gettext_lazy("Search all audit records"), "manage_search", "audit", MAY_SEE))


@page("audit/", "audit", permission=MAY_SEE)
def search(request: HttpRequest) -> HttpResponse:
    """Show the records that fit, a page of them, and say which files were not looked at."""
    form = SearchForm(request.GET, db_now().replace(microsecond=0))
    found = _found(form, request)
    context = {
        "title": _("Search all audit records"),
        "form": form,
        "forms_help": _help(),
        "actions": audited.actions(),
        "found": found,
        "is_further": BELOW in request.GET,
    }
    if found:
        context |= {
            "table": _table(found, request.user),
            "late": _late(found) if found.is_late else "",
            "troubles": found.archived.troubles,
            "newest": search_url(**form.query()),
            "older": _older(form, found),
            "files": _files(found),
        }
    site: Any = admin.site
    response: HttpResponse = site.render(request, "admin/recovery/audit.html", context)
    return response


def _help() -> str:
    text = _("Times: 2026-11-24 12:30, or ages: %(ages)s. Targets: TYPE/ID, or an ID of any type.")
    return text % {"ages": ages.FORM}


def _found(form: SearchForm, request: HttpRequest) -> Leaf | None:
    """Return the page of records; None: the form says what is wrong."""
    if not form.is_valid():
        return None
    try:
        wanted = form.search(_place_of(request.GET.get(BELOW, "")), request.user)
        if wanted.below and len(wanted.below) != len(wanted.key(AuditRecord(pk=0, at=form.now))):
            raise ValueError(BELOW)
        return leaf(wanted, PAGE_RECORDS, until_s=time.monotonic() + WAIT_S)
    except UnboundedError:
        advice = _("A text alone would read every record: add a time such as 7d, or another field.")
        form.add_error("text", advice)
    except ValueError:
        form.add_error(None, _("This address names no place to go on from: search anew."))
    return None


def _place_of(text: str) -> Key | None:
    """Return the place that an address names; raise ValueError."""
    if not text:
        return None
    found = _PLACE(text)
    if not found:
        raise ValueError(text)
    key = tuple(int(it) for it in found.groups() if it is not None)
    try:
        if len(key) > 1:
            behind(key)
    except OverflowError as error:
        raise ValueError(text) from error
    return key


def _older(form: SearchForm, found: Leaf) -> str:
    """Return the address of what comes next; empty: nothing does."""
    if found.below is None:
        return ""
    return search_url(**form.query(), **{BELOW: "_".join(map(str, found.below))})


def _late(found: Leaf) -> str:
    """Say what there was no time for."""
    unread = len(found.archived.unread)
    if not unread:
        text = _("Not all records were looked at within %(wait)d s: narrow the time, or go on.")
        return text % {"wait": WAIT_S}
    text = ngettext(
        "%(n)d file was not looked at within %(wait)d s: narrow the time, or go on.",
        "%(n)d files were not looked at within %(wait)d s: narrow the time, or go on.",
        unread,
    )
    return text % {"n": unread, "wait": WAIT_S}


def _files(found: Leaf) -> str:
    """Say how many files were opened; empty: none was."""
    opened = found.archived.opened
    text = ngettext("%(n)d archive was opened.", "%(n)d archives were opened.", opened)
    return text % {"n": opened} if opened else ""


def _table(found: Leaf, reader: Any) -> Table:
    empty = _("Nothing matches.")
    if found.is_late or found.archived.troubles:
        empty = _("Nothing matches in what was looked at.")
    return Table(
        title=_("Audit records, the newest first"),
        columns=(_("At"), _("Action"), _("Target"), _("Actor"), _("Where it is")),
        rows=[tuple(_cells(it, reader)) for it in found.records],
        empty=empty,
    )


def _cells(record: AuditRecord, reader: Any) -> Iterable[Any]:
    yield dated(record.at)
    yield above(link(record, record.action), Truncator(record.reason).chars(SHOWN_REASON))
    yield f"{record.target_type}/{record.target_id}"
    yield unbroken(record.actor) if len(record.actor) <= SHORT else record.actor
    yield where(record, reader)


def where(record: Any, reader: Any) -> Any:
    """Return where a record is: in the table, or in which archive."""
    archive: AuditArchive | None = getattr(record, "archive", None)
    if archive is None:
        return _("in the table")
    if not reader.has_perm(MAY_SEE_ARCHIVES):
        return unbroken(archive.name)
    return link(archive, unbroken(archive.name))


def of_day(archive: AuditArchive) -> str:
    """Return the address of the search for the day (UTC) of an archive."""
    since = datetime.combine(archive.day, datetime.min.time(), UTC)
    return search_url(since=_said(since), until=_said(since + timedelta(days=1)))
