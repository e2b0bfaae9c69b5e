"""What the state machines share: how much they try, and how an example is cleaned away."""

import logging
import os
from typing import Any

from django.db import connection
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from ledger.models import Account, OutboxEntry, Posting, Transaction
from recovery.models import AuditRecord, JobRun
from splits.models import (
    Breaker,
    FinalizeStep,
    Lot,
    SplitLine,
    SplitOrder,
    StuckSighting,
)

EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "0"))
"""More examples than a suite has the time for: ``MACHINE_EXAMPLES=500``.

Only then is a failing one made smaller, which takes up to five minutes.
"""
TIMEOUT_S = 600 + (600 + 5 * EXAMPLES if EXAMPLES else 0)
_PHASES = [phase for phase in Phase if EXAMPLES or phase not in (Phase.shrink, Phase.explain)]
_CHILDREN_FIRST = (
    Posting, Transaction, Account, OutboxEntry, AuditRecord, JobRun, Breaker,
    StuckSighting, FinalizeStep, SplitLine,
)  # fmt: skip


class Killed(BaseException):
    """The process ends here: what is not committed is lost, and nobody cleans up."""


def run_machine(machine: type[RuleBasedStateMachine], *, examples: int, steps: int) -> None:
    """Run ``machine`` on a good number of examples."""
    limits = settings(
        max_examples=EXAMPLES or examples,
        stateful_step_count=steps,
        phases=_PHASES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    logging.disable()  # thousands of faults, told with their stack
    try:
        run_state_machine_as_test(machine, settings=limits)
    finally:
        logging.disable(logging.NOTSET)


def forget_everything() -> None:
    """Remove what an example made; truncating the tables would take seconds."""
    with connection.cursor() as cursor:
        for model in _CHILDREN_FIRST:
            cursor.execute(f"DELETE FROM {_table(model)}")
        # Lots and orders point at each other.
        cursor.execute(f"UPDATE {_table(SplitOrder)} SET live_lot_id = NULL")
        cursor.execute(f"UPDATE {_table(Lot)} SET parent_order_id = NULL")
        cursor.execute(f"DELETE FROM {_table(SplitOrder)}")
        cursor.execute(f"DELETE FROM {_table(Lot)}")


def _table(model: Any) -> str:
    return str(model._meta.db_table)
