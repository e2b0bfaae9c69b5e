"""Django's settings: one file for the embedded mode, production and tests."""

import logging
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import dj_database_url
from redis.backoff import NoBackoff
from redis.retry import Retry

from settings.archives import AUDIT_SEAL_KEYS, AUDIT_TRIGGERS, storage_of  # noqa: F401
from settings.env import env
from settings.jobs import *  # noqa: F403
from settings.jobs import (
    JOB_OUTBOX_DRAINS,
    JOB_TASK_TIMEOUT_SEC,
    METRICS_ENABLED,
    METRICS_TOKEN,
    SPLIT_COMPLETION_WEBHOOK,
)
from settings.logs import logging_config, secrets_of
from settings.metrics import count_alone, count_in
from settings.security import *  # noqa: F403
from settings.skin import UNFOLD  # noqa: F401
from settings.tracing import TRACING_ENABLED

BASE_DIR = Path(__file__).resolve().parent.parent
VAR_DIR = Path(env.text("VAR_DIR") or BASE_DIR / "var").resolve()

# Before anything makes a metric.
METRICS_DIR = Path(env.text("PROMETHEUS_MULTIPROC_DIR") or VAR_DIR / "metrics").resolve()
METRICS_SHARED = count_in(METRICS_DIR) if METRICS_ENABLED else count_alone()

DEBUG = env.boolean("DEBUG", default=False)
DEMO = env.boolean("DEMO", default=False)  # the guide at /demo/; `manage.py demo` sets it
DATABASE_URL = env.url(
    "DATABASE_URL", ("mysql", "sqlite"), "mysql://user:password@host:3306/name or sqlite:///file"
)
REDIS_URL = env.url("REDIS_URL", ("redis", "rediss", "unix"), "redis://host:6379/0")
if JOB_OUTBOX_DRAINS > 1 and not DATABASE_URL.startswith("mysql:"):
    env.refuse("JOB_OUTBOX_DRAINS", "1 on SQLite, which has one writer at a time")
EMBEDDED = not DATABASE_URL.startswith("mysql:") and not REDIS_URL

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
ALLOWED_HOSTS = env.words("ALLOWED_HOSTS", LOOPBACK)
CSRF_TRUSTED_ORIGINS = env.words("CSRF_TRUSTED_ORIGINS", ())


