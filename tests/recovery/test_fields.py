"""Keys compare byte for byte and quantities are exact, on every database."""

from decimal import Decimal

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from hypothesis import given
from hypothesis import strategies as st

from ledger.models import Account
from recovery.fields import (
    KEY_MAX_LENGTH,
    InexactQuantityError,
    checked_key,
    exact_quantity,
    significant_digits,
    storable_quantity,
)

LONG = Decimal("123456789012345678.123456")
ALIKE = [
    ("a1", "A1"),
    ("A", "Ä"),
    ("ss", "ß"),
    ("e\u0301", "é"),
    ("木", "朩"),
    ("ｱ", "ア"),
]


def account(code: str, balance: Decimal = Decimal(0)) -> Account:
    return Account.objects.create(code=code, unit="m2", balance=balance, allow_negative=True)


@pytest.mark.django_db
@pytest.mark.parametrize("pair", ALIKE)
def test_keys_that_look_alike_are_two_rows(pair):
    rows = [account(code) for code in pair]
    assert [Account.objects.get(code=code).pk for code in pair] == [row.pk for row in rows]


@pytest.mark.django_db
def test_key_is_still_unique():
    account("A1")
    with pytest.raises(IntegrityError), transaction.atomic():
        account("A1")


@pytest.mark.django_db
def test_keys_outside_the_basic_plane_come_back_unchanged():
    code = "𠮷😀" * 40
    assert Account.objects.get(pk=account(code).pk).code == code


@pytest.mark.mariadb
@pytest.mark.django_db
def test_every_key_column_has_the_binary_collation():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT collation_name FROM information_schema.columns WHERE table_schema = DATABASE()"
            " AND (table_name, column_name) IN (('ledger_account', 'code'),"
            " ('ledger_outboxentry', 'event_key'), ('ledger_transaction', 'event_key'),"
            " ('splits_lot', 'code'), ('splits_lot', 'sku'), ('splits_splitorder', 'number'),"
            " ('recovery_job', 'name'))"
        )
        assert cursor.fetchall() == (("utf8mb4_bin",),) * 7


@pytest.mark.parametrize(
    "key", ["", " a", "a ", "\ta", "a\n", "\u3000a", "a\xa0", "a\0b", "a\tb", "a\u200bb"]
)
def test_keys_with_white_space_around_or_control_characters_are_refused(key):
    with pytest.raises(ValidationError):
        checked_key(key)


@pytest.mark.parametrize("key", ["a", "a b", "a:b/c-001", "木板", "x" * KEY_MAX_LENGTH])
def test_other_keys_are_accepted(key):
    assert checked_key(key) == key


def test_key_longer_than_its_column_is_refused():
    with pytest.raises(ValidationError, match="at most 190"):
        checked_key("x" * (KEY_MAX_LENGTH + 1))


@pytest.mark.django_db
def test_form_and_model_validation_refuse_what_cannot_be_a_key():
    with pytest.raises(ValidationError) as caught:
        Account(code=" A1", unit="m2").full_clean()
    assert caught.value.message_dict.keys() == {"code"}


@pytest.mark.parametrize(
    "text",
    ["NaN", "sNaN", "Infinity", "-Infinity", "0.0000001", "1e-7", "1e18", "1234567890123456789"],
)
def test_quantities_that_would_be_rounded_are_refused(text):
    with pytest.raises(InexactQuantityError):
        exact_quantity(Decimal(text))


@pytest.mark.parametrize(
    "text", ["0", "-0", "1e17", "0.000001", "999999999999999999.999999", "1.50"]
)
def test_quantities_that_fit_are_kept_exactly(text):
    assert exact_quantity(Decimal(text)) == Decimal(text)


@given(st.decimals(allow_nan=True, allow_infinity=True))
def test_any_decimal_is_exact_or_refused(value):
    try:
        assert exact_quantity(value) == value
    except InexactQuantityError:
        return


@given(st.decimals(min_value=1 - 10**18, max_value=10**18 - 1, places=6))
def test_sqlite_takes_what_a_float_keeps_and_nothing_else(value):
    if significant_digits(value) <= 15:
        kept = Decimal(repr(float(storable_quantity(value, "sqlite"))))
        assert kept == value
    else:
        with pytest.raises(InexactQuantityError):
            storable_quantity(value, "sqlite")


@pytest.mark.parametrize(
    ("text", "digits"), [("0", 1), ("0.000000", 1), ("100", 1), ("1.50", 2), ("-0.000120", 2)]
)
def test_significant_digits_leave_out_outer_zeros(text, digits):
    assert significant_digits(Decimal(text)) == digits


@pytest.mark.sqlite
@pytest.mark.django_db
def test_sqlite_refuses_more_than_15_significant_digits():
    row = account("A")
    for store in (
        lambda: account("B", LONG),
        lambda: Account.objects.filter(pk=row.pk).update(balance=LONG),
        lambda: Account.objects.bulk_create([Account(code="C", unit="m2", balance=LONG)]),
    ):
        with pytest.raises(InexactQuantityError, match="SQLite"), transaction.atomic():
            store()
    assert [each.balance for each in Account.objects.all()] == [0]


@pytest.mark.mariadb
@pytest.mark.django_db
def test_long_quantity_survives_on_mariadb():
    assert Account.objects.get(pk=account("A", LONG).pk).balance == LONG


@pytest.mark.django_db
@pytest.mark.parametrize("text", ["0.1", "-0.3", "999999999.999999", "0.000001", "123456789012345"])
def test_quantities_of_15_digits_survive_on_every_database(text):
    row = account("A", Decimal(text))
    assert Account.objects.get(pk=row.pk).balance == Decimal(text)
    assert Account.objects.filter(balance=Decimal(text)).count() == 1
