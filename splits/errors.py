"""Why a split order cannot go on: one class a cause, each with its code."""


class SplitError(Exception):
    """The split order cannot go on."""

    code = "split_error"

    def __init__(self, detail: str = "") -> None:
        """Say what the class says, and the detail."""
        summary = (type(self).__doc__ or "").strip().rstrip(".")
        super().__init__(f"{summary}: {detail}" if detail else summary)


class FencedError(SplitError):
    """The finalizer was reset and another one may hold the order: nothing is committed."""

    code = "fenced"


class UnknownOrderError(SplitError):
    """No such split order."""

    code = "unknown_order"


class WrongStatusError(SplitError):
    """The order's status does not allow this."""

    code = "wrong_status"


class InProgressError(SplitError):
    """The order is being finalized."""

    code = "in_progress"


class StockMovedError(SplitError):
    """The source lot is consumed already, so the order can no longer be cancelled."""

    code = "stock_moved"


class NumberTakenError(SplitError):
    """A split order with this number exists."""

    code = "number_taken"


class LotBusyError(SplitError):
    """The lot has a live split order."""

    code = "lot_busy"


class NoLinesError(SplitError):
    """The order has no lines."""

    code = "no_lines"


class SumMismatchError(SplitError):
    """The lines do not add up to the source lot's quantity."""

    code = "sum_mismatch"


class LotNotAvailableError(SplitError):
    """The lot is not available."""

    code = "lot_not_available"


class CodeTooLongError(SplitError):
    """A code would be longer than a key can be."""

    code = "code_too_long"


class CodeTakenError(SplitError):
    """The code of a child lot is taken by another lot."""

    code = "code_taken"


class LedgerRefusedError(SplitError):
    """The ledger refused the entry."""

    code = "ledger_refused"


class NotInLedgerError(SplitError):
    """The order's ledger entry was discarded, so there is nothing to reverse."""

    code = "not_in_ledger"


class OutputsTouchedError(SplitError):
    """Child lots were used already."""

    code = "outputs_touched"


class EndpointRefusedError(SplitError):
    """The completion endpoint refused the order."""

    code = "endpoint_refused"


class EndpointFailedError(SplitError):
    """The completion endpoint could not be reached or failed."""

    code = "endpoint_failed"


class EndpointDownError(SplitError):
    """The completion endpoint is down; the order waits and is not charged."""

    code = "endpoint_down"

    def __init__(self, detail: str = "", *, retry_in_s: float) -> None:
        """Keep the seconds after which a try is worth it."""
        super().__init__(detail)
        self.retry_in_s = retry_in_s
