"""The database is brought back from a backup while Redis, clusters and finalizers live on."""

import signal
from contextlib import closing
from datetime import timedelta
from itertools import groupby
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from ledger.models import OutboxEntry
from ledger.outbox import JOB as OUTBOX
from recovery import leases, pauses, schedules
from recovery.models import AuditRecord, JobRun
from splits.models import OrderStatus, SplitOrder
from splits.reconcile import Report, reconcile
from tests.faults.backups import aged, dump, restore
from tests.faults.checker import connect, violations
from tests.faults.installation import QUICK, Row, csv_text, plan_rows
from tests.processes import Manage, Started, database_url
from tests.splits.plans import imported
from tests.waiting import eventually

pytestmark = [
    pytest.mark.mariadb,
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(300),
]

ROWS = plan_rows(12)
FINALIZE, STUCK = "finalizeRetryWorker", "recoverFinalizeStuck"
HOUR = timedelta(hours=1)
COMMITTED = (
    "splits_splitorder ORDER BY id",
    "splits_finalizestep ORDER BY id",
    "splits_lot ORDER BY id",
    "ledger_outboxentry ORDER BY id",
    "ledger_transaction ORDER BY id",
    "ledger_posting ORDER BY id",
    # An account that a batch will need is made before it, and stays empty without it.
    "ledger_account WHERE balance <> 0 ORDER BY id",
)


def orders_of(rows: list[Row]) -> list[list[Row]]:
    return [list(order) for _, order in groupby(rows, lambda row: row["order_number"])]


def import_orders(*orders: list[Row], finalize: bool = True) -> int:
    """Import orders, each given by its rows; return how many were new."""
    text = csv_text([row for order in orders for row in order])
    task, faults = imported(text.encode(), finalize=finalize)
    assert not faults
    return task.imported


def asleep(manage: Manage, *command: str, at: str) -> Started:
    """Start a command that stops at the first of the fault points; return it stopped."""
    started = manage.start(*command, "--json", env=QUICK | {"RECOVERY_FAULTPOINTS": at})
    eventually(started.is_stopped)
    return started


def drain_asleep(manage: Manage) -> tuple[Started, int]:
    """Return a drain that stopped with the lease in its hand, and its fence."""
    environment = QUICK | {"RECOVERY_FAULTPOINTS": "lease.acquired=stop"}

    def taken() -> Started | None:
        started = manage.start("run_job", OUTBOX, "--json", env=environment)
        eventually(lambda: started.process.poll() is not None or started.is_stopped())
        return started if started.process.poll() is None else None  # the cluster was faster

    drain = eventually(taken)
    assert drain is not None
    return drain, JobRun.objects.get(pid=drain.pid).fence


def woken(sleeper: Started) -> dict[str, Any]:
    """Let a sleeper go on to its end; return what it says."""
    sleeper.signal(signal.SIGCONT)
    finished = sleeper.finish()
    assert finished.returncode == 1, finished.stderr
    return dict(finished.json())


def committed() -> dict[str, list[Any]]:
    """Return all that finalizers and drains write."""
    with connection.cursor() as cursor:
        found = {}
        for table in COMMITTED:
            cursor.execute(f"SELECT * FROM {table}")
            found[table] = list(cursor.fetchall())
        return found


