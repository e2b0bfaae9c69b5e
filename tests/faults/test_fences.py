"""Late writers: whoever lost the lease or the order writes nothing and releases nobody's lock."""

import os
import signal

import pytest
from django.db.models.functions import Now

from ledger.outbox import JOB as OUTBOX
from recovery.leases import HOST
from recovery.models import Job
from splits import audit
from splits.models import FinalizeStep, SplitOrder, StepName
from tests.faults.workload import BRISK, RESCUING, SHORT, Workload
from tests.recovery.engine import client, row
from tests.splits.endpoint import serving
from tests.splits.state import contents
from tests.waiting import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb]

LOCK = f"lock:job:{OUTBOX}"


@pytest.fixture
def drain(manage):
    """Return what starts a drain that stops at a fault point."""

    def start(point, **environment):
        env = environment | {"RECOVERY_FAULTPOINTS": f"{point}=stop@1"}
        return manage.start("run_job", OUTBOX, "--json", env=env)

    return start


def has_expired():
    """Tell whether the lock of the outbox is free for another, in Redis and in the row."""
    expired = Job.objects.filter(name=OUTBOX, lease_expires_at__lte=Now())
    return expired.exists() and not client().exists(LOCK)


@pytest.mark.parametrize("point", ["lease.acquired", "outbox.before_commit", "outbox.after_commit"])
def test_drain_that_lost_its_lock_leaves_it_to_the_next_holder(finalized, drain, point):
    zombie = drain(point, **SHORT)
    eventually(zombie.is_stopped)
    eventually(has_expired)
    holder = drain("lease.acquired", JOB_LOCK_TTL_SEC="60")
    eventually(holder.is_stopped)
    before, lock, lease = contents(), client().get(LOCK), row(OUTBOX)
    assert lock.decode().startswith(f"{HOST}:{holder.pid}:")
    assert lease.lease_owner == f"{HOST}:{holder.pid}"

    zombie.signal(signal.SIGCONT)
    zombie.finish()
    assert contents() == before
    assert client().get(LOCK) == lock
    now = row(OUTBOX)
    assert (now.fence, now.lease_owner) == (lease.fence, lease.lease_owner)
    assert now.lease_expires_at == lease.lease_expires_at

    holder.signal(signal.SIGCONT)
    assert holder.finish().returncode == 0
    assert not client().exists(LOCK)
    finalized.assert_settled()


def test_finalizer_that_lost_its_order_tells_nobody_outside(manage, settings):
    work = Workload(1)
    with serving() as endpoint:
        settings.SPLIT_COMPLETION_WEBHOOK = endpoint.url
        env = {"SPLIT_COMPLETION_WEBHOOK": endpoint.url}
        env["RECOVERY_FAULTPOINTS"] = "finalize.before_step.notify=stop"
        zombie = manage.start("finalize", *work.numbers, "--json", env=env)
        eventually(zombie.is_stopped)
        manage("recover_stuck", "--threshold", "0")
        work.carry_on()
        zombie.signal(signal.SIGCONT)
        (failed,) = zombie.finish().json()["failed"]
        assert failed["code"] == "fenced"
        assert len(endpoint.bodies) == 1
    work.assert_settled(audited={work.numbers[0]: audit.RECOVERED})


def test_hung_worker_whose_order_another_cluster_finalized_writes_nothing(cluster):
    first = cluster(RECOVERY_FAULTPOINTS="finalize.after_step.consume_source=stop", **BRISK)
    work = Workload(1)
    eventually(FinalizeStep.objects.filter(name=StepName.CONSUME_SOURCE).exists)
    hung = int(SplitOrder.objects.get().finalize_owner.split(":")[1])
    # Not the other workers: one stopped within a transaction would keep its job from everybody.
    *workers_and_monitor, pusher = first.forked()
    assert hung in workers_and_monitor
    os.kill(pusher, signal.SIGSTOP)

    healthy = cluster(**RESCUING)
    eventually(work.is_posted)
    healthy.stop()
    before = contents()
    for pid in (hung, pusher):
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: "finalize_fenced" in first.started.printed()[1])
    first.stop()
    assert contents() == before
    work.assert_settled(audited={work.numbers[0]: audit.RECOVERED})
