"""What to measure, and how much of it."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECTIONS = {
    "drain": "benchmarks.sections.drain",
    "latency": "benchmarks.sections.latency",
    "finalize": "benchmarks.sections.finalizing",
    "import": "benchmarks.sections.importing",
    "publish": "benchmarks.sections.publishing",
    "idle": "benchmarks.sections.idle",
    "audit": "benchmarks.sections.auditing",
    "growth": "benchmarks.sections.growth",
}
"""The sections by name, in the order they are measured, and the modules that measure them."""

SIZES = (10_000, 1_000_000)
FULL_SIZES = (*SIZES, 5_000_000)


@dataclass(frozen=True)
class Options:
    """What was asked for; times in seconds."""

    only: tuple[str, ...] = tuple(SECTIONS)
    rounds: int = 7
    entries: int = 10_000
    """Outbox entries that a contender posts in one round."""
    tasks: int = 600
    """Entries that have a task of their own, in one round."""
    orders: int = 300
    """Split orders that a contender finalizes, or imports, in one round."""
    records: int = 100_000
    """Audit records that a contender moves in one round."""
    samples: int = 150
    """Single entries whose way is timed while the workers idle."""
    load_s: int = 20
    rate: int = 500
    """Commits a second while the workers are loaded."""
    idle_s: int = 60
    sizes: tuple[int, ...] = SIZES
    """Rows of the large tables, the fewest first."""
    buffer_pool_mib: int = 2_048
    output: Path = Path("var/bench.json")


def parse(arguments: Sequence[str]) -> Options:
    """Return what the command line asks for; leave with status 2 where it is wrong."""
    parser = _parser()
    found = vars(parser.parse_args(arguments))
    full = found.pop("full")
    if full:
        found |= {"sizes": FULL_SIZES, "buffer_pool_mib": 8_192}
    return Options(**found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=…", description="Measure; every figure beside its floor."
    )
    add, usual = parser.add_argument, Options()
    add("--only", type=_names, default=usual.only, metavar="NAME[,NAME…]", help=_list())
    add("--rounds", type=_positive, default=usual.rounds, help="rounds of each contender")
    add("--entries", type=_positive, default=usual.entries, help="entries posted in a round")
    add("--tasks", type=_positive, default=usual.tasks, help="entries with a task each, a round")
    add("--orders", type=_positive, default=usual.orders, help="orders finalized in a round")
    add("--records", type=_positive, default=usual.records, help="audit records, a round")
    add("--samples", type=_positive, default=usual.samples, help="entries timed on idle workers")
    add("--load-s", type=_positive, default=usual.load_s, help="seconds under load")
    add("--rate", type=_positive, default=usual.rate, help="commits a second under load")
    add("--idle-s", type=_positive, default=usual.idle_s, help="seconds the workers idle")
    add("--sizes", type=_sizes, default=usual.sizes, metavar="ROWS[,ROWS…]", help="large tables")
    add("--buffer-pool-mib", type=_positive, default=usual.buffer_pool_mib, help="of MariaDB")
    add("--full", action="store_true", help=f"grow up to {FULL_SIZES[-1]:,} rows")
    add("--output", type=Path, default=usual.output, help="where the figures go, as JSON")
    return parser


def _list() -> str:
    return ", ".join(SECTIONS)


def _names(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in SECTIONS]
    if wrong or not names:
        raise argparse.ArgumentTypeError(f"no section is named {text!r}; there are: {_list()}")
    return tuple(name for name in SECTIONS if name in names)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(sorted({_positive(part.strip()) for part in text.split(",")}))
    if len(sizes) < 2 or sizes[0] < 1_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not two or more sizes from 1000 rows on")
    return sizes
