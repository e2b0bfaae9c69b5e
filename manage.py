#!/usr/bin/env python
"""Run Django's and this project's management commands."""

import os
import select
import sys
from io import TextIOWrapper

USAGE = 2
UNREAD = 141
"""What shells say of a program that SIGPIPE ended."""


def main() -> None:
    """Run the command; Ctrl-C, and a reader that has left, as `head` does, are no failures."""
    if isinstance(sys.stdout, TextIOWrapper):  # not where it is closed
        sys.stdout.reconfigure(line_buffering=True)  # `drill stuck | tee` shows each line in time
    try:
        run()
    except KeyboardInterrupt:
        # Not caught: a shell's loop ends only with a program that the signal ended.
        sys.excepthook = lambda *_: sys.stderr.write("interrupted\n")
        raise
    except BrokenPipeError:
        if not reader_has_left():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
        sys.exit(UNREAD)


def reader_has_left() -> bool:
    """Tell whether nobody reads standard output any more: other pipes break for other reasons."""
    if not isinstance(sys.stdout, TextIOWrapper):
        return False
    asked = select.poll()
    asked.register(sys.stdout.fileno(), 0)
    return any(found & select.POLLERR for _, found in asked.poll(0))


def run() -> None:
    """Hand the command line to Django with this project's settings."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings.base")
    try:
        from django.core.management import ManagementUtility
        from django.core.management.base import BaseCommand
        from django.db import InterfaceError, OperationalError
    except ImportError:
        sys.exit("Django is not installed here: run `make setup`, then .venv/bin/python manage.py.")

    class Utility(ManagementUtility):
        """Leaves with status 2, as for any wrong usage, where there is no such command."""

        def fetch_command(self, subcommand: str) -> BaseCommand:
            try:
                return super().fetch_command(subcommand)
            except SystemExit as leaving:
                sys.exit(leaving.code and USAGE)

    try:
        Utility(sys.argv).execute()
    except (OperationalError, InterfaceError) as error:
        if "--traceback" in sys.argv:
            raise
        sys.exit(f"the database refused: {error}. Is it reachable, and is DATABASE_URL right?")


if __name__ == "__main__":
    main()
