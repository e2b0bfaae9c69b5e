"""``after_restore``: make a database that was brought back from a backup safe to work on."""

import sys
from collections.abc import Iterator
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import connection

from recovery import link, restoring
from recovery.audit import cli_actor
from recovery.commands import DONE, WRONG, OperatorCommand
from recovery.probing import missing_migrations
from splits.audit import Author
from splits.models import SplitOrder
from splits.reconcile import Finding, Report, reconcile
from splits.restoring import raise_epochs

FINDINGS_SHOWN = 100
REASON = "the database was restored from a backup"


class Command(OperatorCommand):
    """Pause the jobs, fence off and clear what outlived the restore, look what disagrees."""

    help = (
        "After a restore from a backup, while Redis and the hosts lived on: pause every job,"
        " raise fences and epochs, clear locks, wake-ups and queues, run reconcile."
    )

    def add_options(self, parser: CommandParser) -> None:
        """Add how to confirm, how to look first, and why."""
        parser.add_argument("--yes", action="store_true", help="do it without asking")
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
        parser.add_argument(
            "--reason", default=REASON, metavar="TEXT", help="for the audit records"
        )

    def run(self, **options: Any) -> int:
        """Do it, or say what would be done; 1 if something is left to do or disagrees."""
        if missing := missing_migrations(connection):
            raise CommandError(
                f"the backup is older than this code: run manage.py migrate first,"
                f" {len(missing)} migrations are not applied: {missing[0]} …"
            )
        if options["dry_run"]:
            self.foresee()
            return DONE
        self.confirm(given=options["yes"])
        return self.act(actor=cli_actor(), reason=options["reason"])

    def confirm(self, *, given: bool) -> None:
        """Ask on a terminal; a script that calls this has decided. Raise CommandError: no."""
        if given or self.as_json or not sys.stdin.isatty():
            return
        self.say("This pauses every job until you resume it, and ends the runs under way.")
        if input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
            raise CommandError("nothing was done")

    def foresee(self) -> None:
        """Say what would be done."""
        to, orders = restoring.floor(), SplitOrder.objects
        fences = restoring.fences()
        self.document = {
            "dry_run": True,
            "paused": restoring.running_jobs(),
            "fences": restoring.changes(fences, {it: max(fences[it] + 1, to) for it in fences}),
            "epochs_raised": orders.unfinished().count(),
            "in_progress": orders.in_progress().count(),
            **_cleared(restoring.survivors(clear=False)),
        }
        self.tell("would be ")

    def act(self, *, actor: str, reason: str) -> int:
        """Do it, the jobs first: no run begins while fences and epochs are raised."""
        were_paused = restoring.paused_jobs()
        paused = restoring.pause_jobs(actor=actor, reason=reason)
        to, orders = restoring.floor(), SplitOrder.objects
        in_progress = orders.in_progress().count()
        counts = {"unfinished_orders": orders.unfinished().count(), "in_progress": in_progress}
        fences = restoring.raise_fences(to, actor=actor, reason=reason, evidence=counts)
        epochs = raise_epochs(to, author=Author(actor, reason=reason))
        self.document = {
            "dry_run": False,
            "paused": paused,
            "paused_before": were_paused,
            "fences": fences,
            "epochs_raised": epochs.count,
            "in_progress": in_progress,
            "held": [{"number": it, "holder": epochs.held[it].as_dict()} for it in epochs.held],
            **_cleared(restoring.survivors(clear=True)),
        }
        self.tell()
        return self.compare()

    def tell(self, would_be: str = "") -> None:
        """Print what was done, or would be."""
        facts = self.document
        cleared = ", ".join(f"{count} {what}" for what, count in facts["cleared"].items())
        cleared = cleared.replace("_", "-")
        self.say(f"{would_be}paused: {', '.join(facts['paused']) or 'no job'}")
        self.say(
            f"{would_be}raised: the fences of {len(facts['fences'])} jobs and the epochs of"
            f" {facts['epochs_raised']} orders, {facts['in_progress']} of them in progress"
        )
        self.say(f"{would_be}cleared: {cleared}; Redis: {facts['redis']}")

    def compare(self) -> int:
        """Run reconcile and say what is to be done now; return the exit status."""
        findings: list[dict[str, str]] = []
        report = Report(on_finding=lambda finding: self.note(finding, findings))
        reconcile(report)
        self.say(report.as_text())
        self.document["reconcile"] = {
            **report.as_dict(), "findings_total": report.findings, "findings": findings
        }  # fmt: skip
        left = list(_left(self.document))
        self.document["next"] = [*left, *_next(self.document)]
        self.say("now:")
        for number, step in enumerate(self.document["next"], start=1):
            self.say(f"  {number}. {step}")
        return WRONG if left else DONE

    def note(self, finding: Finding, findings: list[dict[str, str]]) -> None:
        """Keep and print a finding, up to a hundred of them."""
        if len(findings) < FINDINGS_SHOWN:
            findings.append(finding.as_dict())
            self.say(finding.as_text())


def _cleared(found: restoring.Survivors) -> dict[str, Any]:
    redis = f"down: {found.redis_error}" if found.redis_error else "ok"
    return {"cleared": found.counts, "redis": redis if link.configured() else "not configured"}


def _left(document: dict[str, Any]) -> Iterator[str]:
    """Yield what keeps this from being done."""
    if document["held"]:
        numbers = ", ".join(it["number"] for it in document["held"])
        yield f"held by a live transaction: {numbers}; end it, then run after_restore again"
    if document["redis"].startswith("down"):
        yield "Redis was left as it is: run after_restore again once it answers"
    if not document["reconcile"]["ok"]:
        yield "look at what disagrees: manage.py reconcile names a repair for each finding"


def _next(document: dict[str, Any]) -> Iterator[str]:
    """Yield what an operator does now."""
    yield "import again what came in after the backup: import_splits skips what it knows"
    for name in document["paused"]:
        yield f"manage.py jobs resume {name}"
    if document["paused_before"]:
        yield f"paused before this, look why: {', '.join(document['paused_before'])}"
    if document["in_progress"]:
        count = document["in_progress"]
        yield f"orders in progress: {count}; recoverFinalizeStuck resets them once they are stuck"
