"""Every gradient of every method is the derivative of the solve that was made: held against ``Direct``, differences, a formula.

The problems have parameters, a tensor that is only closed over, time in the field where the method allows it, and
trajectories of very unequal step counts; outputs lie on the start, on step ends and between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from physnode import methods
from physnode.engine.controllers import Adaptive, Controller, Fixed
from physnode.engine.families.implicit_rk import ImplicitRungeKutta
from physnode.fields import SecondOrder, SeparableHamiltonian, VectorField
from physnode.gradients import ACA, Direct, Gradient, SymplecticAdjoint
from physnode.solve import solve

SWEPT = [ACA(), SymplecticAdjoint()]


class Rotors(VectorField):
    """y = (q, p, w): a driven pendulum whose own speed w is part of its state, so that rows need very different steps."""

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(0.9, dtype=gain.dtype))
        self.mix = nn.Parameter(torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=gain.dtype))
        self.read_gain = lambda: gain  # closed over: no parameter of this module

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        state, w = y[..., :2], y[..., 2:]
        q, p = state[..., :1], state[..., 1:]
        push = self.read_gain() * torch.cos(2 * t) + torch.tanh(state @ self.mix).sum(-1, keepdim=True)
        return torch.cat((w * p, w * (-self.stiffness * torch.sin(q)) + push, torch.zeros_like(w)), -1)


class DrivenChain(SecondOrder):
    velocity_dependent = False

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(2.0, dtype=gain.dtype))
        self.read_gain = lambda: gain

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -self.stiffness * torch.sin(q) + self.read_gain() * torch.cos(2 * t) * q.flip(-1)


class DampedChain(DrivenChain):
    velocity_dependent = True

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return super().acceleration(t, q, v) - self.read_gain() * v * torch.cos(v.flip(-1))


class Relativistic(SeparableHamiltonian):
    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        self.mass = nn.Parameter(torch.tensor(1.3, dtype=gain.dtype))
        self.read_gain = lambda: gain

    def kinetic(self, p: Tensor) -> Tensor:
        return torch.sqrt(self.mass**2 + p * p).sum(-1)

    def potential(self, q: Tensor) -> Tensor:
        return (self.read_gain() * q**4).sum(-1) - torch.cos(q).prod(-1)


@dataclass
class Case:
    """One solve: rows of ``ts`` with spans, and so step counts, of their own."""

    method: methods.Method
    make: Callable[[Tensor], VectorField]
    y0: Tensor
    ts: Tensor
    t0: Tensor
    controller: Controller
    read_out: str

    def gradients(self, gradient: Gradient, dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
        """Outputs, and the derivatives of one loss by y0, the parameters and the closed-over tensor."""
        gain = torch.tensor(0.35, dtype=dtype, requires_grad=True)
        field, y0 = self.make(gain), self.y0.to(dtype).requires_grad_()
        ys = self.solve(field, y0, gradient)
        return ys.detach(), list(torch.autograd.grad(self.loss(ys), (y0, *field.parameters(), gain)))

    def solve(self, field: VectorField, y0: Tensor, gradient: Gradient) -> Tensor:
        sol = solve(
            field,
            y0,
            self.ts,
            t0=self.t0,
            method=self.method,
            controller=self.controller,
            read_out=self.read_out,
            gradient=gradient,
        )
        assert int(sol.stats.accepted.max()) >= 2 * int(sol.stats.accepted.min())
        return sol.ys

    def loss(self, ys: Tensor) -> Tensor:
        weights = torch.linspace(-1, 1, ys.numel(), dtype=ys.dtype).cos().reshape(ys.shape)
        return (weights * ys + 0.1 * ys**2).sum()


def tolerance(problem: Case) -> float:
    """Adaptive implicit steps start from states that carry the error of an iteration, a part of rtol; replays do not."""
    iterated = isinstance(problem.method, ImplicitRungeKutta) and problem.method.error_order is not None
    return 1e-4 if iterated else 1e-12


DIRECTIONS = ("forward", "backward", "both ways")
SECOND_ORDER = {"dprkn6": (DrivenChain,), "gauss_radau15": (DrivenChain, DampedChain)}
KINDS = [
    (method, make, read_out)
    for method in methods.available().values()
    for make in SECOND_ORDER.get(method.name, (DrivenChain, Relativistic) if method.extension_order is None else (Rotors,))
    for read_out in (("interpolate", "restep") if method.extension_order else ("restep",))
]
IDS = [f"{method.name}-{make.__name__}-{read_out}" for method, make, read_out in KINDS]


def case(method: methods.Method, make: type, read_out: str, direction: str, *, fixed: bool = False) -> Case:
    fixed = fixed or method.error_order is None or method.name in SECOND_ORDER
    if make is Rotors:
        fastest = 4.0 if fixed else 15.0
        y0 = torch.tensor([[0.5, 0.3, 1.0], [-0.4, 0.2, fastest], [0.9, 0.0, 3.0]], dtype=torch.float64)
    else:
        y0 = torch.tensor([[0.5, 0.3, 0.1, -0.2], [-0.4, 0.2, 0.3, 0.6], [0.9, 0.0, -0.1, 0.2]], dtype=torch.float64)
    # on the start, on a step's end (0.1), between, close to an end, at the end; rows of unequal length
    base = torch.tensor([0.0, 0.1, 0.234, 0.299, 0.5], dtype=torch.float64)
    ts = 0.3 + base * torch.tensor([[1.0], [2.0], [0.4]], dtype=torch.float64)
    t0 = ts[:, 0]
    if direction == "backward":
        ts = ts.flip(-1)
        t0 = ts[:, 0]
    elif direction == "both ways":
        t0 = ts[:, 2] * torch.tensor([1.0, 1.003, 1.0], dtype=torch.float64)
    adaptive = Adaptive(1e-2, 1e-3) if method.order < 4 else Adaptive(1e-4, 1e-5)
    controller = Fixed({1: 0.05, 17: 0.2, 22: 0.2}.get(method.evaluations, 0.1)) if fixed else adaptive
    return Case(method, make, y0, ts, t0, controller, read_out)


def assert_same(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert torch.isfinite(other).all()
        assert float((one - other).norm()) <= tolerance * float(other.norm())


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("method", "make", "read_out"), KINDS, ids=IDS)
class TestEveryGradientOfEveryMethod:
    def test_equals_direct(self, method: methods.Method, make: type, read_out: str, direction: str) -> None:
        problem = case(method, make, read_out, direction)
        values, wanted = problem.gradients(Direct())
        assert all(part.abs().max() > 0 for part in wanted)
        for gradient in SWEPT:
            again, found = problem.gradients(gradient)
            assert torch.equal(again, values)
            assert_same(found, wanted, tolerance(problem))


@pytest.mark.parametrize(("method", "make", "read_out"), KINDS, ids=IDS)
class TestOnFixedSteps:
    def test_equals_differences(self, method: methods.Method, make: type, read_out: str) -> None:
        """Along one direction in all that the loss depends on, on steps that do not move with it."""
        problem = case(method, make, read_out, "both ways", fixed=True)
        gain = torch.tensor(0.35, dtype=torch.float64)
        field = make(gain)
        names = [name for name, _ in field.named_parameters()]
        point = [problem.y0, *(p.detach().clone() for p in field.parameters()), gain]
        direction = [torch.randn_like(part) for part in point]

        def loss_at(shift: float) -> float:
            y0, *values, g = (part + shift * d for part, d in zip(point, direction, strict=True))
            moved = make(g)
            moved.load_state_dict(dict(zip(names, values, strict=True)))
            with torch.no_grad():
                return float(problem.loss(problem.solve(moved, y0, Direct())))

        eps = 2e-3
        coarse = (loss_at(eps) - loss_at(-eps)) / (2 * eps)
        fine = (loss_at(eps / 2) - loss_at(-eps / 2)) / eps
        wanted = (4 * fine - coarse) / 3
        for gradient in (Direct(), *SWEPT):
            _, found = problem.gradients(gradient)
            slope = sum(float((part * d).sum()) for part, d in zip(found, direction, strict=True))
            assert slope == pytest.approx(wanted, rel=1e-7, abs=1e-8)

    def test_in_float32(self, method: methods.Method, make: type, read_out: str) -> None:
        problem = case(method, make, read_out, "forward", fixed=True)
        _, wanted = problem.gradients(Direct())
        for gradient in SWEPT:
            _, found = problem.gradients(gradient, torch.float32)
            assert found[0].dtype == torch.float32
            assert_same([part.double() for part in found], wanted, 1e-5)


@pytest.mark.parametrize("rate", [0.2, -0.2])
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        *((name, 1e-3) for name in ("heun", "bosh3", "dopri5", "tsit5", "dop853")),
        ("dopri5", 1e-8),
        ("tsit5", 1e-8),
        ("dop853", 1e-8),
    ],
)
def test_consistent_on_exponential_growth(name: str, rate: float, tolerance: float) -> None:
    """For dz/dt = kz and L = z(T)², the derivative of the discrete solve is 2 z(T)²/z0, and the second 2 (z(T)/z0)²."""
    for gradient in (Direct(), *SWEPT):
        z0 = torch.tensor([1.7], dtype=torch.float64, requires_grad=True)
        sol = solve(
            lambda t, z: rate * z,
            z0,
            [0.0, 1.234, 5.0],
            method=name,
            controller=Adaptive(tolerance, tolerance),
            gradient=gradient,
        )
        for column in (1, 2):  # between steps, and at the end
            z = sol.ys[column]
            (first,) = torch.autograd.grad((z**2).sum(), z0, create_graph=True, retain_graph=True)
            (plain,) = torch.autograd.grad((z**2).sum(), z0, retain_graph=True)
            (second,) = torch.autograd.grad(first.sum(), z0, retain_graph=True)
            growth = (z / z0).detach()
            for value in (first.detach(), plain):
                assert float((value / (2 * growth**2 * z0.detach()) - 1).abs().max()) < 1e-14
            assert float((second / (2 * growth**2) - 1).abs().max()) < 1e-13
