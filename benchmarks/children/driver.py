"""Post by the bare driver: one of two at once."""

import os

from benchmarks import floor
from benchmarks.children import obey, timed

if __name__ == "__main__":
    obey(lambda: timed(lambda: floor.drain(os.environ["DATABASE_URL"])))
