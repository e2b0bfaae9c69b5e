"""Whether spans are made for OpenTelemetry; where they go, its own OTEL_… variables say."""

from importlib.util import find_spec

from settings.env import env

NEEDED = "opentelemetry.exporter.otlp.proto.http"


def is_installed() -> bool:
    """Tell whether the extra is installed."""
    try:
        return find_spec(NEEDED) is not None
    except ModuleNotFoundError:
        return False


TRACING_ENABLED = env.boolean("TRACING_ENABLED", default=False)
if TRACING_ENABLED and not is_installed():
    env.refuse(
        "TRACING_ENABLED", "false; or install the extra: pip install split-recovery[tracing]"
    )
