"""When a drill has to wait: real work comes first."""

from collections.abc import Iterator, Sequence

from django.conf import settings

from recovery.models import Job
from splits.drills.names import is_drill
from splits.models import SplitOrder

NAMED = 5


def objections(jobs: Sequence[str]) -> Iterator[str]:
    """Yield why a drill that needs ``jobs`` cannot begin now, and what to do about it."""
    stuck = _really_stuck()
    if stuck:
        shown = ", ".join(stuck[:NAMED]) + (" …" if len(stuck) > NAMED else "")
        yield f"{len(stuck)} orders are stuck, first `manage.py recover_stuck`: {shown}"
    for job in jobs:
        if Job.objects.family(job).exclude(paused_at=None).exists():
            yield f"job {job} is paused, first `manage.py jobs resume {job}`"


def _really_stuck() -> list[str]:
    orders = SplitOrder.objects.stuck(settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC)
    numbers = list(orders.order_by("pk").values_list("number", flat=True))
    return [number for number in numbers if not is_drill(number)]
