"""Pop from a Redis list, blocking, and answer with the time of each pop: the floor of a wake-up."""

import os
import sys
import time

import redis

from benchmarks.children import obey

ASKED, ANSWERED = "bench:asked", "bench:answered"


def main() -> None:
    """Answer as many pushes as asked for."""
    client = redis.Redis.from_url(os.environ["REDIS_URL"])
    client.ping()
    obey(lambda: _answer(client, int(sys.argv[1])))


def _answer(client: redis.Redis, count: int) -> int:
    for _ in range(count):
        client.blpop([ASKED])
        client.rpush(ANSWERED, repr(time.perf_counter()))
    return count


if __name__ == "__main__":
    main()
