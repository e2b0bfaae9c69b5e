"""What an outbox entry's life should look like: plain Python, no database, no batches in SQL."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal

ATTEMPTS = 3
LATER = 10**9
CARE_FROM = 2
MOST_TIMES = 4
WORLD = "external:receipts"


class RunEndedError(Exception):
    """The run ends here; the argument is how it ends: died or failed."""


@dataclass
class Entry:
    """One outbox entry; ``due`` counts ticks of a clock that each action moves on by one."""

    key: str
    aggregate: str
    content: str
    moves: list[tuple[str, Decimal]]
    flaw: str = ""
    due: int = 0
    status: str = "pending"
    attempts: int = 0
    code: str = ""
    killer: bool = False

    @property
    def blocks(self) -> bool:
        """Tell whether later entries of the aggregate wait for it."""
        return self.status in ("pending", "dead")

    def settle(self) -> None:
        """Be posted."""
        self.status, self.code, self.killer = "posted", "", False

    def charge(self, code: str, due: int, *, killer: bool = False) -> None:
        """Have one attempt counted."""
        self.attempts += 1
        self.code, self.due, self.killer = code, due, killer


@dataclass
class Batch:
    """What a transaction did, to be settled after its commit."""

    tried: int = 0
    healed: set[str] = field(default_factory=set)
    held_back: set[str] = field(default_factory=set)
    behind: list[tuple[Entry, Entry]] = field(default_factory=list)
    suspects: list[Entry] = field(default_factory=list)
    changed: int = 0
    released: int = 0


Fault = Callable[[str], None]


class Ledger:
    """Entries, accounts and runs, and what each action makes of them."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.posted: dict[str, str] = {}
        self.balances: Counter[str] = Counter()
        self.closed: set[str] = set()
        self.endings: list[str] = []
        self.clock = 0

    def now(self) -> int:
        """Return the time, later than ever before."""
        self.clock += 1
        return self.clock

    def add(self, entry: Entry) -> None:
        """Publish an entry."""
        entry.due = self.now()
        self.entries.append(entry)

    def time_passes(self) -> None:
        """Let everything be due."""
        for entry in self.entries:
            if entry.status == "pending":
                entry.due = 0

    def forget(self, entry: Entry) -> None:
        """Apply the retention to a posted entry."""
        self.entries.remove(entry)

    def run(self, limit: int, fault: Fault) -> str:
        """Make one run of the job; return how it ended."""
        deaths = next((n for n, it in enumerate(self.endings) if it != "died"), len(self.endings))
        try:
            self._work(limit, fault, care=deaths >= CARE_FROM)
        except RunEndedError as stop:
            ending = str(stop)
        else:
            ending = "ok"
        self.endings.insert(0, ending)
        return ending

    def _work(self, limit: int, fault: Fault, *, care: bool) -> None:
        more, size = True, limit
        while more:
            if care:
                done = sum(self._with_care(entry, fault) for entry in self._due(size))
                more, care = bool(done), not done
                continue
            batch = self._batch(self._due(size), fault)
            for suspect in batch.suspects:
                self._with_care(suspect, fault)
            full = batch.tried >= size and batch.changed > 0
            size = min(MOST_TIMES * limit, 2 * size)  # they are quick
            more = full or batch.released > 0 or bool(batch.suspects)

    def _due(self, limit: int) -> list[Entry]:
        due = [it for it in self.entries if it.status == "pending" and it.due <= self.clock]
        return sorted(due, key=lambda it: (it.due, self.entries.index(it)))[:limit]

    def _before(self, entry: Entry) -> Iterator[Entry]:
        for other in self.entries[: self.entries.index(entry)]:
            if other.aggregate == entry.aggregate and other.blocks:
                yield other

    def _batch(
        self, claimed: list[Entry], fault: Fault, *, charged: bool = False, guilty: bool = False
    ) -> Batch:
        """Work some entries in one transaction; a fault in it undoes all of them."""
        before = self._snapshot()
        batch = Batch(tried=len(claimed))
        try:
            for entry in sorted(claimed, key=self.entries.index):
                self._try(entry, claimed, batch, fault, charged=charged, guilty=guilty)
            fault("outbox.before_commit")
        except RunEndedError:
            self._restore(before)
            raise
        if claimed:
            fault("outbox.after_commit")
        self._settle_followers(batch)
        return batch

    def _snapshot(self) -> tuple[list[dict[str, object]], dict[str, str], Counter[str]]:
        return [vars(it).copy() for it in self.entries], dict(self.posted), self.balances.copy()

    def _restore(
        self, before: tuple[list[dict[str, object]], dict[str, str], Counter[str]]
    ) -> None:
        rows, self.posted, self.balances = before
        for entry, row in zip(self.entries, rows, strict=True):
            vars(entry).update(row)

    def _try(
        self,
        entry: Entry,
        claimed: list[Entry],
        batch: Batch,
        fault: Fault,
        *,
        charged: bool,
        guilty: bool,
    ) -> None:
        heads = list(self._before(entry))
        if heads:
            outside = (head for head in heads if head not in claimed)
            batch.behind.append((entry, next(outside, heads[0])))
            return
        if entry.killer and not charged:
            batch.suspects.append(entry)
            batch.held_back.add(entry.aggregate)
            return
        if entry.flaw == "unknown_version" and entry.key not in self.posted and not guilty:
            entry.due = max(entry.due, LATER)
            batch.held_back.add(entry.aggregate)
            batch.changed += 1
            return
        code = "unexpected" if guilty else self._judge(entry, fault)
        batch.changed += 1
        if code:
            batch.held_back.add(entry.aggregate)
            self._refuse(entry, code, charged=charged)
        else:
            if entry.attempts:
                batch.healed.add(entry.aggregate)
            entry.settle()

    def _refuse(self, entry: Entry, code: str, *, charged: bool) -> None:
        if charged:
            entry.attempts -= 1  # it was counted before the work
        entry.charge(code, LATER)
        if entry.attempts >= ATTEMPTS:
            entry.status = "dead"

    def _judge(self, entry: Entry, fault: Fault) -> str:
        """Move the balances, or return why not."""
        try:
            fault(f"outbox.entry:{entry.key}")
        except RuntimeError:
            return "unexpected"
        if entry.key in self.posted:
            return "" if self.posted[entry.key] == entry.content else "key_conflict"
        if entry.flaw:
            return entry.flaw
        for account, change in entry.moves:
            if account in self.closed:
                return "account_closed"
            if account != WORLD and change < 0 and self.balances[account] + change < 0:
                return "insufficient_balance"
        for account, change in entry.moves:
            self.balances[account] += change  # type: ignore[assignment]
        self.posted[entry.key] = entry.content
        return ""

    def _settle_followers(self, batch: Batch) -> None:
        for entry, head in batch.behind:
            until = LATER if head.status == "dead" else head.due
            if head.blocks and entry.due < until:
                entry.due = until
                batch.changed += 1
        now = self.now()
        for entry in self.entries:
            parked = entry.status == "pending" and not entry.attempts and entry.due > now
            if parked and entry.aggregate in batch.healed - batch.held_back:
                entry.due = now
                batch.released += 1

    def _with_care(self, entry: Entry, fault: Fault) -> int:
        """Work one entry alone, its attempt counted before; return how much changed."""
        if entry.status != "pending":
            return 0
        if any(self._before(entry)):
            return self._batch([entry], fault).changed
        if entry.killer and entry.attempts >= ATTEMPTS:
            return self._batch([entry], fault, charged=True, guilty=True).changed
        entry.charge("unexpected", LATER, killer=True)
        try:
            batch = self._batch([entry], fault, charged=True)
        except RunEndedError as stop:
            if str(stop) == "failed":
                self._refund(entry, due=self.now())
            raise
        self._refund(entry, due=entry.due)
        return batch.changed

    def _refund(self, entry: Entry, *, due: int) -> None:
        if entry.status == "pending" and entry.killer:
            entry.attempts -= 1
            entry.code, entry.due, entry.killer = "", due, False
