"""Limits and periods of the jobs, typed and checked (durations in seconds)."""

from settings.env import env

DAY_SEC = 86_400

JOB_OUTBOX_PERIOD_SEC = env.period("JOB_OUTBOX_PERIOD_SEC", 10)
JOB_FINALIZE_PERIOD_SEC = env.period("JOB_FINALIZE_PERIOD_SEC", 30)
JOB_STUCK_PERIOD_SEC = env.period("JOB_STUCK_PERIOD_SEC", 60)
JOB_METRICS_PERIOD_SEC = env.period("JOB_METRICS_PERIOD_SEC", 15)
JOB_ARCHIVE_PERIOD_SEC = env.period("JOB_ARCHIVE_PERIOD_SEC", DAY_SEC)

JOB_OUTBOX_BATCH_SIZE = env.integer("JOB_OUTBOX_BATCH_SIZE", 500, low=1, high=5_000)
JOB_OUTBOX_DRAINS = env.integer("JOB_OUTBOX_DRAINS", 1, low=1, high=16)
JOB_OUTBOX_MAX_ATTEMPTS = env.integer("JOB_OUTBOX_MAX_ATTEMPTS", 10, low=1, high=1_000)
JOB_OUTBOX_UNKNOWN_VERSION_DELAY_SEC = env.integer(
    "JOB_OUTBOX_UNKNOWN_VERSION_DELAY_SEC", 60, low=1, high=DAY_SEC
)
OUTBOX_MAX_PAYLOAD_BYTES = env.integer(
    "OUTBOX_MAX_PAYLOAD_BYTES", 262_144, low=1_024, high=4_194_304
)

JOB_BACKOFF_BASE_SEC = env.number("JOB_BACKOFF_BASE_SEC", 5, low=0.001, high=DAY_SEC)
JOB_BACKOFF_CAP_SEC = env.number("JOB_BACKOFF_CAP_SEC", 1_800, low=0.001, high=DAY_SEC)
JOB_BACKOFF_JITTER = env.number("JOB_BACKOFF_JITTER", 0, low=0, high=1)

JOB_FINALIZE_BATCH_SIZE = env.integer("JOB_FINALIZE_BATCH_SIZE", 50, low=1, high=400)
JOB_FINALIZE_RETRY_LIMIT = env.integer("JOB_FINALIZE_RETRY_LIMIT", 5, low=1, high=1_000)
JOB_FINALIZE_STUCK_THRESHOLD_SEC = env.integer(
    "JOB_FINALIZE_STUCK_THRESHOLD_SEC", 300, low=1, high=30 * DAY_SEC
)
JOB_STUCK_ALERT_THRESHOLD = env.integer("JOB_STUCK_ALERT_THRESHOLD", 3, low=0, high=1_000)
JOB_STUCK_ALERT_WINDOW_SEC = env.integer(
    "JOB_STUCK_ALERT_WINDOW_SEC", DAY_SEC, low=1, high=365 * DAY_SEC
)

JOB_LOCK_TTL_SEC = env.integer("JOB_LOCK_TTL_SEC", 15, low=1, high=3_600)
JOB_TIME_BUDGET_SEC = env.number("JOB_TIME_BUDGET_SEC", 20, low=0.1, high=3_600)
JOB_TASK_TIMEOUT_SEC = env.integer("JOB_TASK_TIMEOUT_SEC", 90, low=2, high=7_200)
JOB_RUN_RETENTION_DAYS = env.integer("JOB_RUN_RETENTION_DAYS", 7, low=1, high=3_650)
JOB_STUCK_RETENTION_DAYS = env.integer("JOB_STUCK_RETENTION_DAYS", 30, low=1, high=3_650)

METRICS_ENABLED = env.boolean("METRICS_ENABLED", default=True)
METRICS_TOKEN = env.text("METRICS_TOKEN")

SPLIT_COMPLETION_WEBHOOK = env.url(
    "SPLIT_COMPLETION_WEBHOOK", ("http", "https"), "https://erp.example/split-completed"
)
SPLIT_COMPLETION_TIMEOUT_SEC = env.number("SPLIT_COMPLETION_TIMEOUT_SEC", 5, low=0.05, high=300)
SPLIT_COMPLETION_BREAKER_FAILURES = env.integer(
    "SPLIT_COMPLETION_BREAKER_FAILURES", 5, low=1, high=1_000
)
SPLIT_COMPLETION_BREAKER_OPEN_SEC = env.number(
    "SPLIT_COMPLETION_BREAKER_OPEN_SEC", 30, low=0.05, high=DAY_SEC
)

AUDIT_HOT_DAYS = env.integer("AUDIT_HOT_DAYS", 90, low=1, high=36_500)
AUDIT_WARM_DAYS = env.integer("AUDIT_WARM_DAYS", 365, low=1, high=36_500)
OUTBOX_RETENTION_DAYS = env.integer("OUTBOX_RETENTION_DAYS", 30, low=1, high=36_500)

_FAULT = r"[^,=\s][^,]*=(crash|stop|raise|sleep:\d+(\.\d+)?)(@\d+)?"
RECOVERY_FAULTPOINTS_PATTERN = rf"\s*{_FAULT}\s*(,\s*{_FAULT}\s*)*,?"
RECOVERY_FAULTPOINTS = env.matching(
    "RECOVERY_FAULTPOINTS",
    RECOVERY_FAULTPOINTS_PATTERN,
    "name=crash|stop|raise|sleep:SECONDS[@N][,name=…]",
)
