"""Rows of the ledger: outbox entries, accounts, transactions and their postings."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Self

from django.db import models
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from recovery.clock import seconds_from_now
from recovery.fields import KeyField, QuantityField
from recovery.models import AppendOnly
from recovery.tracing.stored import as_retried

UNIT_MAX_LENGTH = 20


class EntryStatus(models.TextChoices):
    """Where an outbox entry stands."""

    PENDING = "pending", _("pending")
    POSTED = "posted", _("posted")
    DEAD = "dead", _("dead")
    DISCARDED = "discarded", _("discarded")


class ErrorCode(models.TextChoices):
    """Why an entry could not be posted."""

    UNBALANCED = "unbalanced", _("postings do not add up to zero")
    PAYLOAD_INVALID = "payload_invalid", _("payload cannot be read")
    ACCOUNT_CLOSED = "account_closed", _("account is closed")
    INSUFFICIENT_BALANCE = "insufficient_balance", _("balance would fall below zero")
    KEY_CONFLICT = "key_conflict", _("key was posted with other content")
    UNEXPECTED = "unexpected", _("unexpected error")


class OutboxQuerySet(models.QuerySet["OutboxEntry"]):
    """Conditions of outbox entries."""

    def pending(self) -> Self:
        """Return the entries waiting to be posted."""
        return self.filter(status=EntryStatus.PENDING)

    def due(self) -> Self:
        """Return the pending entries whose time has come by the database's clock."""
        return self.pending().filter(next_attempt_at__lte=Now())

    def dead(self) -> Self:
        """Return the entries in the DLQ."""
        return self.filter(status=EntryStatus.DEAD)

    def posted_before(self, moment: datetime) -> Self:
        """Return the posted entries of before ``moment`` whose transaction is there.

        No entry was made after it was posted: so they are a part of a range of the index on
        status and ``created_at``, and posting need not write another one.
        """
        transactions = Transaction.objects.filter(event_key=OuterRef("event_key"))
        posted = self.filter(status=EntryStatus.POSTED, created_at__lt=moment)
        return posted.filter(Exists(transactions), posted_at__lt=moment)

    def redrive(self) -> bool:
        """Give dead entries fresh attempts, due at once; False: not dead."""
        return bool(
            self.dead().update(
                status=EntryStatus.PENDING,
                attempts=0,
                next_attempt_at=Now(),
                last_error_code="",
                last_error="",
                traceparent=as_retried(),
            )
        )

    def discard(self) -> bool:
        """Give dead entries up for good; False: not dead."""
        return bool(self.dead().update(status=EntryStatus.DISCARDED))

    def discarded(self) -> Self:
        """Return the entries that were given up."""
        return self.filter(status=EntryStatus.DISCARDED)

    def restore(self) -> bool:
        """Let discarded entries be dead again, as they were; False: not discarded."""
        return bool(self.discarded().update(status=EntryStatus.DEAD))

    def edit(self, payload: dict[str, Any], content_hash: str) -> bool:
        """Give dead entries other content under the same key; False: not dead."""
        return bool(self.dead().update(payload=payload, content_hash=content_hash))

    def put_back(self) -> bool:
        """Let redriven entries that failed again be dead; False: they have not failed, or moved."""
        return bool(self.pending().exclude(last_error_code="").update(status=EntryStatus.DEAD))

    def blocking(self) -> Self:
        """Return the entries that hold back later ones of their aggregate."""
        return self.filter(status__in=(EntryStatus.PENDING, EntryStatus.DEAD))

    def charge(self, *, delay_s: float, error: str) -> bool:
        """Count an attempt before it is made; the entry steps aside for ``delay_s``."""
        return bool(
            self.pending().update(
                attempts=F("attempts") + 1,
                next_attempt_at=seconds_from_now(delay_s),
                last_error_code=ErrorCode.UNEXPECTED,
                last_error=error,
            )
        )

    def charged(self, attempts: int, error: str) -> Self:
        """Return those whose last charge is the one of this number with this error."""
        return self.pending().filter(attempts=attempts, last_error=error)

    def refund(self, *, due_now: bool) -> bool:
        """Give an attempt back that the entry did not use up; ``due_now``: to be made at once."""
        time = {"next_attempt_at": Now()} if due_now else {}
        return bool(
            self.pending()
            .filter(attempts__gt=0)
            .update(attempts=F("attempts") - 1, last_error_code="", last_error="", **time)
        )

    def fast_forward(self, attempts: int) -> bool:
        """Let a refused entry that waits have ``attempts`` behind it and be due; False: it is due.

        For drills, which cannot wait for the backoff of all attempts.
        """
        refused = self.pending().filter(attempts__gt=0, attempts__lte=attempts)
        waiting = refused.filter(next_attempt_at__gt=Now())
        return bool(waiting.update(attempts=attempts, next_attempt_at=Now()))

    def park(self, ids: Sequence[int], until: datetime) -> int:
        """Let entries that would be due earlier wait until ``until``; attempts stay as they are.

        The caller has them locked. By their ids alone: by status as well, the database might
        go through other entries, and wait for those that are locked.
        """
        return self.filter(pk__in=ids, next_attempt_at__lt=until).update(next_attempt_at=until)

    def parked(self) -> Self:
        """Return the entries that wait for another one: never tried, their time yet to come."""
        return self.pending().filter(attempts=0, next_attempt_at__gt=Now())

    def unpark(self, ids: Sequence[int]) -> int:
        """Let entries that the caller has locked be due now; by their ids alone, as ``park``."""
        return self.filter(pk__in=ids).update(next_attempt_at=Now())


