"""An entry that the ledger refuses."""

from django.conf import settings
from django.db import transaction

from ledger.metrics import outbox_entries
from ledger.models import EntryStatus, ErrorCode, OutboxEntry
from ledger.outbox import JOB
from recovery.leases import HOST
from recovery.models import JobRun
from splits.drills.counting import Count
from splits.drills.exercise import Exercise
from splits.drills.goods import make_board
from splits.drills.poison import discard, hurry, publish_poison
from splits.drills.proofs import prove_audited
from splits.drills.registry import drill

KIND = "outbox-entry"
DEAD, DISCARDED = "outbox-entry-dead", "outbox-entry-discarded"


@drill(
    "poison",
    jobs=(JOB,),
    steps=(
        "publish an entry that does not balance, and a receipt behind it in its aggregate",
        "let the outbox refuse it; hurry it to its last attempt, after which it is dead",
        "let a receipt of another aggregate be posted meanwhile; the one behind it waits",
        "look for audit record and metrics, then discard it on the record: its follower is posted",
        "take the boards out of stock again",
    ),
)
def publish_what_is_refused(exercise: Exercise) -> None:
    """Publish an entry that the ledger refuses: dead, reported, holding nobody else back."""
    refused = exercise.count("outbox_failures_total", code=ErrorCode.UNBALANCED.value)
    entry, behind = _publish(exercise)
    _let_it_die(exercise, entry)
    prove_audited(exercise, DEAD, kind=KIND, target=str(entry.pk))
    _prove_counted(exercise, refused)
    _prove_others_go_on(exercise, behind)
    discarded = discard(entry, exercise.author)
    exercise.prove("discarded", discarded)
    prove_audited(exercise, DISCARDED, kind=KIND, target=str(entry.pk))
    exercise.work(JOB, f"{behind.event_key} is posted now", lambda: _is_posted(behind))


def _publish(exercise: Exercise) -> tuple[OutboxEntry, OutboxEntry]:
    """Publish the poison, and in its aggregate a receipt behind it."""
    board = f"{exercise.code}-A"
    with transaction.atomic():
        entry = publish_poison(exercise.code, f"lot:{board}")
        make_board(board)
    behind = OutboxEntry.objects.get(event_key=f"lot:{board}:received")
    exercise.evidence["entry"] = entry.pk
    exercise.note(f"entry {entry.pk} published, which does not balance; a receipt behind it")
    return entry, behind


def _let_it_die(exercise: Exercise, entry: OutboxEntry) -> None:
    limit = settings.JOB_OUTBOX_MAX_ATTEMPTS
    exercise.work(JOB, "the ledger refused it", lambda: _refreshed(entry).attempts > 0)
    exercise.prove(
        f"{entry.last_error_code}: {entry.last_error}",
        entry.last_error_code == ErrorCode.UNBALANCED,
        error_code=entry.last_error_code,
    )
    if hurry(entry):
        exercise.note(f"hurried to attempt {limit} of {limit}: the backoff takes too long here")
    exercise.work(
        JOB, f"dead at attempt {limit}", lambda: _refreshed(entry).status == EntryStatus.DEAD
    )


def _prove_counted(exercise: Exercise, refused: Count) -> None:
    if not refused.grown() and _worked_elsewhere(exercise):
        exercise.note(f"{refused} was counted on another host, whose worker refused it")
    else:
        exercise.prove_counted(refused)
    dead = {labels["status"]: value for labels, value in outbox_entries()}["dead"]
    exercise.prove(f'outbox_entries{{status="dead"}} is {dead:g}', dead >= 1, dead_entries=dead)


def _worked_elsewhere(exercise: Exercise) -> bool:
    entry = OutboxEntry.objects.get(pk=exercise.evidence["entry"])
    runs = JobRun.objects.filter(started_at__gte=entry.created_at, job__name__startswith=JOB)
    return runs.exclude(host=HOST).exists()


def _prove_others_go_on(exercise: Exercise, behind: OutboxEntry) -> None:
    """Prove that the dead entry holds back its aggregate, and nobody else."""
    board = f"{exercise.code}-B"
    with transaction.atomic():
        make_board(board)
    other = OutboxEntry.objects.get(event_key=f"lot:{board}:received")
    what = f"{other.event_key}, published meanwhile, is posted"
    exercise.work(JOB, what, lambda: _is_posted(other))
    _refreshed(behind)
    waits = (behind.status, behind.attempts) == (EntryStatus.PENDING, 0)
    exercise.prove(f"{behind.event_key} waits behind it, untried", waits)


def _is_posted(entry: OutboxEntry) -> bool:
    return _refreshed(entry).status == EntryStatus.POSTED


def _refreshed(entry: OutboxEntry) -> OutboxEntry:
    entry.refresh_from_db()
    return entry
