"""Is it audited? A probe is recorded and found again, and so is what the job says it records."""

import re

from django.db import transaction

from recovery import audit
from recovery.models import AuditRecord, JobRun
from recovery.registry import Job
from recovery.rehearsing import UnprovenError
from recovery.selfcheck.answers import Answer
from recovery.selfcheck.findings import shown
from recovery.selfcheck.limits import walk

PROBED = "selfcheck-probed"
TARGET = "job"
ACTION_MAX_LENGTH = 100
REFUSED = "Nothing that is audited can change while this is so: see whether recovery_auditrecord"
REFUSED += " takes rows (rights, disk, triggers)."
UNSEEN = "Compare the code that writes the action with the release, or what the job declares."

_is_action = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*").fullmatch


def is_audited(job: Job) -> Answer:
    """Answer from a record written and found just now, and from those the job declares."""
    probe = _probe(job.name)
    return Answer(True, f"record {probe.pk} ({PROBED}) was written and found; {_declared(job)}")


def _probe(name: str) -> AuditRecord:
    """Record that ``name`` was probed, and return the record as a query finds it."""
    actor = audit.cli_actor()
    try:
        with transaction.atomic():
            written = audit.record(
                actor=actor,
                action=PROBED,
                target_type=TARGET,
                target_id=name,
                reason="asked whether it is audited",
            )
    except Exception as error:
        raise UnprovenError(
            f"no audit record could be written: {shown(error)}", remedy=REFUSED
        ) from error
    records = AuditRecord.objects.filter(target_type=TARGET, target_id=name, pk=written.pk)
    found = records.filter(action=PROBED, actor=actor).first()
    if found is None:
        raise UnprovenError(
            "the audit record that was just written is not to be found", remedy=REFUSED
        )
    return found


def _declared(job: Job) -> str:
    if not job.audit_actions:
        return f"it declares no actions: its record is that of its runs, {_last_run(job.name)}"
    _require_names(job)
    if job.limit is None:
        return f"it declares {', '.join(job.audit_actions)}, which no proof leads to"
    try:
        seen = walk(job.limit)
    except UnprovenError as unproven:
        raise UnprovenError(
            f"what it audits was not seen, for the walk to its limit failed: {unproven}",
            remedy=unproven.remedy or UNSEEN,
        ) from unproven
    missing = [it for it in job.audit_actions if it not in seen.audited | seen.excused]
    if missing:
        raise UnprovenError(
            f"it declares {', '.join(missing)}, but a walk to its limit did not record it",
            remedy=UNSEEN,
        )
    return f"a walk to its limit recorded {', '.join(sorted(seen.audited))}"


def _require_names(job: Job) -> None:
    for action in job.audit_actions:
        if not _is_action(action) or len(action) > ACTION_MAX_LENGTH:
            raise UnprovenError(
                f"it declares {action!r}, which is no name of an action",
                remedy="Name it as the others are: outbox-entry-dead.",
            )


def _last_run(name: str) -> str:
    run = JobRun.objects.filter(job_id=name).order_by("-id").first()
    return f"the last one {run.run_id} ({run.status})" if run else "none so far"