class OutboxEntry(models.Model):
    """A ledger transaction waiting to be posted."""

    event_key = KeyField(_("event key"), unique=True)
    event_type = models.CharField(_("event type"), max_length=100)
    aggregate = KeyField(_("aggregate"))
    payload = models.JSONField(_("payload"))
    content_hash = models.CharField(_("content hash"), max_length=64)
    status = models.CharField(
        _("status"), max_length=10, choices=EntryStatus, default=EntryStatus.PENDING
    )
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    next_attempt_at = models.DateTimeField(_("next attempt at"), db_default=Now())
    last_error_code = models.CharField(
        _("last error code"), max_length=30, choices=ErrorCode, blank=True, default=""
    )
    last_error = models.TextField(_("last error"), blank=True, default="")
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)
    posted_at = models.DateTimeField(_("posted at"), null=True, blank=True)
    traceparent = models.CharField(_("traceparent"), max_length=55, blank=True, default="")

    objects = OutboxQuerySet.as_manager()

    class Meta:
        """Newest first; claimed by (status, next_attempt_at, id), ordered within aggregates."""

        ordering = ["-id"]
        indexes = [
            models.Index(fields=["status", "next_attempt_at", "id"], name="outbox_claim"),
            models.Index(fields=["aggregate", "status", "id"], name="outbox_aggregate"),
            models.Index(fields=["status", "created_at"], name="outbox_status_age"),
            # For the admin's filter. (Its filter by status goes by created_at instead: one more
            # index on a column that every posting changes would cost the drain.)
            models.Index(fields=["last_error_code", "id"], name="outbox_error_code"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(status__in=EntryStatus.values), name="outbox_status_known"
            )
        ]
        permissions = [
            ("redrive_outboxentry", "Can redrive dead outbox entries"),
            ("edit_outboxentry", "Can edit dead outbox entries"),
            ("discard_outboxentry", "Can discard dead outbox entries"),
            ("restore_outboxentry", "Can restore discarded outbox entries"),
            ("view_payload", "Can see payloads"),
        ]
        verbose_name = _("outbox entry")
        verbose_name_plural = _("outbox entries")

    def __str__(self) -> str:
        """Return the event key."""
        return self.event_key

    def holds_back(self) -> bool:
        """Tell whether later entries of the aggregate must wait for this one."""
        return self.status in (EntryStatus.PENDING, EntryStatus.DEAD)


