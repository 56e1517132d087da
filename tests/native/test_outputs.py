"""Where outputs may lie, and what batches look like: all as the eager driver has it, each trajectory by itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import physnode as pn

OPTIONS = {"method": "tsit5", "controller": pn.Adaptive(1e-4, 1e-5)}
MESH = {"method": "rk4", "controller": pn.Fixed(0.125)}  # steps that end on exact binary fractions
PADDED = [[0.0, 0.3, 1.0, 2.0], [0.0, 0.5, 0.5, 0.5], [0.0, 0.1, 0.2, 0.2]]
TIMES = {
    "increasing": ([0.0, 0.4, 1.1, 2.0], None),
    "decreasing": ([2.0, 1.1, 0.4, 0.0], None),
    "epoch before": ([1.0, 2.0], 0.5),
    "epoch after, increasing": ([-1.0, 0.2, 0.4], 1.0),
    "epoch after, decreasing": ([0.4, 0.2, -1.0], 1.0),
    "both ways": ([-1.0, -0.3, 0.2, 1.0], 0.0),
    "both ways, decreasing": ([1.0, 0.2, -0.3, -1.0], 0.1),
    "both ways, epoch among them": ([-1.0, 0.2, 1.0], 0.2),
    "one time": ([1.5], 0.0),
    "one time, on the epoch": ([1.5], 1.5),
    "many in one step": (torch.linspace(0, 0.5, 200, dtype=torch.float64), None),
    "own times": ([[0.0, 0.4, 2.0], [1.0, 0.5, -1.0], [3.0, 3.5, 4.0]], [0.0, 1.0, 3.0]),
    "own times, both ways": ([[0.0, 0.4, 2.0], [1.0, 0.5, -1.0], [3.0, 3.5, 4.0]], [0.1, 0.5, 5.0]),
    "padded": (PADDED, None),
    "no way to go": ([[0.0, 1.0], [0.0, 0.0], [0.0, 2.0]], None),
}


@pytest.mark.parametrize("options", [OPTIONS, MESH], ids=["tsit5", "rk4"])
@pytest.mark.parametrize("name", list(TIMES))
def test_times(name: str, options: dict[str, Any], help: Any) -> None:
    ts, t0 = TIMES[name]
    help.agree(help.rotor, help.unequal(3), torch.as_tensor(ts, dtype=torch.float64), [help.rotor.mix], t0=t0, **options)


def test_outputs_on_the_ends_of_steps_and_next_to_them(help: Any) -> None:
    ends = torch.tensor([0.0, 0.125, 0.25, 0.375, 1.0], dtype=torch.float64)
    near = torch.tensor([math.nextafter(0.5, 0), 0.75 * (1 + 1e-13), 0.875 * (1 - 3e-16)], dtype=torch.float64)
    help.agree(help.rotor, help.unequal(9), torch.cat((ends, near)).sort().values, [help.rotor.mix], **MESH)


@pytest.mark.parametrize("options", [OPTIONS, MESH], ids=["tsit5", "rk4"])
@pytest.mark.parametrize("batch", [(), (1,), (7,), (8,), (9,), (65,), (3, 5), (2, 1, 4)], ids=str)
def test_batches(batch: tuple[int, ...], options: dict[str, Any], help: Any) -> None:
    count = math.prod(batch)
    y0 = help.unequal(count).reshape(*batch, 3)
    help.agree(help.rotor, y0, [0.0, 0.4, 1.1], list(help.rotor.parameters()), **options)


def test_a_trajectory_is_the_same_in_every_lane_and_batch(help: Any) -> None:
    """Its values and counts to the last bit. Its gradient to rounding: whether a step is pulled back with the outputs inside it
    is decided for all lanes together."""
    y0, ts = help.unequal(23), [0.0, 0.4, 1.1]

    def all_of(rows: list[int]) -> list[torch.Tensor]:
        start = y0[rows].clone().requires_grad_()
        sol = pn.solve(help.rotor, start, ts, compile=True, **OPTIONS)
        [back] = torch.autograd.grad((sol.ys**2).sum(), start)
        return [back, sol.ys.detach(), sol.stats.accepted, sol.stats.rejected, sol.stats.evaluations, sol.reached]

    whole = all_of(list(range(23)))
    order = torch.randperm(23).tolist()
    for rows in ([0], [5], [22, 3], list(range(23))[::-1], order, [4] * 9, list(range(3, 14))):
        [back, *parts], [to_start, *values] = all_of(rows), whole
        help.assert_close(back, to_start[rows], 1e-14)
        for part, value in zip(parts, values, strict=True):
            assert torch.equal(part, value[rows])
