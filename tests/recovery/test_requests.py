"""One record a request, and one name for all that is logged within it."""

import logging

import pytest
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client, RequestFactory

from recovery.requests import RequestLogMiddleware
from tests.logs import kept, named

pytestmark = pytest.mark.django_db

FINISHED, FAILED = "request_finished", "request_failed"


def test_request_is_one_record_without_its_query():
    with kept() as lines:
        Client().get("/admin/login/?next=/secret/")
    record = named(lines, FINISHED)
    assert (record["level"], record["method"], record["path"]) == ("info", "GET", "/admin/login/")
    assert (record["status_code"], record["user"]) == (200, "")
    assert record["duration_s"] >= 0
    assert len(lines) == 1
    assert "secret" not in str(lines)


def test_record_says_who_asked():
    client = Client()
    client.force_login(User.objects.create_superuser("ann"))
    with kept() as lines:
        client.get("/admin/")
    assert named(lines, FINISHED)["user"] == "ann"


@pytest.mark.parametrize("given", ["abcdef12", "0123456789.ABC_def-x", "x" * 64])
def test_name_that_a_proxy_has_given_is_kept_and_answered(given):
    with kept() as lines:
        answer = Client().get("/admin/login/", headers={"X-Request-ID": given})
    assert named(lines, FINISHED)["request_id"] == answer["X-Request-ID"] == given


@pytest.mark.parametrize(
    "given", ["", "short", "x" * 65, "abc def 12", 'abcdef12"}', "abcdef12\u2028", "\x1b[31mabcdef"]
)
def test_name_that_is_not_tame_is_replaced(given):
    with kept() as lines:
        answer = Client().get("/admin/login/", headers={"X-Request-ID": given})
    assert named(lines, FINISHED)["request_id"] == answer["X-Request-ID"] != given
    assert len(answer["X-Request-ID"]) == 32


def test_all_that_is_logged_within_a_request_has_its_name():
    def answer(_request):
        logging.getLogger("anybody").info("inside")
        return HttpResponse()

    with kept() as lines:
        RequestLogMiddleware(answer)(RequestFactory().get("/"))
        logging.getLogger("anybody").info("afterwards")
    assert named(lines, "inside")["request_id"] == named(lines, FINISHED)["request_id"]
    assert "request_id" not in named(lines, "afterwards")


def test_request_that_fails_is_one_record_with_its_stack(monkeypatch):
    def fail(*_args, **_kwargs):
        hidden = "a local variable"
        raise RuntimeError(f"broken, not {len(hidden)}")

    monkeypatch.setattr("django.contrib.auth.views.LoginView.dispatch", fail)
    client = Client(raise_request_exception=False)
    with kept() as lines:
        assert client.get("/admin/login/?q=secret").status_code == 500
    record = named(lines, FAILED)
    assert (record["level"], record["code"]) == ("error", "RuntimeError")
    assert (record["status_code"], record["path"]) == (500, "/admin/login/")
    assert "RuntimeError: broken" in record["exception"]
    assert "a local variable" not in str(lines)
    assert "secret" not in str(lines)
    assert len(lines) == 1


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_probes_are_not_logged(path):
    with kept() as lines:
        Client().get(path)
    assert lines == []


def test_redirects_to_https_are_not_logged(settings):
    settings.SECURE_SSL_REDIRECT = True
    with kept() as lines:
        assert Client().get("/admin/login/").status_code == 301
    assert lines == []
