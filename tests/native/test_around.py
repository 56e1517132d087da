"""What lies around a compiled solve: transforms of ``torch.func``, states with a structure, autocast, a training loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import physnode as pn
from physnode.errors import CompileWarning, GradientError

D = torch.float64
OPTIONS = {"method": "rk4", "controller": pn.Fixed(0.1)}
START = torch.tensor([[0.3, -0.2], [1.4, 0.6], [-0.8, 2.0]], dtype=D)


def spring(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack((y[..., 1], -torch.sin(y[..., 0])), -1)


@pytest.mark.filterwarnings("ignore::physnode.errors.CompileWarning")
@pytest.mark.parametrize("transform", ["grad", "vmap", "jacrev", "jacfwd"])
def test_transforms_work_as_around_an_eager_solve(transform: str, help: Any) -> None:
    def end(y0: Tensor, compile: bool) -> Tensor:
        return pn.solve(spring, y0, [0.0, 0.5], gradient="direct", compile=compile, **OPTIONS).ys[..., -1, :]

    def result(compile: bool) -> Tensor:
        if transform == "grad":
            return torch.func.grad(lambda y0: end(y0, compile).square().sum())(START)
        return getattr(torch.func, transform)(lambda y0: end(y0, compile))(START)

    help.assert_close(result(True), result(False), 1e-13)


def test_transforms_refuse_what_an_eager_solve_refuses() -> None:
    with pytest.raises(GradientError):
        torch.func.grad(lambda y0: pn.solve(spring, y0, [0.0, 0.5], compile=True, **OPTIONS).ys.sum())(START)


def test_states_with_a_structure(help: Any) -> None:
    def field(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"q": y["p"], "p": -torch.sin(y["q"])}

    found = []
    for compile in (False, True):
        y0 = {"q": START[:, :1].clone().requires_grad_(), "p": START[:, 1:].clone().requires_grad_()}
        sol = pn.solve(field, y0, [0.0, 0.3, 0.5], compile=compile, **OPTIONS)
        parts = [sol.ys["q"], sol.ys["p"]]
        found.append([*parts, *torch.autograd.grad(sum(part.square().sum() for part in parts), list(y0.values()))])
    for mine, other in zip(found[1], found[0], strict=True):
        help.assert_close(mine, other, 1e-13)


def test_complex_states(help: Any) -> None:
    y0 = torch.tensor([[1.0 + 0.5j], [0.3 - 0.2j]], dtype=torch.complex128)
    eager, found = (pn.solve(lambda t, y: 1j * y - 0.1 * y, y0, [0.0, 0.5], compile=c, **OPTIONS).ys for c in (False, "auto"))
    assert torch.equal(eager, found)


def test_autocast_is_left_to_the_eager_driver() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.warns(CompileWarning, match="autocast"):
        pn.solve(spring, START, [0.0, 0.5], compile=True, **OPTIONS)


def test_a_dictionary_of_states_is_traced_once(help: Any) -> None:
    def field(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": -2 * y["a"]}

    def solve() -> None:
        pn.solve(field, {"a": START}, [0.0, 0.5], compile=True, **OPTIONS)

    solve()
    assert help.made(solve) == 0
