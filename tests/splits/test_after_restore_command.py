"""``manage.py after_restore``: what it pauses, raises, clears, records and says."""

import io
import json
import os
import pty
import subprocess
import sys

import pytest
from django.core.management import CommandError, call_command
from django_q.brokers import get_broker
from django_q.models import OrmQ

from ledger.outbox import JOB as OUTBOX
from recovery import leases, link, pauses, registry, restoring, runner, schedules, wakeups
from recovery.models import AuditRecord, Job
from splits.finalize import Ending, finalize
from splits.models import OrderStatus, SplitOrder
from splits.restoring import raise_epochs
from tests.factories import AUTHOR, SplitOrderFactory, hang
from tests.processes import environment
from tests.recovery.engine import client, statuses
from tests.splits import plans
from tests.splits.state import assert_finalized_once

pytestmark = pytest.mark.django_db(transaction=True)

JOBS = [job.name for job in registry.all_jobs()]
FINALIZE = "finalizeRetryWorker"


@pytest.fixture(autouse=True)
def _rows():
    schedules.ensure_rows()


def run(*arguments: str) -> tuple[int, dict]:
    out, status = io.StringIO(), 0
    try:
        call_command("after_restore", *arguments, "--json", stdout=out)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    return status, json.loads(out.getvalue())


def imported_order() -> SplitOrder:
    """Return a ready order whose board was received, so that reconcile has nothing to say."""
    plans.imported(plans.plan(*plans.order()), finalize=True)
    return SplitOrder.objects.get()


def epoch(order: SplitOrder) -> int:
    return SplitOrder.objects.get(pk=order.pk).finalize_epoch


def test_every_job_is_paused_on_the_record():
    assert run("--yes", "--reason", "INC-7: disk lost")[0] == 0
    assert not Job.objects.filter(paused_at=None).exists()
    records = AuditRecord.objects.filter(action="job-paused")
    assert sorted(records.values_list("target_id", flat=True)) == JOBS
    assert set(records.values_list("reason", flat=True)) == {"INC-7: disk lost"}
    assert {runner.run_job(name).reason for name in JOBS} == {"paused"}


def test_job_that_was_paused_before_is_told_apart():
    pauses.pause(OUTBOX, actor="cli:anna", reason="stocktaking")
    _status, document = run("--yes")
    assert document["paused_before"] == [OUTBOX]
    assert document["paused"] == [name for name in JOBS if name != OUTBOX]
    assert f"manage.py jobs resume {OUTBOX}" not in document["next"]
    assert f"manage.py jobs resume {FINALIZE}" in document["next"]


def test_run_of_before_the_restore_commits_nothing_and_its_fence_is_not_reused(rung):
    with leases.taking(OUTBOX) as lost:
        pass
    _status, document = run("--yes")
    with pytest.raises(leases.LeaseLostError):
        lost.renew()
    change = document["fences"][OUTBOX]
    assert change["before"] == lost.fence
    assert change["after"] == Job.objects.get(name=OUTBOX).fence > lost.fence + 10**9
    pauses.resume(OUTBOX, actor="cli:anna")
    assert leases.acquire(OUTBOX).fence == change["after"] + 1, "the lease is free at once"


def test_run_that_was_under_way_in_the_backup_is_buried_by_the_next_one(rung):
    job = Job.objects.get(name=OUTBOX)
    job.runs.create(fence=job.fence, host="gone", pid=1)
    run("--yes")
    assert statuses(OUTBOX) == ["running"]
    pauses.resume(OUTBOX, actor="cli:anna")
    assert runner.run_job(OUTBOX).status == "ok"
    assert statuses(OUTBOX) == ["died", "ok"]


def test_epochs_of_all_that_can_still_be_claimed_are_raised():
    unfinished = [SplitOrderFactory(at=status) for status in ("draft", "ready", "failed")]
    unfinished += [SplitOrderFactory(at=OrderStatus.QUARANTINED), hang(SplitOrderFactory())]
    settled = SplitOrderFactory(at=OrderStatus.FINALIZED), SplitOrderFactory(at="cancelled")
    before = [epoch(order) for order in settled]
    _status, document = run("--yes")
    assert document["epochs_raised"] == len(unfinished)
    assert all(epoch(order) > 10**12 for order in unfinished)
    assert [epoch(order) for order in settled] == before


def test_more_orders_than_one_transaction_takes_are_raised(monkeypatch):
    monkeypatch.setattr("splits.restoring.AT_ONCE", 2)
    orders = [SplitOrderFactory() for _ in range(5)]
    assert run("--yes")[1]["epochs_raised"] == len(orders)
    assert all(epoch(order) > 10**12 for order in orders)


