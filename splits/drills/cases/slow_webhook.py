"""A completion endpoint that answers too late."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from django.conf import settings

from ledger.outbox import JOB
from recovery import backoff
from recovery.clock import db_now
from splits import audit, lifecycle, notify
from splits.demo.endpoint import Endpoint, Post
from splits.demo.environment import HOST
from splits.drills.exercise import Exercise
from splits.drills.goods import make_order
from splits.drills.overrides import settings_here
from splits.drills.proofs import finalize_here, prove_order_audited, prove_posted_once
from splits.drills.registry import drill
from splits.errors import EndpointFailedError
from splits.finalize import Ending, finalize
from splits.models import Breaker, SplitOrder

TIMEOUT_S = 0.5
LATE_S = 30.0
"""The deadline is kept if the attempt ends before this: a busy machine takes its time."""
PATIENT_S = 30.0
"""The deadline once the endpoint answers: that it is kept has been seen."""
BACKOFF_S = 3_600
"""So that no worker takes the order before this process tries again."""
MANY = 1_000_000


class Ear:
    """What the endpoint was told; it answers once it is told to."""

    def __init__(self) -> None:
        """Be slow."""
        self.posts: list[Post] = []
        self.answers = threading.Event()

    def hear(self, post: Post) -> None:
        """Keep what is said, and let the caller wait."""
        self.posts.append(post)
        self.answers.wait()


@drill(
    "slow-webhook",
    jobs=(lifecycle.FINALIZE_JOB, JOB),
    steps=(
        "open an endpoint on the loopback that does not answer, for this process alone",
        "finalize a disposable order: the call is ended at its deadline and the attempt charged",
        "let the endpoint answer, and try again: finalized, told with the same Idempotency-Key",
        "prove that the failure counted for the drill's endpoint and no other, and is forgotten",
        "reverse the order and take the board out of stock again",
    ),
)
def answer_too_late(exercise: Exercise) -> None:
    """Let an endpoint answer too late: ended in time, charged, tried again with the same key."""
    retried = exercise.count("finalize_retry_attempts_total")
    order = make_order(exercise.code)
    exercise.note(f"order {order.number} made, disposable and not due")
    ear = Ear()
    with _endpoint(ear, order) as origin:
        exercise.note(f"an endpoint at {origin} listens, and does not answer")
        _fail(exercise, order)
        breaker = Breaker.objects.get(endpoint=origin)
        exercise.prove(
            "the failure is counted for the drill's endpoint alone",
            breaker.failures == 1 and not breaker.opened_at,
            breaker=origin,
        )
        ear.answers.set()
        exercise.note("the endpoint answers now")
        with settings_here(SPLIT_COMPLETION_TIMEOUT_SEC=PATIENT_S):
            finalize_here(exercise, order, "finalized at the second try")
        _prove_told_the_same(exercise, ear.posts, order)
    exercise.prove_counted(retried)
    prove_posted_once(exercise, order)


def _fail(exercise: Exercise, order: SplitOrder) -> None:
    """Make the attempt that gets no answer."""
    started = time.monotonic()
    outcome = finalize(order.pk, author=exercise.author, now=True)
    took_s = time.monotonic() - started
    order.refresh_from_db()
    failed = bool(outcome and outcome.ending is Ending.FAILED)
    exercise.prove(
        f"the attempt ended after {took_s:.2f} s: {outcome and outcome.error}",
        failed and order.last_finalize_error_code == EndpointFailedError.code and took_s < LATE_S,
        first_attempt_s=round(took_s, 2),
    )
    exercise.prove("it is charged to the order", order.finalize_attempts == 1)
    due_in_s = (order.next_finalize_at - db_now()).total_seconds() if order.next_finalize_at else 0
    in_time = 0 < due_in_s <= backoff.delay_sec(1)
    exercise.prove(f"it is due again in {due_in_s:.0f} s, by backoff", in_time)
    prove_order_audited(exercise, order, audit.FAILED)


def _prove_told_the_same(exercise: Exercise, posts: list[Post], order: SplitOrder) -> None:
    keys = [post.key for post in posts]
    exercise.prove(
        f"told twice with the same Idempotency-Key, {order.event_key}",
        keys == [order.event_key] * 2,
        idempotency_keys=keys,
    )
    exercise.prove("and the same body", posts[0].body == posts[1].body)


@contextmanager
def _endpoint(ear: Ear, order: SplitOrder) -> Iterator[str]:
    """Serve an endpoint that this process alone calls; yield its origin, which has a breaker."""
    with _listening(ear) as endpoint:
        address = f"http://{HOST}:{endpoint.port}/{order.number}"
        origin = notify.origin(urlsplit(address))
        try:
            with settings_here(
                SPLIT_COMPLETION_WEBHOOK=address,
                SPLIT_COMPLETION_TIMEOUT_SEC=TIMEOUT_S,
                SPLIT_COMPLETION_BREAKER_FAILURES=MANY,
                JOB_FINALIZE_RETRY_LIMIT=MANY,
                JOB_BACKOFF_BASE_SEC=BACKOFF_S,
                JOB_BACKOFF_CAP_SEC=BACKOFF_S,
                JOB_BACKOFF_JITTER=0,
            ):
                yield origin
        finally:
            ear.answers.set()
            Breaker.objects.filter(endpoint=origin).delete()


@contextmanager
def _listening(ear: Ear) -> Iterator[Endpoint]:
    """Listen on a free port, but not on one that has the breaker of the real endpoint."""
    real = settings.SPLIT_COMPLETION_WEBHOOK
    taken = notify.origin(urlsplit(real)) if real else ""
    with Endpoint(0, on_post=ear.hear) as endpoint:
        if f"http://{HOST}:{endpoint.port}" != taken:
            yield endpoint
            return
        with Endpoint(0, on_post=ear.hear) as other:
            yield other
