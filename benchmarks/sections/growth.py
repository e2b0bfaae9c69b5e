"""What the tables' size costs: claims, samples and pages on ten thousand rows and on millions."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Count, Model
from django.test import Client
from django.urls import reverse
from django.utils.http import urlencode

from benchmarks import filling
from benchmarks.options import Options
from benchmarks.report import Bar, Row, Table, at_most, plain, ratio
from ledger import rows
from ledger.models import OutboxEntry
from recovery import metrics, retention
from recovery.clock import db_now
from recovery.models import AuditRecord
from splits import stuck
from splits.audit import Author
from splits.models import SplitOrder

OWN_APPS = ("ledger", "recovery", "splits")
FILTERED: tuple[tuple[type[Model], dict[str, str]], ...] = (
    (OutboxEntry, {"status": "dead"}),
    (SplitOrder, {"status": "failed"}),
    (AuditRecord, {"q": "ben"}),
)
PAGE = 100
LOOK_AHEAD = 200
TIMES = 5
RUNS_ALWAYS = ("claim of", "due orders", "stuck orders", "sample of", "page: ")
"""What runs all the time, and what an operator waits for."""
MOST_TIMES, MOST_TIMES_ELSE = 1.5, 2.0
TO_MS = 1_000

Probe = Callable[[], object]
Samples = dict[int, dict[str, list[float]]]


def measure(options: Options) -> Table:
    """Fill a database a size, then ask each the same in every round."""
    began = time.monotonic()
    for size in options.sizes:
        filling.make(_name(size), size)
    filled_s = time.monotonic() - began
    found: Samples = {size: {} for size in options.sizes}
    for number in range(options.rounds):
        for size in options.sizes if number % 2 == 0 else reversed(options.sizes):
            with filling.another(_name(size)):
                _ask(found[size])
    for size in options.sizes:
        filling.drop(_name(size))
    table = _table(options, found)
    table.notes.append(f"filled within {filled_s:.0f} s")
    return table


def _name(size: int) -> str:
    return f"test_growth_{size}"


def _table(options: Options, found: Samples) -> Table:
    least, *larger = options.sizes
    most = larger[-1]
    title = (
        f"milliseconds with {most:,} rows in each large table, beside {least:,}"
        f" ({options.rounds} rounds of {TIMES})"
    )
    table = Table("growth", title, "ms", floor=f"{least:,} rows")
    for name, samples in found[most].items():
        note = "; ".join(
            _beside(size, found[size][name], found[least][name]) for size in larger[:-1]
        )
        usual = f"{least:,}: {plain(statistics.median(found[least][name]))}"
        table.rows.append(Row(name, samples, found[least][name], f"{usual}; {note}".rstrip("; ")))
    always = [name for name in found[most] if name.startswith(RUNS_ALWAYS)]
    table.bars = [
        _bar("claims, stuck orders, gauges and pages", found, always, MOST_TIMES),
        _bar("all else", found, found[most].keys() - set(always), MOST_TIMES_ELSE),
    ]
    return table


def _bar(what: str, found: Samples, names: Iterable[str], limit: float) -> Bar:
    """Hold the slowest of ``names``, of any size, to a limit."""
    least, *larger = sorted(found)
    worst, where = max(
        (ratio(found[size][name], found[least][name]), f"{name}, {size:,} rows")
        for size in larger
        for name in names
    )
    return at_most(f"{what} at most {limit:g} times as long; the worst: {where}", worst, limit)


def _beside(size: int, samples: list[float], floor: list[float]) -> str:
    return f"{size:,}: {plain(statistics.median(samples))} ({ratio(samples, floor):.2f})"


def _ask(found: dict[str, list[float]]) -> None:
    """Time everything on the database in use; keep a median each."""
    for name, probe in _probes().items():
        probe()  # connection, caches and buffers are warm
        samples = []
        for _ in range(TIMES):
            started = time.perf_counter()
            probe()
            samples.append((time.perf_counter() - started) * TO_MS)
        found.setdefault(name, []).append(statistics.median(samples))


def _probes() -> dict[str, Probe]:
    return {
        "claim of due entries": lambda: _undone(lambda: rows.claim(settings.JOB_OUTBOX_BATCH_SIZE)),
        "due orders": _due_orders,
        "stuck orders": _stuck_orders,
        "sample of all gauges": metrics.collect,
        "DLQ by error code": _dead_by_code,
        "audit search by target": lambda: _audit(target_type="split-order", target_id="SO-77"),
        "audit search by actor": lambda: _audit(actor="ben"),
        **{f"retention: next {rule.name}": _sweep(rule) for rule in retention.all_rules()},
        **_pages(),
    }


def _undone(action: Probe) -> None:
    """Do it in a transaction that is rolled back."""
    with transaction.atomic():
        action()
        transaction.set_rollback(True)


def _due_orders() -> None:
    due = SplitOrder.objects.due().order_by("next_finalize_at", "id")
    list(due.values_list("pk", flat=True)[:LOOK_AHEAD])


def _stuck_orders() -> None:
    threshold_s = settings.JOB_FINALIZE_STUCK_THRESHOLD_SEC
    found = list(stuck.find(stuck.Request(Author("cli:benchmark"), threshold_s)))
    assert len(found) == filling.STUCK, f"{len(found)} orders are stuck"


def _dead_by_code() -> None:
    dead = OutboxEntry.objects.dead().order_by().values_list("last_error_code")
    assert len(dead.annotate(n=Count("pk"))) > 1, "there are dead entries of several codes"


def _audit(**wanted: Any) -> None:
    found = list(AuditRecord.objects.filter(**wanted).order_by("-id")[:PAGE])
    assert found, f"no audit record of {wanted}"


def _sweep(rule: retention.Rule) -> Probe:
    """Return what deletes the rule's next batch, and brings it back."""

    def next_batch() -> None:
        next(rule.sweep(db_now(), run_id=uuid4(), seal=lambda: None), 0)

    return lambda: _undone(next_batch)


def _pages() -> dict[str, Probe]:
    """Return the first page of every list of our own, and some filtered ones."""
    client = Client(SERVER_NAME="localhost")
    client.force_login(User.objects.get(username=filling.USER))
    models = [model for model in admin.site._registry if model._meta.app_label in OWN_APPS]
    pages = [(f"page: {_plural(model)}", _list_url(model)) for model in models]
    pages += [
        (f"page: {_plural(model)}, {urlencode(query)}", f"{_list_url(model)}?{urlencode(query)}")
        for model, query in FILTERED
    ]
    pages.append(("page: overview", reverse("admin:index")))
    return {name: lambda url=url: _get(client, url) for name, url in pages}  # type: ignore[misc]


def _plural(model: type[Model]) -> str:
    return str(model._meta.verbose_name_plural)


def _list_url(model: type[Model]) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")


def _get(client: Client, url: str) -> None:
    response = client.get(url)
    assert response.status_code == 200, f"{url} answers {response.status_code}"
