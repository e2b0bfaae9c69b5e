"""Post what is due in this process, without lock or lease: one of two drains at once."""

import sys

import django
from django.conf import settings


def main() -> None:
    """Set up, say so, wait for a line, drain."""
    django.setup()
    from django.db import connection

    from benchmarks.tasks import policy
    from ledger.posting import post_due
    from recovery.errors import with_retries

    connection.ensure_connection()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    limit = settings.JOB_OUTBOX_BATCH_SIZE
    while with_retries(lambda: post_due(policy(), limit=limit)).progressed():
        pass


if __name__ == "__main__":
    main()
