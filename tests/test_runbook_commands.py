"""Every command of the runbook is typed as it stands there, and prints what it says there."""

import io
import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command

from ledger.models import EntryStatus, OutboxEntry
from recovery import plans, registry, schedules
from recovery.clock import seconds_from_now
from recovery.models import Job, Plan, PlanStatus
from recovery.plans import Pace, Wanted
from recovery.runner import run_job
from splits.models import OrderStatus, SplitOrder
from tests.factories import SplitOrderFactory, hang
from tests.ledger.entries import into, put
from tests.splits.plans import imported, order, plan

pytestmark = pytest.mark.django_db(transaction=True)

DOCS = Path(settings.BASE_DIR) / "docs"
TEXT = (DOCS / "runbook.md").read_text()
CHINESE = (DOCS / "runbook.zh-CN.md").read_text()
FENCED = re.compile(r"^( *)```(\w+)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)

NOT_TYPED = {"dbshell"}
"""What needs a terminal and a person."""
CALM = ("drill", "selfcheck")
"""What is tried where nothing is wrong: drills are refused elsewhere."""
EXITS = {
    'manage.py after_restore --reason "INC-42: disk lost, backup of 02:00"': 1,  # a dead entry
    "manage.py reconcile": 1,
    'manage.py reconcile --repair source_lot_not_consumed split-order:SO-1003 --reason "INC-42: a'
    ' script wrote to splits_lot"': 1,  # its lot is as it should be  # the dead entry is a finding
}
BEFORE = {"manage.py finalize SO-1001": "manage.py recover_stuck SO-1001 --no-retry"}
"""What has been typed before, as the text says."""
EVENT = "lot:DEAD-1:received"
DEAD_PID = 2**22 + 1
"""Above the largest number that Linux gives."""


def blocks(text):
    """Return (kind, content) of each fenced block, without the indentation of lists."""
    return [
        (kind, re.sub(rf"^{indent}", "", body, flags=re.MULTILINE))
        for indent, kind, body in FENCED.findall(text)
    ]


def typed(text):
    """Return every command that a reader may type."""
    found = []
    for _kind, body in blocks(text):
        found += re.findall(r"^(?:\$ )?(manage\.py .*)$", body, re.MULTILINE)
    found += re.findall(r"`(manage\.py [^`]+)`", FENCED.sub("", text))
    return [it for it in found if it.split()[1] not in NOT_TYPED]


COMMANDS = sorted(set(typed(TEXT)))


def test_chinese_runbook_says_the_same():
    """Commands, output, SQL, tables and sections; what words say is for readers to compare."""
    assert blocks(CHINESE) == blocks(TEXT)
    assert Counter(typed(CHINESE)) == Counter(typed(TEXT))
    plain, chinese = FENCED.sub("", TEXT), FENCED.sub("", CHINESE)
    for pattern in (r"^(#+) ", r"^\|(?=.)", r"^(\| `[\w.]+`)", r"(`[A-Z]+_[A-Z_]+`)"):
        ours, theirs = (Counter(re.findall(pattern, it, re.MULTILINE)) for it in (plain, chinese))
        assert theirs == ours, pattern
    anchors = {
        re.sub(r"[^\w -]", "", it).lower().replace(" ", "-")
        for it in re.findall(r"^#+ (.*)$", CHINESE, re.MULTILINE)
    }
    links = re.findall(r"\(#([\w-]+)\)", CHINESE)
    assert set(links) <= anchors
    assert len(links) == len(re.findall(r"\(#([\w-]+)\)", TEXT))


def test_each_symptom_has_a_section_that_says_what_to_do():
    index = TEXT.split("| what you see | go to |")[1].split("\n\n")[0]
    targets = re.findall(r"\(#([\w-]+)\)", index)
    sections = {
        heading.lower().replace(" ", "-"): body
        for heading, body in re.findall(
            r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE
        )
    }
    assert len(targets) > 12
    for target in set(targets) - {"alarms", "who-did-it", "practising"}:
        rows = re.findall(r"^\| (means|look at|type|expect|escalate) \|", sections[target], re.M)
        assert rows == ["means", "look at", "type", "expect", "escalate"], target


def test_each_alarm_of_the_log_is_in_the_list_of_what_is_seen():
    code = "".join(
        file.read_text()
        for folder in ("recovery", "ledger", "splits", "settings")
        for file in sorted((Path(settings.BASE_DIR) / folder).rglob("*.py"))
    )
    alarms = set(re.findall(r'logger\.(?:error|critical|exception)\(\s*"(\w+)"', code))
    index = TEXT.split("| what you see | go to |")[1].split("\n\n")[0]
    assert len(alarms) > 10
    assert {it for it in alarms if f"`{it}`" not in index} == set()


class World:
    """What the runbook's examples are about."""

    def __init__(self):
        schedules.mend()
        put("received", into("OAK", "100"))
        for number in ("SO-1001", "SO-1002"):
            hang(SplitOrderFactory(number=number), age_s=412)
        failed = SplitOrderFactory(number="SO-1003", at=OrderStatus.FAILED)
        SplitOrderFactory(number="SO-1004", at=OrderStatus.QUARANTINED)
        SplitOrderFactory(number="SO-1005", at=OrderStatus.FINALIZED)
        self.due = [SplitOrderFactory(number=it) for it in ("SO-1006", "SO-1007")]
        run_job("processLedgerOutbox")
        self.entry = self.dead_entry()
        self.plan = self.halted_plan(failed.pk)

    @staticmethod
    def dead_entry():
        """Return an entry that died of a cause that has been mended since."""
        entry = put(EVENT, into("ASH", "1"))
        OutboxEntry.objects.filter(pk=entry.pk).update(
            status=EntryStatus.DEAD,
            attempts=10,
            last_error_code="account_closed",
            last_error="account stock:ASH [m2] is closed",
        )
        return entry

    @staticmethod
    def halted_plan(order_id):
        wanted = Wanted(
            "split.retry", [order_id], "cli:anna", "INC-42: disk replaced", pace=Pace(canary=(1,))
        )
        halted = plans.create(wanted)
        Plan.objects.filter(pk=halted.pk).update(
            status=PlanStatus.HALTED, note="1 of 1 failed in stage 1: SO-1003: endpoint_failed: no"
        )
        return halted


PERIODS = {job.period_setting: "86400" for job in registry.all_jobs()}
"""So long that no job is late, however slow the machine is."""


def calm(settings):
    """Make a world in which all is well: each job has just run, in a process that is gone."""
    for name, period in PERIODS.items():
        setattr(settings, name, int(period))
    schedules.mend()
    for job in registry.all_jobs():
        assert run_job(job.name).status == "ok"
    Job.objects.update(heartbeat_pid=DEAD_PID)  # or a drill waits for it to do the work


def filled_in(command, world, folder):
    """Return the arguments, with the names of what is here in place of the examples'."""
    payload = folder / "payload.json"
    if world:
        payload.write_text(
            json.dumps(world.entry.payload).replace('1"', '2"')  # of -1 and 1
        )
    here = {
        r"(plans (?:show|run|resume|cancel)) 1\b": rf"\1 {world and world.plan.pk}",
        r"--group [0-9a-f]{12}": f"--group {world and group_of(world.entry)}",
        r"--id 4\b": f"--id {world and world.entry.pk}",
        r"edit 4 --payload FILE": f"edit {world and world.entry.pk} --payload {payload}",
    }
    for pattern, replacement in here.items():
        command = re.sub(pattern, replacement, command)
    return shlex.split(command)[1:]


def group_of(entry):
    out = io.StringIO()
    call_command("dlq", "list", "--json", stdout=out)
    (group,) = json.loads(out.getvalue())["groups"]
    return group["group"]


def run(arguments):
    """Return the exit status and what was printed."""
    out, status = io.StringIO(), 0
    try:
        call_command(*arguments, stdout=out, stderr=out)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    return status, out.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
def test_command_works_as_it_is_written(command, tmp_path, settings, manage):
    settings.DLQ_EDIT_ENABLED = True
    settings.JOB_OUTBOX_DRAINS = 2 if ":2" in command else 1
    name = command.split()[1]
    if name in CALM:
        calm(settings)
        # In a process of its own: the drill starts another one, on the same database.
        ended = manage(*filled_in(command, None, tmp_path), env=PERIODS)
        status, printed = ended.returncode, ended.stdout
    else:
        world = World()
        if command in BEFORE:
            assert run(shlex.split(BEFORE[command])[1:])[0] == 0
        status, printed = run(filled_in(command, world, tmp_path))
    assert status == EXITS.get(command, 0), printed
    assert printed.strip() or name == "migrate"


def plain(line):
    """Return a line without what differs from one time to the next: numbers, names of processes."""
    line = re.sub(r"[\w.-]+:\d+:\w+", "PROCESS", line)
    line = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12}\b", "GROUP", line)
    line = re.sub(r"\d+(?:[.:]\d+)*", "0", line)
    return " ".join(line.split())


