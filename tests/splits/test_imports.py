"""Imports: whole orders go in once, every bad row is named, nothing else suffers."""

import io
from decimal import Decimal

import pytest
from django.db import DatabaseError, OperationalError
from hypothesis import given
from hypothesis import strategies as st

from ledger.models import OutboxEntry
from splits import imports, lifecycle
from splits.cutplans import HEADER, CutPlan, Fault, PlannedOrder, claimed_number, raw_lines
from splits.imports import Import, ImportStoppedError, Known
from splits.models import Lot, LotStatus, OrderStatus, SplitOrder
from tests.factories import AUTHOR, LotFactory, SplitOrderFactory
from tests.splits.plans import HEAD, at_most_statements, imported, order, plan, row

pytestmark = pytest.mark.django_db


@pytest.fixture
def woken(monkeypatch):
    """The jobs that were asked to wake."""
    names: list[str] = []
    for module in ("splits.imports", "splits.lifecycle", "ledger.outbox"):
        monkeypatch.setattr(f"{module}.wake_on_commit", names.append)
    return names


def numbers():
    return sorted(SplitOrder.objects.values_list("number", flat=True))


# What goes in


def test_new_order_receives_its_board_and_becomes_a_draft(woken):
    task, faults = imported(plan(*order()))
    assert (task.imported, task.skipped, faults) == (1, 0, [])
    made = SplitOrder.objects.get()
    lot = made.source_lot
    assert (made.number, made.status, made.live_lot) == ("SO-1", "draft", lot)
    assert (lot.code, lot.sku, lot.quantity, lot.unit) == ("B-SO-1", "OAK", 10, "m2")
    assert (lot.root_code, lot.status, lot.parent_order) == ("B-SO-1", "available", None)
    lines = list(made.lines.values_list("line", "kind", "sku", "quantity"))
    assert lines == [
        (1, "piece", "OAK-S", Decimal("4.5")),
        (2, "piece", "OAK-S", Decimal("5.5")),
    ]
    assert woken == ["processLedgerOutbox"]


def test_receipt_is_published_with_the_lot():
    imported(plan(*order()))
    entry = OutboxEntry.objects.get()
    assert (entry.event_key, entry.event_type) == ("lot:B-SO-1:received", "lot-received")
    assert entry.aggregate == "lot:B-SO-1"
    assert entry.payload["postings"] == [
        {"account": "stock:OAK", "quantity": "10", "unit": "m2"},
        {"account": "external:receipts", "quantity": "-10", "unit": "m2"},
    ]


def test_finalize_submits_what_it_imports(woken):
    task, _faults = imported(plan(*order()), finalize=True)
    made = SplitOrder.objects.get()
    assert (task.submitted, made.status) == (1, OrderStatus.READY)
    assert SplitOrder.objects.due().count() == 1
    assert "finalizeRetryWorker" in woken


def test_second_import_skips_everything():
    data = plan(*order("SO-1"), *order("SO-2"))
    imported(data)
    task, faults = imported(data)
    assert (task.imported, task.skipped, faults) == (0, 2, [])
    assert (Lot.objects.count(), OutboxEntry.objects.count()) == (2, 2)


def test_finalize_submits_known_drafts_and_leaves_others_alone(woken):
    data = plan(*order("SO-1"), *order("SO-2"))
    imported(data)
    cancelled = SplitOrder.objects.get(number="SO-2")
    lifecycle.cancel(cancelled.pk, author=AUTHOR)
    task, faults = imported(data, finalize=True)
    assert (task.skipped, task.submitted, faults) == (2, 1, [])
    statuses = dict(SplitOrder.objects.values_list("number", "status"))
    assert statuses == {"SO-1": "ready", "SO-2": "cancelled"}


