"""Several threads, each with a part of the batch: the same trajectories to the last bit, and their gradients to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import physnode as pn

OPTIONS = {"method": "tsit5", "controller": pn.Adaptive(1e-4, 1e-5)}


@pytest.fixture
def threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [127, 128, 200, 1001])
def test_as_many_as_pytorch_may_use(rows: int, threads: Any, help: Any) -> None:
    y0, found = help.unequal(rows), {}
    for number in (1, 2, 3):
        threads(number)
        found[number] = help.run(help.rotor, y0, [0.0, 0.4, 1.1], list(help.rotor.parameters()), compile=True, **OPTIONS)
    for number in (2, 3):
        assert torch.equal(found[number].ys, found[1].ys)
        help.assert_same(found[number], found[1], 1e-13)


def test_failures_and_second_derivatives_with_threads(threads: Any, help: Any) -> None:
    threads(2)
    y0 = help.unequal(150)
    y0[[3, 77, 149], 0] = torch.nan
    wanted = help.run(help.rotor, y0, [0.0, 0.4], [help.rotor.mix], compile=False, on_failure="report", **OPTIONS)
    found = help.run(help.rotor, y0, [0.0, 0.4], [help.rotor.mix], compile=True, on_failure="report", **OPTIONS)
    help.assert_same(found, wanted)
    start = help.unequal(150).requires_grad_()
    sol = pn.solve(help.rotor, start, [0.0, 0.4], compile=True, **OPTIONS)
    [first] = torch.autograd.grad(sol.ys.square().sum(), start, create_graph=True)
    assert torch.isfinite(torch.autograd.grad(first.square().sum(), start)[0]).all()


def test_solves_in_threads_of_the_callers(help: Any) -> None:
    starts = [help.unequal(9) + 0.01 * k for k in range(8)]

    def solve(y0: torch.Tensor) -> torch.Tensor:
        return pn.solve(help.rotor, y0, [0.0, 1.1], compile=True, **OPTIONS).ys.detach()

    alone = [solve(y0) for y0 in starts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(solve, starts))
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))
