"""Closing and reopening accounts: once, on the record, by those who may."""

import pytest

from ledger import accounts
from ledger.admin.accounts import find
from ledger.models import Account, EntryStatus
from recovery.models import AuditRecord
from tests.adminpages import list_url, page_url, staff, text_of
from tests.ledger.entries import Background, drain, fresh, into, make_due, put, somebody_waits
from tests.recovery.engine import in_threads
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def oak():
    return Account.objects.create(code="stock:OAK", unit="m2", balance="12.5")


@pytest.fixture
def url():
    return list_url(Account)


@pytest.fixture
def operator():
    return staff("ann", "view_account", "change_account")


def confirmed(*rows, action="close", reason="stocktaking", **more):
    ids = [row.pk for row in rows]
    return {"action": action, "_selected_action": ids, "confirmed": "y", "reason": reason} | more


def is_closed(account):
    return Account.objects.get(pk=account.pk).closed_at is not None


def close(account, **author):
    return accounts.close(account.code, account.unit, **({"actor": "ann", "reason": "x"} | author))


def reopen(account, **author):
    return accounts.reopen(account.code, account.unit, **({"actor": "ann", "reason": "x"} | author))


def test_closing_is_on_the_record(oak):
    assert close(oak, actor="ann", reason="stocktaking")
    closed_at = Account.objects.get().closed_at
    record = AuditRecord.objects.get()
    assert (record.action, record.actor, record.reason) == ("account-closed", "ann", "stocktaking")
    assert (record.target_type, record.target_id) == ("account", "stock:OAK [m2]")
    assert record.before == {"closed_at": None}
    assert record.after == {"closed_at": closed_at.isoformat()}
    assert record.evidence == {"code": "stock:OAK", "unit": "m2", "balance": "12.5"}


def test_reopening_is_on_the_record(oak):
    close(oak)
    closed_at = Account.objects.get().closed_at
    assert reopen(oak, reason="count over")
    assert not is_closed(oak)
    record = AuditRecord.objects.latest("id")
    assert (record.action, record.reason) == ("account-reopened", "count over")
    assert record.before == {"closed_at": closed_at.isoformat()}
    assert record.after == {"closed_at": None}


def test_closing_twice_is_one_closing(oak):
    assert close(oak)
    closed_at = Account.objects.get().closed_at
    assert not close(oak, actor="bob")
    assert Account.objects.get().closed_at == closed_at
    assert AuditRecord.objects.count() == 1


def test_open_or_unknown_account_is_left_alone(oak):
    assert not reopen(oak)
    assert not accounts.close("stock:OAK", "pcs", actor="ann", reason="x")
    assert not accounts.reopen("stock:nothing", "m2", actor="ann", reason="x")
    assert not AuditRecord.objects.exists()


def test_other_units_of_the_code_stay_open(oak):
    pieces = Account.objects.create(code="stock:OAK", unit="pcs")
    close(oak)
    assert not is_closed(pieces)


def test_no_record_no_change(oak, monkeypatch):
    def refuse(**_kwargs):
        raise RuntimeError("the audit table is gone")

    monkeypatch.setattr(accounts.audit, "record", refuse)
    with pytest.raises(RuntimeError):
        close(oak)
    assert not is_closed(oak)


def test_two_at_once_close_and_record_once(oak):
    results = in_threads(lambda: close(oak, actor="ann"), lambda: close(oak, actor="bob"))
    assert sorted(results) == [False, True]
    assert AuditRecord.objects.count() == 1


def test_longest_name_can_be_recorded_and_looked_at(operator, admin_client, url):
    long = Account.objects.create(code="stock:" + "X" * 184, unit="u" * 20)
    operator.post(url, confirmed(long))
    record = AuditRecord.objects.get()
    assert len(record.target_id) == 190
    assert record.evidence["code"] == long.code
    assert f'href="{page_url(record)}"' in admin_client.get(page_url(long)).content.decode()
    assert admin_client.get(page_url(record)).status_code == 200


def test_entry_is_refused_by_a_closed_account_and_posted_after_it_is_reopened(oak):
    close(oak)
    entry = put("k", into("OAK", "1"))
    drain()
    assert fresh(entry).last_error_code == "account_closed"
    reopen(oak)
    make_due()
    drain()
    assert fresh(entry).status == EntryStatus.POSTED


