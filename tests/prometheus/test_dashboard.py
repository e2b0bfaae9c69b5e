"""The dashboard shows what there is: each of its queries returns data of a real installation."""

import json
import math
import runpy
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml
from django.conf import settings

from ledger import accounts
from recovery import registry
from splits.models import StepName
from tests.factories import SplitOrderFactory
from tests.ledger.entries import drain, into, put
from tests.waiting import eventually

PLACE = Path(settings.BASE_DIR) / "deploy" / "grafana"
MADE = runpy.run_path(str(PLACE / "make_dashboard.py"))
DASHBOARD = json.loads((PLACE / "dashboards" / "recovery.json").read_text())
ALL = {"$installation": "main", "$instance": ".*", "$__rate_interval": "30s"}
RARE = ("auditArchive",)
"""Jobs of which nothing is to be seen within a minute: they are run by hand."""


def panels():
    for panel in DASHBOARD["panels"]:
        yield from panel.get("panels", [])
        yield panel


def queries():
    return sorted({it["expr"] for panel in panels() for it in panel.get("targets", [])})


def test_file_is_what_the_program_writes():
    text = (PLACE / "dashboards" / "recovery.json").read_text()
    assert MADE["text"]() == text, "run: python deploy/grafana/make_dashboard.py"


def test_each_job_has_a_row():
    assert set(MADE["JOBS"]) == {job.base for job in registry.all_jobs()}
    rows = [it["title"] for it in DASHBOARD["panels"] if it["type"] == "row"]
    assert rows == ["Overview", *MADE["JOBS"], "Web and database"]


def test_panels_have_numbers_of_their_own_and_do_not_overlap():
    assert len({it["id"] for it in panels()}) == len(list(panels()))
    for group in ([*DASHBOARD["panels"]], *(it.get("panels", []) for it in DASHBOARD["panels"])):
        taken = set()
        for panel in group:
            at = panel["gridPos"]
            mine = {
                (at["x"] + right, at["y"] + down)
                for right in range(at["w"])
                for down in range(at["h"])
            }
            assert at["x"] + at["w"] <= 24
            assert not mine & taken, panel["title"]
            taken |= mine


def test_source_installation_and_instance_are_choices():
    names = [it["name"] for it in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "installation", "instance"]
    assert {it["datasource"]["uid"] for it in panels() if "datasource" in it} == {"${datasource}"}
    of_ours = [it for it in queries() if "ALERTS" not in it]
    assert all('installation=~"$installation", instance=~"$instance"' in it for it in of_ours)


def test_provisioning_finds_source_and_dashboards():
    for file in (PLACE / "provisioning").rglob("*.yml"):
        assert yaml.safe_load(file.read_text())["apiVersion"] == 1


@pytest.mark.mariadb
@pytest.mark.timeout(600)
@pytest.mark.django_db(transaction=True)
def test_each_query_returns_data(watched):
    put("opening", into("OAK", "100"))
    put("poison", into("ASH", "1"))
    drain()
    it = watched(JOB_OUTBOX_MAX_ATTEMPTS="10")
    accounts.close("stock:ASH", "m2", actor="cli:tester", reason="a test of the dashboard")
    it.work()

    lacking = set(queries())

    def every_query_has_returned_data():
        work(it)
        lacking.difference_update([query for query in lacking if has_data(it.prometheus, query)])
        assert not lacking, lacking
        return True

    assert len(lacking) > 40
    eventually(every_query_has_returned_data, deadline_s=240)


def work(it):
    """Let something happen that shows in each rate."""
    number = SplitOrderFactory().number
    put(f"bad-{number}", into("ASH", "1"))
    fault = f"finalize.before_step.{StepName.CREATE_OUTPUTS}=raise@1"
    it.run("finalize", SplitOrderFactory().number, RECOVERY_FAULTPOINTS=fault)
    for name in RARE:
        it.run("run_job", name)
    with urlopen(f"{it.web.url}/admin/login/") as answer:
        assert answer.status == 200


def has_data(server, query):
    for variable, value in ALL.items():
        query = query.replace(variable, value)
    return any(not math.isnan(value) for _labels, value in server.query(query))
