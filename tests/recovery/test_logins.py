"""Log-ins: too many failures lock out, the log tells of each, and log-ins end."""

import json
import logging
import re
from datetime import timedelta

import pytest
from axes.models import AccessAttempt, AccessLog
from django.contrib.auth import authenticate
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils.html import strip_tags

from recovery import logins

pytestmark = pytest.mark.django_db

LOGIN, INDEX = "/admin/login/", "/admin/"
RIGHT, WRONG = "the-right-password-1", "a-guess"
HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"
LIMIT = 5


@pytest.fixture(autouse=True)
def ann(settings):
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # it is quick
    User.objects.create_user("bob", password=RIGHT, is_staff=True)
    return User.objects.create_user("ann", password=RIGHT, is_staff=True)


def log_in(name="ann", password=WRONG, *, address=HERE, client=None, **extra):
    form = {"username": name, "password": password}
    return (client or Client()).post(LOGIN, form, REMOTE_ADDR=address, **extra)


def fail(times=LIMIT, **facts):
    return [log_in(**facts) for _ in range(times)][-1]


def said(response):
    return re.sub(r"\s+", " ", strip_tags(response.content.decode()))


def age(**by):
    for attempt in AccessAttempt.objects.all():
        earlier = attempt.attempt_time - timedelta(**by)
        AccessAttempt.objects.filter(pk=attempt.pk).update(attempt_time=earlier)


# The limit


def test_just_below_the_limit_the_right_password_lets_in():
    assert fail(LIMIT - 1).status_code == 200
    assert log_in(password=RIGHT).status_code == 302


def test_failures_up_to_the_limit_lock_out_even_with_the_right_password():
    assert fail().status_code == 429
    assert log_in(password=RIGHT).status_code == 429
    client = Client()
    log_in(password=RIGHT, client=client)
    assert client.get(INDEX).status_code == 302


@pytest.mark.parametrize("other", [{"name": "bob"}, {"address": ELSEWHERE}])
def test_lock_is_of_one_name_at_one_address(other):
    fail()
    assert log_in(password=RIGHT, **other).status_code == 302


def test_another_browser_is_no_way_round():
    for number in range(LIMIT):
        response = log_in(HTTP_USER_AGENT=f"browser {number}")
    assert response.status_code == 429


def test_name_that_nobody_has_is_locked_like_any_other():
    assert fail(name="nobody").status_code == 429


@pytest.mark.parametrize(("seconds", "status"), [(600, 429), (901, 302)])
def test_lock_ends_with_the_cool_off(seconds, status):
    fail()
    age(seconds=seconds)
    assert log_in(password=RIGHT).status_code == status


def test_tries_while_locked_out_do_not_prolong_it():
    fail()
    age(seconds=600)
    assert log_in().status_code == 429
    age(seconds=301)
    assert log_in(password=RIGHT).status_code == 302


def test_success_forgets_the_failures_before():
    fail(LIMIT - 1)
    log_in(password=RIGHT)
    assert not AccessAttempt.objects.exists()
    assert fail(LIMIT - 1).status_code == 200


def test_limit_is_a_setting(settings):
    settings.AXES_FAILURE_LIMIT = settings.LOGIN_FAILURE_LIMIT = 2
    assert fail(1).status_code == 200
    assert fail(1).status_code == 429


# Being let in again


def test_administrator_lets_in_by_deleting_the_attempts(admin_client):
    fail()
    page = admin_client.get(reverse("admin:axes_accessattempt_changelist"), {"q": "ann"})
    (attempt,) = page.context["cl"].result_list
    url = reverse("admin:axes_accessattempt_delete", args=[attempt.pk])
    shown = admin_client.get(reverse("admin:axes_accessattempt_change", args=[attempt.pk]))
    assert url in shown.content.decode()
    assert admin_client.post(url, {"post": "yes"}).status_code == 302
    assert log_in(password=RIGHT).status_code == 302


def test_command_lets_in(capsys):
    fail()
    call_command("axes_reset_username", "ann")
    assert capsys.readouterr().out == "1 attempts removed.\n"
    assert log_in(password=RIGHT).status_code == 302


# What those see who are locked out


def test_page_says_what_happened_how_long_and_who_can_help():
    response = fail()
    text = said(response)
    assert "Too many failed log-ins" in text
    assert f"Log-ins as “ann” from {HERE} failed 5 times." in text
    assert "for 15 minutes at most" in text
    assert "manage.py axes_reset_username ann" in text
    assert 840 < int(response.headers["Retry-After"]) <= 900