def test_same_numbers_written_otherwise_are_the_same_content():
    imported(plan(*order("SO-1", ("4.5", "5.5"))))
    task, faults = imported(plan(*order("SO-1", ("4.50", "5.500000"), board_quantity="10.0")))
    assert (task.skipped, faults) == (1, [])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xef\xbb\xbf" + plan(*order()), id="byte order mark"),
        pytest.param(plan(*order(), end="\r\n"), id="Windows line ends"),
        pytest.param(plan(*order()).rstrip(b"\n"), id="no last line end"),
        pytest.param(plan("", *order(), "", ""), id="blank lines"),
        pytest.param(plan('"SO-1"' + row()[4:]), id="quoted field"),
        pytest.param(plan(*reversed(order())), id="lines in any order"),
        pytest.param(plan(row(sku="Eiche-Ä-木"), end="\n"), id="other scripts"),
        pytest.param(plan(row(sku='"A, ""B"""')), id="comma and quotes in a field"),
        pytest.param(plan(*order("SO-1", ["0.010010"] * 999, board_quantity="9.99999")), id="999"),
    ],
)
def test_what_a_cut_plan_may_look_like(data):
    task, faults = imported(data)
    assert (task.imported, faults) == (1, [])


def test_lot_that_exists_is_used_and_not_received_again():
    LotFactory(code="B-SO-1", sku="OAK")
    task, faults = imported(plan(*order()))
    assert (task.imported, faults) == (1, [])
    assert not OutboxEntry.objects.exists()


def test_child_lot_can_be_split_again():
    parent = SplitOrderFactory(source_lot__code="BOARD", at=OrderStatus.FINALIZED)
    child = parent.outputs.get(code="BOARD-001")
    entries = OutboxEntry.objects.count()
    columns = {"board_code": child.code, "board_sku": child.sku, "board_quantity": "4.5"}
    task, faults = imported(plan(*order("SO-X", ("4", "0.5"), **columns)))
    assert (task.imported, faults) == (1, [])
    assert OutboxEntry.objects.count() == entries


def test_lot_of_a_cancelled_order_is_free_for_another():
    imported(plan(*order("SO-1")))
    lifecycle.cancel(SplitOrder.objects.get().pk, author=AUTHOR)
    task, faults = imported(plan(*order("SO-2", board_code="B-SO-1")))
    assert (task.imported, faults) == (1, [])


def test_more_orders_than_one_window_go_in():
    orders = [line for n in range(250) for line in order(f"SO-{n:03d}")]
    task, faults = imported(plan(*orders))
    assert (task.imported, faults) == (250, [])


def test_few_statements_an_order():
    with at_most_statements(100 * 12 + 10):
        imported(plan(*(line for n in range(100) for line in order(f"SO-{n:03d}"))), finalize=True)


def test_known_orders_cost_a_statement_a_window():
    data = plan(*(line for n in range(100) for line in order(f"SO-{n:03d}")))
    imported(data)
    with at_most_statements(4):
        imported(data)


# What is refused

