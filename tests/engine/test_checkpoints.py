"""Which items of a sequence of unknown length are kept, so that all can be made again backward."""

from __future__ import annotations

import math

import pytest

from physnode.engine.checkpoints import Checkpoints

LENGTHS = [1, 2, 3, 5, 8, 13, 50, 100, 286, 287, 1000]


def repetitions(items: int, capacity: int) -> int:
    """The least r with ``items`` <= C(capacity - 1 + r, r): how often an item is made again at most."""
    r = 0
    while math.comb(capacity - 1 + r, r) < items:
        r += 1
    return r


def sweep(items: int, capacity: int) -> list[int]:
    """How often each item is made again on the way back."""
    kept = Checkpoints(capacity)
    for item in range(items):
        kept.place(item)
        assert len(kept) <= capacity
    again = [0] * items
    for item in reversed(range(items)):
        at = kept.last_until(item)
        while at < item:
            at += 1
            again[at] += 1
            kept.place(at)
            assert len(kept) <= capacity
        assert item in kept
        if item:
            kept.drop(item)
    return again


@pytest.mark.parametrize("capacity", [2, 3, 4, 5, 10, 20, 50])
def test_no_item_is_made_again_more_often_than_the_binomial_bound(capacity: int) -> None:
    for items in LENGTHS:
        assert max(sweep(items, capacity)) <= repetitions(items, capacity)


@pytest.mark.parametrize("capacity", [4, 10, 50])
def test_the_work_is_near_that_of_the_best_placement_for_a_known_length(capacity: int) -> None:
    """Griewank, Walther: with c places beside that of the newest item the best total is r n - C(c + r, r - 1)."""
    for items in LENGTHS:
        r = repetitions(items, capacity)
        best = r * items - math.comb(capacity - 1 + r, r - 1) if r else 0
        assert sum(sweep(items, capacity)) <= 1.1 * best + capacity


def test_all_are_kept_while_there_is_room() -> None:
    assert sum(sweep(50, 50)) == 0
    kept = Checkpoints()
    assert [kept.place(item) for item in range(100)] == [None] * 100
    assert kept.kept == tuple(range(100))


def test_the_first_is_never_given_up() -> None:
    kept = Checkpoints(2)
    for item in range(30):
        kept.place(item)
    assert kept.kept == (0, 29)


@pytest.mark.parametrize("before", [10, 40, 200])
def test_fewer_places_leave_the_first_and_the_newest(before: int) -> None:
    kept = Checkpoints(20)
    for item in range(before):
        kept.place(item)
    all_before = set(kept.kept)
    dropped = kept.shrink(6)
    assert len(kept) == 6
    assert set(kept.kept) | set(dropped) == all_before
    assert kept.kept[0] == 0
    assert kept.kept[-1] == before - 1


def test_even_gaps_are_left_where_all_stand_on_one_level() -> None:
    kept = Checkpoints()
    for item in range(65):
        kept.place(item)
    kept.shrink(9)
    gaps = [after - before for before, after in zip(kept.kept, kept.kept[1:], strict=False)]
    assert max(gaps) <= 2 * 64 / 8
