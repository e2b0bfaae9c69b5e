"""Workers killed or frozen in the middle: nothing lost, nothing twice, killers end in the DLQ."""

import signal
from types import SimpleNamespace

import pytest
from django.db import DatabaseError, OperationalError

from ledger import poison, posting
from ledger.models import Account, OutboxEntry, OutboxQuerySet, Transaction
from ledger.outbox import JOB
from ledger.posting import post_due
from recovery.clock import db_now
from recovery.errors import LOCK_WAIT_TIMEOUT
from recovery.leases import LeaseLostError
from recovery.models import AuditRecord, Job, JobRun
from recovery.runner import Run, run_job
from tests.ledger.entries import (
    WORLD,
    assert_books_balance,
    balance,
    drain,
    fresh,
    into,
    junk,
    let_go,
    lines,
    make_due,
    policy,
    put,
    refusing,
    state,
)

pytestmark = pytest.mark.django_db(transaction=True)

SHORT = {
    "JOB_LOCK_TTL_SEC": "1",
    "REDIS_TIMEOUT_SEC": "0.5",  # both must be shorter than the life of the lock
    "SPLIT_COMPLETION_TIMEOUT_SEC": "0.5",
    "JOB_BACKOFF_BASE_SEC": "0.001",
    "JOB_OUTBOX_MAX_ATTEMPTS": "2",
}


@pytest.fixture
def work(manage):
    """Return what starts a guarded run of the job with fault points in a process of its own."""

    def start(faults):
        return manage.start("run_job", JOB, "--json", env=SHORT | {"RECOVERY_FAULTPOINTS": faults})

    return start


@pytest.fixture
def run_now(eventually):
    """Return what makes a run here as soon as nobody else holds the lock."""

    def run():
        def outcome():
            found = run_job(JOB)
            return found if found.status != "skipped" else None

        return eventually(outcome)

    return run


@pytest.mark.parametrize(
    ("faultpoint", "posted"), [("outbox.before_commit", 0), ("outbox.after_commit", 3)]
)
def test_worker_killed_around_the_commit_loses_nothing(work, run_now, faultpoint, posted):
    entries = [put(f"k{n}", into("OAK", "1")) for n in range(3)]
    bad = put("bad", into("ELM", "-1"))
    follower = put("follower", into("OAK", "1"), aggregate="lot:bad")
    assert work(f"{faultpoint}=crash").finish().returncode == -signal.SIGKILL
    assert Transaction.objects.count() == posted
    assert state(bad)[1] == (1 if posted else 0)
    make_due()
    assert run_now().status == "ok"
    assert {state(it) for it in entries} == {("posted", 0, "")}
    assert state(follower) == ("pending", 0, "")
    assert balance("stock:OAK") == 3
    assert JobRun.objects.filter(status="died").count() == 1
    assert_books_balance()


@pytest.mark.mariadb
def test_frozen_worker_whose_lease_was_taken_over_commits_nothing(work, run_now, eventually):
    frozen_entries = [put(f"k{n}", into("OAK", "1")) for n in range(3)]
    bad = put("bad", into("ELM", "-1"))
    zombie = work("outbox.before_commit=stop")
    eventually(zombie.is_stopped)
    fence = Job.objects.get(pk=JOB).fence
    outcome = run_now()
    assert (outcome.status, outcome.result) == ("ok", {})
    assert Job.objects.get(pk=JOB).fence > fence
    zombie.signal(signal.SIGCONT)
    done = zombie.finish()
    assert done.returncode == 1
    assert "was lost" in done.json()["reason"]
    assert {state(it) for it in (*frozen_entries, bad)} == {("pending", 0, "")}
    assert not Transaction.objects.exists()
    assert run_now().result["posted"] == 3
    assert_books_balance()