BAD_ROWS = {
    "order number empty": (row(""), "must not be empty"),
    "order number padded": (row(" SO-1"), "begin or end with white space"),
    "order number long": (row("N" * 121), "longer than 120"),
    "board code empty": (row(board_code=""), "board_code"),
    "board code too long for child codes": (row(board_code="B" * 187), "longer than 186"),
    "board code too long to receive": (row(board_code="B" * 178), "longer than 177"),
    "board SKU long": (row(board_sku="S" * 181), "longer than 180"),
    "unit long": (row(unit="u" * 21), "longer than 20"),
    "unit padded": (row(unit="m2 "), "unit 'm2 '"),
    "SKU with a control character": (row(sku="A\tB"), "control characters"),
    "SKU with NUL": (row(sku="A\0B"), "control characters"),
    "kind unknown": (row(kind="plank"), "expected piece or offcut"),
    "line zero": (row(line=0), "from 1 to 999"),
    "line too high": (row(line=1000), "from 1 to 999"),
    "line not whole": (row(line="1.0"), "from 1 to 999"),
    "line in other digits": (row(line="\uff11"), "from 1 to 999"),
    "quantity NaN": (row(quantity="NaN"), "not a plain decimal"),
    "quantity infinite": (row(quantity="Infinity"), "not a plain decimal"),
    "quantity in exponents": (row(quantity="1e1"), "not a plain decimal"),
    "quantity with a comma": (row(quantity='"10,0"'), "not a plain decimal"),
    "quantity negative": (row(quantity="-10"), "not greater than zero"),
    "quantity zero": (row(quantity="0.000000"), "not greater than zero"),
    "quantity of 31 digits": (row(quantity="1" + "0" * 30), "more than"),
    "quantity of 10000 digits": (row(quantity="1" * 10_000), "more than 24 digits"),
    "seven decimals": (row(quantity="9.9999999"), "more than 6 decimals"),
    "board quantity empty": (row(board_quantity=""), "board_quantity ''"),
    "a field too few": (row().rpartition(",")[0], "8 fields instead of 9"),
    "a field too many": (row() + ",", "10 fields instead of 9"),
    "sum too low": (row(quantity="9.999999"), "add up to 9.999999, not to the board's 10"),
    "not UTF-8": (row().encode().replace(b"OAK-S", b"\xd6AK"), "not UTF-8: byte 0xd6"),
    "quote left open": (row(sku='"OAK'), "does not end on its line"),
    "quote in the middle": (row(sku='"OAK"S'), "not CSV"),
    "too long": (row(sku="x" * 20_000), "longer than 16384 bytes"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_bad_row_is_refused_with_its_number_and_the_others_go_in(bad, reason):
    task, faults = imported(plan(*order("GOOD-1"), bad, *order("GOOD-2")))
    assert [(line, reason in message) for line, _number, message in faults] == [(4, True)], faults
    assert (task.imported, numbers()) == (2, ["GOOD-1", "GOOD-2"])
    assert Lot.objects.count() == OutboxEntry.objects.count() == 2


@pytest.mark.sqlite
def test_sqlite_refuses_what_it_would_round():
    big = "123456789012345.6"
    _task, faults = imported(plan(row(board_quantity=big, quantity=big)))
    assert "which SQLite would round" in faults[0][2]


def test_each_bad_row_of_an_order_is_reported_and_none_of_it_goes_in():
    task, faults = imported(plan(row(quantity="x"), row(line=2), row(line=3, kind="?", quantity=0)))
    assert [line for line, *_ in faults] == [2, 4]
    assert "kind" in faults[1][2]
    assert "quantity" in faults[1][2]
    assert task.imported == 0


def test_line_given_twice_is_refused():
    _task, faults = imported(plan(row(line=1, quantity=5), row(line=1, quantity=5)))
    assert faults == [(3, "SO-1", "line 1 is there twice in this order")]


@pytest.mark.parametrize("column", ["board_code", "board_sku", "unit", "board_quantity"])
def test_board_that_changes_inside_an_order_is_refused(column):
    _task, faults = imported(plan(row(quantity=5), row(line=2, quantity=5, **{column: "7"})))
    assert faults == [(3, "SO-1", "the board's columns differ from those of row 2")]


def test_rows_that_do_not_stand_together_refuse_the_whole_order():
    # The first part alone would add up: it must not go in before the second is seen.
    scattered = [row("SO-1"), *order("SO-2"), row("SO-1", line=2)]
    task, faults = imported(plan(*scattered))
    assert [(line, number) for line, number, _ in faults] == [(2, "SO-1"), (5, "SO-1")]
    assert all("stand together" in message for *_, message in faults)
    assert (task.imported, numbers()) == (1, ["SO-2"])


def test_row_without_a_readable_number_does_not_scatter_its_neighbours():
    bad = row().encode().replace(b"SO-1", b"\xffO-1")
    task, faults = imported(plan(row(quantity=4), bad, row(line=2, quantity=6)))
    assert [line for line, *_ in faults] == [3]
    assert task.imported == 1


def test_more_than_999_rows_refuse_the_order_once():
    rows = [row(line=n % 999 + 1, quantity="0.01") for n in range(1_500)]
    task, faults = imported(plan(*rows, *order("SO-2")))
    assert faults[-1] == (2, "SO-1", "the order has 1500 rows: at most 999 are possible")
    assert (task.imported, numbers()) == (1, ["SO-2"])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"\n", "wrong header"),
        (HEAD.upper().encode() + b"\n" + row().encode(), "wrong header"),
        (HEAD.replace(",", ";").encode(), "wrong header"),
        (HEAD.encode() + b",extra\n", "wrong header"),
        (HEAD.encode("utf-16"), "cannot be read"),
        (b"x" * 100_000, "longer than"),
        (b"PK\x03\x04\xff\xff", "not UTF-8"),
    ],
)
def test_wrong_header_refuses_the_whole_file(data, reason):
    task, faults = imported(data)
    assert task.imported == 0
    assert [(line, number, reason in message) for line, number, message in faults] == [
        (1, "", True)
    ]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"board_sku": "ASH"}, "sku is OAK, not ASH"),
        ({"unit": "kg"}, "unit is m2, not kg"),
        ({"board_quantity": "9", "quantity": "9"}, "quantity is 10, not 9"),
    ],
)
def test_lot_with_other_content_is_refused(columns, reason):
    LotFactory(code="B-SO-1", sku="OAK")
    task, faults = imported(plan(row(**columns)))
    assert task.imported == 0
    assert reason in faults[0][2]


