"""Rows of the engine: jobs with their leases, runs, audit records, samples, plans."""

from recovery.models.jobs import Job, JobQuerySet, JobRun, JobRunQuerySet, RunStatus
from recovery.models.plans import ItemStatus, Plan, PlanItem, PlanStatus
from recovery.models.records import (
    AppendOnly,
    AppendOnlyError,
    AppendOnlyQuerySet,
    AuditRecord,
)
from recovery.models.samples import Sample, SampleMoment
from recovery.models.texts import ERROR_MAX_LENGTH, stored_text

__all__ = [
    "ERROR_MAX_LENGTH",
    "AppendOnly",
    "AppendOnlyError",
    "AppendOnlyQuerySet",
    "AuditRecord",
    "ItemStatus",
    "Job",
    "JobQuerySet",
    "JobRun",
    "JobRunQuerySet",
    "Plan",
    "PlanItem",
    "PlanStatus",
    "RunStatus",
    "Sample",
    "SampleMoment",
    "stored_text",
]
