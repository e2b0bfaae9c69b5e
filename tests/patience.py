"""Settings under which a test comes to the same end however long the machine takes for it."""

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def unhurried(settings: Any) -> None:
    """Let nothing that failed be due again, and no lease expire, while a test looks at it."""
    settings.JOB_BACKOFF_BASE_SEC = 500
    settings.JOB_LOCK_TTL_SEC = 600
