"""The scratch database and Redis of a run: refused where somebody uses them, emptied at will."""

import os
from contextlib import suppress
from urllib.parse import urlsplit

import MySQLdb
import redis
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db import connection

from benchmarks import floor, machine
from recovery import schedules

ADMIN_URL = "TEST_ADMIN_DATABASE_URL"
MIB = 2**20
LOG_MIB = 1_024
OWN_APPS = ("ledger", "splits", "recovery", "django_q")


class NotScratchError(Exception):
    """The database or Redis is not an empty one that a measurement may fill and destroy."""


def give_memory(buffer_pool_mib: int) -> bool:
    """Give the server memory and a long log; False: it is not ours to do.

    What does not fit makes it flush pages at moments of its own: noise between contenders.
    """
    url = os.environ.get(ADMIN_URL)
    if not url:
        return False
    admin = floor.connect(url)
    cursor = admin.cursor()
    cursor.execute(f"SET GLOBAL innodb_buffer_pool_size = {buffer_pool_mib * MIB}")
    with suppress(MySQLdb.Error):  # fixed at the start before MariaDB 10.9
        cursor.execute(f"SET GLOBAL innodb_log_file_size = {LOG_MIB * MIB}")
    admin.close()
    return True


def prepare() -> None:
    """Make the tables in an empty database; raise NotScratchError where it is not empty."""
    if connection.vendor != "mysql" or not settings.REDIS_URL:
        raise NotScratchError("run `make bench`: it starts MariaDB and Redis for this")
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        keys = client.dbsize()
    if connection.introspection.table_names() or keys:
        raise NotScratchError(
            "the database or Redis holds data, which would be lost; run `make bench`"
        )
    call_command("migrate", verbosity=0)


def tables() -> list[str]:
    """Return the tables that measurements fill."""
    return [
        model._meta.db_table
        for app in OWN_APPS
        for model in apps.get_app_config(app).get_models()
        if model._meta.managed and not model._meta.proxy
    ]


def empty() -> None:
    """Empty all tables and Redis; then make the rows of jobs anew."""
    with connection.cursor() as cursor:
        cursor.execute("SET foreign_key_checks = 0")
        for table in tables():
            cursor.execute(f"TRUNCATE TABLE {table}")
        cursor.execute("SET foreign_key_checks = 1")
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        client.flushdb()
    schedules.ensure_rows()


def server_pids() -> dict[str, int]:
    """Return the processes of the servers that run on this machine, by program."""
    urls = {"mariadbd": settings.DATABASE_URL, "redis-server": settings.REDIS_URL}
    found = {name: machine.server_pid(name, urlsplit(url).port or 0) for name, url in urls.items()}
    return {name: pid for name, pid in found.items() if pid}
