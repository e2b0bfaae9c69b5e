"""Finalize by the job's own batches, without its lease, until nothing is due: one of two."""

from benchmarks.children import obey, set_up, timed


def main() -> None:
    """Finalize what is due."""
    set_up()
    obey(lambda: timed(_finalize))


def _finalize() -> None:
    from splits import jobs
    from splits.audit import Author
    from splits.models import SplitOrder

    author = Author("system:benchmark")
    while SplitOrder.objects.due().exists():
        jobs.finalize_batch(author)


if __name__ == "__main__":
    main()
