"""The pages work in a browser under the policy that they are sent with."""

import pytest
from django.contrib.auth import get_user_model

from recovery.models import Job
from tests.adminpages import page_url
from tests.ledger.entries import into, put
from tests.web import Web

pytestmark = pytest.mark.django_db(transaction=True)
LISTS = ("ledger/outboxentry/", "recovery/job/", "auth/user/add/", "recovery/auditrecord/")


@pytest.fixture
def web(browser, manage):
    get_user_model().objects.create_superuser("ops", password="a long password")
    return Web(manage, DEBUG="true")


def test_no_page_does_what_its_policy_refuses(page, web):
    refused: list[str] = []
    page.on("console", lambda it: refused.append(it.text) if it.type == "error" else None)
    page.goto(f"{web.url}/admin/")
    page.fill("input[name=username]", "ops")
    page.fill("input[name=password]", "a long password")
    page.press("input[name=password]", "Enter")
    page.wait_for_url(f"{web.url}/admin/")
    rows = [page_url(put("k", into("OAK", "1"))), page_url(Job.objects.create(name="aJob"))]
    for path in (*(f"/admin/{it}" for it in LISTS), *rows):
        page.goto(web.url + path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("typeof Alpine") == "object", path
    assert not [text for text in refused if "Content Security Policy" in text]