def test_entry_that_kills_its_workers_ends_dead_and_the_others_are_posted(work):
    before = [put(f"a{n}", into("OAK", "1")) for n in range(2)]
    killer = put("bad", into("OAK", "5"), aggregate="lot:B")
    follower = put("follower", into("OAK", "7"), aggregate="lot:B")
    after = [put(f"z{n}", into("OAK", "1")) for n in range(2)]
    deaths = 0
    for _ in range(30):  # tries that find the dead one's lock still held count too
        let_go()
        ended = work("outbox.entry:bad=crash").finish()
        deaths += ended.returncode == -signal.SIGKILL
        if state(killer)[0] == "dead":
            break
    assert state(killer) == ("dead", 2, "unexpected")
    assert poison.rows.DIED in fresh(killer).last_error
    assert deaths == 4  # two until care is taken, then one an attempt
    assert AuditRecord.objects.get().action == "outbox-entry-dead"
    assert {state(it)[0] for it in (*before, *after)} == {"posted"}
    assert state(follower) == ("pending", 0, "")
    assert balance("stock:OAK") == 4
    assert_books_balance()


# The same care, step by step


def killed(entry, attempts=1):
    """Leave ``entry`` as one that killed its worker at its last attempt."""
    this = OutboxEntry.objects.filter(pk=entry.pk)
    this.update(attempts=attempts - 1)
    this.charge(delay_s=0, error=poison.rows.DIED)
    make_due()


def test_entry_that_killed_a_worker_is_not_worked_among_others(settings):
    suspect = put("bad", into("OAK", "1"), aggregate="lot:B")
    follower = put("follower", into("OAK", "1"), aggregate="lot:B")
    other = put("other", into("OAK", "1"))
    killed(suspect)
    settings.RECOVERY_FAULTPOINTS = "outbox.entry:bad=raise"
    result = post_due(policy(), limit=10)
    settings.RECOVERY_FAULTPOINTS = ""
    assert result.suspects == [suspect.pk]
    assert [it.id for it in result.posted] == [other.pk]
    assert state(follower) == ("pending", 0, "")


def test_suspect_is_not_even_read_among_others(monkeypatch):
    accounts = put("in", lines(("stock:OAK", "1"), ("stock:ASH", "1"), (WORLD, "-2")))
    drain()
    assert state(accounts)[0] == "posted"  # or the batch would be read twice
    suspect = put("bad", into("OAK", "1"))
    put("other", into("ASH", "2"))
    killed(suspect)
    read, texts = posting.read, []

    def note(payload, vendor):
        texts.append(payload)
        return read(payload, vendor)

    monkeypatch.setattr(posting, "read", note)
    post_due(policy(), limit=10)
    assert len(texts) == 1
    assert "OAK" not in texts[0]
    poison.post_with_care(policy(), suspect.pk)
    assert len(texts) == 2


def test_run_that_is_over_leaves_its_suspects_to_the_next(run_now, monkeypatch):
    suspects = [put(f"bad{n}", into("OAK", "1")) for n in range(3)]
    for it in suspects:
        killed(it)
    with monkeypatch.context() as late:
        worked = late_after(late, suspects=1)
        outcome = run_now()
    assert (outcome.status, outcome.again) == ("ok", True)
    assert worked == [suspects[0].pk]
    run_now()
    assert {state(it)[0] for it in suspects} == {"posted"}


def late_after(patch, *, suspects):
    """Let a run be over once it has worked so many suspects; return which it worked."""
    post_with_care, worked = poison.post_with_care, []

    def work(limits, pk):
        worked.append(pk)
        return post_with_care(limits, pk)

    patch.setattr(poison, "post_with_care", work)
    patch.setattr(Run, "over", lambda _run: len(worked) >= suspects)
    return worked


def test_run_works_a_suspect_alone_after_the_others(run_now):
    suspect = put("bad", into("OAK", "1"), aggregate="lot:B")
    follower = put("follower", into("OAK", "1"), aggregate="lot:B")
    killed(suspect)
    run_now()
    assert state(suspect) == ("posted", 2, "")
    assert state(follower) == ("posted", 0, "")


