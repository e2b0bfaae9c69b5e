"""Rows of the engine: jobs with their leases, runs, audit records, samples, plans."""

from recovery.models.archives import ArchiveStatus, AuditArchive, RestoredRecord, Tier
from recovery.models.jobs import Job, JobQuerySet, JobRun, JobRunQuerySet, RunStatus
from recovery.models.plans import ItemStatus, Plan, PlanItem, PlanStatus
from recovery.models.records import (
    AppendOnly,
    AppendOnlyError,
    AppendOnlyQuerySet,
    AuditEntry,
    AuditRecord,
)
from recovery.models.samples import Sample, SampleMoment
from recovery.models.seals import AuditSeal, AuditSealSpan
from recovery.models.texts import ERROR_MAX_LENGTH, stored_text

__all__ = [
    "ERROR_MAX_LENGTH",
    "AppendOnly",
    "AppendOnlyError",
    "AppendOnlyQuerySet",
    "ArchiveStatus",
    "AuditArchive",
    "AuditEntry",
    "AuditRecord",
    "AuditSeal",
    "AuditSealSpan",
    "ItemStatus",
    "Job",
    "JobQuerySet",
    "JobRun",
    "JobRunQuerySet",
    "Plan",
    "PlanItem",
    "PlanStatus",
    "RestoredRecord",
    "RunStatus",
    "Sample",
    "SampleMoment",
    "Tier",
    "stored_text",
]
