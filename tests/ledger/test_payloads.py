"""Payloads, however malformed: read, refused with a code, or left to newer code."""

import json

import pytest

from ledger.models import ErrorCode
from ledger.payloads import RefusedError, UnknownVersionError, read

LINES = [
    {"account": "stock:OAK", "quantity": "1", "unit": "m2"},
    {"account": "external:receipts", "quantity": "-1", "unit": "m2"},
]


def text(**changes):
    return json.dumps({"schema_version": 1, "postings": LINES} | changes)


def line(**changes):
    return text(postings=[LINES[0] | changes, LINES[1]])


def deep(levels=100_000):
    return "[" * levels + "]" * levels


def refusal(payload, vendor="mysql"):
    with pytest.raises(RefusedError) as caught:
        read(payload, vendor)
    return caught.value


def test_good_payload_is_read():
    movement = read(text(), "mysql")
    assert movement.lines == [
        (("stock:OAK", "m2"), "1"),
        (("external:receipts", "m2"), "-1"),
    ]


MALFORMED = {
    "not JSON": "{",
    "empty": "",
    "a list": "[]",
    "a text": '"x"',
    "null": "null",
    "a number": "1",
    "NaN": "NaN",
    "nested too deeply": deep(),
    "an object nested too deeply": '{"schema_version":1,"postings":' + deep() + "}",
    "a number of too many digits": "9" * 5_000,
    "no version": json.dumps({"postings": LINES}),
    "version true": text(schema_version=True),
    "version as text": text(schema_version="1"),
    "version 0": text(schema_version=0),
    "version below 0": text(schema_version=-1),
    "version as float": text(schema_version=1.0),
    "version null": text(schema_version=None),
    "version nested": text(schema_version=[[1]]),
    "no postings": json.dumps({"schema_version": 1}),
    "postings null": text(postings=None),
    "postings no list": text(postings={"0": LINES[0], "1": LINES[1]}),
    "postings empty": text(postings=[]),
    "one posting": text(postings=LINES[:1]),
    "too many postings": text(postings=LINES * 16_384),
    "posting null": text(postings=[None, None]),
    "posting a text": text(postings=["account", "quantity"]),
    "posting a list": text(postings=[["stock:OAK", "1", "m2"], LINES[1]]),
    "posting without unit": text(postings=[{"account": "a", "quantity": "0"}, LINES[1]]),
    "posting without account": text(postings=[{"unit": "m2", "quantity": "0"}, LINES[1]]),
    "posting without quantity": text(postings=[{"account": "a", "unit": "m2"}, LINES[1]]),
    "quantity a float": line(quantity=1.0),
    "quantity an integer": line(quantity=1),
    "quantity true": line(quantity=True),
    "quantity null": line(quantity=None),
    "quantity NaN": line(quantity="NaN"),
    "quantity sNaN": line(quantity="sNaN"),
    "quantity infinite": line(quantity="-Infinity"),
    "quantity 1e30": line(quantity="1e30"),
    "quantity 1e999999999": line(quantity="1e999999999"),
    "quantity of 19 digits": line(quantity="9999999999999999999"),
    "quantity of 7 decimals": line(quantity="1.0000001"),
    "quantity a word": line(quantity="one"),
    "quantity empty": line(quantity=""),
    "account with outer white space": line(account="stock:OAK "),
    "account with ideographic space": line(account="\u3000stock:OAK"),
    "account empty": line(account=""),
    "account too long": line(account="a" * 191),
    "account with a control character": line(account="stock:\x00"),
    "account with a lone surrogate": line(account="stock:\udcff"),
    "account an object": line(account={"deep": [[[]]]}),
    "unit too long": line(unit="u" * 21),
    "unit with outer white space": line(unit=" m2"),
    "unit empty": line(unit=""),
    "unit null": line(unit=None),
}


@pytest.mark.parametrize("payload", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_payload_is_refused_by_name(payload):
    error = refusal(payload)
    assert error.code is ErrorCode.PAYLOAD_INVALID
    assert 5 < len(error.text) < 500
    assert "\0" not in error.text
    error.text.encode()


def test_refusal_says_which_posting_is_wrong():
    assert "stock:OAK" in refusal(line(quantity="one")).text


def test_sixteen_digits_are_refused_on_sqlite_alone():
    payload = text(
        postings=[
            LINES[0] | {"quantity": "1234567890.012345"},
            LINES[1] | {"quantity": "-1234567890.012345"},
        ]
    )
    assert refusal(payload, "sqlite").code is ErrorCode.PAYLOAD_INVALID
    assert read(payload, "mysql").lines


@pytest.mark.parametrize("version", [2, 3, 10**30])
def test_newer_version_is_left_to_newer_code(version):
    with pytest.raises(UnknownVersionError):
        read(json.dumps({"schema_version": version, "lines": "anything"}), "mysql")


def test_units_balance_each_on_its_own():
    error = refusal(text(postings=[LINES[0], LINES[1] | {"unit": "kg"}]))
    assert error.code is ErrorCode.UNBALANCED
    assert "1 m2" in error.text
    assert "-1 kg" in error.text


def test_sums_are_exact_however_long():
    largest = "999999999999999999.999999"
    many = [LINES[0] | {"quantity": largest}] * 20_000
    opposite = [LINES[1] | {"quantity": "-" + largest}] * 12_766
    error = refusal(text(postings=[*many, *opposite, LINES[0] | {"quantity": "0.000001"}]))
    assert error.code is ErrorCode.UNBALANCED
    assert "7233999999999999999999.992767 m2" in error.text


def test_changes_are_net_by_account():
    back = [LINES[0] | {"quantity": "-1"}, LINES[1] | {"quantity": "1"}]
    movement = read(text(postings=[*LINES, *LINES, *back]), "mysql")
    assert {key[0]: int(change) for key, change in movement.changes.items()} == {
        "stock:OAK": 1,
        "external:receipts": -1,
    }
    assert len(movement.lines) == 6
