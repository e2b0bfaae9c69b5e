"""Is it counted? ``/metrics`` is scraped as Prometheus does, and the job looked for."""

from collections.abc import Iterator

from django.conf import settings
from django.http import HttpRequest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from recovery import probes
from recovery.registry import Job
from recovery.rehearsing import UnprovenError
from recovery.selfcheck.answers import Answer

COUNTED = ("job_runs_total", "job_failures_total", "job_duration_seconds_count")
"""By a job's name."""
AGED = "job_heartbeat_age_seconds"
"""By a lane's own name."""
OK = 200


def is_exported(job: Job) -> Answer:
    """Answer from a scrape of this process."""
    _require_enabled()
    exported = scrape()
    wanted = [*((name, job.base) for name in COUNTED), (AGED, job.name)]
    missing = [_text(*it) for it in wanted if it not in exported]
    if missing:
        raise UnprovenError(
            f"a scrape of /metrics has no {', '.join(missing)}",
            remedy="Is the job found at the start (<app>/jobs.py), and has its row been made"
            " (manage.py jobs)? Compare recovery/metrics.py with the release.",
        )
    _require_registered(job)
    runs = exported[COUNTED[0], job.base]
    return Answer(True, f"scraped: {_text(COUNTED[0], job.base)} {runs:g}, and its {_others()}")


def _others() -> str:
    return ", ".join((*COUNTED[1:], AGED))


def _text(name: str, job: str) -> str:
    return f'{name}{{job="{job}"}}'


def _require_enabled() -> None:
    if not settings.METRICS_ENABLED:
        raise UnprovenError(
            "metrics are off: METRICS_ENABLED=false", remedy="Set METRICS_ENABLED=true."
        )


def _require_registered(job: Job) -> None:
    """Refuse a metric that is in the files of this host's processes alone, not in the code."""
    for name in COUNTED:
        if REGISTRY.get_sample_value(name, {"job": job.base}) is None:
            raise UnprovenError(
                f"{_text(name, job.base)} is not registered in this process, though others of"
                " this host have counted it",
                remedy="Compare recovery/metrics.py with the release.",
            )


def scrape() -> dict[tuple[str, str], float]:
    """Return the values that /metrics exports, by name and job; raise UnprovenError."""
    response = probes.answer(_request())
    if response is None or response.status_code != OK:
        said = response.content.decode().strip() if response else "nothing"
        raise UnprovenError(
            f"/metrics answers {said}", remedy="Is PROMETHEUS_MULTIPROC_DIR writable to us?"
        )
    return dict(_samples(response.content.decode()))


def _request() -> HttpRequest:
    request = HttpRequest()
    request.method, request.path_info = "GET", "/metrics"
    request.META["HTTP_AUTHORIZATION"] = f"Bearer {settings.METRICS_TOKEN}"
    return request


def _samples(text: str) -> Iterator[tuple[tuple[str, str], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if "job" in sample.labels:
                yield (sample.name, sample.labels["job"]), sample.value
