"""Split orders on the overview."""

from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from recovery.admin.paging import grouped
from recovery.admin.panels import HOUR, Chart, Concern, Figure, Line, Panel, Reading, panel
from recovery.admin.panels import label_text as labels
from recovery.admin.tables import list_of
from recovery.history import key_of
from splits.models import Breaker, SplitOrder


@panel(2, permission="splits.view_splitorder")
def orders(reading: Reading) -> Panel:
    """Return how many orders are being finalized, hang, or wait for a person."""
    counts = {
        it: reading.count("split_orders", state=it)
        for it in ("in_progress", "stuck", "quarantined", "failed")
    }
    overdue = reading.count("split_orders_overdue")
    trouble = reverse("admin:stuck")
    return Panel(
        "orders",
        _("Split orders"),
        [*_concerns(counts, trouble), *_overdue(overdue), *_breakers()],
        [
            Figure(_("in progress"), grouped(counts["in_progress"]), f"{trouble}#in_progress"),
            _figure(_("stuck"), counts["stuck"], f"{trouble}#in_progress"),
            _figure(_("quarantined"), counts["quarantined"], f"{trouble}#quarantined"),
            _figure(_("failed"), counts["failed"], f"{trouble}#failed"),
            _figure(_("overdue"), overdue, list_of(SplitOrder, status="ready")),
        ],
        [Chart("orders-hour", _("Orders, last hour"), HOUR, _lines())],
    )


def _figure(title: str, count: int, url: str) -> Figure:
    return Figure(title, grouped(count), url, is_bad=count > 0)


def _lines() -> tuple[Line, ...]:
    names = {"in_progress": _("in progress"), "stuck": _("stuck"), "failed": _("failed")}
    return tuple(
        Line(label, key_of("split_orders", labels(state=it))) for it, label in names.items()
    )


def _concerns(counts: dict[str, int], url: str) -> list[Concern]:
    texts = {
        "stuck": ngettext("%(n)s order is stuck", "%(n)s orders are stuck", counts["stuck"]),
        "quarantined": ngettext(
            "%(n)s order is quarantined", "%(n)s orders are quarantined", counts["quarantined"]
        ),
        "failed": ngettext("%(n)s order has failed", "%(n)s orders have failed", counts["failed"]),
    }
    return [
        Concern(text % {"n": grouped(counts[it])}, url) for it, text in texts.items() if counts[it]
    ]


def _overdue(overdue: int) -> list[Concern]:
    if not overdue:
        return []
    text = ngettext(
        "%(n)s order is due and nobody claims it",
        "%(n)s orders are due and nobody claims them",
        overdue,
    )
    return [Concern(text % {"n": grouped(overdue)}, list_of(SplitOrder, status="ready"))]


def _breakers() -> list[Concern]:
    opened = Breaker.objects.exclude(opened_at=None).values_list("endpoint", flat=True)
    text = _("The completion endpoint does not answer: %(endpoint)s")
    return [Concern(text % {"endpoint": it}, list_of(Breaker)) for it in opened[:5]]
