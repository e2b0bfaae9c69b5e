"""``audit``: what was changed, by whom and why; sealed, archived, verified, brought back."""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.management.base import CommandParser
from django.db import DatabaseError, connection
from tqdm import tqdm

from recovery import ages, retention, runner
from recovery.audit import cli_actor
from recovery.clock import db_now
from recovery.commands import DONE, WRONG, OperatorCommand, UsageError
from recovery.management.commands.run_job import status_of
from recovery.models import AuditArchive, AuditRecord, AuditSeal
from recovery.models.seals import HEX_LENGTH
from recovery.search import Search, UnboundedError, archived_of, as_dict, find
from recovery.spool import Spool
from recovery.trail import archiving, copies, exporting, guards, verifying
from recovery.trail.files import DamagedFileError
from recovery.trail.reading import Archived

SHOWN = 50
COLUMNS = "{:<19}  {:<27}  {:<36}  {:<42}  {}"
SEAL, ARCHIVE = "auditSeal", "auditArchive"
FILTERS = ("since", "until", "actor", "action", "target", "run", "text")
_KEPT = re.compile(rf"(\d{{1,18}}):([0-9a-f]{{{HEX_LENGTH}}})", re.ASCII).fullmatch


class Command(OperatorCommand):
    """Search the audit records; seal, archive, verify, restore and export them."""

    help = (
        "Audit records, in the table and in archives alike: search, verify, export them, bring"
        " archived ones back to look at; seal and archive them now."
    )

    def add_options(self, parser: CommandParser) -> None:
        """Take what to do, and which records."""
        names = "search|verify|archive|restore|export|seal|guard"
        doing = parser.add_subparsers(dest="doing", metavar=names)
        search = doing.add_parser("search", help="print the records that fit, newest first")
        _add_filters(search)
        search.add_argument(
            "--limit", default=str(SHOWN), metavar="N", help=f"default {SHOWN}; 0: all of them"
        )
        verify = doing.add_parser(
            "verify", help="name what was changed, removed or inserted since it was sealed"
        )
        verify.add_argument(
            "--kept", metavar="N:HASH", help="a seal that was kept elsewhere, to compare with"
        )
        archive = doing.add_parser("archive", help="archive now what is past AUDIT_HOT_DAYS")
        archive.add_argument("--dry-run", action="store_true", help="say what would go, and stop")
        restore = doing.add_parser("restore", help="bring archived records back as copies")
        _add_filters(restore)
        restore.add_argument("--away", action="store_true", help="delete all copies again")
        restore.add_argument("--reason", default="", help="why; it is kept with the record of it")
        export = doing.add_parser("export", help="write records and their proof into a folder")
        export.add_argument("folder", type=Path, metavar="FOLDER", help="a new or empty one")
        _add_filters(export)
        doing.add_parser("seal", help="seal now, and print the newest seal to keep it elsewhere")
        guard = doing.add_parser("guard", help="the database's triggers that keep audit records")
        how = guard.add_mutually_exclusive_group()
        how.add_argument(
            "--up", action="store_true", help="make those that are missing; it is recorded"
        )
        how.add_argument("--down", action="store_true", help="remove them; it is recorded")
        how.add_argument("--sql", action="store_true", help="print them, for an administrator")
        guard.add_argument("--reason", default="", help="why; it is kept with the record")

    def run(self, **options: Any) -> int:
        """Do what was asked for."""
        if options["doing"] is None:
            raise UsageError(
                "audit: say what to do; audit search [--since 24h] [--target ID] … searches,"
                " audit verify, archive, restore, export and seal do what they say"
            )
        does: dict[str, Callable[[Mapping[str, Any]], int]] = {
            "search": self.search,
            "verify": self.verify,
            "archive": self.archive,
            "restore": self.restore,
            "export": self.export,
            "seal": self.seal,
            "guard": self.guard,
        }
        return does[options["doing"]](options)

    def search(self, options: Mapping[str, Any]) -> int:
        """Print the records that fit, and whether there are more."""
        limit = _limit(options["limit"])
        archived, found = _found(options)
        shown = islice(found, limit) if limit else found
        if self.as_json:
            self.write(shown, found, archived)
        else:
            self.table(shown, found)
        return self.told(archived)

    def told(self, archived: Archived) -> int:
        """Say which archives could not be read, if some could not."""
        for trouble in archived.troubles:
            self.stderr.write(f"not all archives could be read: {trouble}")
        return WRONG if archived.troubles else DONE

    def write(
        self, shown: Iterator[AuditRecord], found: Iterator[AuditRecord], archived: Archived
    ) -> None:
        """Print one document, however long, once the last record was read."""
        with Spool() as spool:
            for record in shown:
                spool.add(as_dict(record))
            more = next(found, None) is not None
            facts: dict[str, Any] = {"more": more}
            if archived.troubles:
                facts["unread"] = archived.troubles
            spool.write_document(partial(self.stdout.write, ending=""), facts, key="records")

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
        """Print the document, if it was not streamed."""
        if self.document is not None:
            super().print_document()

    def verify(self, options: Mapping[str, Any]) -> int:
        """Verify all of it; 1 where something is not as it was sealed."""
        kept = _kept(options["kept"])
        with tqdm(unit=" records", disable=None) as bar:
            done = verifying.verify(kept, on_records=bar.update)
        self.document = {
            "records": done.records,
            "seals": done.seals,
            "archives": done.archives,
            "waiting": done.waiting,
            "newest": _seal_facts(done.newest),
            "findings": [it.as_dict() for it in done.findings],
            "more": done.is_full,
            "notes": done.notes,
        }
        self.say(
            f"{done.records} records, {done.seals} seals, {done.archives} archives verified;"
            f" {done.waiting} wait for the next seal"
        )
        for finding in done.findings:
            self.say(str(finding))
        if done.is_full:
            self.say(f"and perhaps more than these {len(done.findings)}")
        for note in done.notes:
            self.say(f"note: {note}")
        self.say("NOT as it was sealed" if done.findings else "all as it was sealed")
        self.say_newest(done.newest)
        return WRONG if done.findings else DONE

    def say_newest(self, seal: AuditSeal | None) -> None:
        """Print the newest seal, in the form that ``--kept`` takes."""
        if seal:
            self.say(f"newest seal {seal.number}:{seal.hash}, of {seal.at:%Y-%m-%d %H:%M:%S} UTC")

    def archive(self, options: Mapping[str, Any]) -> int:
        """Seal and archive until nothing is due; where a worker is just sealing that is enough."""
        if options["dry_run"]:
            return self.preview()
        status = self.runs(SEAL)
        if status and self.document["reason"] != "locked":
            return status
        return self.runs(ARCHIVE)

    def runs(self, job: str) -> int:
        """Make guarded runs of a job until nothing is left to do."""
        counts: dict[str, int] = {}
        while True:
            outcome = runner.run_job(job)
            for name, count in outcome.result.items():
                counts[name] = counts.get(name, 0) + count
            if outcome.status != "ok" or not outcome.again:
                break
        self.document = outcome.as_dict() | {"result": counts}
        self.say(f"{job}: {outcome.status}" + (f": {outcome.reason}" if outcome.reason else ""))
        for name, count in sorted(counts.items()):
            self.say(f"  {name}: {count}")
        return status_of(outcome)

    def preview(self) -> int:
        """Print what would be archived and deleted."""
        now = db_now()
        days, records = archiving.due(now)
        rules = [_rule_facts(it) for it in retention.preview(now)]
        waiting = AuditArchive.objects.unfinished().count()
        away = archiving.due_to_be_put_away(now)
        self.document = {
            "records": records,
            "days": days,
            "unfinished": waiting,
            "to_put_away": away,
            "rules": rules,
        }
        hot, warm = settings.AUDIT_HOT_DAYS, settings.AUDIT_WARM_DAYS
        self.say(f"audit records to archive: {records}, of {days} days (AUDIT_HOT_DAYS={hot})")
        self.say(f"archives to put away: {away} (AUDIT_WARM_DAYS={warm}); to finish: {waiting}")
        for it in rules:
            policy = f"{it['setting']}={it['days']}" if it["setting"] else f"{it['days']} days"
            self.say(f"{it['rule']:<18} {it['rows']:>9} rows of {it['table']} ({policy})")
        return DONE

    def restore(self, options: Mapping[str, Any]) -> int:
        """Bring copies back, or delete them."""
        facts = {"actor": cli_actor(), "reason": options["reason"]}
        if options["away"]:
            if given := [f"--{name}" for name in FILTERS if options[name]]:
                raise UsageError(f"--away deletes all copies: leave {', '.join(given)} out")
            self.document = {"deleted": copies.take_away(**facts)}
            self.say(f"{self.document['deleted']} copies deleted")
            return DONE
        wanted = _search(options)
        if not (wanted.narrows() or wanted.everything):
            raise UsageError("say which: --since, --until, --target … or --all")
        try:
            self.document = copies.bring_back(wanted, **facts)
        except (copies.TooManyError, copies.UnreadableError, copies.AtOnceError) as error:
            self.stderr.write(str(error))
            self.document = {"error": str(error)}
            return WRONG
        self.say(_restored_text(**self.document))
        return DONE

    def export(self, options: Mapping[str, Any]) -> int:
        """Write records and their proof into a folder."""
        archived, found = _found(options)
        try:
            done = exporting.export(found, options["folder"])
        except exporting.NotEmptyError as error:
            raise UsageError(str(error)) from error
        except (OSError, DamagedFileError) as error:
            self.stderr.write(f"the export is not complete: {error}")
            self.document = {"error": str(error)}
            return WRONG
        self.document = vars(done) | ({"unread": archived.troubles} if archived.troubles else {})
        self.say(f"{done.records} records in {done.folder}, {done.seals} seals prove them")
        if done.unsealed:
            self.say(f"{len(done.unsealed)} of them are in no seal yet: audit seal, and once more")
        return self.told(archived)

    def seal(self, _options: Mapping[str, Any]) -> int:
        """Seal what is committed, and print the newest seal."""
        status = self.runs(SEAL)
        newest = AuditSeal.objects.newest()
        self.document |= {"newest": _seal_facts(newest)}
        self.say_newest(newest)
        return status

    def guard(self, options: Mapping[str, Any]) -> int:
        """Say which guards stand; put them up, take them down, or print them."""
        if options["sql"]:
            self.document = {"sql": [it.sql() for it in guards.GUARDS]}
            self.say("DELIMITER //")
            for guard in guards.GUARDS:
                self.say(f"DROP TRIGGER IF EXISTS {guard.name}//\n{guard.sql()}//")
            self.say("DELIMITER ;")
            return DONE
        if connection.vendor != "mysql":
            raise UsageError("audit guard: SQLite has none; they are MariaDB's and MySQL's")
        if options["down"] and not options["reason"].strip():
            raise UsageError("audit guard --down: say why with --reason")
        try:
            if options["down"]:
                guards.lower(actor=cli_actor(), reason=options["reason"])
            elif options["up"]:
                guards.raise_up(actor=cli_actor(), reason=options["reason"])
        except DatabaseError as error:
            self.stderr.write(f"the database refused: {error}; see audit guard --sql")
            self.document = {"error": str(error)}
            return WRONG
        missing = guards.missing()
        self.document = {"missing": missing, "standing": len(guards.GUARDS) - len(missing)}
        self.say(f"missing: {', '.join(missing)}" if missing else "all guards stand")
        return WRONG if missing and not options["down"] else DONE