@pytest.mark.parametrize("status", [LotStatus.CONSUMED, LotStatus.CANCELLED])
def test_lot_that_is_not_available_is_refused(status):
    LotFactory(code="B-SO-1", status=status)
    _task, faults = imported(plan(row()))
    assert f"B-SO-1 is {status}" in faults[0][2]


def test_lot_held_by_another_live_order_is_refused():
    _task, faults = imported(plan(*order("SO-1"), *order("SO-2", board_code="B-SO-1")))
    assert [(line, number) for line, number, _ in faults] == [(4, "SO-2")]
    assert "held by SO-1" in faults[0][2]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (order("SO-1", ("5", "5")), "line 1 differs"),
        (order("SO-1", ("4.5", "5.5"), sku="OAK-T"), "line 1 differs"),
        (order("SO-1", ("4.5", "5.5"), kind="offcut"), "line 1 differs"),
        (order("SO-1", ("4.5", "4.5", "1")), "line 2 differs"),
        (order("SO-1", ("4.5", "5.5"), board_code="OTHER"), "code is B-SO-1, not OTHER"),
        (order("SO-1", ("4.5", "5.5"), board_sku="ASH"), "sku is OAK, not ASH"),
    ],
)
def test_known_number_with_other_content_is_refused(rows, reason):
    imported(plan(*order("SO-1", ("4.5", "5.5"))))
    task, faults = imported(plan(*rows), finalize=True)
    assert (task.imported, task.skipped) == (0, 0)
    assert reason in faults[0][2]
    assert SplitOrder.objects.get().status == OrderStatus.DRAFT


# Races and outages


def test_order_that_another_import_made_meanwhile_is_skipped(monkeypatch):
    data = plan(*order())
    imported(data)
    looks = [Known()]  # what this import saw before the other one committed
    real = imports.look_up
    monkeypatch.setattr(imports, "look_up", lambda w: looks.pop() if looks else real(w))
    task, faults = imported(data)
    assert (task.imported, task.skipped, faults) == (0, 1, [])


def test_board_that_another_import_received_meanwhile_is_used(monkeypatch):
    LotFactory(code="B-SO-1")
    looks = [Known()]
    real = imports.look_up
    monkeypatch.setattr(imports, "look_up", lambda w: looks.pop() if looks else real(w))
    task, faults = imported(plan(*order()))
    assert (task.imported, faults) == (1, [])