def test_order_in_progress_is_left_to_the_recovery_with_its_proof():
    order = hang(SplitOrderFactory())
    stale = order.finalize_epoch
    assert run("--yes")[1]["in_progress"] == 1
    order.refresh_from_db()
    assert order.finalize_in_progress
    assert not SplitOrder.objects.filter(pk=order.pk).progress(stale)
    for name in JOBS:
        pauses.resume(name, actor="cli:anna")
    assert runner.run_job("recoverFinalizeStuck").result == {"recovered": 1}
    assert runner.run_job(FINALIZE).result == {"finalized": 1}
    assert_finalized_once(order)


def test_raising_twice_passes_what_was_handed_out_in_between():
    order = SplitOrderFactory()
    first = run("--yes")[1]["fences"][OUTBOX]["after"]
    SplitOrder.objects.filter(pk=order.pk).claim("after-the-first-restore")
    handed_out = epoch(order)
    # The same backup once more: it knows nothing of what the first run raised.
    Job.objects.update(fence=0, paused_at=None)
    SplitOrder.objects.update(finalize_epoch=0, finalize_in_progress=False)
    _status, document = run("--yes")
    assert document["fences"][OUTBOX]["after"] > first
    SplitOrder.objects.filter(pk=order.pk).claim("after-the-second-restore")
    assert epoch(order) > handed_out


def test_second_run_does_no_harm():
    ready = imported_order()
    assert run("--yes")[0] == 0
    status, document = run("--yes")
    assert (status, document["paused"], document["paused_before"]) == (0, [], JOBS)
    assert document["epochs_raised"] == 1
    assert AuditRecord.objects.filter(action="job-paused").count() == len(JOBS)
    acts = AuditRecord.objects.filter(action="database-restored", target_id="default")
    assert acts.count() == 2
    outcome = finalize(ready.pk, author=AUTHOR)
    assert outcome is not None
    assert outcome.ending is Ending.FINALIZED


def test_locks_wake_ups_heartbeats_and_queue_of_redis_are_cleared_and_no_other_key(redis_up):
    assert runner.run_job(FINALIZE).status == "ok"
    wakeups.wake(OUTBOX)
    leases.acquire(OUTBOX)
    client().set("lock:other", "x")
    client().set("django_q:other:q", "x")
    assert sorted(run("--yes")[1]["cleared"].items()) == [
        ("heartbeats", 1), ("locks", 1), ("queued", 1), ("wake_ups", 1),
    ]  # fmt: skip
    assert {key.decode() for key in client().scan_iter()} == {"lock:other", "django_q:other:q"}


def test_wake_ups_and_queue_of_the_database_are_cleared(no_redis):
    wakeups.wake(OUTBOX)
    assert OrmQ.objects.exists()
    _status, document = run("--yes")
    assert (document["cleared"]["queued"], document["cleared"]["wake_ups"]) == (1, 1)
    assert document["redis"] == "not configured"
    assert not OrmQ.objects.exists()
    assert not wakeups.pending(OUTBOX)


def test_without_redis_the_database_is_done_and_the_rest_is_named(redis_up):
    wakeups.wake(OUTBOX)
    redis_up.kill()
    ready = imported_order()
    wakeups.enqueue(FINALIZE)
    status, document = run("--yes")
    assert status == 1
    assert document["redis"].startswith("down: ")
    assert document["next"][0].startswith("Redis was left as it is: run after_restore again")
    assert document["reconcile"]["ok"]
    assert epoch(ready) > 10**12
    assert not OrmQ.objects.exists()
    redis_up.start()
    link.reset()
    assert run("--yes")[0] == 0


def test_redis_that_goes_away_in_the_middle_is_named(redis_up, monkeypatch):
    def broker():
        redis_up.kill()
        return get_broker()

    wakeups.enqueue(FINALIZE)
    monkeypatch.setattr(restoring, "get_broker", broker)
    status, document = run("--yes")
    assert status == 1
    assert document["redis"].startswith("down: ")


def test_act_is_on_the_record_with_the_fences_and_what_was_raised():
    hang(SplitOrderFactory())
    leases.acquire(OUTBOX)
    fences = run("--yes", "--reason", "INC-7")[1]["fences"]
    record, epochs = AuditRecord.objects.filter(action="database-restored").order_by("id")
    assert (epochs.target_id, epochs.reason) == ("splits_splitorder", "INC-7")
    assert epochs.evidence["raised_to"] == record.evidence["raised_to"]
    assert epochs.evidence["orders"] == 1
    assert (record.target_type, record.reason) == ("database", "INC-7")
    assert record.actor.startswith("cli:")
    assert record.before == {"fences": {name: it["before"] for name, it in fences.items()}}
    assert record.after == {"fences": {name: it["after"] for name, it in fences.items()}}
    assert (record.evidence["unfinished_orders"], record.evidence["in_progress"]) == (1, 1)


