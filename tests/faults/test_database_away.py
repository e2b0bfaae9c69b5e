"""The database is away, or its disk is full, while a real cluster works: nobody is charged.

``SOAK=1`` lets it be away for five minutes.
"""

import os
import subprocess
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.checker import connect, query, violations
from tests.faults.installation import Importer, installed, plan_rows
from tests.waiting import eventually

SOAK = os.environ.get("SOAK") == "1"
AWAY_S = 300 if SOAK else 8
CUTS, CUT_EVERY_S = 15, 0.3
QUICK = {
    "JOB_OUTBOX_PERIOD_SEC": "1",
    "JOB_FINALIZE_PERIOD_SEC": "1",
    "JOB_STUCK_PERIOD_SEC": "1",
    "JOB_FINALIZE_STUCK_THRESHOLD_SEC": "300",
}
"""Nothing is reset before what was cut off had its time to be given back."""
CHARGED = """
    SELECT number, finalize_attempts, last_finalize_error FROM splits_splitorder
     WHERE finalize_attempts <> 1
    UNION ALL
    SELECT event_key, attempts, last_error FROM ledger_outboxentry
     WHERE attempts > 1 OR last_error <> ''
    UNION ALL SELECT target_id, 0, action FROM recovery_auditrecord
     WHERE action <> 'split-order-finalize-stuck-recovered'"""

pytestmark = [
    pytest.mark.mariadb,
    pytest.mark.redis,
    pytest.mark.timeout(AWAY_S + 400),
]


class Site:
    """An installation with its database on a small disk, where one can be had."""

    def __init__(self, installation, disk):
        self.installation, self.disk = installation, disk
        self.orders = 0

    def begin_import(self, orders):
        """Begin to import so many more."""
        rows = plan_rows(self.orders + orders)[len(plan_rows(self.orders)) :]
        self.orders += orders
        importer = Importer(self.installation, [rows])
        importer.start()
        return importer

    @contextmanager
    def cluster(self, **environment):
        """Run a cluster; nobody was charged for what it met, and all is done at the end."""
        self.installation.environment |= environment
        self.installation.start_clusters(1)
        (cluster,) = self.installation.clusters
        before = cluster.started.family()
        yield cluster
        self.installation.settle(orders=self.orders, deadline_s=180)
        with closing(connect(self.installation.database.url)) as link:
            assert violations(link, plan_rows(self.orders)) == []
            assert query(link, CHARGED) == []
        assert before <= cluster.started.family(), "a process was lost"
        cluster.stop()


@contextmanager
def small_disk(place):
    """Mount a small disk in ``place``; yield None where that cannot be done."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=200m", "tests-small-disk", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory, django_db_setup):
    with small_disk(tmp_path_factory.mktemp("disk")) as disk, installed(disk, **QUICK) as found:
        yield Site(found, disk)


def pause(seconds):
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= end, deadline_s=seconds + 60)


def in_mid_step(site):
    """Tell whether an order's row is locked in the middle of a step that takes its time."""
    return site.installation.count(
        "SELECT COUNT(*) FROM splits_splitorder WHERE finalize_in_progress"
        " AND finalize_progress_at < UTC_TIMESTAMP(6) - INTERVAL 0.2 SECOND"
    )


def test_outage_in_the_middle_of_everything_charges_nobody(site, capsys):
    """First the wire is cut again and again, then nothing is let through for a while."""
    wire = site.installation.to_database
    importer = site.begin_import(orders=12)
    with site.cluster(RECOVERY_FAULTPOINTS="finalize.in_step.create_outputs=sleep:0.7") as cluster:
        for _ in range(CUTS):
            pause(CUT_EVERY_S)
            wire.cut()
        eventually(lambda: in_mid_step(site))
        wire.refuse()
        pause(AWAY_S)
        wire.mend()
        back = time.monotonic()
        importer.wait(180)
        site.installation.settle(orders=site.orders, deadline_s=180)
        settled_s = time.monotonic() - back
        log = cluster.started.printed()[1]
    assert "finalize_left_in_progress" in log
    resets = site.installation.count("SELECT SUM(recovery_count) FROM splits_splitorder")
    if SOAK:
        with capsys.disabled():
            text = f"away {AWAY_S} s after {CUTS} cuts: {resets} resets"
            print(f"\n  {text}, all settled {settled_s:.1f} s after it was back")  # noqa: T201
    else:
        assert resets == 0


def fill(disk) -> Path:
    """Fill the disk; return the file that does."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4_096))
    return ballast


def test_full_disk_of_the_database_charges_nobody_and_all_is_done_once_there_is_room(site):
    if site.disk is None:
        pytest.skip("no small disk can be mounted")
    site.begin_import(orders=60).wait(120)
    ballast = fill(site.disk)
    with site.cluster(RECOVERY_FAULTPOINTS="") as cluster:
        eventually(lambda: cluster.started.printed()[1].count("is full") > 5)
        ballast.unlink()
