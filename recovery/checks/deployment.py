"""What must not be so in production; ``manage.py check --deploy`` tells."""

import ipaddress
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004
from redis.connection import parse_url

from recovery.checks.configuration import folder_of, is_server

LEAST_TOKEN_CHARS = 16
MOUNTS = Path("/proc/self/mountinfo")
IN_MEMORY = ("tmpfs", "ramfs")


@register(Tags.security, deploy=True)
def check_deployment(app_configs: Sequence[AppConfig] | None, **_kwargs: Any) -> list[CheckMessage]:
    """Warn of what is open to others, breaks on purpose or belongs on a desk."""
    return [
        *_faultpoints(),
        *_any_host(),
        *_wide_hosts(),
        *_open_metrics(),
        *_guessable_token(),
        *_shared_secret(),
        *_weak_login(),
        *_open_redis(),
        *_one_file(),
        *_logs_for_eyes(),
        *_no_proxy(),
        *_no_collector(),
        *_demo(),
        *_keys_of_sessions(),
        *_archives_in_memory(),
    ]


def _faultpoints() -> Iterator[CheckMessage]:
    if settings.RECOVERY_FAULTPOINTS:
        yield Warning(
            f"RECOVERY_FAULTPOINTS={settings.RECOVERY_FAULTPOINTS!r} is set:"
            " processes break on purpose.",
            hint="Unset it outside tests and drills.",
            id="recovery.W002",
        )


def _any_host() -> Iterator[CheckMessage]:
    if "*" in settings.ALLOWED_HOSTS:
        yield Warning(
            "ALLOWED_HOSTS holds '*': whoever sends a request chooses the host name that links"
            " and redirects are made of.",
            hint="Name the hosts that serve the site: ALLOWED_HOSTS=stock.example.org.",
            id="recovery.W020",
        )


def _wide_hosts() -> Iterator[CheckMessage]:
    wide = [host for host in settings.ALLOWED_HOSTS if host.startswith(".") and _is_suffix(host)]
    if wide:
        yield Warning(
            f"ALLOWED_HOSTS holds {wide[0]!r}: every host of a whole top-level domain, so also"
            " those of others.",
            hint="Name the hosts that serve the site, or a domain of yours: .example.org.",
            id="recovery.W029",
        )


def _is_suffix(host: str) -> bool:
    return "." not in host.strip(".")


def _open_metrics() -> Iterator[CheckMessage]:
    if settings.METRICS_ENABLED and not settings.METRICS_TOKEN:
        yield Warning(
            "METRICS_TOKEN is empty: whoever reaches the site reads /metrics.",
            hint="Set METRICS_TOKEN to a long random text and give it to Prometheus as a bearer"
            " token, or set METRICS_ENABLED=false.",
            id="recovery.W021",
        )


def _guessable_token() -> Iterator[CheckMessage]:
    token = settings.METRICS_TOKEN
    if settings.METRICS_ENABLED and token and len(token) < LEAST_TOKEN_CHARS:
        yield Warning(
            f"METRICS_TOKEN has {len(token)} characters: it can be guessed, for nothing limits"
            " how often somebody tries.",
            hint=f"Set METRICS_TOKEN to {LEAST_TOKEN_CHARS} random characters at least:"
            " openssl rand -hex 16.",
            id="recovery.W028",
        )


def _shared_secret() -> Iterator[CheckMessage]:
    if settings.METRICS_TOKEN in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS):
        yield Error(
            "METRICS_TOKEN is a secret key of the site: whoever may read the scraper's"
            " configuration can sign sessions and tasks, and tasks are run as code.",
            hint="Set METRICS_TOKEN to a text of its own, and change SECRET_KEY.",
            id="recovery.E015",
        )


def _weak_login() -> Iterator[CheckMessage]:
    address = urlsplit(settings.DATABASE_URL)
    if not is_server(settings.DATABASE_URL):
        return
    by_socket = "unix_socket" in parse_qs(address.query)
    if address.username == "root" or not (address.password or by_socket):
        who = "root" if address.username == "root" else "a user without a password"
        yield Warning(
            f"The database is used as {who}: more rights, or less of a lock, than a worker needs.",
            hint="Make a user with ALL on this database and PROCESS, and a password of its own:"
            " DATABASE_URL=mysql://recovery:…@host/name.",
            id="recovery.W030",
        )


