"""Backups of the test's database, as production makes them and brings them back."""

import os
import re
import subprocess
from datetime import datetime, timedelta

from django.db import connection

from tests.servers import binary

TIMEOUT_S = 60
# The restore must not wait for ever where a process sleeps with a table in use.
PATIENCE = "SET SESSION lock_wait_timeout = 20"
MOMENT = re.compile(r"'(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6})'")


def dump() -> str:
    """Return a consistent copy of the database, taken while others work.

    Brought back under a live cluster, it replaces what that puts into a table just made anew.
    """
    return _client("mariadb-dump", "--single-transaction", "--hex-blob", "--replace", _name())


def restore(backup: str) -> None:
    """Bring the database back as it was: each table is dropped, made anew and filled."""
    _client("mariadb", f"--init-command={PATIENCE}", _name(), given=backup)


def aged(backup: str, age: timedelta) -> str:
    """Return ``backup`` as if it had been made ``age`` earlier."""

    def earlier(found: re.Match[str]) -> str:
        moment = datetime.fromisoformat(found[1]) - age
        return f"'{moment.isoformat(sep=' ', timespec='microseconds')}'"

    return MOMENT.sub(earlier, backup)


def _name() -> str:
    return str(connection.settings_dict["NAME"])


def _client(program: str, *arguments: str, given: str | None = None) -> str:
    config = connection.settings_dict
    login = [f"--host={config['HOST']}", f"--port={config['PORT']}", f"--user={config['USER']}"]
    done = subprocess.run(
        [binary(program), "--no-defaults", *login, "--default-character-set=utf8mb4", *arguments],
        env={**os.environ, "MYSQL_PWD": str(config["PASSWORD"])},
        input=given,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