def shown_after(command):
    """Return what the runbook shows below ``command``: the lines up to the next one."""
    for kind, body in blocks(TEXT):
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE) if kind == "console" else ():
            first, _, rest = part.partition("\n")
            if first == command and rest.strip():
                return [it for it in rest.splitlines() if it.strip() and it != "…"]
    raise LookupError(command)


def assert_shown(command, printed):
    """Assert that each line the runbook shows was printed, in this order."""
    lines = iter([plain(it) for it in printed.splitlines()])
    for line in shown_after(command):
        if line.startswith(("This pauses", "Go on?")):
            continue  # asked at a terminal alone
        assert plain(line) in lines, f"{line!r} is not (or not there) in:\n{printed}"


@pytest.mark.parametrize(
    "command",
    [
        'manage.py recover_stuck SO-1001 --reason "INC-42: worker host gone"',
        'manage.py recover_stuck SO-1004 --force --reason "INC-42: memory limit raised"',
        "manage.py run_job finalizeRetryWorker",
        "manage.py plans actions",
        "manage.py drill --list",
    ],
)
def test_command_prints_what_is_shown(command, tmp_path):
    printed = run(filled_in(command, World(), tmp_path))[1]
    assert_shown(command, printed)


@pytest.mark.parametrize("command", ["manage.py selfcheck", "manage.py reconcile"])
def test_command_prints_what_is_shown_where_all_is_well(command, tmp_path, settings):
    settings.METRICS_TOKEN = "bearer-of-the-scraper"  # as in production
    settings.AUDIT_SEAL_KEYS = ["a-key-of-the-seals-alone-0123456789"]
    settings.SECURE_SSL_REDIRECT = True
    settings.PROXY_COUNT = 1
    imported(plan(*order("SO-1005")), finalize=True)
    calm(settings)
    status, printed = run(filled_in(command, None, tmp_path))
    assert status == 0
    assert_shown(command, printed)


