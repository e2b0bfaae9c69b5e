"""A real Prometheus with the product's alarms, whose minutes are seconds."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml
from django.conf import settings

from tests import servers
from tests.waiting import eventually
from tests.web import ask

PLACE = Path(settings.BASE_DIR) / "deploy" / "prometheus"
FASTER = 30
MUCH_FASTER = {
    "JobPausedForLong": 2_400,
    "DeadLettersWaiting": 600,
    "OutboxOldestAge": 600,
    "AuditUnsealed": 600,
    "AuditArchiveOverdue": 3_600,
    "AuditSealsWentBack": 600,
}
"""Alarms with the patience of hours."""
SECONDS_FROM = 120
"""Numbers in expressions are limits in seconds from here on; smaller ones count something."""
UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000}
DEADLINE_S = 150.0
TOKEN = "bearer-of-the-tests"
Config = dict[str, Any]


def hastened(rule: Mapping[str, Any]) -> Config:
    """Return a rule whose times are shorter."""
    factor = MUCH_FASTER.get(rule["alert"], FASTER)
    expression = re.sub(r"\b(\d+)([smh])\b", lambda it: _shorter(it, factor), rule["expr"])
    expression = re.sub(r"\b(\d{3,})\b(?!ms)", lambda it: _fewer(it, factor), expression)
    changed = dict(rule) | {"expr": expression}
    if "for" in rule:
        changed["for"] = re.sub(r"(\d+)([smh])", lambda it: _shorter(it, factor), rule["for"])
    return changed


def _shorter(found: re.Match[str], factor: int) -> str:
    return f"{int(found[1]) * UNITS_MS[found[2]] // factor}ms"


def _fewer(found: re.Match[str], factor: int) -> str:
    limit = int(found[1])
    return str(limit / factor if limit >= SECONDS_FROM else limit)


@dataclass
class Prometheus(servers.Server):
    """A Prometheus server that scrapes once a second."""

    targets: dict[str, str] = field(default_factory=dict)
    """Addresses by the name of their scrape configuration."""

    def configure(self) -> None:
        """Write its files from those that are shipped."""
        shipped = yaml.safe_load((PLACE / "prometheus.yml").read_text())
        once_a_second = dict.fromkeys(
            ("scrape_interval", "scrape_timeout", "evaluation_interval"), "1s"
        )
        scrapes = [self._scrape(it) for it in shipped["scrape_configs"]]
        config = shipped | {"global": once_a_second, "scrape_configs": [*filter(None, scrapes)]}
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (self.folder / "metrics-token").write_text(TOKEN)
        (self.folder / "rules").mkdir(exist_ok=True)
        for file in (PLACE / "rules").glob("*.yml"):
            groups = yaml.safe_load(file.read_text())["groups"]
            for group in groups:
                group["rules"] = [hastened(rule) for rule in group["rules"]]
            (self.folder / "rules" / file.name).write_text(yaml.safe_dump({"groups": groups}))

    def _scrape(self, shipped: Config) -> Config | None:
        address = self.targets.get(shipped["job_name"])
        if address is None:
            return None
        found = {key: shipped[key] for key in ("job_name", "honor_labels", "authorization")}
        static = {"targets": [address], "labels": {"installation": "main"}}
        return found | {"static_configs": [static]}

    @property
    def url(self) -> str:
        """Return the address of its pages."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """Return the server's command."""
        return [
            servers.binary("prometheus"),
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]

    def answers(self) -> bool:
        """Tell whether the server is ready."""
        try:
            return ask(self.port, "/-/ready")[0] == 200
        except OSError:
            return False

    def api(self, path: str, **query: str) -> Any:
        """Return the data of an answer of its API."""
        status, body = ask(self.port, f"/api/v1/{path}?{urlencode(query)}")
        assert status == 200, body
        return json.loads(body)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and values that an expression has now."""
        found = self.api("query", query=expression)["result"]
        return [(it["metric"], float(it["value"][1])) for it in found]

    def alarms(self, name: str, **labels: str) -> list[Config]:
        """Return the alarms of a name that are pending or firing."""
        return [
            it
            for it in self.api("alerts")["alerts"]
            if it["labels"] | {"alertname": name, **labels} == it["labels"]
        ]

    def states(self, name: str, **labels: str) -> set[str]:
        """Return ``pending``, ``firing`` or both of an alarm; nothing where it is not active."""
        return {it["state"] for it in self.alarms(name, **labels)}

    def fires(self, name: str, **labels: str) -> Config:
        """Wait until an alarm fires; return it."""

        def firing() -> Config | None:
            found = self.alarms(name, **labels)
            return next((it for it in found if it["state"] == "firing"), None)

        alarm = _told(firing, self, name)
        assert "error expanding template" not in str(alarm["annotations"]), alarm
        return alarm

    def is_resolved(self, name: str, **labels: str) -> None:
        """Wait until an alarm is not active."""
        _told(lambda: not self.alarms(name, **labels), self, name)


def _told(condition: Callable[[], Any], server: Prometheus, name: str) -> Any:
    try:
        return eventually(condition, deadline_s=DEADLINE_S)
    except AssertionError as error:
        active = [(it["labels"], it["state"], it["value"]) for it in server.api("alerts")["alerts"]]
        raise AssertionError(f"{name}: {error}\nactive: {active}") from error


@contextmanager
def prometheus(**targets: int | None) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes ports of the loopback: ``web=8000, worker=9100``."""
    named = {f"recovery-{it}": f"127.0.0.1:{port}" for it, port in targets.items() if port}
    with servers.folder_for("prometheus") as place:
        server = Prometheus(place, servers.free_port(), targets=named)
        server.configure()
        with servers.running(server):
            yield server
