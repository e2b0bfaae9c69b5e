"""The image, step by step on this machine; and the compose file, by what it says."""

import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
import yaml
from django.conf import settings

from recovery.cluster import GRACE_S
from settings import base
from tests import servers
from tests.deploy import certificates
from tests.processes import Started, environment
from tests.recovery.sites import asked
from tests.waiting import eventually

ROOT = Path(settings.BASE_DIR)
PLACE = ROOT / "deploy"
IMAGE = (PLACE / "Containerfile").read_text()
COMPOSE = yaml.safe_load((PLACE / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
APP = ("migrate", "web", "worker")
DATABASES = ("DATABASE_URL", "REDIS_URL")


def instructions():
    """Return the image's instructions, (name, rest), with lines that go on joined."""
    text = re.sub(r"^#.*\n", "", IMAGE, flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def copied():
    """Return (from, to) of what is copied out of the project."""
    for name, rest in instructions():
        words = rest.split()
        if name == "COPY" and not words[0].startswith("--from"):
            for source in words[:-1]:
                yield source, words[-1]


def allowed():
    """Return what the ignore file lets in."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    return [line[1:] for line in lines if line.startswith("!")]


def final(name):
    return [rest for found, rest in instructions() if found == name][-1]


@pytest.fixture
def tree(tmp_path):
    """Return a folder with what the image has in its place, and nothing else."""
    place = tmp_path / "srv"
    place.mkdir()
    for source, target in copied():
        assert source in allowed(), f"{source} is kept out by .dockerignore"
        if target.startswith("/"):
            continue
        into = place if target == "./" else place / target
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, into, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            into = into / source if into.is_dir() else into
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, into)
    return place


def in_image(tree, tmp_path):
    """Return the environment of a process in the image, with this machine's paths."""
    kept = {name: value for name, value in environment().items() if name not in DATABASES}
    return kept | {
        "VAR_DIR": str(tmp_path / "var"),
        "STATIC_DIR": str(tree / "var" / "static"),
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"),
        "WEB_BIND": f"127.0.0.1:{servers.free_port()}",
    }


def run(tree, env, *arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_what_is_copied_is_enough_to_serve(tree, tmp_path):
    env = in_image(tree, tmp_path)
    bare = env | dict.fromkeys(DATABASES, "")
    done = run(tree, bare, "manage.py", "collectstatic", "--noinput")
    assert done.returncode == 0, done.stderr
    assert (tree / "var" / "static" / "recovery" / "admin.css").is_file()
    env |= {name: environment()[name] for name in DATABASES}
    command = [sys.executable, "-m", *re.findall(r'"([^"]*)"', final("CMD"))]
    served = Started(["env", "-C", str(tree), *command], env)
    port = int(env["WEB_BIND"].rpartition(":")[2])
    try:
        eventually(lambda: asked(port, "/healthz")[0] == 200)
        status, body = asked(port, "/readyz")
        assert (status, '"migrations": "ok"' in body) == (200, True), body
        secure = {"Host": "localhost", "X-Forwarded-Proto": "https"}
        assert asked(port, "/static/recovery/admin.css", headers=secure)[0] == 200
        check = run(tree, env | {"HEALTH_PORT": str(port)}, "-c", health_check())
        assert check.returncode == 0, check.stderr
    finally:
        served.kill_all()
    dead = run(tree, env | {"HEALTH_PORT": str(port)}, "-c", health_check())
    assert dead.returncode != 0


def health_check():
    return re.findall(r'"([^"]*)"', final("HEALTHCHECK"))[-1]


def test_image_runs_as_nobody_in_particular_and_stops_in_order():
    assert final("USER") == "recovery"
    assert final("STOPSIGNAL") == "SIGTERM"
    assert "--require-hashes" in IMAGE
    assert not re.search(r"(SECRET_KEY|PASSWORD|TOKEN)=", IMAGE)


def test_lock_of_the_image_has_what_production_needs():
    text = (ROOT / "requirements" / "production.lock").read_text()
    for name in ("django", "mysqlclient", "gunicorn", "opentelemetry-sdk", "redis"):
        assert re.search(rf"^{name}==", text, re.MULTILINE), name
    pinned = set(re.findall(r"^([\w.-]+==\S+)", text, re.MULTILINE))
    developed = (ROOT / "requirements" / "dev.lock").read_text()
    assert pinned <= set(re.findall(r"^([\w.-]+==\S+)", developed, re.MULTILINE)), "as tested"


# Compose


def texts(found):
    """Yield every text of a document."""
    if isinstance(found, dict):
        for value in found.values():
            yield from texts(value)
    elif isinstance(found, list):
        for value in found:
            yield from texts(value)
    else:
        yield str(found)


def test_each_variable_is_in_the_example():
    variables = set(re.findall(r"(?<!\$)\$\{(\w+)", (PLACE / "compose.yaml").read_text()))
    example = set(re.findall(r"^(\w+)=", (PLACE / ".env.example").read_text(), re.MULTILINE))
    assert variables == example


def test_nothing_starts_without_its_secrets():
    told = set(re.findall(r"\$\{(\w+):\?", "\n".join(texts(COMPOSE))))
    assert told == {
        "DATABASE_PASSWORD", "REDIS_PASSWORD", "SECRET_KEY", "METRICS_TOKEN", "SITE_HOST",
        "AUDIT_SEAL_KEYS", "GRAFANA_PASSWORD", "CERTIFICATES",
    }  # fmt: skip
    assert not re.search(
        r"(PASSWORD|SECRET_KEY|SEAL_KEYS|TOKEN)=\S", (PLACE / ".env.example").read_text()
    )


def seconds(text):
    return int(text.removesuffix("s"))


@pytest.mark.parametrize("name", APP)
def test_processes_of_ours_may_do_little_and_are_given_time_to_end(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert any(it.startswith("/run/recovery") for it in service["tmpfs"]), "counters: one each"
    if name != "migrate":
        assert seconds(service["stop_grace_period"]) > GRACE_S + 5


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_may_do_more_than_it_needs(name):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is (name != "prometheus")
    assert bool(service.get("cap_add")) is (name == "proxy")


def test_volumes_are_named_and_each_is_used():
    mounts = {
        it.partition(":")[0] for found in SERVICES.values() for it in found.get("volumes", ())
    }
    assert {it for it in mounts if it.isalnum()} == set(COMPOSE["volumes"])


def shell_of(name):
    """Return the line that the service's shell runs, as compose hands it over."""
    shell, option, line = SERVICES[name]["command"]
    assert (shell, option) == ("sh", "-c")
    return line.replace("$$", "$")


@dataclass
class Cache(servers.Redis):
    """Redis by the line of the compose file, on a port of its own."""

    def command(self) -> list[str]:
        """Return the server's command."""
        mine = f"redis-server --port {self.port} --bind 127.0.0.1 --dir {self.folder}"
        line = shell_of("cache").replace("redis-server", mine)
        return ["env", "REDIS_PASSWORD=hush", "sh", "-c", line]

    def answers(self) -> bool:
        """Tell whether it says something, if only that it wants a password."""
        return bool(self.greeting(b"PING\r\n"))


def test_cache_wants_its_password_forgets_no_lock_and_keeps_the_queue():
    with servers.folder_for("redis") as folder:
        cache = Cache(folder, servers.free_port())
        with servers.running(cache):
            assert cache.greeting(b"PING\r\n").startswith(b"-NOAUTH")
            with closing(redis.Redis(port=cache.port, password="hush")) as client:
                assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
                client.rpush("queue", "task")
                eventually(lambda: client.info("persistence")["aof_buffer_length"] == 0)
            assert healthy(cache.port, "hush")
            assert not healthy(cache.port, "other")
            cache.kill()
            cache.start()
            with closing(redis.Redis(port=cache.port, password="hush")) as client:
                assert client.lrange("queue", 0, -1) == [b"task"]


def healthy(port, password):
    """Tell what the service's check says."""
    kind, line = SERVICES["cache"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    line = line.replace("$$", "$").replace("redis-cli", f"redis-cli -p {port}")
    env = {"PATH": os.environ["PATH"], "REDIS_PASSWORD": password}
    return subprocess.run(["sh", "-c", line], env=env, check=False).returncode == 0


def test_proxy_is_written_for_the_site_and_looks_its_address_up_again(tmp_path):
    """Debian's nginx knows all of the file but ``resolve``, which came with 1.27.3."""
    line = shell_of("proxy").partition("&& exec")[0]
    line = line.replace("/etc/nginx/conf.d/default.conf", "made.conf")
    line = line.replace("/etc/nginx/recovery.conf.in", str(PLACE / "nginx" / "recovery.conf"))
    env = {"PATH": os.environ["PATH"], "SITE_HOST": "boards.example"}
    subprocess.run(["sh", "-c", line], cwd=tmp_path, env=env, check=True)
    made = (tmp_path / "made.conf").read_text()
    assert "example.org" not in made
    assert made.count("server_name boards.example;") == 2
    assert made.count("\nresolver 127.0.0.11 valid=5s;\nupstream recovery_web {") == 1
    assert made.count("zone recovery_web 64k; server web:8000 resolve;") == 1
    assert "127.0.0.1:8000" not in made
    known = made.replace("server web:8000 resolve;", "server 127.0.0.1:8000;")
    known = known.replace("/etc/ssl/recovery", str(tmp_path))
    assert sound(tmp_path, known) == (0, "")
    assert sound(tmp_path, known.replace("zone ", "zones "))[0] == 1


def sound(place, text):
    """Return what ``nginx -t`` says of a file: its status and what it warns of."""
    certificates.make(place, "boards.example")
    for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        text += f"{name}_temp_path {place}/{name};\n"
    head = f"pid {place}/pid; error_log stderr; events {{}} http {{ access_log off;\n"
    (place / "nginx.conf").write_text(f"{head}{text}}}\n")
    done = subprocess.run(
        [servers.binary("nginx"), "-t", "-q", "-c", f"{place}/nginx.conf", "-p", str(place)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", APP)
def test_settings_are_understood(name):
    known = {"HEALTH_PORT"}
    named = set(SERVICES[name]["environment"]) - known
    assert all(hasattr(settings, it) or it in base.env.known for it in named)


@pytest.mark.parametrize("name", APP)
def test_archives_outlive_their_containers_and_are_shared(name):
    service = SERVICES[name]
    (volume,) = service["volumes"]
    source, place = volume.split(":")
    assert source in COMPOSE["volumes"]
    for key in ("AUDIT_ARCHIVE", "AUDIT_COLD"):
        assert service["environment"][key].startswith(f"{place}/")
        assert not any(place.startswith(f"{it.split(':')[0]}/") for it in service["tmpfs"])
    made = next(rest for found, rest in instructions() if "install -d -o recovery" in rest)
    assert place in made.split(), "a new volume has the owner of the image's folder"


def test_mounted_files_are_there():
    mounts = [it for service in SERVICES.values() for it in service.get("volumes", ())]
    ours = [it.partition(":")[0] for it in mounts if it.startswith("./")]
    assert len(ours) == 5
    assert all((PLACE / it).exists() for it in ours)
    assert all((PLACE / "grafana/dashboards").glob("*.json"))


def test_prometheus_scrapes_services_that_there_are():
    shipped = yaml.safe_load((PLACE / "prometheus" / "prometheus.yml").read_text())
    web, worker = shipped["scrape_configs"]
    assert web["static_configs"][0]["targets"] == ["web:8000"]
    assert worker["dns_sd_configs"][0]["names"] == ["worker"]
    assert {"web", "worker"} <= set(SERVICES)
    assert str(worker["dns_sd_configs"][0]["port"]) in SERVICES["worker"]["command"]
    (secret,) = SERVICES["prometheus"]["secrets"]
    assert secret["target"] == f"/etc/prometheus/{web['authorization']['credentials_file']}"


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_settings_of_compose_pass_the_checks_of_a_deployment(tree, tmp_path):
    """As the step before web and worker does it: migrated, and nothing to warn of."""
    given = {key: str(value) for key, value in SERVICES["migrate"]["environment"].items()}
    filled = {
        "DATABASE_PASSWORD": "hush", "REDIS_PASSWORD": "hush", "SITE_HOST": "stock.example.org",
        "SECRET_KEY": secrets.token_urlsafe(50), "METRICS_TOKEN": secrets.token_urlsafe(24),
        "AUDIT_SEAL_KEYS": secrets.token_hex(32),
    }  # fmt: skip
    variable = re.compile(r"\$\{(\w+)(?::[?-]([^}]*))?\}")
    env = in_image(tree, tmp_path) | {
        key: variable.sub(lambda it: filled.get(it[1], it[2] or ""), value)
        for key, value in given.items()
    }
    checks = ("check", "--deploy", "--fail-level", "WARNING")
    plain = {"LOG_FORMAT": "auto", "SECURE_SSL_REDIRECT": "true"}
    done = run(tree, env | plain, "manage.py", *checks)
    assert done.returncode == 0, done.stderr
    command = shlex.split(SERVICES["migrate"]["command"][-1])
    assert command[:3] == ["python", "manage.py", "migrate"]