def test_halted_plan_is_listed_as_shown(tmp_path):
    world = World()
    Plan.objects.update(
        rows_total=2,
        rows_done=1,
        note="1 of 1 failed in stage 1: SO-1003: endpoint_failed: HTTP 503",
    )
    assert world.plan
    assert_shown("manage.py plans", run(["plans"])[1])


def test_groups_of_dead_entries_are_shown(tmp_path):
    world = World()
    OutboxEntry.objects.filter(pk=world.entry.pk).update(
        last_error="account stock:OAK-S [m2] is closed"
    )
    printed = run(["dlq"])[1]
    heading, *group = shown_after("manage.py dlq")
    ours = [plain(it) for it in printed.splitlines()]
    assert plain(heading.replace("3 causes", "1 causes")) == ours[0]
    assert [plain(it) for it in group] == ours[1:]


def test_restore_prints_what_is_shown(settings):
    imported(plan(*order("SO-1005")), finalize=True)
    calm(settings)
    imported(plan(*order("SO-1001")), finalize=True)
    run_job("processLedgerOutbox")
    hang(SplitOrder.objects.get(number="SO-1001"))
    command = 'manage.py after_restore --reason "INC-42: disk lost, backup of 02:00"'
    status, printed = run(shlex.split(command)[1:])
    assert status == 0
    if not settings.REDIS_URL:
        printed = printed.replace("Redis: not configured", "Redis: ok")
    assert_shown(command, printed)


def test_jobs_are_listed_as_shown(settings):
    calm(settings)
    Job.objects.filter(name="finalizeRetryWorker").update(paused_at=seconds_from_now(-500))
    Job.objects.filter(name="processLedgerOutbox").update(
        last_status="running",
        lease_owner="web1:30240",
        lease_expires_at=seconds_from_now(600),
    )
    Job.objects.filter(name="recoverFinalizeStuck").update(last_status="", heartbeat_at=None)
    assert_shown("manage.py jobs", run(["jobs"])[1])
    status, printed = run(["run_job", "processLedgerOutbox"])
    assert status == 3
    assert_shown("manage.py run_job processLedgerOutbox", printed)


@pytest.mark.mariadb
def test_who_holds_an_order_is_told_as_shown(second_connection):
    World()
    with second_connection.cursor() as cursor:
        cursor.execute("START TRANSACTION")
        cursor.execute("SELECT id FROM splits_splitorder WHERE number = 'SO-1002' FOR UPDATE")
        for command, expected in (
            ("manage.py recover_stuck --dry-run", 1),
            ('manage.py recover_stuck SO-1002 --reason "INC-42: worker host gone"', 1),
        ):
            status, printed = run(shlex.split(command)[1:])
            assert status == expected
            shown = [it for it in printed.splitlines() if "SO-1002" in it and "held" in it]
            (told,) = (it for it in shown_after(command) if "SO-1002: " in it)
            address = r"\(\S+@\S+\)"
            assert plain(re.sub(address, "(WHO)", shown[-1])) == plain(
                re.sub(address, "(WHO)", told)
            )
