"""A log-in ends: after so long, after so long without a sign of life; and nothing is left of it."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import Client

from recovery import retention, sessions
from recovery.clock import db_now
from tests.adminpages import statements

pytestmark = pytest.mark.django_db
INDEX = "/admin/"
BEGINNING = 1_800_000_000


@pytest.fixture
def clock(monkeypatch):
    """Return the time that sessions go by, to be moved."""
    time = {"now": BEGINNING}
    monkeypatch.setattr(sessions, "_now", lambda: time["now"])
    return time


@pytest.fixture
def client(clock):
    client = Client()
    client.force_login(User.objects.create_user("ann", is_staff=True))
    return client


def status(client, **extra):
    return client.get(INDEX, **extra).status_code


@pytest.mark.parametrize(("seconds", "code"), [(3_600, 200), (3_601, 302)])
def test_log_in_ends_without_a_sign_of_life(client, clock, seconds, code):
    clock["now"] += seconds
    assert status(client) == code


def test_signs_of_life_keep_it_until_the_longest_time(client, clock):
    for _ in range(8):
        clock["now"] += 3_600
        assert status(client) == 200
    clock["now"] += 1
    assert status(client) == 302


def test_page_that_refreshes_itself_is_no_sign_of_life(client, clock):
    for _ in range(2):
        clock["now"] += 1_800
        assert status(client, headers={"X-Requested-With": "XMLHttpRequest"}) == 200
    clock["now"] += 1
    assert status(client) == 302


def test_whoever_is_logged_out_is_told_and_can_come_again(client, clock):
    clock["now"] += 3_601
    page = client.get(INDEX, follow=True)
    assert [str(it) for it in page.context["messages"]] == [
        "You have been logged out, as is usual after some time."
    ]
    client.force_login(User.objects.get())
    assert status(client) == 200


@pytest.mark.parametrize(("seconds", "why"), [(3_601, "idle"), (28_801, "max")])
def test_log_says_why_it_ended(client, clock, caplog, seconds, why):
    caplog.set_level("INFO")
    clock["now"] += seconds
    status(client)
    (line,) = [it for it in caplog.records if it.message == "logged_out"]
    assert (line.user, line.why) == ("ann", why)


def test_post_of_a_log_in_that_is_over_does_nothing(client, clock):
    clock["now"] += 3_601
    response = client.post("/admin/password_change/", {"old_password": "x"})
    assert "/admin/login/" in response.headers["Location"]


def test_sign_of_life_is_written_once_a_minute_at_most(client, clock):
    status(client)
    clock["now"] += 59
    assert not [sql for sql in statements(client, INDEX) if sql.startswith("UPDATE")]
    clock["now"] += 1
    assert [sql for sql in statements(client, INDEX) if sql.startswith("UPDATE")]


def test_session_of_before_these_limits_begins_now(client, clock):
    session = client.session
    del session[sessions.BEGAN], session[sessions.SEEN]
    session.save()
    clock["now"] += 100_000
    assert status(client) == 200
    clock["now"] += 3_601
    assert status(client) == 302


def test_cookie_is_kept_from_scripts_and_other_sites(client, clock):
    clock["now"] += 60
    cookie = client.get(INDEX).cookies["sessionid"]
    assert (cookie["httponly"], cookie["samesite"]) == (True, "Lax")


def test_expired_sessions_are_deleted_and_others_stay(client):
    (mine,) = Session.objects.all()
    Session.objects.create(
        session_key="over", session_data="", expire_date=db_now() - timedelta(seconds=1)
    )
    (rule,) = [it for it in retention.all_rules() if it.name == "expired_sessions"]
    assert list(rule.sweep(db_now(), run_id=uuid4(), seal=lambda: None)) == [1]
    assert [it.pk for it in Session.objects.all()] == [mine.pk]
