"""Time single entries from their commit to when their posting is seen, on idle workers."""

import random
import sys
import time

from benchmarks import processes
from benchmarks.children import obey, set_up

LOOK_EVERY_S = 0.0005
REST_S = (0.05, 0.15)  # off the beat of polls and ticks


def main() -> None:
    """Print the seconds of as many entries as asked for, on whatever settings there are."""
    set_up()
    from django.core.management import call_command

    from benchmarks.entries import make_accounts

    call_command("migrate", verbosity=0)
    make_accounts()
    obey(lambda: _measure(int(sys.argv[1])))


def _measure(count: int) -> list[float]:
    draw = random.Random(count)
    found = []
    with processes.qcluster():
        _one()  # the workers are up
        for _ in range(count):
            time.sleep(draw.uniform(*REST_S))
            found.append(_one())
    return found


def _one() -> float:
    """Publish one entry and return the seconds from its commit until it is seen posted."""
    from benchmarks.entries import publish_one
    from ledger.models import OutboxEntry

    pk, committed = publish_one()
    posted = OutboxEntry.objects.filter(pk=pk, status="posted")
    while not posted.exists():
        if time.perf_counter() - committed > processes.DEADLINE_S:
            raise TimeoutError("the entry was not posted in time")
        time.sleep(LOOK_EVERY_S)
    return time.perf_counter() - committed


if __name__ == "__main__":
    main()
