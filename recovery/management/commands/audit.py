"""``audit``: what was changed, by whom and why."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any
from uuid import UUID

from django.core.management.base import CommandParser
from django.utils import timezone

from recovery import ages
from recovery.clock import db_now
from recovery.commands import DONE, OperatorCommand, UsageError
from recovery.models import AuditRecord
from recovery.search import Search, UnboundedError, as_dict, find
from recovery.spool import Spool

SHOWN = 50
COLUMNS = "{:<19}  {:<26}  {:<36}  {:<42}  {}"


class Command(OperatorCommand):
    """Search the audit records."""

    help = "Search the audit records, newest first."

    def add_options(self, parser: CommandParser) -> None:
        """Take what to do, and which records."""
        parser.add_argument("what", nargs="?", default="", metavar="search", help="what to do")
        when = "a time (2026-11-24, 2026-11-24T12:30Z) or an age (90s, 30m, 24h, 7d, 2w)"
        parser.add_argument("--since", metavar="WHEN", help=f"not before {when}")
        parser.add_argument("--until", metavar="WHEN", help="before this time or age")
        parser.add_argument("--actor", default="", help="a user, cli:<user> or system:<job>")
        parser.add_argument("--action", default="", help="for one split-order-quarantined")
        parser.add_argument(
            "--target", default="", metavar="TYPE/ID", help="or the ID alone, of whatever type"
        )
        parser.add_argument("--run", metavar="ID", help="what one run of a job did")
        parser.add_argument(
            "--text", default="", help="in the reason, or in what was kept before, after, as proof"
        )
        parser.add_argument(
            "--all", action="store_true", help="look for a text in all records, however many"
        )
        parser.add_argument(
            "--limit", default=str(SHOWN), metavar="N", help=f"default {SHOWN}; 0: all of them"
        )

    def run(self, **options: Any) -> int:
        """Do what was asked for."""
        does: dict[str, Callable[..., int]] = {"search": self.search}
        if options["what"] not in does:
            wrong = f"{options['what']!r} is not known" if options["what"] else "say what to do"
            raise UsageError(f"audit: {wrong}; audit search [--since 24h] [--target ID] … searches")
        return does[options["what"]](options)

    def search(self, options: dict[str, Any]) -> int:
        """Print the records that fit, and whether there are more."""
        limit = _limit(options["limit"])
        try:
            found = find(_search(options))
        except UnboundedError as error:
            raise UsageError(
                "--text alone would read every record: add --since 7d or another filter, or --all"
            ) from error
        shown = islice(found, limit) if limit else found
        if self.as_json:
            self.write(shown, found)
        else:
            self.table(shown, found)
        return DONE

    def write(self, shown: Iterator[AuditRecord], found: Iterator[AuditRecord]) -> None:
        """Print one document, however long, once the last record was read."""
        with Spool() as spool:
            for record in shown:
                spool.add(as_dict(record))
            more = next(found, None) is not None
            spool.write_document(
                partial(self.stdout.write, ending=""), {"more": more}, key="records"
            )

    def table(self, shown: Iterator[AuditRecord], found: Iterator[AuditRecord]) -> None:
        """Print a line a record as it is read, then whether there are more."""
        count = 0
        for count, record in enumerate(shown, 1):
            if count == 1:
                self.say(COLUMNS.format("time (UTC)", "actor", "action", "target", "reason"))
            self.say(line(record))
        more = next(found, None) is not None
        total = "1 record" if count == 1 else f"{count} records"
        self.say(total + (", and there are more: see --limit" if more else ""))

    def print_document(self) -> None:
        """Print nothing more: the document is streamed."""


def line(record: AuditRecord) -> str:
    """Return a record as one line for people."""
    target = f"{record.target_type}/{record.target_id}"
    at = record.at.strftime("%Y-%m-%d %H:%M:%S")
    reason = " ".join(record.reason.split())
    return COLUMNS.format(at, record.actor, record.action, target, reason).rstrip()


def _search(options: dict[str, Any]) -> Search:
    now = db_now()
    since, until = (_moment(f"--{name}", options[name], now) for name in ("since", "until"))
    if since and until and since >= until:
        raise UsageError(f"--since {options['since']} is not before --until {options['until']}")
    return Search(
        since=since,
        until=until,
        actor=options["actor"],
        action=options["action"],
        target=options["target"],
        run_id=_run_id(options["run"]),
        text=options["text"],
        everything=options["all"],
    )


def _moment(option: str, text: str | None, now: datetime) -> datetime | None:
    """Return the moment that a time or an age stands for; raise UsageError."""
    if text is None:
        return None
    try:
        if text[-1:] in ages.UNITS_S:
            return now - timedelta(seconds=ages.seconds_of(text))
        moment = datetime.fromisoformat(text)
        aware = moment if timezone.is_aware(moment) else timezone.make_aware(moment)
        return aware.astimezone(now.tzinfo)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option} {text!r}: give a time (2026-11-24T12:30Z) or an age ({ages.FORM})"
        ) from None


def _run_id(text: str | None) -> UUID | None:
    try:
        return UUID(text) if text is not None else None
    except ValueError:
        raise UsageError(f"--run {text!r} is no run's id, which `jobs` and the logs show") from None


def _limit(text: str) -> int:
    try:
        limit = int(text)
        if limit < 0:
            raise ValueError(text)
    except ValueError:
        raise UsageError(f"--limit {text!r}: give a number of records; 0 is all of them") from None
    return limit
