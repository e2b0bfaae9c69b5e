"""``dlq``: dead outbox entries by cause; redrive, discard or edit them."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from django.db.models import QuerySet

from ledger import dlq
from ledger.actions import Discard, Edit, Redrive, Restore
from ledger.dlq import Filter
from ledger.models import ErrorCode, OutboxEntry
from recovery.actions import ActionError
from recovery.audit import cli_actor
from recovery.commands import DONE, UsageError
from recovery.plancommand import PlanCommand, add_pace, age_s, pace_of, row_id
from recovery.plans import PlanError, Wanted

SHOWN_ENTRIES = 100
GROUP_TOO = {Restore.name: ""}


class Command(PlanCommand):
    """List the DLQ by cause; redrive, discard, edit."""

    help = (
        "Dead outbox entries: list them by cause, show one, redrive, discard or edit them;"
        " restore discarded ones."
    )

    def add_options(self, parser: CommandParser) -> None:
        """Add what is to be done and the filters."""
        names = "list|show|redrive|discard|restore|edit"
        doing = parser.add_subparsers(dest="doing", metavar=names)
        listing = doing.add_parser("list", help="groups of one cause, the largest first")
        _add_filters(listing)
        listing.add_argument("--entries", action="store_true", help="entry by entry")
        listing.add_argument("--discarded", action="store_true", help="those that were given up")
        show = doing.add_parser("show", help="one entry, with its payload and error")
        show.add_argument("id", type=row_id, metavar="ID")
        for name, text in (
            ("redrive", "give entries fresh attempts, due at once"),
            ("discard", "give entries up for good"),
            ("restore", "take discarded entries back"),
        ):
            sub = doing.add_parser(name, help=text)
            _add_filters(sub)
            sub.add_argument("--all", action="store_true", help="the whole DLQ")
            add_pace(sub)
        edit = doing.add_parser("edit", help="change an entry's payload, and redrive it")
        edit.add_argument("id", type=row_id, metavar="ID")
        edit.add_argument("--payload", metavar="FILE", help="JSON; - is standard input")
        edit.add_argument("--no-redrive", action="store_true", help="leave it dead")
        add_pace(edit)

    def run(self, **options: Any) -> int:
        """Do what is asked for."""
        dlq.tidy()
        if options["doing"] is None:
            options |= {"entries": False, "discarded": False, **vars(Filter()), "id": []}
        try:
            return int(getattr(self, f"do_{options['doing'] or 'list'}")(options))
        except (PlanError, ActionError) as error:
            raise UsageError(str(error)) from error

    def do_list(self, options: Mapping[str, Any]) -> int:
        """Print the groups, or the entries."""
        wanted = _filter(options)
        if options["discarded"]:
            return self._list_entries(_of_discarded(wanted))
        if options["entries"]:
            return self._list_entries(wanted.entries())
        found = dlq.groups(wanted)
        self.document = {
            "entries": sum(it.entries for it in found),
            "groups": [
                {
                    **vars(it),
                    "first_at": it.first_at.isoformat(),
                    "last_at": it.last_at.isoformat(),
                }
                for it in found
            ],
        }
        self.say(f"{self.document['entries']} dead entries, {len(found)} causes")
        for it in found:
            times = f"{it.first_at:%Y-%m-%d %H:%M} to {it.last_at:%Y-%m-%d %H:%M}"
            self.say(f"{it.group}  {it.entries:>7}  {times}  e.g. {it.example}")
            self.say(f"              {it.code or 'no code'}: {it.pattern}")
        return DONE

    def _list_entries(self, found: "QuerySet[OutboxEntry]") -> int:
        found = found.defer("payload")
        entries = [_facts(it) for it in found[:SHOWN_ENTRIES]]
        self.document = {"entries": entries, "more": found[SHOWN_ENTRIES:].exists()}
        for it in entries:
            self.say(f"{it['id']:>8}  {it['event_key']}  {it['code']}: {it['error']:.100}")
        if not entries:
            self.say("no entries")
        if self.document["more"]:
            self.say(f"and more than these {SHOWN_ENTRIES}: narrow the filter")
        return DONE

    def do_show(self, options: Mapping[str, Any]) -> int:
        """Print one entry."""
        entry = _entry(options["id"])
        payload = dlq.stored_payload(entry.pk)
        try:
            content = json.loads(payload)
        except (ValueError, RecursionError):
            content = payload
        self.document = {**_facts(entry), "payload": content}
        for name, value in self.document.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            self.say(f"{name:<16} {text}")
        return DONE

    def do_redrive(self, options: Mapping[str, Any]) -> int:
        """Redrive what the filters mean."""
        return self._carry_out(Redrive.name, options)

    def do_discard(self, options: Mapping[str, Any]) -> int:
        """Discard what the filters mean."""
        return self._carry_out(Discard.name, options)

    def do_restore(self, options: Mapping[str, Any]) -> int:
        """Take back what the filters mean."""
        return self._carry_out(Restore.name, options)

    def _carry_out(self, action: str, options: Mapping[str, Any]) -> int:
        wanted = _filter(options)
        given = wanted.given()
        if bool(given) == options["all"]:
            names = "--id, --code, --type, --older-than" + GROUP_TOO.get(action, ", --group")
            raise UsageError(f"say which entries: {names}; or --all alone for all of them")
        _require_known(options["id"])
        meant = _of_discarded(wanted) if action == Restore.name else wanted.entries()
        chosen = meant.values_list("pk", flat=True)
        ids = sorted({*chosen, *options["id"]}) if set(given) == {"ids"} else list(chosen)
        selection = {"all": True} if options["all"] else {**given, "ids": list(wanted.ids)}
        return self.carry_out(
            Wanted(
                action,
                ids,
                cli_actor(),
                options["reason"],
                selection=selection,
                pace=pace_of(options),
            ),
            options,
        )

    def do_edit(self, options: Mapping[str, Any]) -> int:
        """Change one entry."""
        entry = _entry(options["id"])
        parameters = {"payload": _read(options), "redrive": not options["no_redrive"]}
        selection = {"ids": [entry.pk]}
        wanted = Wanted(
            Edit.name,
            [entry.pk],
            cli_actor(),
            options["reason"],
            parameters,
            selection,
            pace_of(options),
        )
        return self.carry_out(wanted, options)


def _add_filters(parser: Any) -> None:
    parser.add_argument("--id", type=row_id, nargs="+", default=[], metavar="ID", help="entries")
    parser.add_argument("--group", default="", help="a group of `dlq list`")
    parser.add_argument("--code", default="", choices=ErrorCode.values, metavar="CODE")
    parser.add_argument("--type", default="", metavar="TYPE", help="an event type")
    parser.add_argument(
        "--older-than", type=age_s, metavar="AGE", help="published before: 90, 15m, 2h, 7d"
    )


def _filter(options: Mapping[str, Any]) -> Filter:
    return Filter(
        tuple(options["id"]),
        options["code"],
        options["type"],
        options["group"],
        options.get("older_than"),
    )


def _of_discarded(wanted: Filter) -> "QuerySet[OutboxEntry]":
    if wanted.group:
        raise UsageError("discarded entries have no group: --id, --code, --type or --older-than")
    return wanted.discarded()


def _require_known(ids: list[int]) -> None:
    known = set(OutboxEntry.objects.filter(pk__in=ids).values_list("pk", flat=True))
    if unknown := [str(pk) for pk in ids if pk not in known]:
        raise UsageError(f"there is no entry {', '.join(unknown)}")


def _entry(pk: int) -> OutboxEntry:
    entry = OutboxEntry.objects.defer("payload").filter(pk=pk).first()
    if entry is None:
        raise UsageError(f"there is no entry {pk}: `dlq list --entries` names the dead ones")
    return entry


def _facts(entry: OutboxEntry) -> dict[str, Any]:
    return {
        "id": entry.pk,
        "event_key": entry.event_key,
        "event_type": entry.event_type,
        "aggregate": entry.aggregate,
        "status": entry.status,
        "attempts": entry.attempts,
        "code": entry.last_error_code,
        "error": entry.last_error,
        "created_at": entry.created_at.isoformat(),
    }


def _read(options: Mapping[str, Any]) -> Any:
    """Return the payload that the options name."""
    place = options["payload"]
    if not place:
        raise UsageError("say which payload: --payload FILE, or - for standard input")
    try:
        text = sys.stdin.read() if place == "-" else Path(place).read_text(encoding="utf-8")
        return json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{place} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is not JSON: {error}") from error
