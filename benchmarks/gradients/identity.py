"""One identity for every method of integration: on a linear field, y(0) · dL/dy(0) = 2 L for L = |y(T)|².

Any method makes y(T) = M y(0) of a linear field, with some matrix M of the steps taken. The exact gradient is 2 Mᵀ M y(0), and
its product with y(0) is 2 |M y(0)|², whatever M is: no reference, no error of the forward solve.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import physnode as pn
from benchmarks.accuracy.tables import Figure, Table
from benchmarks.gradients.consistency import RATES, Growth, identity_limit
from benchmarks.gradients.contenders import PEERS, Setting, gradients, peers
from benchmarks.gradients.measure import differentiate, squared
from benchmarks.gradients.panels import Part
from physnode.engine.controllers import Controller
from physnode.methods import Method

__all__ = ["Oscillator", "Rates", "every_method", "worst_over_limit"]

ADAPTIVE = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)
FIXED = (1.0, 0.25, 0.05, 0.01)
SHORTEST = 1e-7
"""The smallest tolerance for methods with an estimate of order 1, which take 100,000 steps at 1e-10."""
SPAN = 5.0


class Rates(nn.Module):
    """dz/dt = k z, one k a trajectory."""

    def __init__(self, rates: Sequence[float]) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor(rates, dtype=torch.float64).unsqueeze(-1))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dz/dt."""
        return self.rates * y


class Oscillator(pn.SecondOrder):
    """q'' = -w² q, one w a trajectory, for methods that need an acceleration free of velocity."""

    velocity_dependent = False

    def __init__(self, frequencies: Sequence[float]) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(frequencies, dtype=torch.float64).square().unsqueeze(-1))

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """dv/dt."""
        return -self.stiffness * q


def problem_of(method: Method) -> tuple[str, nn.Module, Tensor]:
    """A linear problem that the method takes: its name, field and starts."""
    if type(method).__name__ in ("Splitting", "RungeKuttaNystrom", "GaussRadau"):
        starts = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.7, 0.0]], dtype=torch.float64)
        return "q'' = -w² q", Oscillator((0.5, 1.0, 2.0)), starts
    return "z' = k z", Rates(RATES), torch.ones(3, 1, dtype=torch.float64)


def worst_over_limit(method: Method, controller: Controller) -> tuple[dict[str, float], int]:
    """For each exact gradient the largest deviation from the identity in units of its limit; and the most steps taken."""
    _, field, starts = problem_of(method)
    found: dict[str, float] = {}
    most = 0
    for name, gradient in gradients(continuous=False).items():
        y0 = starts.clone().requires_grad_()
        sol = pn.solve(field, y0, (0.0, SPAN), method=method, controller=controller, gradient=gradient)
        loss = sol.ys[:, -1].square().sum(-1)
        (slope,) = torch.autograd.grad(loss.sum(), y0)
        off = ((starts * slope).sum(-1) / (2 * loss.detach()) - 1).abs()
        steps = sol.stats.accepted
        found[name] = max(float(x) / identity_limit(int(n)) for x, n in zip(off, steps, strict=True))
        most = max(most, int(steps.max()))
    return found, most


def every_method(adaptive: Sequence[float] = ADAPTIVE, fixed: Sequence[float] = FIXED) -> Part:
    """The identity, held for every method of integration, gradient and tolerance."""
    names = tuple(gradients(continuous=False))
    table = Table(
        "The identity of linear fields, every method of integration",
        f"L = |y({SPAN:g})|² in float64 on z' = k z with k = {', '.join(f'{rate:+g}' for rate in RATES)}, or on q'' = -w² q "
        f"with w = 0.5, 1, 2 where a method asks for it. Tolerances {', '.join(f'{x:.0e}' for x in adaptive)} (rtol = atol; "
        f"heun: to {SHORTEST:.0e}), or steps {', '.join(f'{x:g}' for x in fixed)}. Deviation of "
        "y(0) · dL/dy(0) from 2 L: the worst over trajectories and tolerances, in units of 1e-14 max(1, √(N/1000)) for N "
        "steps. torchdiffeq: the worst relative deviation of the same identity on z' = k z, where it has the method; on "
        "equal fixed steps its adjoint solve of z' = k z happens to be the transpose.",
        ("method", "field", "most steps", *names, *PEERS),
    )
    for name in pn.methods.available():
        method = pn.methods.get(name)
        what, _, _ = problem_of(method)
        controllers: list[Controller] = [pn.Fixed(dt) for dt in fixed]
        settings = [Setting(name, (0.0, SPAN), dt=dt) for dt in fixed]
        if method.error_order is not None:
            asked = [tolerance for tolerance in adaptive if method.error_order > 1 or tolerance >= SHORTEST]
            controllers = [pn.Adaptive(tolerance, tolerance) for tolerance in asked]
            settings = [Setting(name, (0.0, SPAN), rtol=tolerance, atol=tolerance) for tolerance in asked]
        results = [worst_over_limit(method, controller) for controller in controllers]
        held = [Figure(max(ratios[which] for ratios, _ in results), at_most=1.0, form=".2f") for which in names]
        table.add(name, what, max(most for _, most in results), *held, *_peers_off(settings))
    return Part([table])


def _peers_off(settings: Sequence[Setting]) -> list[Figure | str]:
    start = torch.ones(1, dtype=torch.float64)
    worst: dict[str, float] = {}
    for setting in settings:
        for name, contender in peers(setting).items():
            for rate in RATES:
                field = Growth(rate)
                made = 2 * float(squared(contender(field, start, setting).detach()))
                found, _ = differentiate(contender, field, start, setting)
                worst[name] = max(worst.get(name, 0.0), abs(float(found) / made - 1))
    return [Figure(worst[name]) if name in worst else "–" for name in PEERS]