def test_page_is_in_the_language_of_the_browser():
    fail()
    response = log_in(headers={"Accept-Language": "zh-hans"})
    assert response.status_code == 429
    assert 'lang="zh-hans"' in response.content.decode()


def test_rest_of_the_time_is_shown():
    fail()
    age(seconds=300)
    response = log_in()
    assert "for 10 minutes at most" in said(response)
    assert 540 < int(response.headers["Retry-After"]) <= 600


def test_name_is_shown_as_it_was_typed_and_harmless():
    page = fail(name="<b>'; reboot").content.decode()
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert "axes_reset_username &#x27;&lt;b&gt;&#x27;&quot;&#x27;&quot;&#x27;; reboot&#x27;" in page


# Where it comes from


@pytest.mark.parametrize(
    ("count", "forwarded", "address"),
    [
        (0, "198.51.100.7", HERE),
        (1, "198.51.100.7", "198.51.100.7"),
        (1, "203.0.113.9, 198.51.100.7", "198.51.100.7"),
        (2, "203.0.113.9, 198.51.100.7, 10.0.0.1", "198.51.100.7"),
        (2, "198.51.100.7", HERE),
        (1, "", HERE),
        (1, "nonsense", HERE),
        (1, "2001:db8::7", "2001:db8::7"),
    ],
)
def test_address_is_what_our_own_proxies_saw(settings, count, forwarded, address):
    settings.PROXY_COUNT = count
    headers = {"X-Forwarded-For": forwarded}
    request = RequestFactory().get("/", REMOTE_ADDR=HERE, headers=headers)
    assert logins.client_address(request) == address


def test_socket_without_an_address_has_none():
    assert logins.client_address(RequestFactory().get("/", REMOTE_ADDR="")) is None


def test_invented_address_is_no_way_round(settings):
    settings.PROXY_COUNT = 1
    for number in range(LIMIT):
        hops = {"X-Forwarded-For": f"203.0.113.{number}, 198.51.100.7"}
        response = log_in(headers=hops)
    assert response.status_code == 429


# What is logged


def events(caplog):
    names = ("user", "address", "why", "locked_out")
    found = [it for it in caplog.records if it.name == "recovery.logins"]
    return [
        (it.message, {name: vars(it)[name] for name in names if name in vars(it)}) for it in found
    ]


def test_each_log_in_and_log_out_is_one_line(caplog):
    caplog.set_level(logging.INFO)
    client = Client()
    log_in(password=RIGHT, client=client)
    client.post("/admin/logout/", REMOTE_ADDR=HERE)
    who = {"user": "ann", "address": HERE}
    assert events(caplog) == [("logged_in", who), ("logged_out", {**who, "why": "asked"})]


def test_each_failure_is_one_line_and_none_has_the_password(caplog):
    caplog.set_level(logging.DEBUG)
    fail(LIMIT + 1, password="hush-hush-1")
    found = events(caplog)
    who = {"user": "ann", "address": HERE}
    assert [name for name, _facts in found] == ["login_failed"] * (LIMIT + 1)
    assert [facts["locked_out"] for _name, facts in found] == [False] * 4 + [True] * 2
    assert all(who.items() <= facts.items() for _name, facts in found)
    everything = json.dumps([str(vars(it)) for it in caplog.records])
    assert "hush-hush-1" not in everything
    stored = AccessAttempt.objects.values_list("post_data", "get_data", "path_info")
    assert "hush-hush-1" not in str(list(stored))


def test_axes_itself_is_silent(caplog):
    caplog.set_level(logging.INFO)
    fail()
    log_in(password=RIGHT, address=ELSEWHERE)
    assert not [it for it in caplog.records if it.name.startswith("axes")]


def test_log_ins_leave_no_rows_that_nobody_would_delete():
    log_in(password=RIGHT)
    assert not AccessLog.objects.exists()


def test_attempts_older_than_the_cool_off_are_deleted_by_the_next_one():
    fail(1)
    age(seconds=1_000)
    fail(1, name="bob")
    assert [it.username for it in AccessAttempt.objects.all()] == ["bob"]


def test_nobody_authenticates_past_the_limit():
    with pytest.raises(Exception, match="requires a request"):
        authenticate(username="ann", password=RIGHT)
