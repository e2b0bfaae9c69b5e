"""The MariaDB server of the tests, by a user who may do everything to it."""

import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import dj_database_url
import MySQLdb
import pytest
from django.db import connection


def connect() -> Any:
    """Return an administrator's connection; skip the test where there is none."""
    url = os.environ.get("TEST_ADMIN_DATABASE_URL")
    if not url:
        pytest.skip("needs TEST_ADMIN_DATABASE_URL, which `python -m tests.servers --` sets")
    where = dj_database_url.parse(url)
    return MySQLdb.connect(
        host=where["HOST"],
        port=int(where["PORT"]),
        user=where["USER"],
        password=where["PASSWORD"],
        autocommit=True,
    )


@contextmanager
def server_set(name: str, value: int) -> Iterator[None]:
    """Give the server's variable another value for a while."""
    with closing(connect()) as link:
        cursor = link.cursor()
        cursor.execute(f"SELECT @@GLOBAL.{name}")
        (before,) = cursor.fetchone()
        cursor.execute(f"SET GLOBAL {name} = {value}")
        try:
            yield
        finally:
            cursor.execute(f"SET GLOBAL {name} = {before}")


@contextmanager
def login(limits: str = "") -> Iterator[str]:
    """Make a user who may do anything in the test's database and see nobody else; give the URL."""
    config = connection.settings_dict
    name, password = f"plain{secrets.token_hex(4)}", secrets.token_hex(8)
    user = f"'{name}'@'%'"
    with closing(connect()) as link:
        cursor = link.cursor()
        cursor.execute(f"CREATE USER {user} IDENTIFIED BY '{password}' {limits}")
        cursor.execute(f"GRANT ALL ON `{config['NAME']}`.* TO {user}")
        try:
            yield f"mysql://{name}:{password}@{config['HOST']}:{config['PORT']}/{config['NAME']}"
        finally:
            cursor.execute(f"DROP USER {user}")