def _add_filters(parser: Any) -> None:
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


def _found(options: Mapping[str, Any]) -> tuple[Archived, Iterator[AuditRecord]]:
    search = _search(options)
    archived = archived_of(search)
    try:
        return archived, find(search, archived)
    except UnboundedError as error:
        raise UsageError(
            "--text alone would read every record: add --since 7d or another filter, or --all"
        ) from error


def line(record: AuditRecord) -> str:
    """Return a record as one line for people."""
    target = f"{record.target_type}/{record.target_id}"
    at = record.at.strftime("%Y-%m-%d %H:%M:%S")
    reason = " ".join(record.reason.split())
    return COLUMNS.format(at, record.actor, record.action, target, reason).rstrip()


def _seal_facts(seal: AuditSeal | None) -> dict[str, Any] | None:
    if seal is None:
        return None
    return {"seal": seal.number, "hash": seal.hash, "at": seal.at.isoformat()}


def _rule_facts(it: retention.Preview) -> dict[str, Any]:
    oldest = it.oldest.isoformat() if it.oldest else None
    return {**vars(it), "before": it.before.isoformat(), "oldest": oldest}


def _kept(text: str | None) -> verifying.Kept | None:
    if text is None:
        return None
    found = _KEPT(text.strip().lower())
    if not found:
        raise UsageError(f"--kept {text!r}: give it as audit seal prints it, NUMBER:HASH")
    return verifying.Kept(int(found[1]), found[2])


def _search(options: Mapping[str, Any]) -> Search:
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
        return ages.moment_of(text, now)
    except ValueError:
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


def _restored_text(*, found: int, brought: int) -> str:
    if not found:
        return "0 archived records found: nothing was brought back"
    there = f", {found - brought} were there already" if found > brought else ""
    return (
        f"{found} archived records found, {brought} brought back{there}: they are in the admin"
        " under restored audit records; audit restore --away deletes the copies"
    )
