"""A whole installation to break: two servers, each behind a proxy, clusters, an endpoint."""

import csv
import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from subprocess import TimeoutExpired
from tempfile import TemporaryDirectory

from tests import servers
from tests.faults.checker import connect, query
from tests.faults.clusters import Cluster
from tests.faults.proxy import Proxy
from tests.processes import Manage, Started
from tests.splits.endpoint import Endpoint, serving
from tests.waiting import eventually

Row = dict[str, str]

PLANS = Path(__file__).parent.parent / "data" / "cut_plans.csv"
QUICK = {
    "JOB_LOCK_TTL_SEC": "4",
    "JOB_OUTBOX_PERIOD_SEC": "2",
    "JOB_FINALIZE_PERIOD_SEC": "2",
    "JOB_STUCK_PERIOD_SEC": "5",
    "JOB_FINALIZE_STUCK_THRESHOLD_SEC": "12",
    "JOB_BACKOFF_BASE_SEC": "1",
    "JOB_BACKOFF_CAP_SEC": "10",
    "SPLIT_COMPLETION_TIMEOUT_SEC": "1",
    "SPLIT_COMPLETION_BREAKER_OPEN_SEC": "2",
    "DATABASE_READ_TIMEOUT_SEC": "6",
    "SECURE_SSL_REDIRECT": "false",
    "LOG_LEVEL": "WARNING",
}
"""Short times, so that what is broken is repaired within seconds."""


def plan_rows(count: int) -> list[Row]:
    """Return the rows of ``count`` orders: the published plans, again under other names."""
    with PLANS.open(encoding="utf-8", newline="") as file:
        published = [list(rows) for _, rows in groupby(csv.DictReader(file), _number)]
    return [row for order in islice(_orders(published), count) for row in order]


def _orders(published: Sequence[list[Row]]) -> Iterator[list[Row]]:
    yield from published
    generation = 2
    while True:
        for order in published:
            yield [_renamed(row, f"G{generation}-") for row in order]
        generation += 1


def _number(row: Row) -> str:
    return row["order_number"]


def _renamed(row: Row, prefix: str) -> Row:
    return row | {key: prefix + row[key] for key in ("order_number", "board_code")}


def csv_text(rows: Sequence[Row]) -> str:
    """Return ``rows`` as a file to import."""
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


@dataclass
class Installation:
    """What runs, and the ways to it."""

    database: servers.MariaDB
    cache: servers.Redis
    to_database: Proxy
    to_cache: Proxy
    endpoint: Endpoint
    folder: Path
    environment: dict[str, str]
    manage: Manage = field(default_factory=Manage)
    clusters: list[Cluster] = field(default_factory=list)
    gave_up: int = 0
    """Clusters that ended by themselves and were started again, as a supervisor does."""

    def start_clusters(self, count: int) -> None:
        """Start clusters and wait until they are complete."""
        self.clusters = [Cluster(self._start("qcluster", "--json")) for _ in range(count)]

    def _start(self, *arguments: str) -> Started:
        return self.manage.start(*arguments, env=self.environment)

    def replace(self, index: int) -> None:
        """Start another cluster in the place of one, and do not wait for it."""
        self.clusters[index] = Cluster(self._start("qcluster", "--json"), complete=False)

    def supervise(self) -> None:
        """Start again what ended by itself."""
        for index, cluster in enumerate(self.clusters):
            if cluster.started.process.poll() is not None:
                self.gave_up += 1
                self.replace(index)

    def import_part(self, name: str, rows: Sequence[Row]) -> Started:
        """Begin to import ``rows`` and submit their orders."""
        path = self.folder / f"{name}.csv"
        path.write_text(csv_text(rows), encoding="utf-8")
        return self._start("import_splits", str(path), "--finalize", "--json")

    def count(self, sql: str) -> int:
        """Return the one number that ``sql`` asks of the server itself, past the proxy."""
        with closing(connect(self.database.url)) as link:
            return int(query(link, sql)[0][0])

    def settle(self, *, orders: int, deadline_s: float) -> None:
        """Wait until nothing is left to be done."""

        def settled() -> bool:
            self.supervise()
            return (
                self.count("SELECT COUNT(*) FROM splits_splitorder WHERE status = 'finalized'")
                == orders
                and self.count("SELECT COUNT(*) FROM ledger_outboxentry WHERE status <> 'posted'")
                == 0
            )

        eventually(settled, deadline_s=deadline_s)


@contextmanager
def installed(database_place: Path | None = None, **environment: str) -> Iterator[Installation]:
    """Run servers and an endpoint with an empty, migrated database; no cluster yet."""
    with ExitStack() as stack:
        database = stack.enter_context(servers.mariadb(database_place))
        cache = stack.enter_context(servers.redis())
        to_database = stack.enter_context(Proxy(database.port))
        to_cache = stack.enter_context(Proxy(cache.port))
        endpoint = stack.enter_context(serving())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="tests-faults-")))
        place = {
            "DATABASE_URL": to_database.url(database.url),
            "REDIS_URL": to_cache.url(cache.url),
            "SPLIT_COMPLETION_WEBHOOK": endpoint.url,
            "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        }
        found = Installation(
            database, cache, to_database, to_cache, endpoint, folder, QUICK | place | environment
        )
        stack.callback(found.manage.clean_up)
        migrated = found.manage("migrate", env=found.environment)
        assert migrated.returncode == 0, migrated.stderr
        yield found


class Importer:
    """Imports parts one after the other, each again until it went through, while all breaks."""

    def __init__(self, installation: Installation, parts: Sequence[Sequence[Row]]) -> None:
        """Take what is to be imported."""
        self.installation = installation
        self.parts = list(parts)
        self.tries = 0
        self.current: Started | None = None
        self.complaint = ""
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def is_done(self) -> bool:
        """Tell whether every part went through."""
        return not self._thread.is_alive()

    def wait(self, deadline_s: float) -> None:
        """Wait until every part went through; fail with what the last try said."""
        self._thread.join(deadline_s)
        assert self.is_done(), self.complaint
        assert not self.complaint, self.complaint

    def _work(self) -> None:
        for number, rows in enumerate(self.parts):
            while not self._went_through(number, rows):
                pass

    def _went_through(self, number: int, rows: Sequence[Row]) -> bool:
        self.tries += 1
        self.current = self.installation.import_part(f"part-{number}", rows)
        try:
            finished = self.current.finish()
        except TimeoutExpired as error:  # it hangs in what is broken: the next try carries on
            self.complaint = str(error)
            return False
        finally:
            self.current.kill_all()
        self.complaint = "" if finished.returncode == 0 else finished.stderr
        return finished.returncode == 0
