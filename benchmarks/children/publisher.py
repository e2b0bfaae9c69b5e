"""Publish at a steady pace, a transaction an entry, whatever the workers do: an open loop."""

import sys
import time

from benchmarks.children import obey, set_up


def main() -> None:
    """Publish RATE entries a second for SECONDS, beginning PHASE of a turn late."""
    set_up()
    rate, seconds, phase = map(float, sys.argv[1:])
    obey(lambda: _publish(rate, int(rate * seconds), phase / rate))


def _publish(rate: float, count: int, late_s: float) -> list[tuple[int, float]]:
    """Return each entry's id and when its commit was answered; a turn that is late goes at once."""
    from benchmarks.entries import publish_one

    started = time.perf_counter() + late_s
    found = []
    for turn in range(count):
        time.sleep(max(0.0, started + turn / rate - time.perf_counter()))
        found.append(publish_one())
    return found


if __name__ == "__main__":
    main()
