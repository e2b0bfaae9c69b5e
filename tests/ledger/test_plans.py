"""Operators' plans, by the actions on dead entries: frozen, paced, halted, resumed, audited."""

import json
from datetime import timedelta

import pytest
from django.db import OperationalError, connection

from ledger import dlq
from ledger.models import Account, DeadLetter, EntryStatus, OutboxEntry, Transaction
from recovery import carrying, foreground, plans, retention, runner
from recovery.actions import RefusedError, WrongParametersError
from recovery.clock import db_now
from recovery.foreground import Follower
from recovery.models import AuditRecord, ItemStatus, Plan, PlanStatus
from recovery.plans import CANARY, Pace, PlanError, Wanted
from tests.ledger.entries import assert_books_balance, drain, into, make_due, put, state
from tests.logs import kept, named

pytestmark = pytest.mark.django_db(transaction=True)


LOST = {
    "mysql": (2013, "Lost connection to server during query"),
    "sqlite": ("database is locked",),
}


@pytest.fixture(autouse=True)
def _quick(settings, monkeypatch):
    settings.JOB_OUTBOX_MAX_ATTEMPTS = 3
    monkeypatch.setattr(foreground, "NUDGE_AFTER_S", 0.0)


def die(count=1, *, sku="OAK"):
    """Return entries that died of a closed account."""
    put(f"{sku}-first", into(sku, "1"))
    drain()
    Account.objects.filter(code=f"stock:{sku}").close()
    entries = [put(f"{sku}-{n}", into(sku, "1")) for n in range(count)]
    for _ in range(3):
        make_due()
        drain()
    assert OutboxEntry.objects.dead().count() >= count
    return entries


def wanted(entries, action="outbox.redrive", **others):
    return Wanted(action, [it.pk for it in entries], "anna", "INC-7: account opened", **others)


def carried(plan):
    plans.start(plan.pk, actor="anna", here=True)
    return Follower(plan.pk).to_its_end()


def reopen():
    Account.objects.all().reopen()


def redriven():
    return AuditRecord.objects.filter(action="outbox-entry-redriven")


def test_redriven_entries_are_posted_and_each_has_one_record():
    entries = die(3)
    reopen()
    plan = carried(plans.create(wanted(entries)))
    assert (plan.status, plan.rows_done) == (PlanStatus.DONE, 3)
    drain()
    assert {state(it)[0] for it in entries} == {EntryStatus.POSTED}
    assert [(it.actor, it.reason) for it in redriven()] == [("anna", "INC-7: account opened")] * 3
    assert {it.evidence["plan"] for it in redriven()} == {plan.pk}
    assert not DeadLetter.objects.exists()
    assert_books_balance()


def test_canary_halts_with_one_failed_entry_and_puts_it_back():
    entries = die(12)
    plan = carried(plans.create(wanted(entries, pace=Pace(canary=CANARY))))
    assert plan.status == PlanStatus.HALTED
    assert "account_closed" in plan.note
    assert plan.items.counts() == {ItemStatus.UNDONE: 1, ItemStatus.WAITING: 11}
    assert OutboxEntry.objects.dead().count() == 12
    assert DeadLetter.objects.count() == 12
    assert redriven().count() == 1
    halted = AuditRecord.objects.get(action=plans.HALTED)
    assert halted.evidence["put_back"] == 1


def test_halted_plan_goes_on_to_its_end_once_the_cause_is_mended():
    entries = die(12)
    plan = carried(plans.create(wanted(entries, pace=Pace(canary=CANARY))))
    reopen()
    assert plans.resume(plan.pk, actor="berta", here=True)
    plan = Follower(plan.pk).to_its_end()
    assert (plan.status, plan.rows_done) == (PlanStatus.DONE, 12)
    assert plan.items.counts() == {ItemStatus.DONE: 12}
    assert Transaction.objects.count() == 13
    assert redriven().count() == 13, "the one of the canary twice"
    assert_books_balance()


def test_rows_changed_since_the_preview_are_skipped_and_named():
    first, second = die(2)
    reopen()
    plan = plans.create(wanted([first, second]))
    other = carried(plans.create(Wanted("outbox.redrive", [first.pk], "berta", "mine")))
    assert other.status == PlanStatus.DONE
    plan = carried(plan)
    (drifted,) = plan.items.filter(status=ItemStatus.DRIFTED)
    assert drifted.label == first.event_key
    assert "outbox-entry-redriven by berta" in drifted.note
    assert redriven().filter(target_id=str(first.pk)).count() == 1