def _open_redis() -> Iterator[CheckMessage]:
    if not settings.REDIS_URL:
        return
    address = parse_url(settings.REDIS_URL)  # type: ignore[no-untyped-call]
    host = address.get("host", "")
    if not host or _is_loopback(host):
        return
    if not address.get("password"):
        yield Warning(
            f"Redis on {host} is used without a password: whoever reaches its port can take"
            " locks and queue tasks.",
            hint="Set requirepass or an ACL user there: REDIS_URL=rediss://:password@host:6379/0.",
            id="recovery.W022",
        )
    if settings.REDIS_URL.startswith("redis:"):
        yield Warning(
            f"The connection to Redis on {host} is not encrypted:"
            " password and tasks pass the network in the clear.",
            hint="Use TLS, rediss://; where the network itself is private,"
            " SILENCED_SYSTEM_CHECKS=recovery.W023.",
            id="recovery.W023",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _one_file() -> Iterator[CheckMessage]:
    if not is_server(settings.DATABASE_URL):
        yield Warning(
            "The database is a SQLite file: one host, one writer at a time, and quantities of"
            " at most 15 digits.",
            hint="Set DATABASE_URL=mysql://user:password@host:3306/name.",
            id="recovery.W024",
        )


def _logs_for_eyes() -> Iterator[CheckMessage]:
    if settings.LOG_FORMAT == "text":
        yield Warning(
            "LOG_FORMAT=text writes logs for eyes: a stack is many lines, and no collector"
            " finds the fields.",
            hint="Set LOG_FORMAT=json, or leave it unset: logs are text only on a terminal.",
            id="recovery.W025",
        )


def _no_proxy() -> Iterator[CheckMessage]:
    if not settings.PROXY_COUNT and getattr(settings, "SECURE_PROXY_SSL_HEADER", None):
        yield Warning(
            "PROXY_COUNT=0 though a proxy is believed about HTTPS: all log-ins seem to come from"
            " it, so that five wrong passwords lock a name out everywhere.",
            hint="Set PROXY_COUNT to the number of proxies of yours before the site.",
            id="recovery.W026",
        )


def _no_collector() -> Iterator[CheckMessage]:
    places = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if settings.TRACING_ENABLED and not any(map(os.environ.get, places)):
        yield Warning(
            "TRACING_ENABLED is set, and no OTEL_EXPORTER_OTLP_ENDPOINT: spans are sent to port"
            " 4318 of each host itself.",
            hint="Set OTEL_EXPORTER_OTLP_ENDPOINT to the collector's address.",
            id="recovery.W027",
        )


def _demo() -> Iterator[CheckMessage]:
    if settings.DEMO:
        yield Warning(
            "DEMO is set: /demo/ tells everybody how to use a site that is meant to be broken.",
            hint="Unset it; `manage.py demo` sets it for its own processes.",
            id="recovery.W031",
        )


def _keys_of_sessions() -> Iterator[CheckMessage]:
    known = {settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS, settings.METRICS_TOKEN}
    if settings.AUDIT_SEAL_KEYS and known.isdisjoint(settings.AUDIT_SEAL_KEYS):
        return
    wrong = "holds another secret of the site" if settings.AUDIT_SEAL_KEYS else "is empty"
    yield Warning(
        f"AUDIT_SEAL_KEYS {wrong}: audit records are sealed with what signs sessions, or is known"
        " to others; whoever knows it and may write to the database can make a false trail.",
        hint="Set AUDIT_SEAL_KEYS to a text of its own (openssl rand -hex 32), and keep a copy"
        " elsewhere: seals are verified with it for as long as they are kept.",
        id="recovery.W032",
    )


def _archives_in_memory() -> Iterator[CheckMessage]:
    for key, alias in (("AUDIT_ARCHIVE", "audit_archive"), ("AUDIT_COLD", "audit_cold")):
        folder = folder_of(alias)
        if folder and _file_system_of(folder) in IN_MEMORY:
            yield Warning(
                f"{key} is {folder}, which lies in memory: archives of audit records, and they"
                " alone have them, are gone with the next restart.",
                hint=f"Set {key} to a folder on a disk that all workers share, or to"
                " s3://bucket/prefix.",
                id="recovery.W033",
            )


def _file_system_of(folder: Path) -> str | None:
    """Return the type of the file system that ``folder`` lies on, or would; None: who knows."""
    place = next(it for it in (folder, *folder.parents) if it.exists())
    try:
        device, mounts = place.stat().st_dev, MOUNTS.read_text().splitlines()
    except OSError:
        return None
    number = f"{os.major(device)}:{os.minor(device)}"
    for fields in map(str.split, mounts):
        if fields[2] == number:
            return fields[fields.index("-") + 1]
    return None
