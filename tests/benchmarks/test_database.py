import pytest

from benchmarks import database
from benchmarks.options import SECTIONS


@pytest.mark.django_db
def test_database_that_somebody_uses_is_refused():
    """What is measured empties its tables."""
    with pytest.raises(database.NotScratchError, match="make bench"):
        database.prepare()


def test_own_tables_are_emptied_and_no_others():
    names = database.tables()
    assert {"ledger_outboxentry", "splits_splitorder", "recovery_job"} <= set(names)
    assert not [name for name in names if name.startswith(("auth_", "django_m"))]


def test_every_section_can_be_measured():
    import importlib

    for module in SECTIONS.values():
        assert callable(importlib.import_module(module).measure)
