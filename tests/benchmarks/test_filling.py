import pytest

from benchmarks import filling
from ledger.models import OutboxEntry, Posting, Transaction
from recovery.models import AuditRecord, JobRun
from recovery.schedules import ensure_rows
from splits.models import Lot, SplitOrder

COUNT = 2_000


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_large_tables_are_nearly_all_done():
    ensure_rows()
    filling.fill(COUNT)
    for model in (OutboxEntry, Transaction, Posting, Lot, SplitOrder, AuditRecord):
        assert model._default_manager.count() == COUNT, model
    assert JobRun.objects.count() == COUNT // filling.RUNS_SHARE
    assert OutboxEntry.objects.due().count() == filling.OPEN
    assert OutboxEntry.objects.dead().count() >= filling.OPEN * 0.8
    assert SplitOrder.objects.due().count() == filling.OPEN - filling.IN_PROGRESS
    assert SplitOrder.objects.stuck(300).count() == filling.STUCK
    assert len(set(OutboxEntry.objects.dead().values_list("last_error_code"))) == 2
