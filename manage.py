#!/usr/bin/env python
"""Run Django's and this project's management commands."""

import os
import sys

USAGE = 2


def main() -> None:
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
