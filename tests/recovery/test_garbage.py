"""The collector is kept away from a block, and comes back whatever ends it."""

import gc

import pytest

from recovery import garbage

pytestmark = pytest.mark.once


def test_collector_is_away_meanwhile():
    with garbage.left_alone():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_collector_comes_back_after_an_error():
    with pytest.raises(ValueError, match="no"), garbage.left_alone():
        raise ValueError("no")
    assert gc.isenabled()


def test_inner_block_does_not_bring_it_back_too_early():
    with garbage.left_alone():
        with garbage.left_alone():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
