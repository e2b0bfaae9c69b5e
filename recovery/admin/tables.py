"""What pages show: tables, links, states, moments, JSON for people."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin.utils import display_for_value, quote
from django.db.models import Model
from django.urls import reverse
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.timezone import localtime
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from recovery import nows

NOTHING = "\N{EN DASH}"
SHOWN_CHARACTERS = 20_000
MINUTE_S, HOUR_S, DAY_S = 60, 3_600, 86_400


@dataclass(frozen=True)
class Table:
    """A table on the page of an object."""

    title: Any
    columns: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    empty: Any
    note: Any = ""
    more: tuple[str, Any] | None = None
    """Address and text of the link to the rest."""
    numeric: frozenset[int] = field(default_factory=frozenset)
    """Columns of numbers, which stand to the right."""

    def cells(self) -> Iterator[list[tuple[Any, bool]]]:
        """Yield the rows as what is shown, and whether it is a number."""
        for row in self.rows:
            yield [(shown(value), at in self.numeric) for at, value in enumerate(row)]

    def headers(self) -> list[tuple[Any, bool]]:
        """Return the titles of the columns, and whether they are over numbers."""
        return [(title, at in self.numeric) for at, title in enumerate(self.columns)]


def shown(value: Any) -> Any:
    """Return ``value`` as people read it."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, datetime):
        return dated(value)
    return display_for_value(value, NOTHING)


def moment(value: datetime | None) -> str:
    """Return a time to the second, in the site's time zone."""
    return date_format(localtime(value), "Y-m-d H:i:s") if value else NOTHING


def dated(value: datetime | None) -> Any:
    """Return a time to the second with its age beside it."""
    if value is None:
        return NOTHING
    age = nows.age_of(value)
    beside = format_html(' <span class="quiet unbroken">{}</span>', ago(age)) if age else ""
    return format_html('<span class="unbroken">{}</span>{}', moment(value), beside)


def ago(age: timedelta) -> str:
    """Return how long ago, or in how long, for people."""
    text = _("%(age)s ago") if age >= timedelta(0) else _("in %(age)s")
    return text % {"age": span(abs(age))}


def copyable(text: str, shown_as: Any = None) -> SafeString:
    """Return a key with a button that copies it (which needs JavaScript, as the button does)."""
    return format_html(
        '{} <button type="button" class="copy" data-copy="{}" data-copied="{}">{}</button>',
        text if shown_as is None else shown_as,
        text,
        _("copied"),
        _("copy"),
    )


def unbroken(text: str) -> SafeString:
    """Return a text that stays on one line."""
    return format_html('<span class="unbroken">{}</span>', text)


def moment_of(model: type[Model], name: str) -> Callable[[Any, Any], Any]:
    """Return a column that shows the time in field ``name`` to the second, and its age."""

    def column(model_admin: Any, row: Any) -> Any:
        return dated(getattr(row, name))

    column.admin_order_field = name  # type: ignore[attr-defined]
    column.short_description = model._meta.get_field(name).verbose_name  # type: ignore[attr-defined,union-attr]
    return column


def span(duration: timedelta) -> str:
    """Return a duration for people, in its largest unit."""
    seconds = round(duration.total_seconds())
    for unit_s, unit in ((DAY_S, _("d")), (HOUR_S, _("h")), (MINUTE_S, _("min"))):
        if abs(seconds) >= unit_s * 2:
            return f"{seconds // unit_s} {unit}"
    second = _("s")  # outside the f-string, where makemessages finds it
    return f"{seconds} {second}"


def link(row: Model, text: Any = None) -> SafeString:
    """Return a link to the admin page of ``row``."""
    return format_html('<a href="{}">{}</a>', page_of(row), row if text is None else text)


def page_of(row: Model) -> str:
    """Return the address of the admin page of ``row``."""
    return page_of_key(type(row), row.pk)


def page_of_key(model: type[Model], pk: Any) -> str:
    """Return the address of the admin page of the row of ``model`` with this key."""
    opts = model._meta
    return reverse(f"admin:{opts.app_label}_{opts.model_name}_change", args=[quote(pk)])


def list_of(model: type[Model], **query: str) -> str:
    """Return the address of the admin list of ``model``, filtered or searched."""
    opts = model._meta
    url = reverse(f"admin:{opts.app_label}_{opts.model_name}_changelist")
    return f"{url}?{urlencode(query)}" if query else url


def state(value: str, label: Any = None) -> SafeString:
    """Return a state as a coloured word; admin.css knows the values."""
    text = value if label is None else label
    return format_html('<span class="state state-{}">{}</span>', value, text)


def above(first: Any, second: Any) -> Any:
    """Return ``first`` with ``second`` in small print beneath it, where there is one."""
    return format_html('{}<div class="quiet">{}</div>', first, second) if second else first


def long_text(text: str) -> SafeString | str:
    """Return a text of several lines as it stands."""
    return format_html('<pre class="long">{}</pre>', cut(text)) if text else NOTHING


def pretty(content: Any) -> SafeString | str:
    """Return JSON for people."""
    if content in ({}, [], None, ""):
        return NOTHING
    return long_text(json.dumps(content, indent=2, ensure_ascii=False))


def cut(text: str) -> str:
    """Return the beginning of a text too long for a page, and say so."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    more = len(text) - SHOWN_CHARACTERS
    rest = ngettext("… and %(count)d character more", "… and %(count)d characters more", more)
    return f"{text[:SHOWN_CHARACTERS]}\n{rest % {'count': more}}"