def kept_secret_key(path: Path) -> str:
    """Return the secret key kept in ``path``, made at the first call (mode 0600)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as draft:
            draft.write(secrets.token_urlsafe(50))
            draft.flush()
            with suppress(FileExistsError):  # another process was first: its key counts
                os.link(draft.name, path)
    return path.read_text()


SECRET_KEY = env.text("SECRET_KEY")
if not SECRET_KEY and EMBEDDED:
    SECRET_KEY = kept_secret_key(VAR_DIR / "secret-key")
elif not SECRET_KEY and DEBUG:
    SECRET_KEY = "insecure-for-debugging-only"  # noqa: S105
elif not SECRET_KEY:
    env.refuse("SECRET_KEY", "a long random text (it signs sessions and queued tasks)")

SECRET_KEY_FALLBACKS = env.words("SECRET_KEY_FALLBACKS", ())

INSTALLED_APPS = [
    "splits",
    "ledger",
    "recovery",  # before django_q: its qcluster command is the one that runs; before unfold
    "unfold.apps.BasicAppConfig",  # before the admin, whose templates it replaces
    "recovery.console.ConsoleConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "recovery.logins.LoginsConfig",
    "csp",
    "django_structlog",
    "django_q",
    *(["django_prometheus"] if METRICS_ENABLED else []),
]

# The probes answer whatever host name or scheme they are asked by: before all the rest.
MIDDLEWARE = [
    "recovery.probes.ProbeMiddleware",
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "recovery.requests.RequestLogMiddleware",  # behind what files and redirects are answered by
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "recovery.sessions.SessionLimitMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
    "recovery.traffic.TrafficMiddleware",
]
if not METRICS_ENABLED:
    counting = ("django_prometheus.", "recovery.traffic.")
    MIDDLEWARE = [name for name in MIDDLEWARE if not name.startswith(counting)]
PROMETHEUS_EXPORT_MIGRATIONS = False
if TRACING_ENABLED:
    logged = MIDDLEWARE.index("recovery.requests.RequestLogMiddleware")
    MIDDLEWARE.insert(logged, "recovery.tracing.web.TracingMiddleware")

ROOT_URLCONF = "settings.urls"
WSGI_APPLICATION = "settings.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SESSION_ENGINE = "django.contrib.sessions.backends.db"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

DATABASE_READ_TIMEOUT_SEC = env.integer("DATABASE_READ_TIMEOUT_SEC", 30, low=1, high=86_400)
DATABASE_IDLE_TRANSACTION_SEC = env.integer("DATABASE_IDLE_TRANSACTION_SEC", 60, low=1, high=86_400)

SQLITE_OPTIONS: dict[str, Any] = {
    # IMMEDIATE takes the write lock at BEGIN: no transaction dies upgrading a read lock.
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;",
}
MYSQL_OPTIONS: dict[str, Any] = {
    "charset": "utf8mb4",
    # Under REPEATABLE READ a SKIP LOCKED claim blocks the producers' INSERTs.
    "isolation_level": "read committed",
    # Django stores UTC but leaves the session's clock to the server's own time zone.
    # What a vanished host locked in an open transaction would stay locked until wait_timeout, eight
    # hours; MySQL has no such limit and reads the last part as a comment.
    "init_command": "SET time_zone='+00:00', sql_mode='TRADITIONAL', innodb_lock_wait_timeout=10"
    f" /*M!100300 , idle_transaction_timeout={DATABASE_IDLE_TRANSACTION_SEC} */",
    "connect_timeout": 5,
    "read_timeout": DATABASE_READ_TIMEOUT_SEC,
    "write_timeout": DATABASE_READ_TIMEOUT_SEC,
}


def database(url: str) -> dict[str, Any]:
    """Return Django's settings of the database at ``url``; empty: a SQLite file under var/."""
    config: dict[str, Any] = {**dj_database_url.parse(url or f"sqlite:///{VAR_DIR / 'db.sqlite3'}")}
    options: dict[str, Any] = dict(config.get("OPTIONS") or {})
    if url.startswith("mysql:"):
        config |= {"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}
        config["OPTIONS"] = MYSQL_OPTIONS | options
        config["TEST"] = {"CHARSET": "utf8mb4"}
    else:
        Path(config["NAME"]).parent.mkdir(parents=True, exist_ok=True)
        config["OPTIONS"] = SQLITE_OPTIONS | options
        config["TEST"] = {"NAME": str(VAR_DIR / "test.sqlite3")}
    if METRICS_ENABLED:
        config["ENGINE"] = config["ENGINE"].replace("django.db.", "django_prometheus.db.")
    return config


DATABASES = {"default": database(DATABASE_URL)}

REDIS_TIMEOUT_SEC = env.number("REDIS_TIMEOUT_SEC", 1, low=0.05, high=30)


def cache(url: str) -> dict[str, Any]:
    """Return Django's settings of the cache: Redis at ``url``, else this process's memory."""
    if not url:
        backends = "django_prometheus" if METRICS_ENABLED else "django.core"
        return {"BACKEND": f"{backends}.cache.backends.locmem.LocMemCache"}
    return {
        "BACKEND": (
            "django_prometheus.cache.backends.redis.RedisCache"
            if METRICS_ENABLED
            else "django_redis.cache.RedisCache"
        ),
        "LOCATION": url,
        "KEY_PREFIX": "recovery",
        "OPTIONS": {
            "SOCKET_CONNECT_TIMEOUT": REDIS_TIMEOUT_SEC,
            "SOCKET_TIMEOUT": REDIS_TIMEOUT_SEC,
            "IGNORE_EXCEPTIONS": True,
            # redis-py retries ten times unless told not to: a hung server held its caller 14 s.
            "CONNECTION_POOL_KWARGS": {"retry": Retry(NoBackoff(), 0)},
        },
    }


CACHES = {"default": cache(REDIS_URL)}

Q_CLUSTER: dict[str, Any] = {
    "name": env.text("QCLUSTER_NAME", "recovery"),
    "broker_class": "recovery.broker.RungBroker",
    "orm": "default",
    # As many as there are jobs, so that none waits for another, and one to spare.
    "workers": env.integer("QCLUSTER_WORKERS", 7 + JOB_OUTBOX_DRAINS, low=1, high=256),
    "recycle": 2_000,
    "timeout": JOB_TASK_TIMEOUT_SEC,
    "retry": JOB_TASK_TIMEOUT_SEC * 2,
    "max_attempts": 1,
    "ack_failures": True,
    "save_limit": -1,
    "catch_up": False,
    "scheduler": False,
    "time_zone": "UTC",
    "poll": env.number("QCLUSTER_POLL_SEC", 0.2, low=0.01, high=10),
    "log_level": "WARNING",
}

# django-q2's index on failed tasks is partial where the database knows such; MariaDB ignores that.
SILENCED_SYSTEM_CHECKS = ["models.W037", *env.words("SILENCED_SYSTEM_CHECKS", ())]

USE_TZ = True
TIME_ZONE = env.time_zone("TIME_ZONE", "UTC")
LANGUAGES = [("en", "English"), ("zh-hans", "简体中文")]
LANGUAGE_CODE = env.choice("LANGUAGE_CODE", "en", [code for code, _ in LANGUAGES])

STATIC_URL = "static/"
STATIC_ROOT = Path(env.text("STATIC_DIR") or VAR_DIR / "static").resolve()
with suppress(OSError):  # whitenoise warns at every start where it is missing
    STATIC_ROOT.mkdir(parents=True, exist_ok=True)
WHITENOISE_USE_FINDERS = DEBUG

STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    "audit_archive": storage_of("AUDIT_ARCHIVE", VAR_DIR / "audit" / "warm"),
    "audit_cold": storage_of("AUDIT_COLD", VAR_DIR / "audit" / "cold"),
}

if not DEBUG and not EMBEDDED:
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = env.boolean("SECURE_SSL_REDIRECT", default=True)
    SECURE_HSTS_SECONDS = env.integer("SECURE_HSTS_SECONDS", 31_536_000, low=0, high=2**31 - 1)
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True

DJANGO_STRUCTLOG_STATUS_4XX_LOG_LEVEL = logging.INFO  # of whoever asks; not ours to mend
DJANGO_STRUCTLOG_USER_ID_FIELD = ""  # it would read the session of who never needed one
LOG_FORMAT = env.choice("LOG_FORMAT", "auto", ("auto", "json", "text"))
LOGGING_CONFIG = "settings.logs.configure"
LOGGING = logging_config(
    style=LOG_FORMAT,
    level=env.choice("LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR")),
    secrets=secrets_of(
        SECRET_KEY,
        *SECRET_KEY_FALLBACKS,
        *AUDIT_SEAL_KEYS,
        METRICS_TOKEN,
        urls=(DATABASE_URL, REDIS_URL, SPLIT_COMPLETION_WEBHOOK),
    ),
)

env.finish()
