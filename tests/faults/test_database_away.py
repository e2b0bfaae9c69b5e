"""The database is away, or its disk is full, while a real cluster works: nobody is charged.

``SOAK=1`` lets it be away for five minutes.
"""

import os
import subprocess
import time
from contextlib import closing, suppress

import pytest

from tests.faults.checker import connect, query, violations
from tests.faults.installation import Importer, installed, plan_rows
from tests.waiting import eventually

SOAK = os.environ.get("SOAK") == "1"
AWAY_S = 300 if SOAK else 12
FLAPS, FLAP_S = 15, 0.3
ORDERS = 20
MANY_ORDERS = 60
QUICK = {
    "JOB_OUTBOX_PERIOD_SEC": "1",
    "JOB_FINALIZE_PERIOD_SEC": "1",
    "JOB_STUCK_PERIOD_SEC": "1",
    "JOB_FINALIZE_STUCK_THRESHOLD_SEC": "300",
}
"""Nothing is reset before what was cut off had its time to be given back."""
CHARGED = """
    SELECT number, finalize_attempts, recovery_count, last_finalize_error FROM splits_splitorder
     WHERE finalize_attempts <> 1
    UNION ALL
    SELECT event_key, attempts, 0, last_error FROM ledger_outboxentry
     WHERE attempts > 1 OR last_error <> ''
    UNION ALL SELECT target_id, 0, 0, action FROM recovery_auditrecord
     WHERE action <> 'split-order-finalize-stuck-recovered'"""

pytestmark = [
    pytest.mark.mariadb,
    pytest.mark.redis,
    pytest.mark.timeout(AWAY_S + 400),
    pytest.mark.usefixtures("db"),
]


def pause(seconds):
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= end, deadline_s=seconds + 60)


def in_mid_step(installation):
    """Tell whether an order's row is locked in the middle of a step that hangs."""
    return installation.count(
        "SELECT COUNT(*) FROM splits_splitorder WHERE finalize_in_progress"
        " AND finalize_progress_at < UTC_TIMESTAMP(6) - INTERVAL 0.3 SECOND"
    )


def assert_all_is_well(installation, rows):
    with closing(connect(installation.database.url)) as link:
        assert violations(link, rows) == []
        assert query(link, CHARGED) == []


def test_outage_in_the_middle_of_everything_charges_nobody(capsys):
    """First the wire is cut again and again, then nothing is let through for a while."""
    rows = plan_rows(ORDERS)
    slow = {"RECOVERY_FAULTPOINTS": "finalize.in_step.create_outputs=sleep:0.8"}
    with installed(**QUICK, **slow) as installation:
        wire = installation.to_database
        importer = Importer(installation, [rows])
        importer.start()
        installation.start_clusters(1)
        (cluster,) = installation.clusters
        before = cluster.started.family()
        for _ in range(FLAPS):
            pause(FLAP_S)
            wire.cut()
        eventually(lambda: in_mid_step(installation))
        wire.refuse()
        pause(AWAY_S)
        wire.mend()
        back = time.monotonic()
        importer.wait(180)
        installation.settle(orders=ORDERS, deadline_s=180)
        settled_s = time.monotonic() - back
        assert_all_is_well(installation, rows)
        assert before <= cluster.started.family(), "no process was lost"
        log = cluster.stop().stderr
        recoveries = installation.count("SELECT SUM(recovery_count) FROM splits_splitorder")
    assert "finalize_left_in_progress" in log
    if not SOAK:
        assert recoveries == 0
    with capsys.disabled():
        failed = log.count('"run_failed"') + log.count('"run_skipped_no_lock"')
        print(  # noqa: T201 - the figures of a soak
            f"\n  away {AWAY_S} s after {FLAPS} cuts: {failed} runs failed or skipped,"
            f" {recoveries} resets, all settled {settled_s:.1f} s after it was back"
        )


@pytest.fixture
def small_disk(tmp_path):
    """Mount a small disk; skip where that cannot be done."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200m", "tests-small-disk", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted: {error}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_full_disk_of_the_database_charges_nobody_and_all_is_done_once_there_is_room(small_disk):
    rows = plan_rows(MANY_ORDERS)
    ballast = small_disk / "ballast"
    with installed(small_disk, **QUICK) as installation:
        importer = Importer(installation, [rows])
        importer.start()
        importer.wait(120)
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4_096))
        installation.start_clusters(1)
        (cluster,) = installation.clusters
        eventually(lambda: cluster.started.printed()[1].count("is full") > 5)
        pause(2)
        ballast.unlink()
        installation.settle(orders=MANY_ORDERS, deadline_s=180)
        assert_all_is_well(installation, rows)
        cluster.stop()
