"""Forward mode equals reverse mode: the changes of all outputs along many directions, for every method and read-out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.engine.controllers import Adaptive, Controller, Fixed
from physnode.engine.families.implicit_rk import ImplicitRungeKutta
from physnode.fields import SecondOrder, SeparableHamiltonian, VectorField
from physnode.gradients.forward import tangents
from physnode.gradients.replay import Replay
from physnode.nn import Residual


class Driven(VectorField):
    """Reads time, a matrix, a scalar, and a constant of each trajectory, so that the shape of the batch matters."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.tensor([[0.3, -0.9], [1.1, 0.2]], dtype=torch.float64))
        self.drive = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
        self.rate = torch.tensor([[1.0], [6.0], [2.5]], dtype=torch.float64)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rate * (torch.sin(y @ self.mix) + self.drive * torch.cos(2 * t))


class Chain(SecondOrder):
    velocity_dependent = False

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor([2.0, 5.0], dtype=torch.float64))
        self.rate = torch.tensor([[1.0], [3.0], [2.0]], dtype=torch.float64)

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -self.rate * self.stiffness * torch.sin(q) + torch.cos(t) * q.flip(-1)


class Relativistic(SeparableHamiltonian):
    def __init__(self) -> None:
        super().__init__()
        self.mass = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
        self.gain = nn.Parameter(torch.tensor(0.35, dtype=torch.float64))

    def kinetic(self, p: Tensor) -> Tensor:
        return torch.sqrt(self.mass**2 + p * p).sum(-1)

    def potential(self, q: Tensor) -> Tensor:
        return (self.gain * q**4).sum(-1) - torch.cos(q).prod(-1)


SECOND_ORDER = {"dprkn6": (Chain,), "gauss_radau15": (Chain,)}
KINDS = [
    (method, make, read_out)
    for method in pn.methods.available().values()
    for make in SECOND_ORDER.get(method.name, (Chain, Relativistic) if method.extension_order is None else (Driven,))
    for read_out in (("interpolate", "restep") if method.extension_order else ("restep",))
]
IDS = [f"{method.name}-{make.__name__}-{read_out}" for method, make, read_out in KINDS]


