"""What a split order consists of, as tables: steps, lines, child lots."""

from django.utils.translation import gettext

from ledger.outbox import quantity_text
from recovery.admin.tables import Table, link, state
from splits.admin.story import Story
from splits.models import SplitOrder, StepName


def steps_table(story: Story) -> Table:
    """Return the five steps, done and not yet done."""
    done = {step.name: step for step in story.steps}
    return Table(
        title=gettext("Steps"),
        columns=(gettext("Step"), gettext("State"), gettext("Done at"), gettext("Epoch")),
        rows=[
            (
                name.label,
                state("done", gettext("done")) if name in done else gettext("not yet"),
                done[name].completed_at if name in done else None,
                done[name].epoch if name in done else None,
            )
            for name in StepName
        ],
        empty="",
    )


def lines_table(order: SplitOrder) -> Table:
    """Return the order's lines."""
    return Table(
        title=gettext("Lines"),
        columns=(gettext("Line"), gettext("Kind"), gettext("SKU"), gettext("Quantity")),
        rows=[
            (it.line, it.get_kind_display(), it.sku, quantity_text(it.quantity))
            for it in order.lines.order_by("line")
        ],
        empty=gettext("It has no lines."),
        numeric=frozenset({3}),
    )


def children_table(order: SplitOrder) -> Table:
    """Return the lots that the order made."""
    return Table(
        title=gettext("Child lots"),
        columns=(gettext("Lot"), gettext("SKU"), gettext("Quantity"), gettext("Status")),
        rows=[
            (
                link(it),
                it.sku,
                f"{quantity_text(it.quantity)} {it.unit}",
                state(it.status, it.get_status_display()),
            )
            for it in order.outputs.order_by("code")
        ],
        empty=gettext("None yet: the step “create outputs” makes them."),
        numeric=frozenset({2}),
    )
