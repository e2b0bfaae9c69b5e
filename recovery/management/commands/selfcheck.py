"""Answer the five questions of the runbook for each job, and look for what is wrong around them."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from django.core.management.base import CommandParser

from recovery import registry
from recovery.commands import DONE, WRONG, OperatorCommand, UsageError
from recovery.models import Job
from recovery.rehearsing import rolled_back
from recovery.selfcheck.answers import Answer, answers
from recovery.selfcheck.findings import Finding, Severity, examine_all, in_order
from recovery.selfcheck.questions import QUESTIONS

EVIDENCE = 2
"""From this verbosity on the evidence of a yes is printed too."""

Answers = dict[str, dict[str, Answer]]


class Command(OperatorCommand):
    """Ask, look, and say what to do."""

    help = (
        "For each job, from evidence gathered now: is it locked, does it beat, is it limited,"
        " counted, audited? Then findings about configuration and environment, each with what to"
        " do. Exit status 1 where an answer is no or a finding is an error."
    )
    requires_system_checks: list[str] = []  # what they find is reported, and stops nothing

    def add_options(self, parser: CommandParser) -> None:
        """Take the jobs to ask of."""
        parser.add_argument("jobs", nargs="*", metavar="JOB", help="default: all")

    def run(self, **options: Any) -> int:
        """Ask and examine; 1 where something is wrong."""
        jobs = _jobs(options["jobs"])
        with rolled_back():  # without a database that takes a write nothing can be asked
            Job.objects.exists()
        asked = {job.name: answers(job, QUESTIONS) for job in jobs}
        seen = [
            it for of_job in asked.values() for answer in of_job.values() for it in answer.findings
        ]
        findings = in_order([*seen, *examine_all()])
        ok = not list(_noes(asked)) and not _count(findings, Severity.ERROR)
        self.document = {
            "jobs": {name: _as_dicts(of_job) for name, of_job in asked.items()},
            "findings": [finding.as_dict() for finding in findings],
            "ok": ok,
        }
        self.say_all(asked, findings, evidence=options["verbosity"] >= EVIDENCE)
        return DONE if ok else WRONG

    def say_all(self, asked: Answers, findings: list[Finding], *, evidence: bool) -> None:
        """Print the table, the reasons, the findings and the verdict."""
        for line in _table(asked):
            self.say(line)
        if evidence:
            for name, question, answer in _each(asked):
                self.say(f"{'Y' if answer.ok else 'N'} {name} {question}: {answer.evidence}")
        for names, question, answer in _reasons(asked):
            self.say(f"\nN {question} of {names}: {answer.evidence}\n  {answer.remedy}".rstrip())
        for finding in findings:
            self.say(f"\n{finding.severity} {finding.id}: {finding.finding}\n  {finding.remedy}")
        self.say(f"\n{_verdict(asked, findings)}")


def _jobs(names: Iterable[str]) -> list[registry.Job]:
    """Return the jobs of these names, with their lanes; of none: all."""
    wanted = set(names)
    for name in wanted:
        try:
            registry.get(name)
        except registry.UnknownJobError as error:
            raise UsageError(f"selfcheck [JOB…]: {error}") from error
    return [it for it in registry.all_jobs() if not wanted or wanted & {it.name, it.base}]


def _as_dicts(of_job: dict[str, Answer]) -> dict[str, dict[str, Any]]:
    return {question: answer.as_dict() for question, answer in of_job.items()}


def _each(asked: Answers) -> Iterable[tuple[str, str, Answer]]:
    for name, of_job in asked.items():
        for question, answer in of_job.items():
            yield name, question, answer


def _noes(asked: Answers) -> Iterable[tuple[str, str, Answer]]:
    return (it for it in _each(asked) if not it[2].ok)


def _reasons(asked: Answers) -> Iterable[tuple[str, str, Answer]]:
    """Yield each no once, with the names of all the jobs it is the answer of."""
    names: defaultdict[tuple[str, Answer], list[str]] = defaultdict(list)
    for name, question, answer in _noes(asked):
        names[question, answer].append(name)
    for (question, answer), of in names.items():
        yield ", ".join(of), question, answer


def _count(findings: Iterable[Finding], severity: Severity) -> int:
    return sum(1 for it in findings if it.severity is severity)


def _table(asked: Answers) -> Iterable[str]:
    width = max(map(len, asked))
    yield "  ".join(["job".ljust(width), *QUESTIONS])
    for name, of_job in asked.items():
        cells = (("Y" if of_job[it].ok else "N").ljust(len(it)) for it in QUESTIONS)
        yield "  ".join([name.ljust(width), *cells]).rstrip()


def _verdict(asked: Answers, findings: list[Finding]) -> str:
    total, noes = len(list(_each(asked))), len(list(_noes(asked)))
    verdict = "something is wrong" if noes or _count(findings, Severity.ERROR) else "fine"
    counts = [_counted(_count(findings, it), it) for it in Severity]
    found = ", ".join(filter(None, counts)) or "no findings"
    return f"{verdict}: {total - noes} of {total} answers are yes; {found}"


def _counted(count: int, severity: Severity) -> str:
    what = {Severity.INFO: "note"}.get(severity, str(severity))
    return f"{count} {what}{'' if count == 1 else 's'}" if count else ""
