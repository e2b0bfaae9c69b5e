"""The site behind the proxy that is shipped: TLS, who asks, what is not for everybody."""

import json
import re
import ssl
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from axes.models import AccessAttempt
from django.conf import settings
from django.contrib.auth.models import User

from recovery.admin.proposals import MOST_IDS
from tests import servers
from tests.deploy import certificates
from tests.logs import Line
from tests.recovery.sites import TOKEN, Site

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.mariadb]

SHIPPED = Path(settings.BASE_DIR) / "deploy" / "nginx" / "recovery.conf"
HOST, PASSWORD = "stock.example.org", "a long password"


@dataclass
class Nginx(servers.Server):
    """The real nginx with the file that is shipped, on ports of its own."""

    upstream: int = 0
    plain: int = 0
    inside: str = "127.0.0.0/8"
    """Who may scrape."""

    def configure(self) -> None:
        """Write the file with our ports and a certificate of our own."""
        text = SHIPPED.read_text()
        for shipped, ours in (
            ("127.0.0.1:8000", f"127.0.0.1:{self.upstream}"),
            ("listen 80;", f"listen 127.0.0.1:{self.plain};"),
            ("listen 443 ssl", f"listen 127.0.0.1:{self.port} ssl"),
            ("/etc/ssl/recovery", str(self.folder)),
            ("allow 127.0.0.0/8;", f"allow {self.inside};"),
        ):
            assert text.count(shipped) >= 1, shipped
            text = text.replace(shipped, ours)
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
            text += f"{name}_temp_path {self.folder}/{name};\n"
        main = (
            f"pid {self.folder}/pid; error_log {self.folder}/log; daemon off; worker_processes 1;"
        )
        head = f"{main} events {{}} http {{ access_log off;\n"
        (self.folder / "nginx.conf").write_text(f"{head}{text}}}\n")
        certificates.make(self.folder, HOST)

    def command(self) -> list[str]:
        """Return the server's command."""
        place = str(self.folder)
        return [servers.binary("nginx"), "-c", f"{place}/nginx.conf", "-p", place]

    def answers(self) -> bool:
        """Tell whether it listens."""
        return bool(self.greeting(b"GET / HTTP/1.0\r\n\r\n"))

    def ask(self, path, *, method="GET", body=None, secure=True, **headers):
        """Return status, headers and body of an answer."""
        trust = ssl.create_default_context(cafile=str(self.folder / "fullchain.pem"))
        trust.check_hostname = False
        link = (
            HTTPSConnection("127.0.0.1", self.port, timeout=60, context=trust)
            if secure
            else HTTPConnection("127.0.0.1", self.plain, timeout=60)
        )
        with closing(link):
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            link.request(method, path, body, {"Host": HOST, **named})
            answer = link.getresponse()
            return answer.status, answer.headers, answer.read().decode()


@pytest.fixture
def behind(manage, tmp_path):
    """Return what runs the site in production's settings behind nginx."""
    site = Site(
        manage, tmp_path, DEBUG="false", SECURE_SSL_REDIRECT="true", PROXY_COUNT="1",
        ALLOWED_HOSTS=HOST, CSRF_TRUSTED_ORIGINS=f"https://{HOST}",
    )  # fmt: skip

    @contextmanager
    def run(**more):
        with servers.folder_for("nginx") as place:
            place.chmod(0o755)
            ports = {"upstream": site.port, "plain": servers.free_port()}
            proxy = Nginx(place, servers.free_port(), **ports, **more)
            proxy.configure()
            with servers.running(proxy):
                yield proxy

    run.site = site
    return run


def records(site) -> list[Line]:
    return [json.loads(line) for line in site.started.printed()[1].splitlines()]


def logged_in(proxy, name, password=PASSWORD):
    """Log in as a browser does; return the answer's status and headers."""
    _status, headers, page = proxy.ask("/admin/login/")
    cookie = headers["Set-Cookie"]
    assert "Secure" in cookie
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)[1]
    form = {"csrfmiddlewaretoken": token, "username": name, "password": password, "next": "/admin/"}
    return proxy.ask(
        "/admin/login/", method="POST", body=urlencode(form), Cookie=cookie.partition(";")[0],
        Referer=f"https://{HOST}/admin/login/", Origin=f"https://{HOST}",
        Content_Type="application/x-www-form-urlencoded",
    )[:2]  # fmt: skip


def test_one_logs_in_over_tls_and_plain_http_leads_there(behind):
    User.objects.create_superuser("ann", password=PASSWORD)
    with behind() as proxy:
        status, headers, _body = proxy.ask("/admin/?x=1", secure=False)
        assert (status, headers["Location"]) == (308, f"https://{HOST}/admin/?x=1")
        status, headers = logged_in(proxy, "ann")
        assert (status, headers["Location"]) == (302, "/admin/")
        session = next(it for it in headers.get_all("Set-Cookie") if it.startswith("sessionid"))
        assert "Secure" in session
        assert "HttpOnly" in session
        status, headers, page = proxy.ask("/admin/", Cookie=session.partition(";")[0])
        assert (status, "ann" in page) == (200, True)
        assert headers["Strict-Transport-Security"]
        assert "nginx/" not in headers["Server"]


def test_requests_are_named_once_from_the_proxy_to_the_log(behind):
    with behind() as proxy:
        given = "from-a-proxy-before-01"
        assert proxy.ask("/admin/login/", X_Request_ID=given)[1]["X-Request-ID"] == given
        made = proxy.ask("/admin/login/", X_Request_ID='x"} forged')[1]["X-Request-ID"]
        assert re.fullmatch(r"[0-9a-f]{32}", made)
        known = {it.get("request_id") for it in records(behind.site)}
    assert {given, made} <= known


def test_failed_log_in_is_counted_at_the_address_that_nginx_saw(behind):
    User.objects.create_superuser("ann", password=PASSWORD)
    with behind() as proxy:
        _status, headers, page = proxy.ask("/admin/login/")
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)[1]
        form = {"csrfmiddlewaretoken": token, "username": "ann", "password": "wrong"}
        proxy.ask(
            "/admin/login/", method="POST", body=urlencode(form), X_Forwarded_For="9.9.9.9",
            Cookie=headers["Set-Cookie"].partition(";")[0], Referer=f"https://{HOST}/admin/login/",
            Content_Type="application/x-www-form-urlencoded",
        )  # fmt: skip
    attempt = AccessAttempt.objects.get()
    assert attempt.ip_address == "127.0.0.1", "not what the client said of itself"


@pytest.mark.parametrize(("inside", "status"), [("127.0.0.0/8", 200), ("192.0.2.0/24", 403)])
def test_probes_are_for_those_within(behind, inside, status):
    with behind(inside=inside) as proxy:
        for path in ("/metrics", "/readyz", "/healthz"):
            assert proxy.ask(path, Authorization=f"Bearer {TOKEN}")[0] == status
        assert proxy.ask("/admin/login/")[0] == 200


def test_longest_selection_passes_also_where_one_must_log_in_first(behind):
    """Its address is then an argument of the log-in's, with each comma encoded twice."""
    ids = ",".join([str(2**63 - 1)] * MOST_IDS)
    preview = f"/admin/actions/outbox.redrive/?{urlencode({'ids': ids})}"
    with behind() as proxy:
        status, headers, _body = proxy.ask(preview)
        assert (status, headers["Location"]) == (302, f"/admin/login/?next={quote(preview)}")
        assert proxy.ask(headers["Location"])[0] == 200
