"""Pages of the admin, the statements behind them, and tables full of rows to list."""

import re
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
from splits.models import Breaker, Lot, SplitOrder
from tests.ledger.entries import into
from tests.tables import Sql, moment, store_many, text

N = Sql("n")
RUN_ID = text(f"{'0' * 25}{{SUBSTR(10000000 + n, 2)}}")
"""Its hexadecimal digits are those of the row's number."""
MODELS = [Account, OutboxEntry, Transaction, AuditRecord, Job, JobRun, Breaker, Lot, SplitOrder]


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
    shown = content.partition('<p class="paginator">')[2].partition("</p>")[0]
    without_links = re.sub(r'<a .*?</a>|<span class="nowhere">.*?</span>', "", shown)
    return re.sub(r"\s+", " ", strip_tags(without_links)).strip()


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


def of_ten(first: str, rest: str) -> Sql:
    """Return one value for the first ten rows, another one for the rest."""
    return Sql(f"CASE WHEN n <= 10 THEN '{first}' ELSE '{rest}' END")


def fill(count: int) -> None:
    """Fill every large table with ``count`` rows; ten of the oldest are not like the others."""
    key = text("split-order:SO-{n}:finalized")
    # A thousand rows at a time, as an import makes them.
    made = moment("(n - n % 1000) / 1000")
    store_many(
        OutboxEntry,
        count,
        id=N,
        event_key=key,
        event_type="test",
        aggregate=text("lot:B{n % 50}"),
        payload=payload_of(into("OAK", "1")),
        content_hash="0" * 64,
        status=of_ten("dead", "posted"),
        last_error_code=of_ten("account_closed", ""),
        last_error="it is closed",
        created_at=made,
    )
    store_many(Transaction, count, id=N, event_key=key, event_type="test")
    store_many(
        Account,
        count,
        id=N,
        code=text("stock:SKU-{SUBSTR(1000000 + n, 2)}"),
        unit="m2",
        closed_at=Sql(f"CASE WHEN n <= 10 THEN {moment('n')} END"),
    )
    store_many(Posting, count, transaction=N, line=1, account=Sql("n % 2 + 1"), quantity=Decimal(1))
    store_many(
        Lot,
        count,
        id=N,
        code=text("B{n}"),
        sku=Sql(f"CASE WHEN n % 2 = 1 THEN 'OAK' ELSE {text('SKU-{n}')} END"),
        quantity=Decimal(10),
        unit="m2",
        root_code=text("B{n % 50}"),
        status=of_ten("cancelled", "available"),
        created_at=made,
    )
    store_many(
        SplitOrder,
        count,
        id=N,
        number=text("SO-{n}"),
        source_lot=N,
        status=Sql(
            "CASE WHEN n <= 10 THEN 'failed' WHEN n % 3 = 0 THEN 'reversed' ELSE 'finalized' END"
        ),
        created_at=made,
    )
    Job.objects.bulk_create([Job(name="jobA"), Job(name="jobB")])
    store_many(
        JobRun,
        count,
        id=N,
        run_id=RUN_ID,
        job=Sql("CASE WHEN n % 2 = 1 THEN 'jobA' ELSE 'jobB' END"),
        fence=N,
        host="h",
        pid=1,
        status=of_ten("died", "ok"),
        started_at=made,
    )
    store_many(
        AuditRecord,
        count,
        id=N,
        actor=of_ten("ann", "system:test"),
        action=of_ten("job-paused", "outbox-entry-dead"),
        target_type="outbox-entry",
        target_id=text("{n % 1000}"),
        run_id=RUN_ID,
        at=made,
    )
