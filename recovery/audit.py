"""Write audit records, in the transaction of the change they record."""

import getpass
import os
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db import connection

from recovery.models import AuditRecord, stored_text


class AuditOutsideTransactionError(RuntimeError):
    """An audit record must be written in the transaction of the change it records."""

    def __init__(self) -> None:
        """Say what the class says."""
        super().__init__(type(self).__doc__)


def cli_actor() -> str:
    """Return the actor of a command: ``cli:<os user>``."""
    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError):  # a container's user may have no name
        return f"cli:{os.getuid()}"


def record(
    *,
    actor: str,
    action: str,
    target_type: str,
    target_id: str,
    reason: str = "",
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    evidence: Mapping[str, Any] | None = None,
    run_id: UUID | None = None,
) -> AuditRecord:
    """Write one audit record; values must be JSON (quantities and times as text).

    Raises AuditOutsideTransactionError.
    """
    if not connection.in_atomic_block:
        raise AuditOutsideTransactionError
    return AuditRecord.objects.create(
        actor=stored_text(actor, 200),
        action=action,
        target_type=target_type,
        target_id=target_id,
        reason=stored_text(reason),
        before=dict(before or {}),
        after=dict(after or {}),
        evidence=dict(evidence or {}),
        run_id=run_id,
    )