def directions_of(replay: Replay, y0: Tensor, count: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    parameters = dict(replay.f.field.named_parameters())
    generator = torch.Generator().manual_seed(5)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(count, *like.shape, dtype=like.dtype, generator=generator)

    theta = {name: value.detach() for name, value in parameters.items()}
    return draw(y0), theta, {name: draw(value) for name, value in theta.items()}


def assert_equals_reverse(replay: Replay, y0: Tensor, count: int = 5, tolerance: float = 1e-12) -> None:
    """J v from forward mode against rows of J from the replay with a graph."""
    dy0, theta, dtheta = directions_of(replay, y0, count)
    found = tangents(replay, y0, dy0, theta, dtheta)
    start = y0.clone().requires_grad_()
    parameters = dict(replay.f.field.named_parameters())
    ys = replay.run(replay.f, start).ys
    rows = torch.eye(ys.numel(), dtype=ys.dtype).reshape(-1, *ys.shape)
    inputs = [start, *parameters.values()]
    jacobian = torch.autograd.grad(ys, inputs, rows, is_grads_batched=True)
    changes = [dy0, *(dtheta[name] for name in parameters)]
    wanted = sum(j.reshape(len(rows), -1) @ d.reshape(count, -1).T for j, d in zip(jacobian, changes, strict=True))
    assert isinstance(wanted, Tensor)
    wanted = wanted.T.reshape(found.shape)
    assert float(wanted.abs().max()) > 0.1
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def solved(method: object, make: type, read_out: str, direction: str, controller: Controller | None = None) -> pn.Solution:
    field = make()
    dim = 2 if make is Driven else 4
    y0 = torch.tensor([[0.5, 0.3, 0.1, -0.2], [-0.4, 0.2, 0.3, 0.6], [0.9, 0.1, -0.1, 0.2]], dtype=torch.float64)[:, :dim]
    # on the start, on a step's end (0.1), twice inside a step, at the end; rows of unequal length
    base = torch.tensor([0.0, 0.1, 0.234, 0.243, 0.5], dtype=torch.float64)
    ts = 0.3 + base * torch.tensor([[1.0], [2.0], [0.4]], dtype=torch.float64)
    t0 = ts[:, 0]
    if direction == "backward":
        ts = ts.flip(-1)
        t0 = ts[:, 0]
    elif direction == "both ways":
        t0 = ts[:, 2] * torch.tensor([1.0, 1.003, 1.0], dtype=torch.float64)
    assert isinstance(method, pn.methods.Method)
    if controller is None:
        tolerance = 1e-2 if method.order < 4 else 1e-5
        controller = Fixed(0.1) if method.error_order is None else Adaptive(tolerance, tolerance)
    with torch.no_grad():
        return pn.solve(field, y0, ts, t0=t0, method=method, controller=controller, read_out=read_out, dense=True)


@pytest.mark.parametrize("direction", ["forward", "backward", "both ways"])
@pytest.mark.parametrize(("method", "make", "read_out"), KINDS, ids=IDS)
def test_equals_reverse_mode(method: object, make: type, read_out: str, direction: str) -> None:
    solution = solved(method, make, read_out, direction)
    counts = solution.stats.accepted
    assert int(counts.max()) > int(counts.min())
    moving = [piece for piece in solution.pieces if piece.replay.records.slots]
    assert len(moving) == (2 if direction == "both ways" else 1)
    # the replay is free of the error of the iteration that recorded adaptive implicit steps
    iterated = isinstance(method, ImplicitRungeKutta) and method.error_order is not None
    for piece in moving:
        assert_equals_reverse(piece.replay, piece.y0, tolerance=1e-5 if iterated else 1e-12)


@pytest.mark.parametrize("read_out", ["interpolate", "restep"])
def test_many_directions_in_many_blocks(read_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the steps are cut into blocks, the numbers are the same."""
    solution = solved(pn.methods.tsit5, Driven, read_out, "forward", Adaptive(1e-7, 1e-7))
    [piece] = solution.pieces
    assert piece.replay.records.slots > 5
    whole = tangents(piece.replay, piece.y0, *directions_of(piece.replay, piece.y0, 7))
    for numbers in (1.0, 150.0):
        monkeypatch.setattr("physnode.gradients.forward._BLOCK", numbers)
        cut = tangents(piece.replay, piece.y0, *directions_of(piece.replay, piece.y0, 7))
        assert float((cut - whole).abs().max()) <= 1e-13 * float(whole.abs().max())


def test_a_learned_term_and_physics_together() -> None:
    residual = Residual(2, 8, 2, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for value in residual.parameters():
            value += 0.1 * torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(4))
    model = pn.systems.Pendulum(frequency=2.0, damping=0.1, free=("frequency", "damping")) + residual
    y0 = torch.tensor([[1.0, 0.0], [2.0, 0.5]], dtype=torch.float64)
    with torch.no_grad():
        solution = pn.solve(model, y0, torch.linspace(0, 2, 9), method="dop853", dense=True)
    assert_equals_reverse(solution.pieces[0].replay, y0)


def test_only_what_is_asked_for() -> None:
    """Directions of the start alone, or of one parameter alone."""
    solution = solved(pn.methods.dopri5, Driven, "interpolate", "forward")
    [piece] = solution.pieces
    dy0, theta, dtheta = directions_of(piece.replay, piece.y0, 3)
    both = tangents(piece.replay, piece.y0, dy0, theta, dtheta)
    start = tangents(piece.replay, piece.y0, dy0, {}, {})
    parts = [
        tangents(piece.replay, piece.y0, torch.zeros_like(dy0), {name: theta[name]}, {name: dtheta[name]}) for name in theta
    ]
    assert torch.allclose(start + sum(parts), both, rtol=1e-12, atol=1e-12)


def test_a_failed_trajectory_leaves_the_others_alone() -> None:
    class Blows(VectorField):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.rate * y**2

    y0 = torch.tensor([[0.2], [2.0], [-1.0]], dtype=torch.float64)  # 1/y0 is when each goes to infinity
    ts = torch.linspace(0, 1, 5, dtype=torch.float64)
    field = Blows()
    with torch.no_grad():
        solution = pn.solve(field, y0, ts, on_failure="report", dense=True, max_steps=200)
    assert solution.ok.tolist() == [True, False, True]
    one = torch.ones(1, *y0.shape, dtype=torch.float64)
    found = tangents(
        solution.pieces[0].replay, y0, one, {"rate": field.rate.detach()}, {"rate": torch.zeros(1, dtype=torch.float64)}
    )
    exact = (1 / (1 - y0 * ts)) ** 2  # d/dy0 of y0 / (1 - y0 t)
    assert torch.allclose(found[0, [0, 2], :, 0], exact[[0, 2]], rtol=1e-4)
    assert torch.allclose(found[0, 1, :2, 0], exact[1, :2], rtol=1e-3)
    assert torch.isnan(found[0, 1, 3:]).all()


def test_a_field_that_differentiates_itself_is_refused_in_words() -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        q = y.detach().requires_grad_()
        return -torch.autograd.grad((q**4).sum(), q)[0]

    y0 = torch.tensor([[0.5]], dtype=torch.float64)
    with torch.no_grad():
        [piece] = pn.solve(field, y0, [0.0, 1.0], dense=True).pieces
    with pytest.raises(pn.errors.GradientError, match=r"torch\.func\.grad"):
        tangents(piece.replay, y0, torch.ones(1, 1, 1, dtype=torch.float64), {}, {})
