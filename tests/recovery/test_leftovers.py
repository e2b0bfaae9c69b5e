"""What could not be written in an outage is written by the process' next run, or stays."""

import pytest
from django.db import DatabaseError, OperationalError

from recovery import leftovers
from recovery.models import Job
from recovery.runner import run_job
from tests.recovery.engine import NAME, register

GONE = OperationalError(2006, "Server has gone away")


def refusing(error, *, times):
    """Return an action that the database refuses so often, and when it was done."""
    done, left = [], [error] * times

    def action():
        if left:
            raise left.pop()
        done.append(1)

    return action, done


def test_leftover_is_done_once():
    action, done = refusing(GONE, times=0)
    leftovers.leave(action)
    leftovers.settle()
    leftovers.settle()
    assert done == [1]


def test_leftover_stays_while_the_database_is_away_and_keeps_back_no_other():
    first, first_done = refusing(GONE, times=2)
    second, second_done = refusing(GONE, times=0)
    leftovers.leave(first)
    leftovers.leave(second)
    leftovers.settle()
    assert (first_done, second_done) == ([], [1])
    leftovers.settle()
    leftovers.settle()
    assert (first_done, second_done) == ([1], [1])


@pytest.mark.mariadb
@pytest.mark.django_db(transaction=True)
def test_leftover_whose_row_somebody_holds_is_left_without_waiting(second_connection):
    Job.objects.create(name=NAME)
    action, done = refusing(GONE, times=0)
    leftovers.leave(action, rows=Job.objects.filter(name=NAME))
    with second_connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1 FROM recovery_job FOR UPDATE")
        leftovers.settle()
        cursor.execute("ROLLBACK")
    assert done == []
    leftovers.settle()
    assert done == [1]


def test_leftover_that_is_wrong_in_itself_is_raised_and_not_tried_again():
    action, done = refusing(DatabaseError("check constraint failed"), times=1)
    leftovers.leave(action)
    with pytest.raises(DatabaseError):
        leftovers.settle()
    leftovers.settle()
    assert done == []


def test_leftovers_are_bounded():
    done = []
    for number in range(leftovers.KEPT + 5):
        leftovers.leave(lambda number=number: done.append(number))
    leftovers.settle()
    assert done == list(range(5, leftovers.KEPT + 5))


@pytest.mark.django_db(transaction=True)
def test_next_run_of_any_job_settles_what_was_left(monkeypatch):
    action, done = refusing(GONE, times=0)
    register(monkeypatch)
    leftovers.leave(action)
    assert run_job(NAME).status == "ok"
    assert done == [1]
