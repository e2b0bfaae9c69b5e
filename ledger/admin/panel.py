"""The outbox on the overview."""

from datetime import timedelta

from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ledger.models import ErrorCode, OutboxEntry
from recovery.admin.paging import grouped
from recovery.admin.panels import (
    DAY,
    HOUR,
    Chart,
    Concern,
    Figure,
    Line,
    Panel,
    Reading,
    label_text,
    panel,
)
from recovery.admin.tables import NOTHING, Table, list_of, span
from recovery.history import key_of

OLD_S = 300
"""An entry that waits for longer is a concern."""


@panel(1, permission="ledger.view_outboxentry")
def outbox(reading: Reading) -> Panel:
    """Return how much waits, how long, how fast it is posted and why it fails."""
    pending = reading.count("outbox_entries", status="pending")
    dead = reading.count("outbox_entries", status="dead")
    age_s = reading.value("outbox_oldest_pending_age_seconds") or 0.0
    age_s += (reading.age_s() or 0.0) if age_s else 0.0
    return Panel(
        "outbox",
        _("Outbox"),
        list(_concerns(dead, age_s)),
        [
            Figure(_("waiting"), grouped(pending), list_of(OutboxEntry, status="pending")),
            Figure(_("oldest waits for"), span(timedelta(seconds=age_s)), is_bad=age_s > OLD_S),
            Figure(_("dead"), grouped(dead), reverse("admin:dlq"), is_bad=dead > 0),
            Figure(_("posted in the last hour"), _posted(reading)),
        ],
        _charts(),
        [_failures(reading)],
    )


def _concerns(dead: int, age_s: float) -> list[Concern]:
    found = []
    if dead:
        text = ngettext("%(n)s entry is dead", "%(n)s entries are dead", dead)
        found.append(Concern(text % {"n": grouped(dead)}, reverse("admin:dlq")))
    if age_s > OLD_S:
        text = _("The oldest entry has waited for %(age)s") % {
            "age": span(timedelta(seconds=age_s))
        }
        found.append(Concern(text, list_of(OutboxEntry, status="pending")))
    return found


def _posted(reading: Reading) -> str:
    if not reading.history:
        return NOTHING
    amounts = reading.history.flowed("outbox_posted", reading.history.now - HOUR)
    return grouped(round(sum(amounts.values())))


def _charts() -> list[Chart]:
    waiting = Line(_("waiting"), key_of("outbox_entries", label_text(status="pending")))
    dead = Line(_("dead"), key_of("outbox_entries", label_text(status="dead")))
    oldest = Line(_("seconds"), "outbox_oldest_pending_age_seconds")
    posted = Line(_("a minute"), "outbox_posted", is_flow=True)
    return [
        Chart("depth-hour", _("Entries, last hour"), HOUR, (waiting, dead)),
        Chart("age-hour", _("Oldest entry waiting, seconds, last hour"), HOUR, (oldest,)),
        Chart("posted-hour", _("Posted a minute, last hour"), HOUR, (posted,)),
        Chart("depth-day", _("Entries, last day"), DAY, (waiting, dead)),
        Chart("age-day", _("Oldest entry waiting, seconds, last day"), DAY, (oldest,)),
        Chart("posted-day", _("Posted a minute, last day"), DAY, (posted,)),
    ]


def _failures(reading: Reading) -> Table:
    """Return how many attempts failed, by code."""
    history = reading.history
    hour = history.flowed("outbox_failures", history.now - HOUR) if history else {}
    day = history.flowed("outbox_failures", history.now - DAY) if history else {}
    names = dict(ErrorCode.choices)
    return Table(
        title=_("Failed attempts by code"),
        columns=(_("Error code"), _("Last hour"), _("Last day")),
        rows=[
            (names.get(code, code), grouped(round(hour.get(code, 0))), grouped(round(n)))
            for code, n in sorted(day.items(), key=lambda it: -it[1])
        ],
        empty=_("None in the last day."),
        numeric=frozenset({1, 2}),
    )
