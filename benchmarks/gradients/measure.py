"""What one gradient costs: evaluations, bytes at the peak, and seconds, the contenders taken in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gradients.contenders import Contender, Counted, Setting
from physnode.live_bytes import LiveBytes

__all__ = ["MIB", "Cost", "Spread", "cost", "differentiate", "interleaved", "paired_ratio", "squared"]

MIB = 2**20
Loss = Callable[[Tensor], Tensor]


def squared(y: Tensor) -> Tensor:
    """|y|² summed over everything."""
    return y.square().sum()


@dataclass(frozen=True)
class Cost:
    """One gradient."""

    loss: float
    to_start: Tensor
    """dL/dy0."""
    to_parameters: list[Tensor]
    forward: int
    """Evaluations of the field, each for the whole batch."""
    backward: int
    kept: int
    """Bytes alive between forward and backward."""
    forward_peak: int
    """The most bytes that were alive during the forward solve, and below during the way back."""
    backward_peak: int

    @property
    def peak(self) -> int:
        """The most bytes that were alive at once."""
        return max(self.forward_peak, self.backward_peak)


def differentiate(
    contender: Contender, field: nn.Module, y0: Tensor, setting: Setting, loss: Loss = squared
) -> tuple[Tensor, list[Tensor]]:
    """dL/dy0, and the gradients of the field's parameters."""
    start = y0.detach().clone().requires_grad_()
    found = torch.autograd.grad(loss(contender(field, start, setting)), (start, *_wanted(field)))
    return found[0], list(found[1:])


def cost(contender: Contender, field: nn.Module, y0: Tensor, setting: Setting, loss: Loss = squared) -> Cost:
    """Evaluations and bytes of one gradient."""
    counted = field if isinstance(field, Counted) else Counted(field)
    start = y0.detach().clone().requires_grad_()
    before = counted.calls
    with LiveBytes() as live:
        value = loss(contender(counted, start, setting))
        forward, kept, forward_peak = counted.calls - before, live.now, live.peak
        live.peak = live.now
        found = torch.autograd.grad(value, (start, *_wanted(field)))
    backward = counted.calls - before - forward
    return Cost(value.item(), found[0], list(found[1:]), forward, backward, kept, forward_peak, live.peak)


def _wanted(field: nn.Module) -> list[Tensor]:
    return [parameter for parameter in field.parameters() if parameter.requires_grad]


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Wall seconds of each run in each round; every round takes all of them, and every other one in reverse order."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats):
        order = list(runs.items())
        for name, run in order if number % 2 == 0 else reversed(order):
            begun = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


@dataclass(frozen=True)
class Spread:
    """A ratio of medians, and the smallest and largest ratio within one round."""

    ratio: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.least:.2f} to {self.most:.2f}"


def paired_ratio(above: list[float], below: list[float]) -> Spread:
    """``above`` over ``below``, taken in the same rounds."""
    rounds = [a / b for a, b in zip(above, below, strict=True)]
    return Spread(statistics.median(above) / statistics.median(below), min(rounds), max(rounds))
