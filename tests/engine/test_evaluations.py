"""Where and how often the field is called: counted truly, never outside the span, and no more than a method needs."""

from __future__ import annotations

import gc

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from physnode.engine import methods
from physnode.engine.controllers import Adaptive, Controller, Fixed
from physnode.fields import SecondOrder, SeparableHamiltonian, VectorField
from physnode.solve import solve


class Watched(VectorField):
    """A driven pendulum that writes down the times it is asked for, and how many of them want a graph (of a Jacobian)."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self.with_graph = 0
        self.strength = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.times.extend(t.flatten().tolist())
        self.with_graph += t.numel() * y.requires_grad
        return torch.cat((y[..., 1:], -torch.sin(y[..., :1]) + self.strength * torch.cos(t)), -1)


class WatchedAcceleration(SecondOrder):
    velocity_dependent = False

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        self.times.extend(t.flatten().tolist())
        return -torch.sin(q)


class WatchedForce(SeparableHamiltonian):
    """Counted are calls of the force, and of the whole field."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def kinetic(self, p: Tensor) -> Tensor:
        return 0.5 * (p * p).sum(-1)

    def potential(self, q: Tensor) -> Tensor:
        return -torch.cos(q).sum(-1)

    def kick(self, t: Tensor, q: Tensor) -> Tensor:
        self.times.extend(t.flatten().tolist())
        return super().kick(t, q)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.times.extend(t.flatten().tolist())
        return super().forward(t, y)


SECOND_ORDER = {"dprkn6": (WatchedAcceleration,), "gauss_radau15": (WatchedAcceleration,)}
SETTINGS = [
    (method, controller, field, read_out)
    for method in methods.available().values()
    for controller in ((Adaptive(1e-4, 1e-4), Fixed(0.3)) if method.error_order else (Fixed(0.3),))
    for field in SECOND_ORDER.get(
        method.name, (WatchedAcceleration, WatchedForce) if not method.extension_order else (Watched,)
    )
    for read_out in (("interpolate", "restep") if method.extension_order else ("restep",))
    if (method.name, read_out) != ("gauss_radau15", "restep")  # a step of an output's own is counted at its usual cost
]
IDS = [f"{m.name}-{type(c).__name__}-{f.__name__}-{r}" for m, c, f, r in SETTINGS]


@pytest.mark.parametrize(("method", "controller", "make", "read_out"), SETTINGS, ids=IDS)
@pytest.mark.parametrize("t0", [None, 0.4, 1.0])
@pytest.mark.parametrize("outputs", [2, 7])
def test_the_count_is_the_true_one(
    method: methods.Method, controller: Controller, make: type, read_out: str, t0: float | None, outputs: int
) -> None:
    field = make()
    ts = torch.linspace(0, 1, outputs, dtype=torch.float64)
    with torch.no_grad():
        sol = solve(field, [1.0, 0.2], ts, t0=t0, method=method, controller=controller, read_out=read_out)
    made = len(field.times) - getattr(field, "with_graph", 0)  # Jacobians do not count, as in SciPy
    if isinstance(method, methods.ImplicitRungeKutta) and read_out == "restep" and outputs > 2:
        assert int(sol.stats.evaluations) <= made  # a step of an output's own counts as one iteration, whatever it takes
    else:
        assert int(sol.stats.evaluations) == made


@pytest.mark.parametrize(("method", "controller", "make", "read_out"), SETTINGS[::2], ids=IDS[::2])
def test_a_trajectory_that_rests_costs_nothing(
    method: methods.Method, controller: Controller, make: type, read_out: str
) -> None:
    """Counts in a batch are those of each trajectory alone."""
    y0 = torch.tensor([[1.0, 0.2], [0.3, 0.0], [2.0, 1.0]], dtype=torch.float64)
    ts = torch.tensor([[0.0, 0.3, 3.0], [0.0, 0.1, 0.2], [0.0, -0.5, -1.0]], dtype=torch.float64)
    options = {"method": method, "controller": controller, "read_out": read_out}
    together = solve(make(), y0, ts, t0=0.0, **options)
    for row in range(3):
        alone = solve(make(), y0[row], ts[row], t0=0.0, **options)
        assert int(alone.stats.accepted) == int(together.stats.accepted[row])
        # a solve both ways starts twice, for every row
        assert 0 <= int(together.stats.evaluations[row]) - int(alone.stats.evaluations) <= 2


RUNGE_KUTTA = [s for s in SETTINGS if s[2] is Watched]


@pytest.mark.parametrize(("method", "controller", "make", "read_out"), RUNGE_KUTTA, ids=[i for i in IDS if "-Watched-" in i])
@pytest.mark.parametrize("gradient", ["aca", "symplectic"])
def test_never_outside_the_span(
    method: methods.Method, controller: Controller, make: type, read_out: str, gradient: str
) -> None:
    """Not in a trial, not in the search for a starting step, not on the way back."""
    for ts, t0 in (([1.2, 0.4, 0.3], None), ([0.3, 0.4, 1.2], 0.8), ([0.3, 0.300001], None)):
        field = make()
        y0 = torch.tensor([1.0, 0.2], dtype=torch.float64, requires_grad=True)
        solve(
            field, y0, ts, t0=t0, method=method, controller=controller, read_out=read_out, gradient=gradient
        ).ys.sum().backward()
        assert min(ts) <= min(field.times) <= max(field.times) <= max(ts)


