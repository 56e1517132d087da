"""When rows are taken: regular or random times, with gaps in which nothing is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from physnode.data.table import Array
from physnode.errors import InputError

__all__ = ["Gaps", "sample_times"]


@dataclass(frozen=True)
class Gaps:
    """Stretches of time without rows: between ``count[0]`` and ``count[1]`` of them a trajectory, each as long as a number
    drawn uniformly from ``length`` (in the time unit of the data)."""

    count: tuple[int, int]
    length: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.count
        short, long = self.length
        if not 0 <= low <= high:
            raise InputError(f"the number of gaps must be a range of whole numbers from 0 on; found {low} to {high}")
        if not 0 < short <= long < float("inf"):
            raise InputError(f"the length of gaps must be a range of positive times; found {short:g} to {long:g}")


def sample_times(
    generator: np.random.Generator, t0: float, t1: float, rows: int, *, irregular: bool, gaps: Gaps | None
) -> Array:
    """Increasing times ``(m,)`` from ``t0`` on: the first row is at ``t0``, the others lie up to ``t1`` and in no gap.

    Irregular times are uniform over what the gaps leave, and m = ``rows``. Regular ones are the points of an even grid of
    ``rows`` points that no gap holds, so m may be smaller.
    """
    edges = _gaps(generator, t0, t1, gaps)
    if not irregular:
        times = np.linspace(t0, t1, rows)
        inside = np.zeros(rows, dtype=bool)
        for start, end in edges:
            inside |= (times > start) & (times < end)
        inside[0] = False
        return np.asarray(times[~inside])
    open_time = (t1 - t0) - sum(end - start for start, end in edges)
    while True:
        times = t0 + np.sort(generator.uniform(0.0, open_time, rows - 1))
        for start, end in edges:  # in order: each gap pushes what comes after it
            times = np.where(times > start, times + (end - start), times)
        times = np.concatenate(([t0], times))
        if bool((np.diff(times) > 0).all()):
            return np.asarray(times)


def _gaps(generator: np.random.Generator, t0: float, t1: float, gaps: Gaps | None) -> list[tuple[float, float]]:
    """Gaps that do not overlap, in order."""
    if gaps is None:
        return []
    number = int(generator.integers(gaps.count[0], gaps.count[1] + 1))
    lengths: Any = generator.uniform(*gaps.length, number)
    open_time = (t1 - t0) - float(lengths.sum())
    if open_time < 0.2 * (t1 - t0):
        raise InputError(
            f"gaps of {float(lengths.sum()):.4g} in all leave too little of the span from {t0:g} to {t1:g}; "
            "make them fewer or shorter"
        )
    starts = t0 + np.sort(generator.uniform(0.0, open_time, number))
    shift, found = 0.0, []
    for start, length in zip(starts, lengths, strict=True):
        found.append((float(start) + shift, float(start) + shift + float(length)))
        shift += float(length)
    return found
