"""One order, by its number, through the logs of web, worker, retry and ledger: with one grep."""

import json
import re
import signal
import subprocess
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, build_opener

import pytest
from django.conf import settings
from django.test import Client

from recovery.roles import OPERATOR
from splits.models import OrderStatus, SplitOrder, StepName
from tests.console import REASON, preview_url
from tests.factories import SplitOrderFactory
from tests.ledger.entries import into, put
from tests.roles import grant_all, person
from tests.splits.state import assert_finalized_once
from tests.waiting import eventually
from tests.web import Web

pytestmark = pytest.mark.django_db(transaction=True)

NUMBER = "SO-FOLLOWED"
HASTE = {
    "DEBUG": "true",
    "JOB_OUTBOX_PERIOD_SEC": "2",
    "JOB_FINALIZE_PERIOD_SEC": "2",
    "JOB_STUCK_PERIOD_SEC": "2",
    "JOB_PLANS_PERIOD_SEC": "1",
    "JOB_BACKOFF_BASE_SEC": "0.1",
    "JOB_FINALIZE_RETRY_LIMIT": "1",
}
FAULT = f"finalize.before_step.{StepName.CREATE_OUTPUTS}=raise"


@pytest.fixture
def marked():
    """Return an order whose content must not turn up in any log."""
    put("stock", into("OAK", "1000"))
    return SplitOrderFactory(number=NUMBER)


def status_is(status):
    return lambda: SplitOrder.objects.get(number=NUMBER).status == status


def retry_in_the_console(web, order):
    """Retry a failed order as an operator does, over HTTP: see the preview, say why, send it."""
    grant_all()
    session = Client()
    session.force_login(person(OPERATOR))
    opener = build_opener(HTTPCookieProcessor())
    value = session.cookies[settings.SESSION_COOKIE_NAME].value
    cookie = ("Cookie", f"{settings.SESSION_COOKIE_NAME}={value}")
    address = f"{web.url}{preview_url('split.retry', ids=order.pk)}"
    opener.addheaders = [cookie]
    with opener.open(address) as answer:
        page, token = answer.read().decode(), answer.headers["Set-Cookie"].partition(";")[0]
    form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))
    opener.addheaders = [("Cookie", f"{cookie[1]}; {token}")]
    sent = urlencode(form | {"reason": REASON, "go": "yes"}).encode()
    with opener.open(address, sent) as answer:
        assert "/recovery/plan/" in answer.url


def test_one_grep_finds_web_failure_retry_and_posting(marked, manage, tmp_path):
    web = Web(manage, **HASTE)
    broken = manage.start("qcluster", env=HASTE | {"RECOVERY_FAULTPOINTS": FAULT})
    eventually(status_is(OrderStatus.FAILED))
    broken.signal(signal.SIGTERM)
    broken.finish()
    worker = manage.start("qcluster", env=HASTE)
    retry_in_the_console(web, marked)
    eventually(status_is(OrderStatus.FINALIZED))
    eventually(lambda: "entries_posted" in worker.printed()[1])
    eventually(lambda: f"split-order:{NUMBER}:finalized" in worker.printed()[1])
    worker.signal(signal.SIGTERM)  # what it is about to log it logs
    worker.finish()
    for name, started in (("web", web.started), ("broken", broken), ("worker", worker)):
        (tmp_path / f"{name}.log").write_text(started.printed()[1])
    assert_finalized_once(marked)

    found = subprocess.run(
        ["grep", "--with-filename", NUMBER, "web.log", "broken.log", "worker.log"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    records = [line.partition(":")[::2] for line in found.stdout.splitlines()]
    told = {json.loads(text)["event"]: (file, json.loads(text)) for file, text in records}

    file, made = told["plan_made"]
    assert (file, made["targets"], made["action"]) == ("web.log", NUMBER, "split.retry")
    assert len(made["request_id"]) == 32
    file, failed = told["finalize_failed"]
    assert (file, failed["order"], failed["attempt"]) == ("broken.log", NUMBER, 1)
    assert (failed["code"], failed["job"]) == ("unexpected", "finalizeRetryWorker")
    assert "InjectedFaultError" in failed["exception"]
    file, finalized = told["finalized"]
    assert (file, finalized["order"]) == ("worker.log", NUMBER)
    assert finalized["epoch"] > failed["epoch"]
    file, posted = told["entries_posted"]
    assert (file, posted["job"]) == ("worker.log", "processLedgerOutbox")
    assert marked.event_key in posted["event_keys"].split()
