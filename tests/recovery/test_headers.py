"""What answers tell a browser not to do."""

import pytest

pytestmark = pytest.mark.django_db
POLICY = {
    "default-src": "'none'",
    "script-src": "'self' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data:",
    "font-src": "'self'",
    "connect-src": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
    "object-src": "'none'",
}


def policy_of(response):
    parts = response.headers["Content-Security-Policy"].split("; ")
    return dict(part.split(" ", 1) for part in parts)


@pytest.mark.parametrize("url", ["/admin/", "/admin/auth/user/", "/admin/jsi18n/", "/admin/none/"])
def test_pages_allow_nothing_but_what_is_ours(admin_client, settings, url):
    settings.DEBUG = False  # Django's own error pages for developers are left alone
    response = admin_client.get(url)
    assert policy_of(response) == POLICY
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["Referrer-Policy"] == "same-origin"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"


def test_log_in_does_so_too(client):
    assert policy_of(client.get("/admin/login/")) == POLICY


def test_pages_have_no_script_of_their_own_in_them(admin_client):
    for url in ("/admin/", "/admin/auth/user/add/", "/admin/recovery/job/"):
        page = admin_client.get(url).content.decode()
        scripts = page.split("<script")[1:]
        assert scripts
        for script in scripts:
            opening, _end, body = script.partition(">")
            is_data = 'type="application/json"' in opening
            assert is_data or not body.partition("</script>")[0].strip(), (url, script[:200])
        assert " onclick=" not in page


def test_probes_answer_as_before(client):
    assert client.get("/healthz").json() == {"status": "ok"}
