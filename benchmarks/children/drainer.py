"""Post in guarded runs of one lane of the job until nothing is due: one of two drains at once."""

import sys
from functools import partial

from benchmarks.children import obey, set_up, timed


def main() -> None:
    """Drain by the lane that is named."""
    set_up()
    obey(lambda: timed(partial(_drain, sys.argv[1])))


def _drain(lane: str) -> None:
    from ledger.models import OutboxEntry
    from recovery.runner import run_job

    while OutboxEntry.objects.due().exists():
        run_job(lane)


if __name__ == "__main__":
    main()
