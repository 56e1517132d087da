"""How contenders are timed: a first call, then rounds in which everyone runs in turn, so that drift hits all alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.speed.contenders import Run

__all__ = ["History", "Patience", "first_call", "peak_memory", "rounds"]


@dataclass(frozen=True)
class Patience:
    """Seconds that one call may be expected to take, seconds for each contender's rounds, and the most rounds.

    Where a call takes no more than ``quickly`` seconds there are three rounds at least.
    """

    cap: float = 20.0
    budget: float = 0.6
    rounds: int = 11
    quickly: float = 2.0

    def times(self, seconds: float) -> int:
        """In how many rounds a contender takes part."""
        least = 3 if seconds <= self.quickly else 1
        return max(least, min(self.rounds, int(self.budget / seconds)))


@dataclass
class History:
    """What one contender took at smaller batches: (batch, seconds, bytes at the peak)."""

    points: list[tuple[int, float, int]] = field(default_factory=list)

    def seconds(self, batch: int, *, one_by_one: bool) -> float:
        """What a call should take, on the law of the last two batches; from one batch alone, little more than there."""
        if not self.points:
            return 0.0
        last, taken, _ = self.points[-1]
        if taken == math.inf:
            return taken
        power = 1.0 if one_by_one else 0.2
        if len(self.points) > 1 and not one_by_one:
            before, earlier, _ = self.points[-2]
            power = min(1.0, max(0.5, math.log(taken / earlier) / math.log(last / before)))
        return float(taken * (batch / last) ** power)

    def bytes(self, batch: int) -> float:
        """What a call should need; small needs say nothing about larger ones."""
        if not self.points or self.points[-1][2] < 2**25:
            return 0.0
        return self.points[-1][2] * batch / self.points[-1][0]


def first_call(run: Run) -> tuple[float, tuple[object, Sequence[object]], int]:
    """Seconds, what was found, and the bytes by which the process grew at its peak."""
    gc.collect()
    before = peak_memory(reset=True)
    begun = time.perf_counter()
    found = run()
    return time.perf_counter() - begun, found, max(0, peak_memory() - before)


def rounds(runs: Mapping[str, Run], estimates: Mapping[str, float], patience: Patience) -> dict[str, list[float]]:
    """Wall seconds of each; a slow contender takes part in fewer rounds, spread over all, and one that fits once in none."""
    counts = {name: patience.times(estimates[name]) for name in runs}
    seconds: dict[str, list[float]] = {name: [] if counts[name] > 1 else [estimates[name]] for name in runs}
    total = max(counts.values(), default=0)
    for number in range(total):
        order = [
            name for name, count in counts.items() if count > 1 and (number + 1) * count // total > number * count // total
        ]
        for name in order if number % 2 == 0 else reversed(order):
            begun = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def peak_memory(*, reset: bool = False) -> int:
    """Bytes of this process at its peak since the last reset, which is to what it holds now; 0 where that is not told."""
    status = Path("/proc/self/status")
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return 0


def free_memory() -> float:
    """Bytes that could still be had; without end where that is not told."""
    try:
        return 1024.0 * int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0])
    except (OSError, IndexError):
        return math.inf
