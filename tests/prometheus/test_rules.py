"""Alarms fire when they should, stay quiet when they should, and lead to the runbook."""

import copy
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from django.conf import settings

from recovery import registry
from tests.servers import binary

pytestmark = pytest.mark.once

ROOT = Path(settings.BASE_DIR)
PLACE = ROOT / "deploy" / "prometheus"
FILE = PLACE / "rules" / "recovery.yml"
RULES = yaml.safe_load(FILE.read_text())
ALARMS = [rule for group in RULES["groups"] for rule in group["rules"]]
NAMED = [f"{rule['alert']}-{rule['labels']['severity']}" for rule in ALARMS]
PATIENT = [nth for nth, rule in enumerate(ALARMS) if "for" in rule]
TWOFOLD = [nth for nth, rule in enumerate(ALARMS) if "\nor " in rule["expr"]]
LOOKING_BACK = [nth for nth, rule in enumerate(ALARMS) if " offset " in rule["expr"]]
RUNBOOKS = ("runbook.md", "runbook.zh-CN.md")


def promtool(*arguments):
    return subprocess.run(
        [binary("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def passes_with(tmp_path, index, change):
    """Tell whether an alarm's cases, and those in which none fires, pass with its rule changed."""
    rules, cases = copy.deepcopy(RULES), yaml.safe_load((PLACE / "tests.yml").read_text())
    rule = [rule for group in rules["groups"] for rule in group["rules"]][index]
    change(rule)
    mine = f'"{rule["alert"]}"'
    cases["tests"] = [it for it in cases["tests"] if mine in str(it) or "samples" not in str(it)]
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / FILE.name).write_text(yaml.safe_dump(rules))
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(cases))
    return promtool("test", "rules", tmp_path / "tests.yml").returncode == 0


def test_rules_are_sound():
    done = promtool("check", "rules", FILE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_scrape_configuration_is_sound(tmp_path):
    text = (PLACE / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text)
    (tmp_path / "metrics-token").write_text("bearer")
    (tmp_path / "rules").symlink_to(FILE.parent)
    done = promtool("check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rule files" in done.stdout
    configured = yaml.safe_load(text)["scrape_configs"]
    assert all(it["honor_labels"] for it in configured), "`job` is the recovery job's name"
    assert all(re.fullmatch("recovery.*", it["job_name"]) for it in configured), "ScrapeFailing"


@pytest.mark.parametrize("cases", ["tests.yml", "night.yml"])
def test_alarms_fire_in_their_cases_and_in_no_other(cases):
    done = promtool("test", "rules", PLACE / cases)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("index", range(len(ALARMS)), ids=NAMED)
def test_alarm_that_never_fires_fails_its_case(index, tmp_path):
    assert not passes_with(tmp_path, index, lambda rule: rule.update(expr="vector(0) > 1"))


@pytest.mark.parametrize("index", PATIENT, ids=[NAMED[nth] for nth in PATIENT])
def test_alarm_without_its_patience_fails_a_case(index, tmp_path):
    assert not passes_with(tmp_path, index, lambda rule: rule.pop("for"))


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("index", TWOFOLD, ids=[NAMED[nth] for nth in TWOFOLD])
def test_alarm_with_one_of_its_two_reasons_alone_fails_a_case(index, left, tmp_path):
    assert not passes_with(
        tmp_path, index, lambda rule: rule.update(expr=rule["expr"].split("\nor ")[left])
    )


@pytest.mark.parametrize("index", LOOKING_BACK, ids=[NAMED[nth] for nth in LOOKING_BACK])
def test_alarm_that_looks_back_no_more_fails_a_case(index, tmp_path):
    assert not passes_with(
        tmp_path, index, lambda rule: rule.update(expr=re.sub(r" offset \w+", "", rule["expr"]))
    )


@pytest.mark.parametrize("rule", ALARMS, ids=NAMED)
def test_alarm_says_how_bad_what_and_where_to_read_on(rule):
    notes = rule["annotations"]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert notes.keys() == {"summary", "description", "runbook_url"}
    assert len(notes["summary"]) < 90
    page, _, anchor = notes["runbook_url"].partition("#")
    assert page.endswith("/docs/runbook.md")
    assert anchor == rule["alert"].lower()


@pytest.mark.parametrize("runbook", RUNBOOKS)
def test_runbook_has_a_section_for_each_alarm_and_for_no_other(runbook):
    text = (ROOT / "docs" / runbook).read_text()
    found = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert sorted(found) == sorted({rule["alert"] for rule in ALARMS})


def test_jobs_named_in_rules_are_those_there_are():
    named = set(re.findall(r'job="(\w+)"', FILE.read_text()))
    assert named <= {job.base for job in registry.all_jobs()}


def test_metrics_in_rules_are_those_of_a_scrape(client, transactional_db):
    """Names that no scrape has would make an alarm that never fires."""
    from recovery import runner
    from recovery.schedules import ensure_rows

    ensure_rows()
    runner.run_job("metricsCollect")
    scraped = client.get("/metrics").content.decode()
    exported = set(re.findall(r"^(\w+)", scraped, re.MULTILINE)) | {"up"}
    expressions = " ".join(rule["expr"] for rule in ALARMS)
    without_labels = re.sub(r"\{[^}]*\}|\([a-z, ]+\)", " ", expressions)
    names = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", without_labels)) - {
        "clamp_min",
        "max_over_time",
    }
    assert len(names) > 12
    assert names <= exported
