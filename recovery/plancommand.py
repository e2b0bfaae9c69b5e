"""What commands that make plans share: pace, preview, question, progress, report."""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.utils import translation
from tqdm import tqdm

from recovery import ages, plans
from recovery.actions import Sight
from recovery.audit import cli_actor
from recovery.commands import DONE, WRONG, OperatorCommand, UsageError
from recovery.foreground import Follower
from recovery.models import ItemStatus, Plan, PlanStatus
from recovery.plans import CANARY, Pace, Wanted

ASK_FROM = 10
"""More rows than these are asked about at a terminal."""
SHOWN_ROWS = 10
LARGEST_ID = 2**63 - 1
LIKELY_RATE = 200
"""So many rows a second are done about, where the rate sets no limit."""
TOLD = (
    ItemStatus.DRIFTED,
    ItemStatus.FAILED,
    ItemStatus.UNDONE,
    ItemStatus.HELD,
    ItemStatus.EXCLUDED,
)
"""What became of rows that is named row by row."""


def age_s(text: str) -> float:
    """Return the seconds of an age."""
    try:
        return ages.seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def rate(text: str) -> float:
    """Return a number of rows a second."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= plans.LARGEST_STAGE:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows a second above 0")
    return value


def row_id(text: str) -> int:
    """Return a number that a row can have."""
    if not text.isdecimal() or not 0 < int(text) <= LARGEST_ID:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of a row")
    return int(text)


def share(text: str) -> float:
    """Return a share from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share from 0 to 1")
    return value


