"""What is sampled of the audit trail: what waits to be sealed or archived, and the newest seal."""

from datetime import UTC, date, datetime, time, timedelta

from django.conf import settings
from django.db.models import Min

from recovery.clock import db_now
from recovery.metrics import GaugeValues, gauge
from recovery.models import AuditArchive, AuditSeal
from recovery.trail import seals

FINGERPRINT_CHARS = 12
"""Hexadecimal digits, 48 bits: Prometheus' numbers, and the database's, have them exactly."""


@gauge("audit_unsealed_age_seconds", ages=True)
def audit_unsealed_age_seconds() -> GaugeValues:
    """Age of the oldest audit record that is committed and in no seal; 0 where there is none."""
    return [({}, _since_s(seals.unsealed_since()))]


@gauge("audit_archive_overdue_seconds", ages=True)
def audit_archive_overdue_seconds() -> GaugeValues:
    """Seconds that sealed records have been in the table beyond their days; 0: none are.

    Where an archive was begun and is not complete, it is the time since it was begun, if longer.
    """
    oldest = AuditSeal.objects.hot().order_by("day").values_list("day", flat=True).first()
    begun = AuditArchive.objects.unfinished().aggregate(begun=Min("created_at"))["begun"]
    return [({}, max(_since_s(_due_at(oldest)), _since_s(begun)))]


def _due_at(day: date | None) -> datetime | None:
    """Return since when records of ``day`` are to be archived: all of it is past their days."""
    if day is None:
        return None
    after = day + timedelta(days=1 + settings.AUDIT_HOT_DAYS)
    return datetime.combine(after, time.min, UTC)


def _since_s(moment: datetime | None) -> float:
    return max(0.0, (db_now() - moment).total_seconds()) if moment else 0.0


@gauge("audit_seal_number")
def audit_seal_number() -> GaugeValues:
    """Number of the newest seal; 0: there is none. It falls where the chain is not what it was."""
    return [({}, float(_newest()[0]))]


@gauge("audit_seal_fingerprint")
def audit_seal_fingerprint() -> GaugeValues:
    """The first 48 bits of the newest seal's hash, as a number; 0: there is none."""
    return [({}, float(int(_newest()[1][:FINGERPRINT_CHARS] or "0", 16)))]


def _newest() -> tuple[int, str]:
    rows = AuditSeal.objects.order_by("-number").values_list("number", "hash")
    return rows.first() or (0, "")
