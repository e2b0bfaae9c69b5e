"""Whether a process that was known by host and number may still live."""

import os

from recovery.leases import HOST


def may_live(host: str, pid: int | None) -> bool:
    """Return False where the process is known to be gone: only its own host knows."""
    if host != HOST or pid is None:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True