def add_pace(parser: Any) -> None:
    """Add the options of a plan."""
    parser.add_argument("--reason", default="", metavar="TEXT", help="for the audit records")
    parser.add_argument("--dry-run", action="store_true", help="only show what would change")
    parser.add_argument("--rate", type=rate, metavar="N", help="at most N rows a second")
    parser.add_argument(
        "--canary", action="store_true", help="1, 10, 100 rows first; each stage is looked at"
    )
    parser.add_argument(
        "--halt-share", type=share, metavar="SHARE", help="halt above this share of failures"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--detach", action="store_true", help="leave it to the workers")


def pace_of(options: Mapping[str, Any], *, halt_share: float | None = None) -> Pace:
    """Return the pace that the options ask for; ``halt_share``: where they say nothing of it."""
    fallback = settings.JOB_PLAN_HALT_SHARE if halt_share is None else halt_share
    given = options["halt_share"]
    return Pace(
        options["rate"] or settings.JOB_PLAN_RATE_PER_SEC,
        CANARY if options["canary"] else (),
        fallback if given is None else given,
    )


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON."""
    return {
        "plan": plan.pk,
        "action": plan.action,
        "status": plan.status,
        "actor": plan.actor,
        "reason": plan.reason,
        "rows": plan.rows_total,
        "done": plan.rows_done,
        "rate": plan.rate,
        "canary": plan.canary,
        "stage": plan.stage,
        "note": plan.note,
        "carried_by": plan.carrier.rpartition(":")[0],
        "created_at": plan.created_at.isoformat(),
        "finished_at": plan.finished_at and plan.finished_at.isoformat(),
    }


def plan_line(plan: Plan) -> str:
    """Return a plan as one line for people."""
    text = f"{plan.pk:>6} {plan.action:<16} {plan.status:<10} {plan.rows_done} of {plan.rows_total}"
    return f"{text}  {plan.actor}: {plan.reason:.60}" + (f"  ({plan.note})" if plan.note else "")


class PlanCommand(OperatorCommand):
    """A command that makes a plan and carries it out."""

    def handle(self, *args: str, **options: Any) -> None:
        """Run in English, as all that commands print is: why rows are left out, above all."""
        with translation.override("en"):
            super().handle(*args, **options)

    def carry_out(self, wanted: Wanted, options: Mapping[str, Any], *, start: bool = True) -> int:
        """Show what would change; unless that is all, freeze it, ask, start and follow it."""
        if options["dry_run"]:
            return self._rehearse(wanted)
        if not wanted.reason.strip():
            raise UsageError("say why with --reason: it is kept in each audit record")
        if not wanted.ids:
            self.document = {"plan": None, "rows": 0}
            self.say("no rows fit: nothing to do")
            return DONE
        if start and not options["yes"] and not self._agreed(wanted):
            self.say("nothing has been changed")
            self.document = {"plan": None, "rows": 0}
            return WRONG
        plan = plans.create(wanted)
        if not start:
            return self.report(plan, status=DONE)
        detach, takes_s = options["detach"], _takes_s(plan)
        if not detach and takes_s > settings.JOB_PLAN_FOREGROUND_SEC:
            self.say(f"this takes about {takes_s:.0f} s: it is left to the workers")
            detach = True
        return self.start_and_follow(plan.pk, detach=detach)

    def start_and_follow(self, plan_id: int, *, reason: str = "", detach: bool = False) -> int:
        """Let a plan run and follow it; Ctrl-C pauses it. 1: not every row was done."""
        here, actor = not detach, cli_actor()
        if not plans.start(plan_id, actor=actor, reason=reason, here=here):
            plan = Plan.objects.get(pk=plan_id)
            if not plan.has_ended():
                plans.resume(plan_id, actor=actor, reason=reason, here=here)
        plan = Plan.objects.get(pk=plan_id)
        if detach:
            self.say(f"plan {plan.pk} runs: `plans show {plan.pk}` says how far it is")
            return self.report(plan, status=DONE)
        return self.report(self._follow(plan))

    def _follow(self, plan: Plan) -> Plan:
        left = plan.rows_total - plan.rows_done
        with tqdm(
            total=left, unit=" rows", file=sys.stderr, disable=not sys.stderr.isatty()
        ) as bar:
            try:
                plan = Follower(plan.pk, on_rows=bar.update).to_its_end()
            except KeyboardInterrupt:
                plans.pause(plan.pk, actor=cli_actor(), reason="Ctrl-C")
                self.say(f"paused: `plans run {plan.pk}` goes on, `plans cancel {plan.pk}` ends it")
        plan.refresh_from_db()
        if plan.status == PlanStatus.RUNNING:
            self.say(
                "its rows have not been tried yet: does a worker run, or is the job paused?"
                f" Workers carry the plan on; `plans show {plan.pk}` says how far it is"
            )
        return plan

    def report(self, plan: Plan, *, status: int | None = None) -> int:
        """Print what became of a plan; return the exit status, ``status`` where it is given."""
        counts = plan.items.counts()
        told: dict[str, list[dict[str, Any]]] = {name.value: [] for name in TOLD}
        for item in plan.items.filter(status__in=TOLD).order_by("id").iterator():
            facts = {"id": item.row_id, "name": item.label, "why": item.note}
            told[item.status].append(facts | dict(item.result if item.status == "held" else {}))
        self.document = {**plan_facts(plan), "counts": counts, **told}
        parts = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
        self.say(f"plan {plan.pk}: {plan.action} {plan.status}: {parts or 'no rows'}")
        if plan.note:
            self.say(f"  {plan.note}")
        self._tell_fates(plan)
        for name, rows in told.items():
            for row in rows[:SHOWN_ROWS]:
                self.say(f"  {name}: {row['name']}: {row['why']}")
            if len(rows) > SHOWN_ROWS:
                self.say(f"  {name}: and {len(rows) - SHOWN_ROWS} more (--json names all)")
        if status is not None:
            return status
        wrong = any(told[name] for name in (*TOLD[:-1],))
        return WRONG if wrong or plan.status != PlanStatus.DONE else DONE

    def _tell_fates(self, plan: Plan) -> None:
        """Say how rows that were handed on without being looked at fared by now."""
        seen, bad = Counter[str](), []
        for item, fate in plans.fates(plan):
            seen[fate.sight.value] += 1
            if fate.sight is Sight.BAD:
                bad.append({"id": item.row_id, "name": item.label, "why": fate.note})
        self.document |= {"by_now": dict(seen), "failed_again": bad}
        if not seen:
            return
        texts = {Sight.GOOD: "well", Sight.BAD: "failed again", Sight.UNKNOWN: "not tried yet"}
        parts = ", ".join(f"{seen[sight]} {text}" for sight, text in texts.items() if seen[sight])
        self.say(f"  of those applied, by now: {parts}")
        for row in bad[:SHOWN_ROWS]:
            self.say(f"  failed again: {row['name']}: {row['why']}")

    def _rehearse(self, wanted: Wanted) -> int:
        """Show what would change; leave one audit record."""
        shown: list[dict[str, Any]] = []
        why, rows = Counter[str](), 0
        for it in plans.preview(wanted):
            rows += not it.misfit
            why[it.misfit] += 1
            if len(shown) < SHOWN_ROWS:
                shown.append({"id": it.row_id, "name": it.label, **_change(it)})
        excluded = {text: n for text, n in why.items() if text}
        plans.note_preview(wanted, fitting=rows, excluded=sum(excluded.values()))
        self.document = {
            "plan": None,
            "action": wanted.action,
            "rows": rows,
            "excluded": excluded,
            "preview": shown,
        }
        self.say(f"{wanted.action} would change {rows} rows; nothing has been changed")
        self._say_rows(shown, rows, excluded)
        return DONE

    def _say_rows(
        self, shown: list[dict[str, Any]], rows: int, excluded: Mapping[str, int]
    ) -> None:
        for it in shown:
            change = it.get("why") or ", ".join(
                f"{name} {it['before'].get(name, '')} -> {value}"
                for name, value in it["after"].items()
                if name != "diff"
            )
            self.say(f"  {it['name']}: {change}")
            for line in it.get("after", {}).get("diff", ()):
                self.say(f"    {line}")
        if rows > len(shown):
            self.say(f"  and {rows - len(shown)} more")
        for text, n in excluded.items():
            self.say(f"  left out: {n}: {text}")

    def _agreed(self, wanted: Wanted) -> bool:
        """Ask at a terminal about many rows; never in a pipe."""
        rows = len(wanted.ids)
        if rows <= ASK_FROM or self.as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
            return True
        try:
            answer = input(f"{wanted.action} on {rows} rows. Go on? [y/N] ")
        except (EOFError, KeyboardInterrupt):
            answer = "no"
        return answer.strip().lower() in ("y", "yes")


def _change(shown: plans.Shown) -> dict[str, Any]:
    if shown.misfit:
        return {"why": shown.misfit}
    return {"before": dict(shown.before), "after": dict(shown.after)}


def _takes_s(plan: Plan) -> float:
    return plan.rows_total / min(plan.rate or LIKELY_RATE, LIKELY_RATE)