def test_row_of_another_status_is_left_out_and_named():
    (dead,) = die()
    healthy = put("other", into("PINE", "1"))
    plan = plans.create(wanted([dead, healthy]))
    assert plan.rows_total == 1
    assert plan.items.get(status=ItemStatus.EXCLUDED).note == "it is pending, not dead"


def test_entry_behind_a_dead_one_that_is_not_chosen_is_left_out():
    (head,) = die()
    OutboxEntry.objects.filter(pk=head.pk).update(aggregate="lot:same")
    follower = put("follower", into("OAK", "1"), aggregate="lot:same")
    OutboxEntry.objects.filter(pk=follower.pk).update(status=EntryStatus.DEAD)
    plan = plans.create(wanted([follower]))
    assert f"wait for entry {head.pk}" in plan.items.get().note
    assert plans.create(wanted([head, follower])).rows_total == 2


def test_followers_go_on_at_once_after_redrive_and_after_discard():
    for action in ("outbox.redrive", "outbox.discard"):
        reopen()
        (head,) = die(sku=action[7:].upper())
        waiting = put(f"{action}-next", into("PINE", "1"), aggregate=head.aggregate)
        drain()
        assert OutboxEntry.objects.get(pk=waiting.pk).next_attempt_at > db_now() + timedelta(
            seconds=60
        ), "it is parked behind the dead one"
        reopen()
        carried(plans.create(wanted([head], action)))
        drain()
        assert state(waiting)[0] == EntryStatus.POSTED


def test_discarded_entry_stays_and_is_on_record():
    (entry,) = die()
    carried(plans.create(wanted([entry], "outbox.discard")))
    assert state(entry)[0] == EntryStatus.DISCARDED
    record = AuditRecord.objects.get(action="outbox-entry-discarded")
    assert (record.before["status"], record.after["status"]) == ("dead", "discarded")
    assert record.evidence["code"] == "account_closed"


def test_discarded_entry_is_restored_as_it_was_and_can_be_redriven():
    (entry,) = die()
    entry.refresh_from_db()
    carried(plans.create(wanted([entry], "outbox.discard")))
    later = put("later", into("PINE", "1"), aggregate=entry.aggregate)
    drain()
    waits = put("waits", into("OAK", "1"), aggregate=entry.aggregate)
    (shown,) = plans.preview(wanted([entry], "outbox.restore"))
    assert shown.after == {"status": "dead", "holds_back": 1, "later_posted": 1}
    plan = carried(plans.create(wanted([entry], "outbox.restore")))
    assert (plan.status, plan.rows_done) == (PlanStatus.DONE, 1)
    assert state(entry) == (EntryStatus.DEAD, entry.attempts, entry.last_error_code)
    assert DeadLetter.objects.get().pk == entry.pk
    record = AuditRecord.objects.get(action="outbox-entry-restored")
    assert (record.actor, record.before["status"], record.after["status"]) == (
        "anna", "discarded", "dead",
    )  # fmt: skip
    assert (record.evidence["later_posted"], record.evidence["holds_back"]) == (1, 1)
    drain()
    assert state(waits)[0] == EntryStatus.PENDING, "it waits behind the restored one"
    reopen()
    carried(plans.create(wanted([entry])))
    drain()
    assert {state(it)[0] for it in (entry, later, waits)} == {EntryStatus.POSTED}
    assert_books_balance()


def test_only_discarded_entries_that_the_ledger_lacks_are_restored():
    dead, discarded = die(2)
    carried(plans.create(wanted([discarded], "outbox.discard")))
    Transaction.objects.create(pk=10**6, event_key=discarded.event_key, event_type="x")
    plan = plans.create(wanted([dead, discarded], "outbox.restore"))
    assert plan.rows_total == 0
    assert set(plan.items.values_list("note", flat=True)) == {
        "it is dead, not discarded",
        "the ledger has a transaction of this key",
    }


