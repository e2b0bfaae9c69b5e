"""``/metrics``, ``/healthz`` and ``/readyz``, for scrapers and orchestrators."""

import hmac
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from recovery import link, registry, states, tallies
from recovery.probing import missing_migrations, probe_connection

PERIODS_UNTIL_STALE = 3
READING = ("GET", "HEAD")
OK, DOWN = "ok", "down"


class ProbeMiddleware:
    """Answers probes before hosts, schemes and sessions are looked at: they come by address."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        """Keep what answers everything else."""
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer a probe, or pass the request on."""
        return answer(request) or self.get_response(request)


def answer(request: HttpRequest) -> HttpResponse | None:
    """Return the answer to a probe; None: the request is none."""
    view = _views.get(request.path_info)
    if view is None:
        return None
    if request.method not in READING:
        return HttpResponse(status=405, headers={"Allow": ", ".join(READING)})
    response = view(request)
    response["Cache-Control"] = "no-store"
    return response


def healthz(_request: HttpRequest) -> HttpResponse:
    """Tell that this process is up."""
    return JsonResponse({"status": OK})


def metrics(request: HttpRequest) -> HttpResponse:
    """Answer a scrape; 404 where metrics are off, 401 without the token that is set."""
    if not settings.METRICS_ENABLED:
        return _text("metrics are off: METRICS_ENABLED=false\n", status=404)
    if not _is_authorized(request):
        response = _text("send the METRICS_TOKEN: Authorization: Bearer …\n", status=401)
        response["WWW-Authenticate"] = "Bearer"
        return response
    try:
        counted = _counted()
    except OSError as error:
        return _text(f"the counters cannot be read: {error}\n", status=503)
    exported = CollectorRegistry()
    for collector in (counted, states.States()):
        exported.register(collector)
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(exported), content_type=content_type)


def _text(text: str, *, status: int) -> HttpResponse:
    return HttpResponse(text, status=status, content_type="text/plain; charset=utf-8")


def _is_authorized(request: HttpRequest) -> bool:
    if not settings.METRICS_TOKEN:
        return True
    # By WSGI a header is bytes, each shown as the character of that number.
    header = request.headers.get("Authorization", "").encode("latin-1", "replace")
    scheme, _, token = header.partition(b" ")
    is_right = hmac.compare_digest(token.strip(), settings.METRICS_TOKEN.encode())
    return scheme.lower() == b"bearer" and is_right


class _Counted(Collector):
    """What the processes of this host counted."""

    def __init__(self, counted: list[Metric]) -> None:
        self.counted = counted

    def collect(self) -> list[Metric]:
        return self.counted


def _counted() -> Collector:
    place = tallies.directory()
    return _Counted(tallies.read(place) if place else list(REGISTRY.collect()))


def readyz(request: HttpRequest) -> HttpResponse:
    """Tell whether this process can serve: 200, or 503 with the reasons.

    ``?jobs=1``: 503 also when an unpaused job's heartbeat is older than three periods.
    """
    facts: dict[str, Any] = {"database": OK, "migrations": OK, "redis": _redis(), "jobs": {}}
    reasons: list[str] = []
    try:
        with probe_connection() as probe:
            reasons += _judge_migrations(missing_migrations(probe), facts)
            if not reasons:
                facts["jobs"] = job_facts(states.heartbeat_ages(probe))
    except (DatabaseError, InterfaceError) as error:
        facts |= {"database": DOWN, "migrations": "unknown"}
        reasons.append(f"the database does not answer: {error}")
    if request.GET.get("jobs") in ("1", "true"):
        reasons += _late(facts["jobs"])
    status = 503 if reasons else 200
    return JsonResponse({"ready": not reasons, "reasons": reasons, **facts}, status=status)


def _judge_migrations(missing: list[str], facts: dict[str, Any]) -> list[str]:
    if not missing:
        return []
    facts["migrations"] = missing
    return [f"{len(missing)} migrations are not applied, run manage.py migrate: {missing[0]} …"]


def _redis() -> str:
    if not link.configured():
        return "not configured"
    try:
        link.call(lambda client: client.ping())
    except link.RedisDownError as error:
        return f"{DOWN}: {error}"
    return OK


def job_facts(ages: dict[str, tuple[float, bool]]) -> dict[str, dict[str, Any]]:
    """Return the state of each registered job; one without a row was never set up."""
    found = {}
    for job in registry.all_jobs():
        age_s, paused = ages.get(job.name, (None, False))
        limit_s = PERIODS_UNTIL_STALE * job.period_s
        late = not paused and (age_s is None or age_s > limit_s)
        found[job.name] = {
            "heartbeat_age_s": age_s,
            "limit_s": limit_s,
            "paused": paused,
            "late": late,
        }
    return found


def _late(jobs: dict[str, dict[str, Any]]) -> list[str]:
    return [late_text(name, facts) for name, facts in jobs.items() if facts["late"]]


def late_text(name: str, facts: dict[str, Any]) -> str:
    """Return why the job is late."""
    age_s = facts["heartbeat_age_s"]
    if age_s is None:
        return f"job {name} was never set up: is a qcluster running?"
    return (
        f"job {name}: last heartbeat {age_s:.0f} s ago, more than {facts['limit_s']} s:"
        " is a qcluster running?"
    )


_views: dict[str, Callable[[HttpRequest], HttpResponse]] = {
    "/metrics": metrics,
    "/healthz": healthz,
    "/readyz": readyz,
}
