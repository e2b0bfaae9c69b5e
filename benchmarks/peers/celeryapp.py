"""Celery: a task for each pending entry, then a worker; prefork, connections kept, no results."""

import os
import sys

import django
from celery import Celery

app = Celery("peer", broker=os.environ["REDIS_URL"])
app.conf.update(
    task_ignore_result=True,
    task_store_errors_even_if_ignored=False,
    worker_prefetch_multiplier=64,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)


@app.task
def post_one(entry: int) -> None:
    """Post one entry."""
    from benchmarks.peers import tasks

    tasks.post_one(entry)


def main() -> None:
    """Queue the tasks, then work with as many processes as asked for until a signal comes."""
    django.setup()
    from benchmarks.peers.celeryapp import app, post_one
    from benchmarks.peers.tasks import waiting

    for pk in waiting():
        post_one.delay(pk)
    options = ("--pool=prefork", f"--concurrency={sys.argv[1]}", "--loglevel=WARNING")
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    app.worker_main(["worker", *options, *quiet])


if __name__ == "__main__":
    main()
