"""Model fields that mean the same on every database: exact keys, exact quantities."""

from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    _CharField = models.CharField[str, str]
    _DecimalField = models.DecimalField[Decimal | str | int, Decimal]
else:
    _CharField, _DecimalField = models.CharField, models.DecimalField

KEY_MAX_LENGTH = 190
QUANTITY_DIGITS = 24
QUANTITY_PLACES = 6
SQLITE_DIGITS = 15

_EXACT = Context(prec=QUANTITY_DIGITS + QUANTITY_PLACES, traps=[Inexact, InvalidOperation])
_PLACES = Decimal(1).scaleb(-QUANTITY_PLACES)


class InexactQuantityError(ValueError):
    """This quantity cannot be stored exactly."""


def checked_key(value: str) -> str:
    """Return ``value`` if it can be a key: not empty, no outer white space, printable, short.

    Raises ValidationError. Keys compare byte for byte on every database.
    """
    if not value:
        raise ValidationError(_("A key must not be empty."))
    if value != value.strip():
        raise ValidationError(_("A key must not begin or end with white space."))
    if len(value) > KEY_MAX_LENGTH:
        raise ValidationError(
            _("A key has at most %(limit)d characters."), params={"limit": KEY_MAX_LENGTH}
        )
    if not value.isprintable():
        raise ValidationError(_("A key must not hold control characters."))
    return value


class KeyField(_CharField):
    """A text that is compared byte for byte: binary collation on MySQL and MariaDB."""

    default_validators = [checked_key]  # type: ignore[list-item]  # its result is not looked at

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make a field of at most 190 characters (what an index of utf8mb4 holds)."""
        kwargs.setdefault("max_length", KEY_MAX_LENGTH)
        super().__init__(*args, **kwargs)

    def db_parameters(self, connection: BaseDatabaseWrapper) -> dict[str, Any]:
        """Add the binary collation where the database's own equates ``a`` and ``A``."""
        parameters: dict[str, Any] = dict(super().db_parameters(connection))
        if connection.vendor == "mysql":
            parameters["collation"] = "utf8mb4_bin"
        return parameters


def exact_quantity(value: Decimal) -> Decimal:
    """Return ``value`` with six decimals; raise InexactQuantityError if that would round it.

    Refuses what is not finite and what has more than 24 digits, six of them decimals.
    """
    if not value.is_finite():
        raise InexactQuantityError(f"{value} is not a number")
    try:
        quantized = value.quantize(_PLACES, context=_EXACT)
    except (Inexact, InvalidOperation):
        raise InexactQuantityError(
            f"{value} has more than {QUANTITY_PLACES} decimals or {QUANTITY_DIGITS} digits"
        ) from None
    if len(quantized.as_tuple().digits) > QUANTITY_DIGITS:
        raise InexactQuantityError(f"{value} has more than {QUANTITY_DIGITS} digits")
    return quantized


def significant_digits(value: Decimal) -> int:
    """Return how many digits ``value`` has between its first and its last that is not zero."""
    if not value:
        return 1
    return len("".join(map(str, value.as_tuple().digits)).strip("0"))


def storable_quantity(value: Decimal, vendor: str) -> Decimal:
    """Return ``value`` with six decimals if a ``vendor`` database keeps it exactly.

    SQLite stores decimals as floats, which keep 15 significant digits.
    Raises InexactQuantityError.
    """
    quantized = exact_quantity(value)
    if vendor == "sqlite" and significant_digits(quantized) > SQLITE_DIGITS:
        raise InexactQuantityError(
            f"{value} has more than {SQLITE_DIGITS} significant digits, which SQLite would round"
        )
    return quantized


class QuantityField(_DecimalField):
    """An exact decimal with 24 digits, six of them decimals; refused rather than rounded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make a field of the one size that quantities have."""
        kwargs["max_digits"] = QUANTITY_DIGITS
        kwargs["decimal_places"] = QUANTITY_PLACES
        super().__init__(*args, **kwargs)

    def get_db_prep_save(self, value: Any, connection: BaseDatabaseWrapper) -> Any:
        """Refuse what the database would round (InexactQuantityError)."""
        if isinstance(value, Decimal):
            storable_quantity(value, connection.vendor)
        return super().get_db_prep_save(value, connection)