def brought_back(backup: str, manage: Manage) -> Any:
    """Restore, and make it safe; return what the command says."""
    restore(backup)
    done = manage("after_restore", "--yes", "--json", "--reason", "INC-9: disk lost", env=QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.json()


def settled() -> bool:
    unfinished = SplitOrder.objects.exclude(status=OrderStatus.FINALIZED)
    return not unfinished.exists() and not OutboxEntry.objects.pending().exists()


def assert_nothing_is_lost_or_doubled() -> None:
    """Ask the independent checker, and the project's own."""
    with closing(connect(database_url())) as link:
        assert violations(link, ROWS) == []
    report = Report()
    reconcile(report)
    assert report.ok


def test_without_it_what_was_handed_out_before_the_restore_is_handed_out_again(no_redis, manage):
    """What after_restore is for: this is the damage that its raise of the numbers prevents."""
    first = orders_of(ROWS)[0]
    number = first[0]["order_number"]
    schedules.ensure_rows()
    import_orders(first, finalize=False)
    points = "finalize.after_step.consume_source=stop,finalize.before_finish=stop"
    finalizer = asleep(manage, "finalize", number, at=points)
    backup = dump()
    finalizer.signal(signal.SIGCONT)
    eventually(SplitOrder.objects.filter(steps__name="notify").exists)
    eventually(finalizer.is_stopped)
    with leases.taking(OUTBOX) as lost:
        pass

    restore(backup)
    with leases.taking(OUTBOX) as another:
        assert another.fence == lost.fence
    lost.renew()
    finalizer.signal(signal.SIGCONT)
    assert finalizer.finish().returncode == 0
    order = SplitOrder.objects.get()
    assert (order.status, order.outputs.count()) == (OrderStatus.FINALIZED, 0), "nothing was split"

    restore(backup)
    call_command("after_restore", "--yes")
    pauses.resume(OUTBOX, actor="cli:anna")
    leases.acquire(OUTBOX)
    with pytest.raises(leases.LeaseLostError):
        lost.renew()
    assert not SplitOrder.objects.filter(pk=order.pk).finish(order.finalize_epoch)


def test_hour_old_copy_brought_back_under_a_live_cluster_loses_and_doubles_nothing(
    redis_up, manage, cluster
):
    *early, sleeping = orders_of(ROWS)[:6]
    drafted, *late = orders_of(ROWS)[6:]
    sleeping_number, drafted_number = sleeping[0]["order_number"], drafted[0]["order_number"]
    schedules.ensure_rows()
    pauses.pause(STUCK, actor="cli:anna", reason="stocktaking")
    import_orders(sleeping, finalize=False)
    points = "finalize.after_step.consume_source=stop,finalize.before_finish=stop"
    first = asleep(manage, "finalize", sleeping_number, at=points)
    import_orders(*early)
    living = cluster(**QUICK)
    eventually(SplitOrder.objects.filter(status=OrderStatus.FINALIZED).exists)
    backup = aged(dump(), HOUR)

    # The hour that will be lost.
    first.signal(signal.SIGCONT)
    import_orders(*late)
    import_orders(drafted, finalize=False)
    pauses.pause(FINALIZE, actor="cli:anna", reason="a look")
    second = asleep(manage, "finalize", drafted_number, at="finalize.before_finish=stop")
    lost = SplitOrder.objects.get(number=drafted_number)
    pauses.resume(FINALIZE, actor="cli:anna")
    finalized = SplitOrder.objects.filter(status=OrderStatus.FINALIZED)
    eventually(lambda: finalized.count() == len(early) + len(late))
    eventually(first.is_stopped)
    drain, fence = drain_asleep(manage)

    document = brought_back(backup, manage)
    assert not SplitOrder.objects.filter(number=drafted_number).exists()
    assert document["paused_before"] == [STUCK]
    assert document["in_progress"] >= 1
    assert document["fences"][OUTBOX]["after"] > fence

    # As it says: import again. The database hands out ids and epochs of the lost hour again.
    assert import_orders(*late) == len(late)
    assert import_orders(drafted, finalize=False) == 1
    third = asleep(manage, "finalize", drafted_number, at="finalize.after_step.validate=stop")
    again = SplitOrder.objects.get(number=drafted_number)
    assert (again.pk, again.finalize_epoch) == (lost.pk, lost.finalize_epoch)

    before = committed()
    assert woken(first)["failed"][0]["code"] == "fenced"
    assert woken(second)["failed"][0]["code"] == "fenced"
    assert woken(drain)["reason"].startswith("lease ")
    assert committed() == before
    third.signal(signal.SIGCONT)
    assert third.finish().returncode == 0

    for name in (*document["paused"], STUCK):
        call_command("jobs", "resume", name)
    eventually(settled)
    assert_nothing_is_lost_or_doubled()
    recovered = AuditRecord.objects.filter(action="split-order-finalize-stuck-recovered")
    assert recovered.filter(target_id=sleeping_number).count() == 1
    assert living.stop().json()["restarts"] == 0
