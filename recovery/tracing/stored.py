"""Stored traceparents: one whose fresh attempts are retries all the same is marked so."""

from typing import Any

from django.db.models import Case, CharField, F, Q, Value, When
from django.db.models.functions import Concat, Substr

COLUMN = "traceparent"
LENGTH = 55
MARK_AT = 53
"""Where the first digit of the flags stands; version 00 leaves its bits unused."""
MARK, NO_MARK = "8", "0"


def as_retried() -> "Case":
    """Return an expression for the column, marked; what names no trace stays as it is."""
    marked = Concat(
        Substr(COLUMN, 1, MARK_AT), Value(MARK), Substr(COLUMN, MARK_AT + 2), output_field=_text()
    )
    return Case(
        When(Q(**{f"{COLUMN}__startswith": "00-"}), then=marked),
        default=F(COLUMN),
        output_field=_text(),
    )


def _text() -> "CharField[Any, Any]":
    return CharField(max_length=LENGTH)


def is_retried(traceparent: str) -> bool:
    """Tell whether what it came with was given fresh attempts after others."""
    return len(traceparent) == LENGTH and traceparent[MARK_AT] == MARK


def unmarked(traceparent: str) -> str:
    """Return it as it was before it was marked."""
    if not is_retried(traceparent):
        return traceparent
    return traceparent[:MARK_AT] + NO_MARK + traceparent[MARK_AT + 1 :]
