"""``plans``: repairs of many rows, made, followed, stopped and taken up again."""

from collections.abc import Mapping
from typing import Any

from django.core.management.base import CommandParser

from recovery import actions, plans
from recovery.actions import Action, ActionError
from recovery.audit import cli_actor
from recovery.commands import DONE, WRONG, UsageError
from recovery.models import Plan
from recovery.plancommand import PlanCommand, add_pace, pace_of, plan_facts, plan_line, row_id
from recovery.plans import PlanError, Wanted

SHOWN_PLANS = 50


class Command(PlanCommand):
    """List plans; make, run, pause, resume or cancel one."""

    help = "Repairs of many rows: list, show, create, run, resume, pause, cancel; or the actions."

    def add_options(self, parser: CommandParser) -> None:
        """Add what is to be done."""
        doing = parser.add_subparsers(dest="doing", metavar="list|show|create|run|…")
        doing.add_parser("list", help="the newest plans")
        doing.add_parser("actions", help="what plans can do")
        for name, text in (
            ("show", "a plan with what became of its rows"),
            ("run", "start it, or take it up again, and follow it to its end"),
            ("resume", "take it up again, by the workers"),
            ("pause", "stop it after the row at hand"),
            ("cancel", "give it up; what is done stays done"),
        ):
            sub = doing.add_parser(name, help=text)
            sub.add_argument("id", type=row_id, metavar="ID")
            if name != "show":
                sub.add_argument("--reason", default="", metavar="TEXT", help="for the record")
        create = doing.add_parser("create", help="freeze the rows of an action")
        create.add_argument("action", metavar="ACTION", help="one of `plans actions`")
        create.add_argument("keys", nargs="*", metavar="KEY", help="numbers of orders, ids, keys")
        create.add_argument("--all", action="store_true", help="every row the action is for")
        create.add_argument(
            "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter"
        )
        create.add_argument("--no-start", action="store_true", help="only freeze it; run it later")
        add_pace(create)

    def run(self, **options: Any) -> int:
        """Do what is asked for."""
        try:
            return int(getattr(self, f"do_{options['doing'] or 'list'}")(options))
        except plans.UnknownPlanError as error:
            raise UsageError(f"{error}: see `plans list`") from error
        except (PlanError, ActionError) as error:
            raise UsageError(str(error)) from error

    def do_list(self, _options: Mapping[str, Any]) -> int:
        """Print the newest plans."""
        found = list(Plan.objects.order_by("-id")[:SHOWN_PLANS])
        self.document = {"plans": [plan_facts(plan) for plan in found]}
        for plan in found:
            self.say(plan_line(plan))
        if not found:
            self.say("no plans yet")
        return DONE

    def do_actions(self, _options: Mapping[str, Any]) -> int:
        """Print the actions."""
        found = actions.all_actions()
        self.document = {
            "actions": [
                {"action": it.name, "summary": it.summary, "parameters": list(it.parameter_names)}
                for it in found
            ]
        }
        for it in found:
            self.say(f"{it.name:<16} {it.key_name:<7} {it.summary}")
        return DONE

    def do_show(self, options: Mapping[str, Any]) -> int:
        """Print a plan and its rows that did not go as they should."""
        plan = Plan.objects.filter(pk=options["id"]).first()
        if plan is None:
            raise plans.UnknownPlanError(options["id"])
        return self.report(plan, status=DONE)

    def do_create(self, options: Mapping[str, Any]) -> int:
        """Freeze rows, and start."""
        action = actions.get(options["action"])
        parameters = _parameters(options["set"])
        action.checked(parameters)
        if bool(options["keys"]) == options["all"]:
            raise UsageError(f"name the rows ({action.key_name}…), or --all for all that fit")
        if options["all"]:
            found = action.candidates(parameters).order_by("pk")
            ids = list(found.values_list("pk", flat=True))
        else:
            ids = _known(action, options["keys"])
        wanted = Wanted(
            action.name,
            ids,
            cli_actor(),
            options["reason"],
            parameters,
            {"all": True} if options["all"] else {"keys": options["keys"]},
            pace_of(options),
        )
        return self.carry_out(wanted, options, start=not options["no_start"])

    def do_run(self, options: Mapping[str, Any]) -> int:
        """Start a plan or take it up, and follow it."""
        return self.start_and_follow(options["id"], reason=options["reason"])

    def do_resume(self, options: Mapping[str, Any]) -> int:
        """Let the workers take a plan up again."""
        return self._moved(plans.resume, options, "resumed", "it does not stand still")

    def do_pause(self, options: Mapping[str, Any]) -> int:
        """Stop a plan."""
        return self._moved(plans.pause, options, "paused", "it does not run")

    def do_cancel(self, options: Mapping[str, Any]) -> int:
        """Give a plan up."""
        return self._moved(plans.cancel, options, "cancelled", "it has ended")

    def _moved(self, verb: Any, options: Mapping[str, Any], done: str, already: str) -> int:
        changed = verb(options["id"], actor=cli_actor(), reason=options["reason"])
        plan = Plan.objects.get(pk=options["id"])
        self.document = {**plan_facts(plan), "changed": changed}
        self.say(f"plan {plan.pk}: {done if changed else already} ({plan.status})")
        return DONE if changed else WRONG


def _known(action: Action[Any], keys: list[str]) -> list[int]:
    ids, unknown = action.find(keys)
    if unknown:
        raise UsageError(f"nobody knows {', '.join(unknown)}")
    return ids


def _parameters(pairs: list[str]) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--set takes NAME=VALUE, not {pair!r}")
        found[name] = {"true": True, "false": False}.get(value.lower(), value)
    return found
