"""Pages of the admin, the statements behind them, and tables full of rows to list."""

import re
import uuid
from decimal import Decimal
from typing import Any

from django.contrib.admin.utils import quote
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.db.models import Model
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.html import strip_tags
from django.utils.http import urlencode

from ledger.models import Account, OutboxEntry, Posting, Transaction
from ledger.outbox import payload_of
from recovery.models import AuditRecord, Job, JobRun
from splits.models import Breaker, Lot, OrderStatus, SplitOrder
from tests.ledger.entries import into

MODELS = [Account, OutboxEntry, Transaction, AuditRecord, Job, JobRun, Breaker, Lot, SplitOrder]
AT_ONCE = 1_000


def list_url(model: type[Model], **query: Any) -> str:
    """Return the address of a list."""
    opts = model._meta
    url = reverse(f"admin:{opts.app_label}_{opts.model_name}_changelist")
    return f"{url}?{urlencode(query)}" if query else url


def page_url(row: Model) -> str:
    """Return the address of a row's page."""
    opts = row._meta
    return reverse(f"admin:{opts.app_label}_{opts.model_name}_change", args=[quote(row.pk)])


def text_of(client: Client, url: str) -> str:
    """Return what a page says, without its markup."""
    response = client.get(url)
    assert response.status_code == 200, response.headers
    return re.sub(r"\s+", " ", strip_tags(response.content.decode().replace("<", " <")))


def listed(client: Client, model: type[Model], **query: Any) -> list[Any]:
    """Return the keys of the rows that a list shows, in its order."""
    response = client.get(list_url(model, **query))
    assert response.status_code == 200, response.headers
    return [row.pk for row in response.context["cl"].result_list]


def size_shown(client: Client, model: type[Model], **query: Any) -> str:
    """Return what a list says of its size."""
    content = client.get(list_url(model, **query)).content.decode()
    (_, _, rest) = content.partition('<p class="paginator">')
    return re.sub(r"\s+", " ", strip_tags(rest.partition("</p>")[0])).strip()


def statements(client: Client, url: str) -> list[str]:
    """Return the statements that a page executes."""
    with CaptureQueriesContext(connection) as queries:
        assert client.get(url).status_code == 200, url
    return [it["sql"] for it in queries if not it["sql"].startswith(("SAVEPOINT", "RELEASE"))]


def staff(name: str, *permissions: str) -> Client:
    """Return a client logged in as a member of the staff with these permissions."""
    user = User.objects.create_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def fill(count: int) -> None:
    """Fill every large table with ``count`` rows; ten of the oldest are not like the others."""
    numbers = range(1, count + 1)
    payload = payload_of(into("OAK", "1"))
    _store(
        OutboxEntry(
            pk=n,
            event_key=f"split-order:SO-{n}:finalized",
            event_type="test",
            aggregate=f"lot:B{n % 50}",
            payload=payload,
            content_hash="0" * 64,
            status="dead" if n <= 10 else "posted",
            last_error_code="account_closed" if n <= 10 else "",
            last_error="it is closed" if n <= 10 else "",
        )
        for n in numbers
    )
    _store(
        Transaction(pk=n, event_key=f"split-order:SO-{n}:finalized", event_type="test")
        for n in numbers
    )
    closed_at = "2026-01-01T00:00:00Z"
    _store(
        Account(
            pk=n, code=f"stock:SKU-{n:06d}", unit="m2", closed_at=closed_at if n <= 10 else None
        )
        for n in numbers
    )
    _store(Posting(transaction_id=n, line=1, account_id=n % 2 + 1, quantity=1) for n in numbers)
    _store(
        Lot(
            pk=n,
            code=f"B{n}",
            sku="OAK" if n % 2 else f"SKU-{n}",
            quantity=Decimal(10),
            unit="m2",
            root_code=f"B{n % 50}",
            status="cancelled" if n <= 10 else "available",
        )
        for n in numbers
    )
    _store(
        SplitOrder(
            pk=n,
            number=f"SO-{n}",
            source_lot_id=n,
            status=OrderStatus.FAILED if n <= 10 else OrderStatus.FINALIZED,
        )
        for n in numbers
    )
    Job.objects.bulk_create([Job(name="jobA"), Job(name="jobB")])
    _store(
        JobRun(
            pk=n,
            run_id=uuid.UUID(int=n),
            job_id="jobA" if n % 2 else "jobB",
            fence=n,
            host="h",
            pid=1,
            status="died" if n <= 10 else "ok",
        )
        for n in numbers
    )
    _store(
        AuditRecord(
            pk=n,
            actor="ann" if n <= 10 else "system:test",
            action="job-paused" if n <= 10 else "outbox-entry-dead",
            target_type="outbox-entry",
            target_id=f"{n % 1_000}",
            run_id=uuid.UUID(int=n),
        )
        for n in numbers
    )


def _store(rows: Any) -> None:
    found = list(rows)
    type(found[0]).objects.bulk_create(found, batch_size=AT_ONCE)
