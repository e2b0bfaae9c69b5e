"""States and ages for a scrape: the newest samples, and jobs as they stand at that moment."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.db import DatabaseError, InterfaceError
from django.db.models.functions import Now
from prometheus_client import Metric
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from recovery import metrics, registry
from recovery.models import Job, Sample
from recovery.probing import probe_connection, rows


class States(Collector):
    """Collects the gauges; without a database it says so instead of failing the scrape."""

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        try:
            with probe_connection() as probe:
                facts = Sample.objects.values_list("name", "labels", "value", "at", Now())
                samples = rows(facts, probe)
                ages = heartbeat_ages(probe)
        except (DatabaseError, InterfaceError):
            yield _plain("metrics_database_up", "1 if the database answered this scrape.", 0)
            return
        yield _plain("metrics_database_up", "1 if the database answered this scrape.", 1)
        yield from _jobs(ages)
        yield from _sampled(samples)


def heartbeat_ages(probe: Any) -> dict[str, tuple[float, bool]]:
    """Return, by registered job, the age of its heartbeat in s and whether it is paused.

    A job that never ran ages from when its row was made; one without a row is left out.
    """
    facts = Job.objects.values_list("name", "heartbeat_at", "created_at", "paused_at", Now())
    known = {job.name for job in registry.all_jobs()}
    return {
        name: (max(0.0, (now - (beat or made)).total_seconds()), paused is not None)
        for name, beat, made, paused, now in rows(facts, probe)
        if name in known
    }


def _plain(name: str, summary: str, value: float) -> Metric:
    return GaugeMetricFamily(name, summary, value=value)


def _jobs(ages: Mapping[str, tuple[float, bool]]) -> Iterator[Metric]:
    """Yield what alarms need to know of each job; one whose row is missing has no age."""
    summary = "Seconds since each job's last heartbeat; since its row was made if it never ran."
    yield _by_job("job_heartbeat_age_seconds", summary, {it: age for it, (age, _) in ages.items()})
    paused = {job: float(is_paused) for job, (_, is_paused) in ages.items()}
    yield _by_job("job_paused", "1 while the job is paused.", paused)
    periods = {job.name: float(job.period_s) for job in registry.all_jobs()}
    yield _by_job("job_period_seconds", "The job's period.", periods)


def _by_job(name: str, summary: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, summary, labels=["job"])
    for job, value in values.items():
        family.add_metric([job], value)
    return family


def _sampled(samples: Iterable[tuple[Any, ...]]) -> Iterator[Metric]:
    by_name: defaultdict[str, list[tuple[dict[str, str], float, float]]] = defaultdict(list)
    for name, labels, value, at, now in samples:
        age_s = max(0.0, (now - at).total_seconds())
        by_name[name].append((json.loads(labels or "{}"), value, age_s))
    for gauge in metrics.all_gauges():
        family = Metric(gauge.name, gauge.summary, "gauge")
        for labels, value, age_s in by_name[gauge.name]:
            grown = value + age_s if gauge.ages and value else value
            family.add_sample(gauge.name, labels, grown)
        yield family
    ages = [age_s for found in by_name.values() for _, _, age_s in found]
    if ages:
        summary = "Age of the newest samples: how old the sampled states are."
        yield _plain("metrics_sample_age_seconds", summary, min(ages))