class DeadLetter(models.Model):
    """An entry in the DLQ, filed under why: errors that differ in names and numbers are one group.

    A table of its own: a column of the entry would cost an index that each posting writes.
    """

    entry = models.OneToOneField(
        OutboxEntry,
        models.DO_NOTHING,
        primary_key=True,
        related_name="letter",
        verbose_name=_("entry"),
        db_constraint=False,  # or each death would lock its entry's row once more; the dead stay
    )
    group = models.CharField(_("group"), max_length=12)
    code = models.CharField(_("error code"), max_length=30, choices=ErrorCode, blank=True)
    pattern = models.TextField(_("pattern"), blank=True, default="")
    died_at = models.DateTimeField(_("died at"), db_default=Now())

    class Meta:
        """By group, the longest dead first."""

        ordering = ["entry_id"]
        indexes = [models.Index(fields=["group", "died_at"], name="deadletter_group")]
        verbose_name = _("dead letter")
        verbose_name_plural = _("dead letters")

    def __str__(self) -> str:
        """Return group and pattern."""
        return f"{self.group} {self.pattern}"


class AccountQuerySet(models.QuerySet["Account"]):
    """What may be done to accounts by hand."""

    def close(self) -> int:
        """Close accounts: they take no further postings."""
        return self.filter(closed_at=None).update(closed_at=Now())

    def reopen(self) -> int:
        """Open closed accounts again."""
        return self.exclude(closed_at=None).update(closed_at=None)

    def correct(self, balance: Decimal) -> int:
        """Store the balance that the postings add up to."""
        return self.update(balance=balance)


class Account(models.Model):
    """Stock of one SKU, or the outside world, in one unit."""

    code = KeyField(_("code"))
    unit = KeyField(_("unit"), max_length=UNIT_MAX_LENGTH)
    balance = QuantityField(_("balance"), default=0)
    closed_at = models.DateTimeField(_("closed at"), null=True, blank=True)
    allow_negative = models.BooleanField(_("may go below zero"), default=False)

    objects = AccountQuerySet.as_manager()

    class Meta:
        """One account a code and unit."""

        ordering = ["code", "unit"]
        # For the admin's filter.
        indexes = [models.Index(fields=["closed_at"], name="account_closed_at")]
        constraints = [models.UniqueConstraint(fields=["code", "unit"], name="account_code_unit")]
        verbose_name = _("account")
        verbose_name_plural = _("accounts")

    def __str__(self) -> str:
        """Return code and unit."""
        return f"{self.code} [{self.unit}]"


class Transaction(AppendOnly):
    """A posted transaction; its id is that of the outbox entry it was posted from."""

    event_key = KeyField(_("event key"), unique=True)
    event_type = models.CharField(_("event type"), max_length=100)
    content_hash = models.CharField(_("content hash"), max_length=64)
    posted_at = models.DateTimeField(_("posted at"), db_default=Now(), editable=False)

    class Meta:
        """Newest first."""

        ordering = ["-id"]
        verbose_name = _("transaction")
        verbose_name_plural = _("transactions")

    def __str__(self) -> str:
        """Return the event key."""
        return self.event_key


class Posting(AppendOnly):
    """One signed quantity on one account."""

    transaction = models.ForeignKey(
        Transaction, models.PROTECT, related_name="postings", verbose_name=_("transaction")
    )
    line = models.PositiveSmallIntegerField(_("line"))
    account = models.ForeignKey(
        Account,
        models.PROTECT,
        related_name="postings",
        verbose_name=_("account"),
        # The database would lock the account of each new posting until the commit: two drains
        # with one account in common would deadlock. Accounts are never removed.
        db_constraint=False,
    )
    quantity = QuantityField(_("quantity"))

    class Meta:
        """In the order of the transaction's lines."""

        ordering = ["transaction_id", "line"]
        constraints = [
            models.UniqueConstraint(fields=["transaction", "line"], name="posting_line_once")
        ]
        verbose_name = _("posting")
        verbose_name_plural = _("postings")

    def __str__(self) -> str:
        """Return account and quantity."""
        return f"{self.account_id}: {self.quantity}"
