"""Examination of the configuration: all system checks, with the database's and Redis's."""

from collections.abc import Iterator

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, run_checks

from recovery.selfcheck.findings import Finding, Severity, examination

ELSEWHERE = "The finding says what to set; see {id} in Django's list of system checks."


@examination("configuration")
def configuration() -> Iterator[Finding]:
    """Run the system checks; those for deployment where this is one."""
    deployed = not settings.DEBUG and not settings.EMBEDDED
    for message in run_checks(include_deployment_checks=deployed, databases=["default"]):
        if not message.is_silenced():
            yield _finding(message)


def _finding(message: CheckMessage) -> Finding:
    known = message.id or "check"
    place = f" ({message.obj})" if message.obj else ""
    return Finding(
        _severity(message.level),
        known,
        f"{' '.join(message.msg.split())}{place}",
        " ".join((message.hint or ELSEWHERE.format(id=known)).split()),
    )


def _severity(level: int) -> Severity:
    if level >= checks.ERROR:
        return Severity.ERROR
    return Severity.WARNING if level >= checks.WARNING else Severity.INFO
