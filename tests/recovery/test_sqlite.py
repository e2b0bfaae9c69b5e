"""ExactSum adds decimals exactly on every database."""

from decimal import Decimal

import pytest
from django.db import connection, connections
from django.db.models import Count, Q, Sum
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from recovery.sqlite import ExactSum
from splits.models import Lot

pytestmark = pytest.mark.django_db


def make(*quantities, sku="OAK"):
    Lot.objects.bulk_create(
        Lot(code=f"{sku}-{n}", sku=sku, quantity=Decimal(q), unit="m2", root_code=f"{sku}-{n}")
        for n, q in enumerate(quantities)
    )


def total(**filters):
    return Lot.objects.filter(**filters).aggregate(total=ExactSum("quantity"))["total"]


def test_tenths_add_up():
    make("0.1", "0.2")
    assert total() == Decimal("0.3")
    assert isinstance(total(), Decimal)


def test_sum_of_many_small_quantities_is_exact():
    make(*["0.1"] * 3_000)
    assert total() == Decimal(300)


@pytest.mark.sqlite
def test_plain_sum_on_sqlite_is_what_this_is_for():
    make("123456789.012345", *["0.1"] * 1_000)
    plain = Lot.objects.aggregate(total=Sum("quantity"))["total"]
    assert total() == Decimal("123456889.012345")
    assert plain != total() or isinstance(plain, Decimal)


def test_sum_of_nothing_is_none():
    assert total() is None


def test_sums_by_group_with_other_aggregates():
    make("0.1", "0.2", sku="A")
    make("5", sku="B")
    rows = (
        Lot.objects.order_by("sku")
        .values_list("sku")
        .annotate(total=ExactSum("quantity"), lots=Count("pk"))
    )
    assert list(rows) == [("A", Decimal("0.3"), 2), ("B", Decimal(5), 1)]


def test_sum_with_a_filter_of_its_own():
    make("1", "2", "3")
    sums = Lot.objects.aggregate(
        some=ExactSum("quantity", filter=Q(quantity__gt=1)),
        none=ExactSum("quantity", filter=Q(quantity__gt=9)),
    )
    assert sums == {"some": Decimal(5), "none": None}


def test_whole_numbers_and_fractions_mix():
    make("10000", "0.000001")
    assert total() == Decimal("10000.000001")


def test_sum_may_have_more_digits_than_a_quantity():
    make(*["999999999.999999"] * 5_000)
    assert total() == Decimal("4999999999999.995")


def test_every_connection_learns_the_aggregate():
    connection.ensure_connection()
    other = connections.create_connection("default")
    try:
        with other.cursor() as cursor:
            name = "exact_sum" if other.vendor == "sqlite" else "SUM"
            cursor.execute(f"SELECT {name}(x) FROM (SELECT 0.1 AS x UNION ALL SELECT 0.2) AS t")
            assert Decimal(cursor.fetchone()[0]) == Decimal("0.3")
    finally:
        other.close()


class TestAnyAmounts(TestCase):
    """Hypothesis needs a transaction an example."""

    @given(st.lists(st.decimals("0.000001", "99999999.999999", places=6), min_size=1, max_size=40))
    def test_sum_is_that_of_python(self, quantities):
        make(*quantities)
        assert total() == sum(quantities)
