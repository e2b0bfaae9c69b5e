"""Seconds from the commit of an entry to its posting, by workers that idle; on any settings."""

import json
import sys
import time

import django

SAMPLES = 40
DEADLINE_S = 60.0
LOOK_EVERY_S = 0.002


def main() -> int:
    """Print the latencies of single entries, in seconds, as a JSON list."""
    django.setup()
    from django.core.management import call_command

    from benchmarks.cluster import cluster

    call_command("migrate", verbosity=0)
    with cluster():
        one()  # the cluster is up
        found = [one() for _ in range(SAMPLES)]
    sys.stdout.write(json.dumps(found))
    return 0


def one() -> float:
    """Publish one entry and return the seconds until it is posted."""
    from benchmarks.entries import publish_one
    from ledger.models import OutboxEntry

    # Off the beat of poll and tick.
    time.sleep(0.05 + time.time() % 0.1)
    pk = publish_one()
    committed = time.perf_counter()
    while not OutboxEntry.objects.filter(pk=pk, status="posted").exists():
        if time.perf_counter() - committed > DEADLINE_S:
            raise TimeoutError("the entry was not posted in time")
        time.sleep(LOOK_EVERY_S)
    return time.perf_counter() - committed


if __name__ == "__main__":
    sys.exit(main())