@pytest.mark.mariadb
def test_closing_waits_for_the_batch_that_posts(oak, second_connection):
    with second_connection.cursor() as cursor:
        cursor.execute("START TRANSACTION")
        cursor.execute("UPDATE ledger_account SET balance = 20 WHERE id = %s", [oak.pk])
        closing = Background(lambda: close(oak))
        eventually(somebody_waits)
        cursor.execute("COMMIT")
    assert closing.result()
    assert AuditRecord.objects.get().evidence["balance"] == "20"


@pytest.mark.mariadb
def test_record_says_what_was_when_the_row_was_had(oak, second_connection):
    close(oak)
    with second_connection.cursor() as cursor:
        cursor.execute("START TRANSACTION")
        cursor.execute("UPDATE ledger_account SET closed_at = '2026-02-03' WHERE id = %s", [oak.pk])
        opening = Background(lambda: reopen(oak))
        eventually(somebody_waits)
        cursor.execute("COMMIT")
    assert opening.result()
    record = AuditRecord.objects.latest("id")
    assert record.before == {"closed_at": "2026-02-03T00:00:00+00:00"}


# In the admin


def test_account_is_closed_and_reopened_by_hand(operator, url, oak):
    question = operator.post(url, {"action": "close", "_selected_action": [oak.pk]})
    assert "stock:OAK [m2]" in question.content.decode()
    assert not is_closed(oak)
    response = operator.post(url, confirmed(oak), follow=True)
    assert [str(it) for it in response.context["messages"]] == ["Account stock:OAK [m2] is closed."]
    assert is_closed(oak)
    response = operator.post(url, confirmed(oak, action="reopen"), follow=True)
    assert [str(it) for it in response.context["messages"]] == [
        "Account stock:OAK [m2] is open again."
    ]
    assert not is_closed(oak)
    assert [it.actor for it in AuditRecord.objects.all()] == ["ann", "ann"]


def test_what_was_so_already_is_said_per_account(operator, url, oak):
    ash = Account.objects.create(code="stock:ASH", unit="m2")
    close(oak)
    response = operator.post(url, confirmed(oak, ash), follow=True)
    assert [str(it) for it in response.context["messages"]] == [
        "Account stock:OAK [m2] was closed already; nothing has been changed.",
        "Account stock:ASH [m2] is closed.",
    ]
    response = operator.post(url, confirmed(ash, action="reopen"), follow=True)
    response = operator.post(url, confirmed(ash, action="reopen"), follow=True)
    assert [str(it) for it in response.context["messages"]] == [
        "Account stock:ASH [m2] was open; nothing has been changed."
    ]


def test_reason_is_required(operator, url, oak):
    response = operator.post(url, confirmed(oak, reason=" "))
    assert response.context["form"].errors
    assert not is_closed(oak)


def test_page_offers_what_fits(operator, oak):
    assert 'name="action" value="close"' in operator.get(page_url(oak)).content.decode()
    close(oak)
    page = operator.get(page_url(oak)).content.decode()
    assert 'name="action" value="reopen"' in page
    assert 'name="action" value="close"' not in page


def test_onlooker_may_not(url, oak):
    onlooker = staff("bob", "view_account", "change_job")
    assert 'value="close"' not in onlooker.get(page_url(oak)).content.decode()
    assert onlooker.get(url).context["action_form"] is None
    assert onlooker.post(url, confirmed(oak)).status_code == 403
    assert not is_closed(oak)


def test_page_shows_who_closed_the_account_and_the_record_leads_back(admin_client, oak):
    close(oak, actor="ann", reason="stocktaking")
    shown = text_of(admin_client, page_url(oak))
    assert "ann account-closed stocktaking" in shown
    record = AuditRecord.objects.get()
    assert f'href="{page_url(oak)}"' in admin_client.get(page_url(record)).content.decode()


@pytest.mark.parametrize("name", ["", "stock:OAK", "[m2]", "stock:OAK [pcs]", "stock:OAK [m2] x"])
def test_what_names_no_account_finds_none(oak, name):
    assert find(name) is None


def test_account_is_found_by_its_name(oak):
    odd = Account.objects.create(code="a [b]", unit="[c]")
    assert find(str(oak)) == oak
    assert find(str(odd)) == odd
