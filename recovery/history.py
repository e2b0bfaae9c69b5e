"""What was sampled moment by moment, for a day: gauges as they stood, flows as running totals."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from django.db.models import Q

from recovery.clock import db_now
from recovery.models import JobRun, RunStatus, Sample, SampleMoment

FINE, COARSE = timedelta(hours=1), timedelta(hours=25)
"""So long every moment is kept, and one a minute."""
COARSE_EVERY = timedelta(seconds=60)
LOOK_BACK = timedelta(minutes=10)
"""A run that took longer is not counted."""

Moment = tuple[datetime, Mapping[str, Any]]
Pick = Callable[[Mapping[str, int]], Mapping[str, float]]


@dataclass(frozen=True)
class Flow:
    """What a job does, added up from the counts of its runs on all hosts."""

    name: str
    job: str
    pick: Pick
    """Returns amounts by label, out of a run's counts."""


_flows: dict[str, Flow] = {}


def flow(name: str, *, job: str) -> Callable[[Pick], Pick]:
    """Register the decorated function as what flows through ``job``."""

    def register(pick: Pick) -> Pick:
        _flows[name] = Flow(name, job, pick)
        return pick

    return register


def key_of(name: str, label: str = "") -> str:
    """Return the name of a value within a moment."""
    return f"{name}|{label}" if label else name


def keep(samples: Iterable[Sample]) -> None:
    """Keep a moment, and forget what is too old, in the caller's transaction."""
    now = db_now()
    last = SampleMoment.objects.order_by("-id").first()
    since = max(last.at, now - LOOK_BACK) if last else now
    values = {key_of(it.name, it.labels): it.value for it in samples}
    totals = Counter[str](_totals(last))
    totals.update(_flowed(since, now))
    SampleMoment.objects.create(
        at=now, is_coarse=_is_coarse(now), values={**values, "totals": dict(totals)}
    )
    for is_coarse, age in ((False, FINE), (True, COARSE)):
        SampleMoment.objects.filter(is_coarse=is_coarse, at__lt=now - age).delete()


def _totals(moment: SampleMoment | None) -> dict[str, Any]:
    return dict(moment.values.get("totals", {})) if moment else {}


def _is_coarse(now: datetime) -> bool:
    lately = SampleMoment.objects.filter(is_coarse=True, at__gt=now - COARSE_EVERY)
    return not lately.exists()


def _flowed(since: datetime, until: datetime) -> Counter[str]:
    """Return what flowed in runs that ended within a time."""
    found: Counter[str] = Counter()
    for it in _flows.values():
        for counts in _counts(it.job, since, until):
            found.update({key_of(it.name, label): n for label, n in it.pick(counts).items() if n})
    return found


def _counts(job: str, since: datetime, until: datetime) -> Iterator[Mapping[str, int]]:
    ended = JobRun.objects.filter(
        Q(job_id=job) | Q(job_id__startswith=f"{job}:"),
        started_at__gt=since - LOOK_BACK,
        finished_at__gt=since,
        finished_at__lte=until,
    ).exclude(status=RunStatus.RUNNING)
    return ended.order_by().values_list("counts", flat=True).iterator()


class History:
    """The moments of the last day, read once: one a minute, and all of the last hour."""

    def __init__(self, now: datetime) -> None:
        """Read what was kept until ``now``."""
        self.now = now
        kept = Q(is_coarse=True, at__gt=now - COARSE) | Q(is_coarse=False, at__gt=now - FINE)
        rows = SampleMoment.objects.filter(kept).order_by().values_list("at", "values")
        self.moments: list[Moment] = sorted(rows, key=lambda it: it[0])

    def gauge(self, key: str, buckets: Sequence[datetime]) -> list[float | None]:
        """Return the highest value of a gauge within each bucket; None: it was not sampled."""
        return [
            max((values[key] for _at, values in some if key in values), default=None)
            for some in self._in(buckets)
        ]

    def rate(self, key: str, buckets: Sequence[datetime]) -> list[float | None]:
        """Return how much flowed a minute within each bucket; None: nobody knows."""
        found: list[float | None] = []
        before: tuple[datetime, float] | None = None
        for some in self._in(buckets):
            now = _total(some[-1], key) if some else None
            found.append(_a_minute(before, now))
            before = now or before
        return found

    def flowed(self, name: str, since: datetime) -> dict[str, float]:
        """Return how much flowed since a time, by label."""
        moments = [it for it in self.moments if it[0] >= since]
        if len(moments) < 2:
            return {}
        first, last = (it[1].get("totals", {}) for it in (moments[0], moments[-1]))
        keys = [key for key in last if key == name or key.startswith(f"{name}|")]
        amounts = {key.partition("|")[2]: last[key] - first.get(key, 0) for key in keys}
        return {label: amount for label, amount in amounts.items() if amount > 0}

    def _in(self, buckets: Sequence[datetime]) -> Iterator[list[Moment]]:
        """Yield the moments within each of the times between ``buckets``."""
        at = 0
        for begin, end in pairwise(buckets):
            while at < len(self.moments) and self.moments[at][0] < begin:
                at += 1
            start = at
            while at < len(self.moments) and self.moments[at][0] < end:
                at += 1
            yield self.moments[start:at]


def _total(moment: Moment, key: str) -> tuple[datetime, float]:
    return moment[0], float(moment[1].get("totals", {}).get(key, 0))


def _a_minute(
    before: tuple[datetime, float] | None, now: tuple[datetime, float] | None
) -> float | None:
    if before is None or now is None or now[0] <= before[0]:
        return None
    minutes = (now[0] - before[0]).total_seconds() / 60
    return round(max(0.0, now[1] - before[1]) / minutes, 1)


def buckets(now: datetime, *, span: timedelta, count: int) -> list[datetime]:
    """Return the bounds of ``count`` equal times that end with ``now``."""
    step = span / count
    return [now - span + step * nth for nth in range(count + 1)]
