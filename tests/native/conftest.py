"""One solve by the eager driver and by native code, with the gradients of one loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.native.build import COUNTS
from physnode.solution import Solution


@dataclass
class Found:
    """What one driver found."""

    sol: Solution
    ys: Tensor
    grads: list[Tensor]


def loss(ys: Tensor) -> Tensor:
    """A loss that every output enters with a weight of its own; a trajectory that failed gives what it reached."""
    weights = torch.linspace(-1, 1, ys.numel(), dtype=ys.dtype).cos().reshape(ys.shape)
    return torch.nansum(weights * ys + 0.1 * ys**2)


def run(field: Any, y0: Tensor, ts: Any, wrt: Sequence[Tensor] = (), *, compile: Any, **options: Any) -> Found:
    """Solve from ``y0``, with the gradients by y0 and by ``wrt``; a CompileWarning is an error, as all warnings are."""
    y0 = y0.detach().clone().requires_grad_()
    sol = pn.solve(field, y0, ts, compile=compile, **options)
    grads = torch.autograd.grad(loss(sol.ys), (y0, *wrt), allow_unused=True)
    given = (y0, *wrt)
    return Found(sol, sol.ys.detach(), [torch.zeros_like(x) if g is None else g for g, x in zip(grads, given, strict=True)])


def assert_close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """NaN in the same places, and elsewhere close in the norm of the whole."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert torch.equal(torch.isnan(found), torch.isnan(wanted))
    other = torch.nan_to_num(wanted.detach())
    assert float((torch.nan_to_num(found.detach()) - other).norm()) <= tolerance * float(other.norm())


def assert_same_counts(found: Solution, wanted: Solution) -> None:
    for name in ("accepted", "rejected", "evaluations"):
        assert torch.equal(getattr(found.stats, name), getattr(wanted.stats, name)), name


def assert_same(found: Found, wanted: Found, tolerance: float = 1e-12, *, counts: bool = True) -> None:
    """Values and gradients to ``tolerance``, how each trajectory ended, and what it cost."""
    assert torch.equal(found.sol.status, wanted.sol.status)
    assert_close(found.ys, wanted.ys, tolerance)
    for mine, other in zip(found.grads, wanted.grads, strict=True):
        assert torch.isfinite(other).all()
        assert_close(mine, other, tolerance)
    if counts:
        assert_same_counts(found.sol, wanted.sol)


def agree(
    field: Any,
    y0: Tensor,
    ts: Any,
    wrt: Sequence[Tensor] = (),
    *,
    tolerance: float = 1e-12,
    counts: bool = True,
    **options: Any,
) -> Found:
    """Both drivers find the same, natively without a fallback; what the code found."""
    wanted = run(field, y0, ts, wrt, compile=False, **options)
    found = run(field, y0, ts, wrt, compile=True, **options)
    assert all(piece.taped is not None for piece in found.sol.pieces)
    assert_same(found, wanted, tolerance, counts=counts)
    return found


def made(function: Callable[[], Any], kind: str = "traced") -> int:
    """How many codes ``function`` makes."""
    before = COUNTS[kind]
    function()
    return COUNTS[kind] - before


class Rotor(nn.Module):
    """y = (q, p, w): a driven pendulum whose own speed w is part of its state, so that rows need very different steps."""

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
        self.mix = nn.Parameter(torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        q, p, w = y.split(1, dim=-1)
        push = torch.cos(2 * t) + torch.tanh(y[..., :2] @ self.mix).sum(-1, keepdim=True)
        return torch.cat((w * p, -w * self.stiffness * torch.sin(q) + push, torch.zeros_like(w)), -1)


ROTOR = Rotor()


def unequal(rows: int) -> Tensor:
    """Starts of :class:`Rotor` whose speeds lie between 0.4 and 7."""
    generator = torch.Generator().manual_seed(7)
    y0 = torch.rand(rows, 3, dtype=torch.float64, generator=generator) - 0.5
    y0[:, 2] = torch.exp(3 * y0[:, 2] + 0.5)
    return y0


@pytest.fixture(scope="session")
def help() -> SimpleNamespace:
    """The functions of this file, which cannot be imported."""
    names = ("run", "agree", "assert_close", "assert_same", "assert_same_counts", "made", "loss", "unequal", "COUNTS")
    return SimpleNamespace(rotor=ROTOR, Rotor=Rotor, **{name: globals()[name] for name in names})