def test_entry_whose_key_is_posted_after_the_preview_is_not_restored():
    (entry,) = die()
    carried(plans.create(wanted([entry], "outbox.discard")))
    plan = plans.create(wanted([entry], "outbox.restore"))
    Transaction.objects.create(pk=10**6, event_key=entry.event_key, event_type="x")
    carried(plan)
    assert plan.items.get().note == "the ledger has a transaction of this key"
    assert state(entry)[0] == EntryStatus.DISCARDED
    assert not DeadLetter.objects.exists()


def test_entry_is_restored_once_by_two_plans():
    (entry,) = die()
    carried(plans.create(wanted([entry], "outbox.discard")))
    first, second = (plans.create(wanted([entry], "outbox.restore")) for _ in range(2))
    carried(first)
    carried(second)
    assert second.items.get().status == ItemStatus.DRIFTED
    assert AuditRecord.objects.filter(action="outbox-entry-restored").count() == 1


def test_paused_plan_does_nothing_more_until_it_is_resumed():
    entries = die(3)
    plan = plans.create(wanted(entries))
    plans.start(plan.pk, actor="anna", here=True)
    carrier = carrying.take(plan.pk)
    carrier.step()
    assert plans.pause(plan.pk, actor="berta", reason="wait")
    assert carrier.step() is carrying.Step.ENDED
    assert redriven().count() == 1
    assert carrying.take(plan.pk) is None
    assert plans.resume(plan.pk, actor="berta", here=True)
    assert Follower(plan.pk).to_its_end().status == PlanStatus.DONE
    assert redriven().count() == 3
    trail = AuditRecord.objects.filter(target_type="plan").order_by("id")
    assert [it.action for it in trail] == [
        plans.CREATED, plans.STARTED, plans.PAUSED, plans.RESUMED, plans.FINISHED,
    ]  # fmt: skip


def test_cancelled_plan_ends_for_good():
    entries = die(2)
    plan = plans.create(wanted(entries))
    assert plans.cancel(plan.pk, actor="anna")
    assert not plans.cancel(plan.pk, actor="anna")
    with pytest.raises(PlanError):
        plans.start(plan.pk, actor="anna")
    with pytest.raises(PlanError):
        plans.resume(plan.pk, actor="anna")
    assert not redriven().exists()


def test_two_carriers_of_one_plan_are_one():
    plan = plans.create(wanted(die(2)))
    plans.start(plan.pk, actor="anna", here=True)
    first = carrying.take(plan.pk)
    assert first is not None
    assert carrying.take(plan.pk) is None
    # Its host vanished; somebody else took over.
    Plan.objects.filter(pk=plan.pk).update(carrier_until=db_now() - timedelta(seconds=1))
    second = carrying.take(plan.pk)
    assert first.step() is carrying.Step.ENDED
    assert not redriven().exists()
    assert second.step() is carrying.Step.WORKED
    assert redriven().count() == 1


def test_job_carries_plans_on():
    entries = die(3)
    reopen()
    plan = plans.create(wanted(entries))
    plans.start(plan.pk, actor="anna")
    outcome = runner.run_job(plans.JOB)
    assert outcome.status == "ok", outcome
    plan.refresh_from_db()
    assert plan.status == PlanStatus.DONE
    assert set(redriven().values_list("actor", flat=True)) == {"anna"}
    assert None not in set(redriven().values_list("run_id", flat=True))


def test_rate_is_kept_by_whoever_carries_on():
    plan = plans.create(wanted(die(2), pace=Pace(rate=0.01)))
    plans.start(plan.pk, actor="anna", here=True)
    first = carrying.take(plan.pk)
    first.step()
    first.let_go()
    assert carrying.take(plan.pk).wait_s() > 60


def test_paused_canary_goes_on_within_its_stage():
    entries = die(9)
    reopen()
    plan = plans.create(wanted(entries, pace=Pace(canary=(4, 100))))
    plans.start(plan.pk, actor="anna", here=True)
    carrier = carrying.take(plan.pk)
    for _ in range(3):
        carrier.step()
    plans.pause(plan.pk, actor="anna")
    plans.resume(plan.pk, actor="anna", here=True)
    carrier = carrying.take(plan.pk)
    assert [carrier.step() for _ in range(2)] == [carrying.Step.WORKED, carrying.Step.WATCHED]
    assert redriven().count() == 4