def test_innocent_entry_is_posted_with_care_and_without_blame():
    entry = put("k", into("OAK", "1"))
    assert len(poison.post_with_care(policy(), entry.pk).posted) == 1
    now = fresh(entry)
    assert (now.status, now.last_error_code, now.last_error) == ("posted", "", "")


def test_refused_entry_is_charged_once_under_care():
    entry = put("k", into("OAK", "-1"))
    result = poison.post_with_care(policy(), entry.pk)
    assert list(result.failures) == [entry.pk]
    assert state(entry) == ("pending", 1, "insufficient_balance")


def test_entry_behind_another_is_not_charged_under_care():
    head = put("head", into("OAK", "-1"), aggregate="lot:B")
    follower = put("f", into("OAK", "1"), aggregate="lot:B")
    poison.post_with_care(policy(), head.pk)
    result = poison.post_with_care(policy(), follower.pk)
    assert result.parked == 1
    assert state(follower) == ("pending", 0, "")
    assert fresh(follower).next_attempt_at == fresh(head).next_attempt_at


def test_unknown_version_is_not_charged_under_care():
    entry = junk("k", {"schema_version": 2})
    result = poison.post_with_care(policy(), entry.pk)
    assert result.postponed == [entry.pk]
    assert state(entry) == ("pending", 0, "")
    assert not drain().claimed


def test_exhausted_entry_dies_under_care_with_its_followers_parked():
    entry = put("k", into("OAK", "1"), aggregate="lot:B")
    killed(entry, attempts=3)
    result = poison.post_with_care(policy(), entry.pk)
    assert (result.dead, len(result.failures)) == ([entry.pk], 1)
    assert state(entry) == ("dead", 3, "unexpected")
    assert AuditRecord.objects.get().target_id == str(entry.pk)
    assert balance("stock:OAK") == 0


def test_lower_limit_of_attempts_kills_no_entry_untried():
    entry = put("k", into("OAK", "1"))
    refused = put("refused", into("ELM", "-1"))
    OutboxEntry.objects.update(attempts=5, last_error="closed", last_error_code="account_closed")
    assert len(poison.post_with_care(policy(max_attempts=3), entry.pk).posted) == 1
    poison.post_with_care(policy(max_attempts=3), refused.pk)
    assert state(refused) == ("dead", 6, "insufficient_balance")


def test_entry_worked_with_care_that_is_gone_meanwhile_is_left_alone():
    entry = put("k", into("OAK", "1"))
    drain()
    assert not poison.post_with_care(policy(), entry.pk).claimed


def test_lease_lost_while_missing_accounts_are_made_makes_none():
    put("k", into("OAK", "1"))
    with pytest.raises(LeaseLostError):
        post_due(policy(seal=lose_at(1)), limit=10)
    assert not Account.objects.exists()


def test_lease_lost_under_care_works_nothing():
    entry = put("k", into("OAK", "1"))

    def lose():
        raise LeaseLostError("lost")

    with pytest.raises(LeaseLostError):
        poison.post_with_care(policy(seal=lose), entry.pk)
    assert state(entry) == ("pending", 0, "")


def lose_at(seal_number, before=lambda: None):
    """Return a seal whose call of this number does something and finds the lease lost."""
    calls = []

    def seal():
        calls.append(1)
        if len(calls) == seal_number:
            before()
            raise LeaseLostError("lost")

    return seal


def test_lease_lost_in_the_work_under_care_gives_the_attempt_back():
    entry = put("k", into("OAK", "1"))
    with pytest.raises(LeaseLostError):
        poison.post_with_care(policy(seal=lose_at(2)), entry.pk)
    assert state(entry) == ("pending", 0, "")
    assert len(drain().posted) == 1


def test_zombie_does_not_take_back_the_attempt_of_the_next_holder(monkeypatch):
    entry = put("k", into("OAK", "1"))

    def next_holder_begins(*_args, **_kwargs):
        OutboxEntry.objects.filter(pk=entry.pk).charge(delay_s=0, error=poison.rows.DIED)
        raise LeaseLostError("lost")

    monkeypatch.setattr(poison, "post_these", next_holder_begins)
    with pytest.raises(LeaseLostError):
        poison.post_with_care(policy(), entry.pk)
    assert state(entry) == ("pending", 2, "unexpected")
    assert fresh(entry).last_error == poison.rows.DIED


