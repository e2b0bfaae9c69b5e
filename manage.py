#!/usr/bin/env python
"""Run Django's and this project's management commands."""

import os
import sys


def main() -> None:
    """Hand the command line to Django with this project's settings."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings.base")
    try:
        from django.core.management import execute_from_command_line
        from django.db import InterfaceError, OperationalError
    except ImportError:
        sys.exit("Django is not installed here: run `make setup`, then .venv/bin/python manage.py.")
    try:
        execute_from_command_line(sys.argv)
    except (OperationalError, InterfaceError) as error:
        if "--traceback" in sys.argv:
            raise
        sys.exit(f"the database refused: {error}. Is it reachable, and is DATABASE_URL right?")


if __name__ == "__main__":
    main()
