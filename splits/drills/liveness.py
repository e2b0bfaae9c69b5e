"""Whether a process that was known by host and number may still live."""

from recovery import pids
from recovery.leases import HOST


def may_live(host: str, pid: int | None) -> bool:
    """Return False where the process is known to be gone: only its own host knows."""
    return host != HOST or pid is None or pids.may_live(pid)