def test_refund_is_tried_again_after_an_outage(monkeypatch):
    entry = put("k", into("OAK", "1"))
    monkeypatch.setattr("recovery.errors.PAUSE_S", 0)
    refund, outages = OutboxQuerySet.refund, [1]

    def refund_after_outage(self, **kwargs):
        if outages:
            outages.pop()
            raise OperationalError(LOCK_WAIT_TIMEOUT, "Lock wait timeout exceeded")
        return refund(self, **kwargs)

    monkeypatch.setattr(OutboxQuerySet, "refund", refund_after_outage)
    with pytest.raises(LeaseLostError):
        poison.post_with_care(policy(seal=lose_at(2)), entry.pk)
    assert state(entry) == ("pending", 0, "")


def test_refunded_entry_is_due_at_once():
    entry = put("k", into("OAK", "1"))
    with pytest.raises(LeaseLostError):
        poison.post_with_care(policy(seal=lose_at(2), delay_sec=lambda _n: 600.0), entry.pk)
    assert fresh(entry).next_attempt_at <= db_now()


@pytest.mark.mariadb
def test_infrastructure_error_under_care_gives_the_attempt_back(second_connection, monkeypatch):
    put("in", into("OAK", "1"))
    drain()
    entry = put("k", into("OAK", "1"))
    monkeypatch.setattr("ledger.posting.with_retries", lambda action: action())
    with second_connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1 FROM ledger_account FOR UPDATE")
        with poison.transaction.get_connection().cursor() as own:
            own.execute("SET innodb_lock_wait_timeout = 1")
            with pytest.raises(DatabaseError):
                poison.post_with_care(policy(), entry.pk)
            own.execute("SET innodb_lock_wait_timeout = 10")
        cursor.execute("ROLLBACK")
    assert state(entry) == ("pending", 0, "")
    assert len(drain().posted) == 1


def test_run_after_two_deaths_works_entry_by_entry(run_now, caplog):
    for n in range(3):
        put(f"k{n}", into("OAK", "1"))
    run_now()
    JobRun.objects.all().delete()
    more = [put(f"m{n}", into("OAK", "1")) for n in range(3)]
    job = Job.objects.get(pk=JOB)
    for fence in (1, 2):
        JobRun.objects.create(job=job, fence=-fence, host="h", pid=1, status="died")
    outcome = run_now()
    assert (outcome.status, outcome.result) == ("ok", {"posted": 3})
    assert "entries_one_at_a_time" in caplog.text
    assert [state(it)[0] for it in more] == ["posted"] * 3
    caplog.clear()
    run_now()
    assert "entries_one_at_a_time" not in caplog.text


def test_run_under_care_fails_where_an_entry_could_not_be_charged_and_works_the_others():
    bad = put("bad", into("OAK", "13"))
    good = put("good", into("OAK", "1"))
    run = SimpleNamespace(deaths=2, over=lambda: False, progressed=lambda: None)
    limits = policy(max_attempts=1)
    with (
        refusing("ledger_posting", "NEW.quantity = 13"),
        refusing("recovery_auditrecord", "NEW.action = 'outbox-entry-dead'"),
        pytest.raises(DatabaseError, match="not this one"),
    ):
        poison.post_one_at_a_time(run, limits, limit=10)
    assert state(bad) == ("pending", 0, "")
    assert state(good)[0] == "posted"


def test_run_says_what_it_did_and_fails_where_an_entry_could_not_be_charged(run_now, monkeypatch):
    error = DatabaseError("no audit")
    found = post_due(policy(), limit=1)
    found.errors.append(error)
    monkeypatch.setattr("ledger.jobs.post_due", lambda *_args, **_kwargs: found)
    outcome = run_now()
    assert outcome.status == "failed"
    assert "no audit" in outcome.reason