def test_halt_is_the_systems_and_the_rows_are_the_operators():
    plan = carried(plans.create(wanted(die(2), pace=Pace(canary=CANARY))))
    assert AuditRecord.objects.get(action=plans.HALTED).actor == f"system:{plans.JOB}"
    assert redriven().get().actor == "anna"
    assert plan.status == PlanStatus.HALTED


def test_plan_of_an_action_that_only_newer_code_knows_is_left_alone():
    plan = plans.create(wanted(die()))
    plans.start(plan.pk, actor="anna", here=True)
    Plan.objects.update(action="outbox.polish")
    assert carrying.take(plan.pk) is None
    assert runner.run_job(plans.JOB).status == "ok"
    plan.refresh_from_db()
    assert plan.status == PlanStatus.RUNNING


def test_plan_that_the_database_refuses_does_not_stop_the_others(monkeypatch):
    first, second = (plans.create(wanted([it])) for it in die(2))
    for plan in (first, second):
        plans.start(plan.pk, actor="anna")
    take = carrying.take

    def refuse(plan_id, **others):
        if plan_id == first.pk:
            raise OperationalError(1205, "Lock wait timeout exceeded")
        return take(plan_id, **others)

    monkeypatch.setattr("recovery.jobs.carrying.take", refuse)
    assert runner.run_job(plans.JOB).status == "failed", "it is not hushed up"
    second.refresh_from_db()
    assert second.status == PlanStatus.DONE


def test_ended_plans_go_after_their_days_and_no_other(monkeypatch):
    monkeypatch.setattr(retention, "FIRST_ROWS", 2)
    monkeypatch.setattr(retention, "MOST_ROWS", 2)
    entries = die(5)
    ended = [plans.create(wanted(entries)) for _ in range(3)]
    Plan.objects.update(status=PlanStatus.DONE)
    halted = plans.create(wanted(entries))
    Plan.objects.filter(pk=halted.pk).update(status=PlanStatus.HALTED)
    Plan.objects.update(created_at=db_now() - timedelta(days=91))
    young = plans.create(wanted(entries))
    assert runner.run_job("auditArchive").result == {"plan_rows_deleted": 15, "plans_deleted": 3}
    assert not Plan.objects.filter(pk__in=[it.pk for it in ended]).exists()
    assert {it.items.count() for it in (halted, young)} == {5}


def test_row_whose_commit_was_not_answered_is_done_once(monkeypatch):
    (entry,) = die()
    keep, lost = carrying.Carrier._keep, iter([True])

    def answer_lost(self, item, change):
        kept = keep(self, item, change)
        if next(lost, False):
            raise OperationalError(*LOST[connection.vendor])
        return kept

    monkeypatch.setattr(carrying.Carrier, "_keep", answer_lost)
    plan = carried(plans.create(wanted([entry])))
    assert (plan.status, plan.rows_done) == (PlanStatus.DONE, 1)
    assert plan.items.get().status == ItemStatus.APPLIED, "it did not drift: we changed it"
    assert redriven().count() == 1


def test_entries_are_chosen_by_when_they_were_published():
    old, _young = die(2)
    OutboxEntry.objects.filter(pk=old.pk).update(created_at=db_now() - timedelta(hours=3))
    found = dlq.Filter(older_than_s=7_200).entries()
    assert [it.pk for it in found] == [old.pk]


def test_plan_that_is_made_is_told_by_the_names_of_its_rows(monkeypatch):
    entries = die(3)
    with kept() as lines:
        plan = plans.create(wanted(entries))
    told = named(lines, "plan_made")
    assert (told["plan"], told["rows"], told["actor"]) == (plan.pk, 3, "anna")
    assert told["targets"].split() == ["OAK-0", "OAK-1", "OAK-2"]

    def fail(_plan):
        raise OperationalError(2013, "Lost connection")

    monkeypatch.setattr(plans, "_names", fail)
    with kept() as lines:
        assert plans.create(wanted(entries)).pk, "made it is, whether or not it can be named"
    assert "targets" not in named(lines, "plan_made")


def test_plan_needs_a_reason_and_a_known_action():
    (entry,) = die()
    with pytest.raises(PlanError, match="reason"):
        plans.create(Wanted("outbox.redrive", [entry.pk], "anna", " "))
    with pytest.raises(Exception, match=r"there are: outbox\.discard"):
        plans.create(Wanted("outbox.nonsense", [entry.pk], "anna", "because"))
    with pytest.raises(WrongParametersError):
        plans.create(wanted([entry], parameters={"color": "red"}))


