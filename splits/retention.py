"""How long what was seen of split orders is kept."""

from datetime import datetime

from recovery.retention import keep_for_ever, retention
from splits.models import FinalizeStep, Lot, SplitLine, SplitOrder, StuckSighting
from splits.models.progress import SightingQuerySet

keep_for_ever(Lot, SplitOrder, SplitLine, FinalizeStep)


@retention("stuck_sightings", days_setting="JOB_STUCK_RETENTION_DAYS", by="seen_at")
def old_sightings(before: datetime) -> SightingQuerySet:
    """Sightings of stuck finalizations."""
    return StuckSighting.objects.older_than(before)