@pytest.mark.parametrize("name", ["leapfrog", "yoshida4", "yoshida6", "kahan_li8"])
def test_splittings_stay_inside_the_span(name: str) -> None:
    """Though negative coefficients make their time run backward."""
    field = WatchedAcceleration()
    solve(field, [1.0, 0.2], [0.3, 0.5, 1.2], method=name, controller=Fixed(0.1))
    assert min(field.times) >= 0.3
    assert max(field.times) <= 1.2


def test_a_long_first_step_is_cut() -> None:
    field = Watched()
    solve(field, [1.0, 0.0], [0.0, 0.5], controller=Adaptive(first_step=100.0))
    assert max(field.times) <= 0.5
    field = Watched()
    solve(field, [0.0, 0.0], [0.0, 1e-9])  # h0 would be 1e-6
    assert max(field.times) <= 1e-9


def test_the_last_derivative_of_a_step_is_the_first_of_the_next() -> None:
    """tsit5 spends six evaluations a trial, not seven, and nothing else but two to start."""
    sol = solve(lambda t, y: 0.3 * y, [1.0], [0.0, 5.0], controller=Adaptive(1e-6, 1e-6))
    assert sol.stats.evaluations == 2 + 6 * (sol.stats.accepted + sol.stats.rejected)
    assert sol.stats.evaluations <= 44


def live_bytes() -> int:
    gc.collect()
    tensors = [value for value in gc.get_objects() if type(value) is torch.Tensor]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("differentiable", [True, False])
def test_records_are_kept_only_where_they_are_needed(differentiable: bool) -> None:
    """Without a gradient and without dense output, nothing that grows with the number of steps outlives the solve."""
    y0 = torch.ones(200, 2, dtype=torch.float64, requires_grad=differentiable)
    grown = []
    for steps in (20, 400):
        before = live_bytes()
        sol = solve(lambda t, y: -y, y0, [0.0, 1.0], method="midpoint", controller=Fixed(1 / steps))
        grown.append(live_bytes() - before)
        assert bool(sol.pieces) == differentiable
        del sol
    assert (grown[1] - grown[0] > 300 * y0.numel() * 8) == differentiable
    assert (grown[1] == grown[0]) != differentiable


def test_no_grad_keeps_no_records() -> None:
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        sol = solve(lambda t, y: -y, y0, [0.0, 1.0])
    assert not sol.ys.requires_grad
    assert sol.pieces == ()


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    return torch.cat((y[..., 1:], -torch.sin(y[..., :1])), -1)


def kepler(t: Tensor, y: Tensor) -> Tensor:
    q = y[..., :2]
    return torch.cat((y[..., 2:], -q / (q * q).sum(-1, keepdim=True) ** 1.5), -1)


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    q, v = y[..., :1], y[..., 1:]
    return torch.cat((v, (1 - q * q) * v - q), -1)


@pytest.mark.parametrize(
    ("field", "y0", "end"),
    [(pendulum, [1.5, 0.0], 20.0), (kepler, [0.4, 0.0, 0.0, 2.0], 12.0), (van_der_pol, [2.0, 0.0], 20.0)],
    ids=["pendulum", "kepler", "van der Pol"],
)
@pytest.mark.parametrize(("name", "scipy_name"), [("dopri5", "RK45"), ("dop853", "DOP853"), ("bosh3", "RK23")])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
def test_as_much_work_as_scipy(
    field: object, y0: list[float], end: float, name: str, scipy_name: str, tolerance: float
) -> None:
    """SciPy controls these pairs in the same way: the same evaluations, and the same error, but for rounding."""

    def derivative(t: float, y: object) -> object:
        return field(torch.tensor(t), torch.as_tensor(y)).numpy()

    if name == "bosh3":
        tolerance = max(tolerance, 1e-5)
    theirs = solve_ivp(derivative, (0, end), y0, scipy_name, rtol=tolerance, atol=tolerance / 100)
    ours = solve(field, y0, [0.0, end], method=name, controller=Adaptive(tolerance, tolerance / 100))
    exact = solve(field, y0, [0.0, end], method="dop853", controller=Adaptive(1e-13, 1e-15)).ys[-1]
    assert int(ours.stats.evaluations) == pytest.approx(theirs.nfev, rel=0.02)
    assert int(ours.stats.accepted) == pytest.approx(len(theirs.t) - 1, rel=0.02)
    their_error = float((torch.from_numpy(theirs.y[:, -1].copy()) - exact).norm())
    assert float((ours.ys[-1] - exact).norm()) < 1.1 * their_error + 1e-12