def test_failing_audit_changes_nothing(monkeypatch):
    (entry,) = die()

    def refuse(**_facts):
        raise RuntimeError("no audit")

    plan = plans.create(wanted([entry]))
    plans.start(plan.pk, actor="anna", here=True)
    carrier = carrying.take(plan.pk)
    monkeypatch.setattr("ledger.actions.audit.record", refuse)
    carrier.step()
    assert state(entry)[0] == EntryStatus.DEAD
    assert "no audit" in plan.items.get(status=ItemStatus.FAILED).note


# --- edit ---


def payload(quantity="2"):
    return {
        "schema_version": 1,
        "postings": [
            {"account": "stock:PINE", "quantity": quantity, "unit": "m2"},
            {"account": "external:receipts", "quantity": "-2", "unit": "m2"},
        ],
    }


def test_editing_is_off_by_default():
    (entry,) = die()
    with pytest.raises(RefusedError, match="DLQ_EDIT_ENABLED"):
        plans.create(wanted([entry], "outbox.edit", parameters={"payload": payload()}))


def test_edit_keeps_id_and_key_and_the_original_in_the_record(settings):
    settings.DLQ_EDIT_ENABLED = True
    (entry,) = die()
    original = json.loads(dlq.stored_payload(entry.pk))
    plan = carried(plans.create(wanted([entry], "outbox.edit", parameters={"payload": payload()})))
    assert plan.status == PlanStatus.DONE
    drain()
    posted = Transaction.objects.get(event_key=entry.event_key)
    assert posted.pk == entry.pk
    record = AuditRecord.objects.get(action="outbox-entry-edited")
    assert record.evidence["original"] == original
    assert record.evidence["edited"] == payload()
    assert any(line.startswith("+") and "PINE" in line for line in record.evidence["diff"])
    assert_books_balance()


@pytest.mark.parametrize("wrong", [None, [], {}, {"schema_version": 1}, payload("3"), payload("x")])
def test_payload_that_cannot_be_posted_is_refused(settings, wrong):
    settings.DLQ_EDIT_ENABLED = True
    (entry,) = die()
    with pytest.raises(WrongParametersError):
        plans.create(wanted([entry], "outbox.edit", parameters={"payload": wrong}))


# --- groups ---


def test_errors_that_differ_in_names_and_numbers_are_one_group():
    one = dlq.pattern_of("account stock:OAK [m2] holds 1.50, which -3 would take below zero")
    assert one == dlq.pattern_of(
        "account stock:P-7 [m2] holds 0, which -12.5 would take below zero"
    )
    assert one != dlq.pattern_of("account stock:OAK [m2] is closed")
    assert dlq.pattern_of("time-out after 123 ms at 2026-11-26T04:15:00Z") == (
        "time-out after <n> ms at <time>"
    )


def test_dead_entries_are_grouped_by_cause_with_an_example():
    entries = die(3)
    others = [put(f"poor-{n}", into(f"POOR{n}", f"-{n + 1}")) for n in range(2)]
    for _ in range(3):
        make_due()
        drain()
    closed, poor = dlq.groups(dlq.Filter())
    assert (closed.code, closed.entries, closed.example) == ("account_closed", 3, entries[0].pk)
    assert (poor.code, poor.entries, poor.example) == ("insufficient_balance", 2, others[0].pk)
    only = dlq.Filter(group=poor.group)
    assert list(only.entries().values_list("pk", flat=True)) == [it.pk for it in others]
    assert [it.group for it in dlq.groups(dlq.Filter(code="account_closed"))] == [closed.group]


def test_entries_that_died_by_other_hands_are_filed():
    entry = put("by hand", into("OAK", "1"))
    OutboxEntry.objects.filter(pk=entry.pk).update(status="dead", last_error="because", attempts=9)
    assert dlq.tidy() == 1
    assert DeadLetter.objects.get().pattern == "because"
    OutboxEntry.objects.filter(pk=entry.pk).update(status="pending")
    assert dlq.tidy() == 1
    assert not DeadLetter.objects.exists()