def test_what_disagrees_is_named_and_exits_1():
    order = SplitOrderFactory(at=OrderStatus.FINALIZED)
    order.steps.filter(name="post_ledger").delete()
    status, document = run("--yes")
    assert status == 1
    assert not document["reconcile"]["ok"]
    assert document["reconcile"]["findings_total"] == len(document["reconcile"]["findings"]) > 0
    assert "reconcile" in document["next"][0]


def test_dry_run_says_it_all_and_changes_nothing(rung):
    order = hang(SplitOrderFactory())
    leases.acquire(OUTBOX)
    wakeups.wake(FINALIZE)
    before = list(Job.objects.values()), list(SplitOrder.objects.values()), _keys()
    status, document = run("--dry-run")
    assert (status, document["dry_run"], document["paused"]) == (0, True, JOBS)
    assert (document["epochs_raised"], document["in_progress"]) == (1, 1)
    assert document["fences"][OUTBOX]["after"] > 10**12
    assert document["cleared"]["queued"] == 1
    assert (list(Job.objects.values()), list(SplitOrder.objects.values()), _keys()) == before
    assert epoch(order) == 1
    assert not AuditRecord.objects.exists()


def _keys() -> set[bytes]:
    return set(client().scan_iter()) if link.configured() else set()


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_script_that_calls_it_is_not_asked(manage, arguments):
    done = manage("after_restore", *arguments)
    assert done.returncode == 0, done.stderr
    assert "Go on?" not in done.stdout
    assert not Job.objects.filter(paused_at=None).exists()


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("", 1)])
def test_on_a_terminal_it_asks(answer, status):
    terminal, keyboard = pty.openpty()
    os.write(terminal, f"{answer}\n".encode())
    command = [sys.executable, "manage.py", "after_restore"]
    done = subprocess.run(
        command, env=environment(), stdin=keyboard, capture_output=True, text=True, check=False
    )
    os.close(terminal)
    os.close(keyboard)
    assert "Go on? [y/N]" in done.stdout
    assert done.returncode == status, done.stderr
    assert Job.objects.filter(paused_at=None).exists() == bool(status)


def test_people_get_text_with_what_to_do_now():
    hang(imported_order())
    out = io.StringIO()
    call_command("after_restore", "--yes", stdout=out)
    said = out.getvalue().splitlines()
    assert said[0] == f"paused: {', '.join(JOBS)}"
    assert said[1] == (
        f"raised: the fences of {len(JOBS)} jobs and the epochs of 1 orders, 1 of them in progress"
    )
    assert "everything agrees" in said
    assert said[said.index("now:") + 2] == f"  2. manage.py jobs resume {JOBS[0]}"


def test_backup_older_than_the_code_is_refused_before_anything_is_done(monkeypatch):
    monkeypatch.setattr("recovery.probing._shipped", lambda: [("splits", "9999_of_tomorrow")])
    with pytest.raises(CommandError, match=r"run manage\.py migrate first.*9999_of_tomorrow"):
        call_command("after_restore", "--yes")
    assert not AuditRecord.objects.exists()


@pytest.mark.mariadb
def test_order_held_by_a_live_transaction_is_named_and_the_others_are_raised(second_connection):
    held, free = SplitOrderFactory(), SplitOrderFactory()
    with second_connection.cursor() as cursor:
        cursor.execute("START TRANSACTION")
        cursor.execute("SELECT id FROM splits_splitorder WHERE id = %s FOR UPDATE", [held.pk])
        cursor.execute("SELECT CONNECTION_ID()")
        (connection_id,) = cursor.fetchone()
        status, document = run("--yes")
        cursor.execute("ROLLBACK")
    assert status == 1
    (named,) = document["held"]
    assert (named["number"], named["holder"]["connection_id"]) == (held.number, connection_id)
    assert held.number in document["next"][0]
    assert (epoch(held), document["epochs_raised"]) == (0, 1)
    assert epoch(free) > 10**12
    assert run("--yes")[1]["held"] == []
    assert epoch(held) > 10**12


def test_epochs_that_cannot_be_recorded_are_not_raised(monkeypatch):
    order = imported_order()

    def refused(*_args, **_facts):
        raise ValueError("no record")

    monkeypatch.setattr("splits.restoring.audit.record", refused)
    with pytest.raises(ValueError, match="no record"):
        raise_epochs(10**12, author=AUTHOR)
    assert epoch(order) == 0
