"""Fields with networks: matrices of many shapes, derivatives inside the field, single precision."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.systems import Pendulum

TS = [0.0, 0.4, 1.0]
OPTIONS = {"method": "tsit5", "controller": pn.Adaptive(1e-5, 1e-6)}
"""Own steps pass rounding errors of an error estimate on: a tenth of what is lost on a mesh is asked."""
MESH = {"method": "rk4", "controller": pn.Fixed(0.1)}
D = torch.float64


def network(*widths: int, dtype: torch.dtype = D) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, dtype=dtype), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Learned(nn.Module):
    """Matrices whose sizes are no multiples of the register's width, one used twice, one transposed, one that is computed."""

    def __init__(self, dtype: torch.dtype = D) -> None:
        super().__init__()
        self.net = network(4, 64, 37, 3, dtype=dtype)
        self.square = nn.Parameter(0.2 * torch.randn(13, 13, dtype=dtype))
        self.lift = nn.Parameter(0.3 * torch.randn(13, 3, dtype=dtype))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        inside = torch.tanh(y @ self.lift.T) @ self.square
        twice = torch.sin(inside) @ self.square.T + inside @ (self.square * self.square)
        return self.net(torch.cat((y, torch.sin(t)), -1)) + 0.3 * twice @ self.lift - 0.5 * y


def test_matrices_of_many_shapes(help: Any) -> None:
    field = Learned()
    help.agree(field, 0.5 * torch.randn(11, 3, dtype=D), TS, list(field.parameters()), tolerance=1e-11, **OPTIONS)


def test_physics_with_a_learned_term(help: Any) -> None:
    known = Pendulum(1.2, 0.1, free=("frequency", "damping"))
    learned = pn.nn.AccelerationResidual(2, width=16, depth=2)
    field = known + learned
    help.agree(
        field, known.initial_states(9), TS, [p for p in field.parameters() if p.requires_grad], tolerance=1e-11, **OPTIONS
    )


class LearnedEnergy(pn.Hamiltonian):
    """An energy that is a network: its field is a derivative, taken inside the field."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(4, 32, 20, 1)

    def energy(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y).squeeze(-1) + 0.5 * (y**2).sum(-1)


class LearnedPotential(pn.SeparableHamiltonian):
    def __init__(self) -> None:
        super().__init__()
        self.net = network(2, 24, 1)

    def kinetic(self, p: Tensor) -> Tensor:
        return 0.5 * (p**2).sum(-1)

    def potential(self, q: Tensor) -> Tensor:
        return self.net(q).squeeze(-1) + (q**2).sum(-1)


def test_derivative_of_a_learned_energy(help: Any) -> None:
    field = LearnedEnergy()
    help.agree(field, 0.5 * torch.randn(9, 4, dtype=D), TS, list(field.parameters())[:-1], tolerance=1e-11, **OPTIONS)


def test_learned_potential_by_a_splitting_method(help: Any) -> None:
    field = LearnedPotential()
    wrt = list(field.parameters())[:-1]
    help.agree(field, 0.5 * torch.randn(9, 4, dtype=D), TS, wrt, method="leapfrog", controller=pn.Fixed(0.07))


@pytest.mark.parametrize("rows", [1, 16, 37])
def test_single_precision(rows: int, help: Any) -> None:
    field = SINGLE
    y0 = 0.5 * torch.randn(rows, 3)
    found = help.agree(field, y0, TS, list(field.parameters()), tolerance=3e-6, **MESH)
    assert found.ys.dtype == torch.float32
    help.agree(field, y0, [1.0, 0.2], list(field.parameters()), t0=0.5, tolerance=3e-6, **MESH)


torch.manual_seed(5)
SINGLE = Learned(torch.float32)


def test_single_precision_with_steps_of_its_own(help: Any) -> None:
    y0 = 0.5 * torch.randn(19, 3)
    options = {"method": "bosh3", "controller": pn.Adaptive(1e-3, 1e-4)}
    help.agree(SINGLE, y0, TS, list(SINGLE.parameters()), tolerance=1e-5, counts=False, **options)


class Mixed(nn.Module):
    """A network in single precision inside a state in double."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(2, 16, 2, dtype=torch.float32)
        self.rate = nn.Parameter(torch.tensor(0.8, dtype=D))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y.float()).to(y.dtype) - self.rate * y


def test_single_precision_network_in_a_double_state(help: Any) -> None:
    """On one mesh: a rounding of 1e-7 inside the field decides steps of their own."""
    field = Mixed()
    help.agree(field, torch.randn(9, 2, dtype=D), TS, list(field.parameters()), tolerance=1e-6, **MESH)


def test_an_update_of_the_parameters_needs_no_new_code(help: Any) -> None:
    field = Learned()
    optimizer = torch.optim.SGD(field.parameters(), lr=0.1)
    y0 = 0.5 * torch.randn(5, 3, dtype=D)

    def learn() -> None:
        for _ in range(3):
            found = help.agree(field, y0, TS, list(field.parameters()), **MESH)
            for parameter, grad in zip(field.parameters(), found.grads[1:], strict=True):
                parameter.grad = grad
            optimizer.step()

    assert help.made(learn) == 1
