"""What reconcile finds after the demo, and which of it the stories account for."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from splits.demo.progress import progress
from splits.demo.scenes import own_dead_entries
from splits.reconcile import Finding, Report, reconcile


@dataclass
class Verdict:
    """One reconciliation."""

    report: Report
    explained: list[Finding] = field(default_factory=list)
    """Dead entries of story 1: it is what they are for."""
    unexplained: list[Finding] = field(default_factory=list)
    held_back: int = 0

    @property
    def as_told(self) -> bool:
        """Tell whether nothing disagrees but what the stories tell of."""
        return not self.unexplained

    def lines(self) -> Iterator[str]:
        """Yield what the reconcile command says, and what the demo says to it."""
        for finding in self.explained + self.unexplained:
            yield f"{finding.kind}  {finding.target}"
            yield _("  expected %(text)s") % {"text": finding.expected}
            yield _("  found    %(text)s") % {"text": finding.found}
        counts = ", ".join(f"{count} {what}" for what, count in self.report.checked.items())
        yield _("checked: %(counts)s") % {"counts": counts}
        yield _("in flight: %(count)s entries not posted yet") % {"count": self.report.in_flight}
        if self.report.ok:
            yield _("everything agrees")
            return
        yield from self._judgement()

    def _judgement(self) -> Iterator[str]:
        if self.explained:
            text = ngettext(
                "That is the dead receipt of story 1: it is reported until somebody decides about"
                " it.",
                "Those are the dead receipts of story 1: they are reported until somebody decides"
                " about them.",
                len(self.explained),
            )
            yield text
        if self.held_back:
            text = ngettext(
                "The ledger entry in flight waits behind it.",
                "%(count)s ledger entries in flight wait behind them.",
                self.held_back,
            )
            yield text % {"count": self.held_back}
        if self.as_told:
            yield _("Everything else agrees.")
            return
        text = ngettext(
            "%(count)s finding is not of the stories: see manage.py reconcile.",
            "%(count)s findings are not of the stories: see manage.py reconcile.",
            len(self.unexplained),
        )
        yield text % {"count": len(self.unexplained)}


def reach() -> Verdict:
    """Reconcile, and sort what is found."""
    findings: list[Finding] = []
    verdict = Verdict(Report(on_finding=findings.append))
    reconcile(verdict.report)
    own = {f"entry:{entry.pk} {entry.event_key}" for entry in own_dead_entries()}
    for finding in findings:
        is_own = finding.kind == "entry_dead" and finding.target in own
        (verdict.explained if is_own else verdict.unexplained).append(finding)
    verdict.held_back = progress().held_back
    return verdict
