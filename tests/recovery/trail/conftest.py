"""Folders of their own for the archives of each test."""

import copy

import pytest


@pytest.fixture(autouse=True)
def folders(settings, tmp_path, no_redis, transactional_db):
    """Keep both tiers in folders of the test."""
    stores = copy.deepcopy(settings.STORAGES)
    for alias, name in (("audit_archive", "warm"), ("audit_cold", "cold")):
        stores[alias]["OPTIONS"]["location"] = str(tmp_path / name)
    settings.STORAGES = stores
    settings.JOB_TIME_BUDGET_SEC = 600  # one run is enough
    return tmp_path