@pytest.mark.django_db(transaction=True)
def test_database_outage_stops_the_import_and_keeps_what_went_in(monkeypatch):
    real = Import._import
    calls = []

    def fail_second(self, planned, lot):
        calls.append(planned.number)
        if len(calls) > 1:
            raise OperationalError(2006, "gone away")
        return real(self, planned, lot)

    monkeypatch.setattr(Import, "_import", fail_second)
    monkeypatch.setattr("recovery.errors.time.sleep", lambda _s: None)
    task = Import()
    with pytest.raises(ImportStoppedError, match="gone away"):
        task.run(io.BytesIO(plan(*order("SO-1"), *order("SO-2"), *order("SO-3"))))
    assert (task.imported, numbers()) == (1, ["SO-1"])
    assert set(calls) == {"SO-1", "SO-2"}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "error", [OperationalError(1205, "Lock wait timeout"), DatabaseError(9999, "odd")]
)
def test_order_the_database_refuses_does_not_stop_the_others(monkeypatch, error):
    real = Import._import

    def refuse(self, planned, lot):
        if planned.number == "SO-1":
            raise error
        return real(self, planned, lot)

    monkeypatch.setattr(Import, "_import", refuse)
    monkeypatch.setattr("recovery.errors.time.sleep", lambda _s: None)
    task, faults = imported(plan(*order("SO-1"), *order("SO-2")))
    assert [(line, number) for line, number, _ in faults] == [(2, "SO-1")]
    assert (task.imported, numbers()) == (1, ["SO-2"])


# Reading alone

amounts = st.lists(
    st.decimals(min_value="0.000001", max_value="9999", places=6), min_size=1, max_size=50
)


@given(amounts)
def test_amounts_that_add_up_to_the_board_are_read_exactly(quantities):
    total = sum(quantities)
    data = plan(*order("SO-1", [f"{q:f}" for q in quantities], board_quantity=f"{total:f}"))
    (whole,) = CutPlan(io.BytesIO(data), vendor="mysql")
    assert isinstance(whole, PlannedOrder)
    assert [line.quantity for line in whole.lines] == quantities
    assert whole.board.quantity == total


@given(amounts, st.integers(0, 49), st.sampled_from(["0.000001", "1", "1000"]))
def test_amounts_that_do_not_add_up_are_never_taken(quantities, which, excess):
    total = sum(quantities)
    quantities[which % len(quantities)] += Decimal(excess)
    data = plan(*order("SO-1", [f"{q:f}" for q in quantities], board_quantity=f"{total:f}"))
    (fault,) = CutPlan(io.BytesIO(data), vendor="mysql")
    assert isinstance(fault, Fault)


@given(st.lists(st.binary(max_size=60) | st.sampled_from([it.encode() for it in order()])))
def test_no_bytes_break_the_reader(lines):
    data = HEAD.encode() + b"\n" + b"\n".join(lines)
    for item in CutPlan(io.BytesIO(data), vendor="mysql"):
        assert isinstance(item, Fault | PlannedOrder)
        assert item.row > 1


@given(st.text(max_size=30), st.booleans())
def test_number_is_read_alike_with_and_without_quotes(text, quoted):
    if not quoted and any(character in text for character in ',"'):
        return
    field = '"' + text.replace('"', '""') + '"' if quoted else text
    number = claimed_number(f"{field},rest".encode("utf-8", "replace"))
    assert number in ("", text)
    assert bool(number) == (bool(text) and text == text.strip() and text.isprintable())


@pytest.mark.parametrize(
    ("length", "too_long"), [(16_383, False), (16_384, False), (16_385, True), (40_000, True)]
)
@pytest.mark.parametrize("end", [b"\n", b""])
def test_lines_are_cut_at_the_limit(length, too_long, end):
    first, *rest = raw_lines(io.BytesIO(b"x" * length + end + b"next"[: 4 * bool(end)]))
    assert first.too_long == too_long
    assert len(first.data) <= 16_385
    assert first.end == length + len(end)
    assert [it.data for it in rest] == [b"next"] * bool(end)


def test_header_names_are_the_columns_of_the_contract():
    assert HEAD == "order_number,board_code,board_sku,board_quantity,unit,line,kind,sku,quantity"
    assert len(HEADER) == 9
