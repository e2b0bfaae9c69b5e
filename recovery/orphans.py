"""Children that do not outlive their parent, whatever ended it."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def die_with_parent(signum: int = signal.SIGKILL) -> Callable[[], None]:
    """Return what a child calls first, so that it gets ``signum`` once this process is dead.

    Make it in the parent, and fork in the thread that lives as long as the parent does: to the
    kernel the thread that forked is the parent. Does nothing where there is no Linux.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    parent = os.getpid()

    def ask_kernel() -> None:
        if libc is None:
            return
        libc.prctl(PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:  # it died before the kernel was asked
            os._exit(1)

    return ask_kernel
