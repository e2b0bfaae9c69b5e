"""The demo: real processes, from an empty directory through three stories, and started again."""

import http.cookiejar
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import urllib.parse
import urllib.request
from contextlib import closing, suppress

import pytest

from tests.servers import free_port
from tests.splits.demos import Demo, links
from tests.splits.processes import wait_until

pytestmark = [pytest.mark.sqlite, pytest.mark.timeout(600)]

END = "Ctrl-C stops it."
SECONDS_TO_STOP = 120  # it takes two; the machine may be busy


@pytest.fixture
def start(tmp_path):
    """Start the demo; whatever is left of it is killed at the end."""
    demos = []

    def start(*options, **environ):
        demos.append(Demo(tmp_path / "var", *options, **environ))
        return demos[-1]

    yield start
    for demo in demos:
        demo.clean_up()


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A demo that has told its stories and serves."""
    demo = Demo(tmp_path_factory.mktemp("played") / "var")
    try:
        demo.says(END)
        yield demo
    finally:
        demo.clean_up()


@pytest.fixture
def played_before(played, tmp_path):
    """A directory as a demo leaves it that was stopped after its stories."""
    var = tmp_path / "var"
    var.mkdir()
    with (
        closing(sqlite3.connect(played.var / "db.sqlite3", timeout=120)) as there,
        closing(sqlite3.connect(var / "db.sqlite3")) as here,
    ):
        there.backup(here)
    shutil.copy(played.var / "demo-password", var)
    return var


def logged_in(demo):
    """Return an opener that has logged in with what the terminal says."""
    found = re.search(r"Log in as: (\S+), password (\S+) ", demo.output())
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar()))
    _status, url, html = demo.get("/admin/", opener)
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', html)[1]
    form = {"username": found[1], "password": found[2], "csrfmiddlewaretoken": token}
    with opener.open(url, urllib.parse.urlencode(form).encode(), timeout=120) as page:
        assert "/login/" not in page.url
    return opener


def jar():
    return http.cookiejar.CookieJar()


def test_everything_is_finalized_and_posted_before_anything_breaks(played):
    output = played.output().partition("Story 1 of 3")[0]
    assert "120 orders imported, 0 skipped" in output
    assert "120 imported now, 0 known; 120 finalized" in output
    assert "Child lots: 597" in output
    assert re.search(r"Ledger: 240 transactions, 957 postings \(\d+ postings/s", output)
    assert "Dead entries (DLQ): 0" in output
    assert "in flight: 0 entries" in output
    assert "everything agrees" in output


def test_settings_that_differ_from_the_defaults_are_printed(played):
    output = played.output()
    assert "JOB_OUTBOX_MAX_ATTEMPTS=4 (default 10)" in output
    assert "JOB_FINALIZE_STUCK_THRESHOLD_SEC=13 (default 300)" in output
    webhook = f"SPLIT_COMPLETION_WEBHOOK=http://127.0.0.1:{played.endpoint_port}/split-completed"
    assert webhook in output


def test_closed_account_fills_the_dlq(played):
    entry, status, attempts, code = played.row(
        "SELECT id, status, attempts, last_error_code FROM ledger_outboxentry WHERE event_key = ?",
        "lot:BOARD-DEMO-1-CLOSED:received",
    )
    assert (status, attempts, code) == ("dead", 4, "account_closed")
    assert played.rows(
        "SELECT actor FROM recovery_auditrecord WHERE action = 'outbox-entry-dead'"
        " AND target_id = ?",
        str(entry),
    ) == [("system:processLedgerOutbox",)]
    assert played.rows(
        "SELECT target_id FROM recovery_auditrecord WHERE action = 'account-closed' AND reason > ''"
    ) == [("stock:SHEET-300x300 [mm2]",)]
    assert "is closed by hand, on the record" in played.output()
    # What comes after it in its aggregate waits; everybody else goes on.
    waiting = "SELECT status, attempts FROM ledger_outboxentry WHERE event_key = ?"
    assert played.row(waiting, "split-order:DEMO-1-CLOSED:finalized") == ("pending", 0)
    assert played.row(waiting, "split-order:DEMO-1-OTHER:finalized") == ("posted", 0)
    story = played.output().partition("Story 1 of 3")[2].partition("Story 2 of 3")[0]
    # One that a slow machine was too late to see is not told of.
    told = [(int(n), int(s)) for n, s in re.findall(r"Attempt (\d) of 4, .* in (\d+) s,", story)]
    assert told
    assert told == sorted(set(told) & {(1, 2), (2, 4), (3, 8)})
    assert "the receipt is dead" in story


def test_unreachable_webhook_opens_the_breaker_and_costs_no_further_attempts(played):
    orders = "SELECT number, status, finalize_attempts FROM splits_splitorder WHERE number GLOB ?"
    found = played.rows(orders, "DEMO-1-NOTIFY-*")
    assert [status for _number, status, _attempts in found] == ["finalized"] * 4
    failures = played.rows(
        "SELECT target_id FROM recovery_auditrecord WHERE target_id GLOB 'DEMO-1-NOTIFY-*'"
        " AND action = 'split-order-finalize-failed'"
        " AND json_extract(evidence, '$.code') = 'endpoint_failed'"
    )
    # More than five where an answer came too late from a slow machine.
    assert len(failures) >= 5
    # Calls that failed, and four that were answered: the breaker's waiting cost nothing.
    assert sum(attempts for _number, _status, attempts in found) == len(failures) + 4
    assert played.row("SELECT failures, opened_at FROM splits_breaker") == (0, None)
    story = played.output().partition("Story 2 of 3")[2].partition("Story 3 of 3")[0]
    events = (
        "is switched off",
        "attempt 1 failed",
        "5 failures in a row open the breaker",
        "of 4 orders wait at the breaker",
        "The endpoint is back",
        "answers 200",
        "the breaker is closed again",
        "4 of 4 orders are finalized",
    )
    places = [story.find(event) for event in events]
    assert -1 not in places
    assert places == sorted(places)


def test_killed_finalizer_is_found_recovered_on_the_record_and_posted_once(played):
    number, recoveries, attempts = played.row(
        "SELECT number, recovery_count, finalize_attempts FROM splits_splitorder"
        " WHERE number GLOB 'DEMO-1-KILLED-*' AND status = 'finalized' AND recovery_count > 0"
    )
    assert (recoveries, attempts) == (1, 2)
    steps = played.rows(
        "SELECT name, s.epoch FROM splits_finalizestep s JOIN splits_splitorder o"
        " ON o.id = order_id WHERE number = ? ORDER BY s.id",
        number,
    )
    assert steps == [
        ("validate", 1),
        ("consume_source", 1),
        ("create_outputs", 1),
        ("post_ledger", 3),
        ("notify", 3),
    ]
    actor, evidence = played.row(
        "SELECT actor, evidence FROM recovery_auditrecord WHERE target_id = ?", number
    )
    assert actor == "system:recoverFinalizeStuck"
    assert json.loads(evidence)["age_s"] >= 13
    assert json.loads(evidence)["proof"]["how"] == "BEGIN IMMEDIATE was granted"
    key = f"split-order:{number}:finalized"
    assert played.row("SELECT count(*) FROM ledger_transaction WHERE event_key = ?", key) == (1,)
    assert "killed by signal 9" in played.output()


def test_dead_receipt_is_all_that_disagrees_at_the_end(played):
    status, found = played.manage("reconcile", "--json")
    assert status == 1
    assert [(it["kind"], it["target"].split()[1]) for it in found["findings"]] == [
        ("entry_dead", "lot:BOARD-DEMO-1-CLOSED:received")
    ]
    output = played.output().rpartition("Story 3 of 3")[2]
    assert "That is the dead receipt of story 1" in output
    assert "Everything else agrees." in output


def test_guide_shows_the_stories_and_leads_to_pages_that_exist(played):
    status, url, html = played.get("/")
    assert (status, url) == (200, played.url("/demo/"))
    assert html.count('class="played"') == 3
    assert "account_closed" in html
    opener = logged_in(played)
    addresses = links(html)
    for row in ("account", "outboxentry", "auditrecord", "splitorder", "breaker", "job"):
        assert any(f"/{row}/" in address for address in addresses), row
    assert {"/metrics", "/readyz?jobs=1"} <= set(addresses)
    for address in sorted(set(addresses)):
        status, _url, text = played.get(address, opener)
        assert status == 200, f"{address}: {text[:2000]}"


def test_password_is_the_readers_alone_and_not_on_the_page(played):
    password = (played.var / "demo-password").read_text()
    assert f"Log in as: demo, password {password}" in played.output()
    assert (played.var / "demo-password").stat().st_mode & 0o077 == 0
    assert password not in played.get("/demo/")[2]


def test_account_that_is_reopened_takes_the_next_board(played):
    code = (
        "from ledger import accounts;"
        "accounts.reopen('stock:SHEET-300x300', 'mm2', actor='demo', reason='try it')"
    )
    assert played.manage("shell", "-v", "0", "-c", code)[0] == 0
    output = played.says("Its receipt is posted")
    number = re.search(r"is open again: .* with (LIVE-\d+)\.", output)[1]
    key = f"lot:BOARD-{number}:received"
    assert played.row("SELECT count(*) FROM ledger_transaction WHERE event_key = ?", key) == (1,)
    assert played.rows(
        "SELECT sku FROM splits_lot WHERE code = ?", f"BOARD-{number}"
    ) == [("SHEET-300x300",)]  # fmt: skip


def test_second_start_recognizes_what_was_played_and_stops_cleanly(start, played_before):
    second = start()
    output = second.says(END)
    assert "0 orders imported, 120 skipped (known from an earlier start)" in output
    assert output.count("Played before") == 3
    assert "is switched off" not in output
    password = (second.var / "demo-password").read_text()
    assert f"password {password}" in output
    assert second.end(signal.SIGINT) == 0
    wait_until(lambda: not second.descendants())
    assert "make demo-clean" in second.output()
    assert "Traceback" not in second.output()


def test_json_is_one_document_with_the_stories(start, played_before):
    demo = start("--json")
    demo.says("}\n")
    document = json.loads(demo.output())
    outcomes = {key: story["outcome"] for key, story in document["stories"].items()}
    assert outcomes == dict.fromkeys(
        ("closed_account", "unreachable_webhook", "killed_finalizer"), "played"
    )
    assert document["stories"]["closed_account"]["orders"] == ["DEMO-1-CLOSED"]
    assert (document["pending"], document["dead"], document["agrees"]) == (0, 1, False)
    assert document["after_stories"]["unexplained_findings"] == []
    assert demo.end() == 0
    assert json.loads(demo.output()) == document


def test_stories_are_played_again_on_demand_under_fresh_numbers(start, played_before):
    demo = start("--again")
    demo.says("order DEMO-2-CLOSED splits it")
    assert demo.end() == 0


def test_finding_that_the_stories_do_not_tell_of_is_an_exit_status(start, played_before):
    with closing(sqlite3.connect(played_before / "db.sqlite3")) as database, database:
        database.execute("UPDATE ledger_account SET balance = 7 WHERE code = 'external:receipts'")
    demo = start()
    output = demo.says(END)
    assert "balance_differs_from_postings" in output
    assert "1 finding is not of the stories" in output
    assert demo.end() == 1


def test_demo_that_was_killed_leaves_nothing_running_and_carries_on(start):
    first = start()
    first.says("orders finalized")
    assert len(first.descendants()) > 4
    password = (first.var / "demo-password").read_text()
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    ports = (first.port, first.endpoint_port)
    second = start(ports=ports)  # at once: it waits for the port
    output = second.says("Story 1 of 3")
    assert "0 orders imported, 120 skipped (known from an earlier start)" in output
    assert "120 finalized" in output
    assert "everything agrees" in output
    assert f"password {password}" in output
    second.says("Its receipt is refused")
    second.process.send_signal(signal.SIGINT)
    second.process.send_signal(signal.SIGINT)  # impatience changes nothing
    assert second.process.wait(SECONDS_TO_STOP) == 0
    wait_until(lambda: not second.descendants())
    assert "Traceback" not in second.output()
    third = start(ports=ports)
    output = third.says("Story 2 of 3")
    assert "Dead entries (DLQ): 1" in output  # its attempts went on while nobody told of them
    assert "Played before: DEMO-1-CLOSED." in output
    assert third.end() == 0


def test_death_of_a_child_ends_the_demo_and_says_so_in_one_line(start):
    demo = start()
    demo.says("orders finalized")
    os.kill(demo.child(b"runserver"), signal.SIGKILL)
    assert demo.process.wait(SECONDS_TO_STOP) == 1
    (line,) = [line for line in demo.output().splitlines() if "CommandError" in line]
    assert "web was killed by signal 9; start again, it carries on" in line
    wait_until(lambda: not demo.descendants())


@pytest.mark.parametrize(
    ("which", "text"),
    [
        (0, "port {} on 127.0.0.1 is in use; choose another one: PORT="),
        (1, "port {} on 127.0.0.1, for the demo's completion endpoint, is in use"),
    ],
)
def test_port_in_use_is_said_in_one_line(start, which, text):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [taken.getsockname()[1], free_port()]
        demo = start(ports=ports if which == 0 else ports[::-1])
        assert demo.process.wait(SECONDS_TO_STOP) == 1
    (line,) = demo.output().splitlines()
    assert text.format(ports[0]) in line
    assert line.endswith(" make demo")


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"PORT": "http"}, "PORT='http' is not usable"),
        ({"PORT": "70000"}, "1 to 65535"),
        ({"PORT": "8000", "ENDPOINT_PORT": "8000"}, "PORT and ENDPOINT_PORT must differ"),
        ({"REDIS_URL": "redis://localhost", "SECRET_KEY": "x"}, "unset DATABASE_URL and REDIS_URL"),
    ],
)
def test_wrong_usage_exits_2(start, environ, reason):
    demo = start(**environ)
    assert demo.process.wait(SECONDS_TO_STOP) == 2
    assert reason in demo.output()


def test_kill_of_every_worker_is_survived(start, played_before):
    demo = start()
    demo.says(END)
    mine = set(demo.descendants())
    # Those of the demo that its rows were copied from are named for a moment.
    pids = wait_until(lambda: mine.issuperset(workers(demo)) and workers(demo))
    for pid in pids:
        with suppress(ProcessLookupError):  # one may have been replaced
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: set(workers(demo)) - set(pids))
    assert demo.process.poll() is None
    assert demo.end() == 0


def workers(demo):
    """Return the process ids that the page names."""
    found = re.search(r"Worker processes: <code>([\d ]+)</code>", demo.get("/demo/live/")[2])
    return [int(pid) for pid in found[1].split()] if found else []
