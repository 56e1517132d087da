"""What is kept of a solve for its gradient: the same gradient from all of it, within the bytes that are given."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import physnode as pn
from physnode.errors import GradientError, InputError
from physnode.gradients.starts import starts_backward
from physnode.live_bytes import LiveBytes

F64 = torch.float64
STORAGES = {
    "default": pn.Storage(),
    "stages": pn.Storage(keep="stages"),
    "steps": pn.Storage(keep="steps"),
    "few": pn.Storage(checkpoints=7),
    "two": pn.Storage(checkpoints=2),
    "limit": pn.Storage(limit=30_000),
}
EXACT = [pn.ACA, pn.SymplecticAdjoint]


class Net(nn.Module):
    def __init__(self, dim: int = 3, width: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, dim)).double()
        for parameter in self.parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, dtype=F64, generator=generator)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.layers(y) - 0.3 * y + torch.sin(t)
        return out


def gradients(gradient: pn.Direct | pn.ACA | str, solve: Callable[..., pn.Solution], *theta: Tensor) -> list[Tensor]:
    sol = solve(gradient)
    weights = torch.linspace(1, 2, sol.ys.shape[-2], dtype=sol.ys.dtype).unsqueeze(-1)
    loss = (torch.nan_to_num(sol.ys) ** 2 * weights).sum() + torch.nan_to_num(sol.events.t).sum()
    return list(torch.autograd.grad(loss, theta))


def assert_same(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-12) -> None:
    for one, two in zip(found, wanted, strict=True):
        assert torch.isfinite(one).all()
        assert float((one - two).norm()) <= tolerance * float(two.norm())


def unequal() -> Tensor:
    """Four trajectories that need different numbers of steps."""
    return (torch.tensor([[0.1], [1.0], [4.0], [20.0]], dtype=F64) * torch.tensor([1.0, -0.5, 0.3], dtype=F64)).requires_grad_()


@pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES)
@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
class TestSameGradient:
    @pytest.mark.parametrize("method", ["tsit5", "dop853", "rk4", "gauss4"])
    def test_of_a_network_on_unequal_trajectories(self, kind: Any, storage: pn.Storage, method: str) -> None:
        net, y0, ts = Net(), unequal(), torch.linspace(0, 2, 9, dtype=F64)
        controller = pn.Fixed(0.08) if method in ("rk4", "gauss4") else pn.Adaptive(1e-7, 1e-9)

        def solve(gradient: Any) -> pn.Solution:
            return pn.solve(net, y0, ts, t0=0.9, method=method, controller=controller, gradient=gradient)

        wanted = gradients("direct", solve, y0, *net.parameters())
        assert_same(gradients(kind(storage), solve, y0, *net.parameters()), wanted)

    @pytest.mark.parametrize("method", ["leapfrog", "kahan_li8", "dprkn6", "gauss_radau15"])
    def test_of_second_order_motion(self, kind: Any, storage: pn.Storage, method: str) -> None:
        field = pn.systems.HenonHeiles() if method in ("leapfrog", "kahan_li8") else pn.systems.Kepler(free=("gm",))
        y0 = torch.tensor([[1.0, 0.0, 0.1, 0.8], [0.3, 0.2, -0.4, 0.1]], dtype=F64)
        y0 = (y0 if method != "dprkn6" else y0 + torch.tensor([0.0, 0.1, 0.0, 0.2], dtype=F64)).requires_grad_()
        if isinstance(field, pn.systems.Kepler):
            y0 = (y0.detach() * torch.tensor([[1.0], [2.0]], dtype=F64)).requires_grad_()
        controller = pn.Adaptive(1e-9, 1e-11) if method in ("dprkn6", "gauss_radau15") else pn.Fixed(0.05)

        def solve(gradient: Any) -> pn.Solution:
            return pn.solve(field, y0, [0.0, 0.77, 2.5], method=method, controller=controller, gradient=gradient)

        theta = [p for p in field.parameters() if p.requires_grad]
        assert_same(gradients(kind(storage), solve, y0, *theta), gradients("direct", solve, y0, *theta), 1e-11)

    def test_with_events_jumps_and_signals(self, kind: Any, storage: pn.Storage) -> None:
        bounce = pn.Event(
            lambda t, y: y[..., 0],
            direction=-1,
            terminal=False,
            jump=lambda t, y: torch.stack((y[..., 0], -0.8 * y[..., 1]), -1),
        )
        y0 = torch.tensor([[1.0, 0.0], [0.4, 0.1]], dtype=F64, requires_grad=True)
        times, values = torch.tensor([0.0, 0.5, 1.0, 6.0], dtype=F64), torch.tensor([[0.0], [0.3], [-0.3], [0.1]], dtype=F64)
        values.requires_grad_()

        def field(t: Tensor, y: Tensor, args: dict[str, Tensor]) -> Tensor:
            return torch.stack((y[..., 1], -1.0 - 0.1 * y[..., 1] + args["push"][..., 0]), -1)

        def solve(gradient: Any) -> pn.Solution:
            push = pn.Signal(times, values, hold="previous")
            ts = torch.linspace(0, 5.0, 11, dtype=F64)
            return pn.solve(field, y0, ts, controller=pn.Adaptive(1e-8), gradient=gradient, events=bounce, args={"push": push})

        assert int(solve("direct").events.count.min()) >= 2
        assert_same(gradients(kind(storage), solve, y0, values), gradients("direct", solve, y0, values), 1e-10)

    def test_beside_a_trajectory_that_fails(self, kind: Any, storage: pn.Storage) -> None:
        y0 = torch.tensor([[0.5], [3.0], [0.2]], dtype=F64, requires_grad=True)
        k = torch.tensor(1.0, dtype=F64, requires_grad=True)

        def solve(gradient: Any) -> pn.Solution:
            return pn.solve(
                lambda t, y: k * y * y, y0, torch.linspace(0, 1, 5, dtype=F64), gradient=gradient, on_failure="report"
            )

        assert solve("direct").ok.tolist() == [True, False, True]
        assert_same(gradients(kind(storage), solve, y0, k), gradients("direct", solve, y0, k))

    def test_of_times(self, kind: Any, storage: pn.Storage) -> None:
        net, y0 = Net(), unequal()
        ts, t0 = torch.linspace(0, 2, 9, dtype=F64, requires_grad=True), torch.tensor(0.9, dtype=F64, requires_grad=True)

        def solve(gradient: Any) -> pn.Solution:
            return pn.solve(net, y0, ts, t0=t0, controller=pn.Adaptive(1e-6), gradient=gradient)

        theta = (ts, t0, y0, *net.parameters())
        assert_same(gradients(kind(storage), solve, *theta), gradients("direct", solve, *theta))


def long_solve(
    storage: pn.Storage, kind: Any = pn.SymplecticAdjoint, outputs: int = 3
) -> tuple[int, pn.Solution, list[Tensor]]:
    """The peak of a solve of 500 steps and of its gradient."""
    net, y0 = Net(4, 32), torch.ones(2, 4, dtype=F64, requires_grad=True)
    gradient = kind if isinstance(kind, str) else kind(storage)
    with LiveBytes() as live:
        ts = torch.linspace(0, 5, outputs, dtype=F64)
        sol = pn.solve(net, y0, ts, method="rk4", controller=pn.Fixed(0.01), gradient=gradient)
        found = torch.autograd.grad(sol.ys.square().sum(), (y0, *net.parameters()))
    return live.peak, sol, list(found)


class TestLimit:
    @pytest.mark.parametrize("part", [0.6, 0.25, 0.1, 0.05])
    def test_is_obeyed(self, part: float) -> None:
        whole, _, wanted = long_solve(pn.Storage(), "direct")
        peak, _, found = long_solve(pn.Storage(limit=int(part * whole)))
        assert peak <= part * whole
        assert_same(found, wanted)

    def test_the_fastest_that_fits_is_chosen(self) -> None:
        whole = long_solve(pn.Storage(), "direct")[0]
        costs = [long_solve(pn.Storage(limit=int(part * whole)))[1].stats.gradient for part in (0.6, 0.1, 0.05)]
        assert [cost.kept for cost in costs if cost] == ["stages", "steps", "checkpoints"]
        evaluations = [cost.evaluations for cost in costs if cost]
        assert evaluations == sorted(evaluations)
        assert evaluations[0] < evaluations[-1] < 4 * evaluations[0]

    def test_of_aca_is_obeyed_too(self) -> None:
        whole, _, wanted = long_solve(pn.Storage(), "direct")
        peak, _, found = long_solve(pn.Storage(limit=int(0.07 * whole)), pn.ACA)
        assert peak <= 0.07 * whole
        assert_same(found, wanted)

    def test_that_cannot_be_kept_is_refused_at_once(self) -> None:
        with pytest.raises(GradientError, match=r"limit is 2000 bytes, but this gradient needs \d+ .* raise the limit"):
            long_solve(pn.Storage(limit=2000))

    def test_below_the_times_of_the_steps_is_refused_when_it_shows(self) -> None:
        with pytest.raises(GradientError, match=r"times of \d+ steps of 2 trajectories take"):
            long_solve(pn.Storage(limit=24_000))

    def test_aca_names_the_leaner_gradient(self) -> None:
        with pytest.raises(GradientError, match='or use gradient="symplectic"'):
            long_solve(pn.Storage(limit=10_000), pn.ACA)

    def test_holds_nothing_where_no_gradient_is_wanted(self) -> None:
        with torch.no_grad():
            sol = pn.solve(Net(), torch.ones(3, dtype=F64), [0.0, 1.0], gradient=pn.ACA(pn.Storage(limit=1)))
        assert sol.stats.gradient is None


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
@pytest.mark.parametrize("part", [0.3, 0.1])
def test_a_limit_holds_for_both_ways_together(kind: Any, part: float) -> None:
    net, y0, ts = Net(4, 32), torch.ones(2, 4, dtype=F64, requires_grad=True), torch.tensor([-2.5, 2.5], dtype=F64)

    def peak(gradient: Any) -> int:
        with LiveBytes() as live:
            sol = pn.solve(net, y0, ts, t0=0.0, method="rk4", controller=pn.Fixed(0.01), gradient=gradient)
            torch.autograd.grad(sol.ys.square().sum(), (y0, *net.parameters()))
        return live.peak

    limit = int(part * peak("direct"))
    assert peak(kind(pn.Storage(limit=limit))) <= limit


def test_a_limit_looks_at_the_field_without_touching_the_graph_of_its_tensors() -> None:
    """A parameter computed from another, and a hook: one backward, one call."""
    logarithm = torch.tensor(0.1, dtype=F64, requires_grad=True)
    calls: list[Tensor] = []
    logarithm.register_hook(calls.append)
    rate = logarithm.exp()
    sol = pn.solve(lambda t, y: -rate * y, torch.ones(1, 1, dtype=F64), [0.0, 1.0], gradient=pn.ACA(pn.Storage(limit=10**7)))
    assert not calls
    sol.ys.sum().backward()
    assert len(calls) == 1


class TestCheckpoints:
    @pytest.mark.parametrize("places", [6, 30])
    def test_their_number_is_kept(self, places: int) -> None:
        cost = long_solve(pn.Storage(checkpoints=places))[1].stats.gradient
        assert cost is not None
        assert (cost.kept, cost.states, cost.steps) == ("checkpoints", places, 500)

    def test_states_made_again_are_those_of_the_solve(self) -> None:
        net, y0 = Net(), unequal()

        def states(storage: pn.Storage) -> dict[int, Tensor]:
            sol = pn.solve(net, y0, [0.0, 3.0], controller=pn.Adaptive(1e-8), gradient=pn.ACA(storage))
            return {slot: y.clone() for slot, y, _ in starts_backward(sol.pieces[0].replay)}

        kept, again = states(pn.Storage()), states(pn.Storage(checkpoints=3))
        assert kept.keys() == again.keys()
        for slot, y in kept.items():
            assert float((y - again[slot]).abs().max()) <= 8 * torch.finfo(F64).eps * float(y.abs().max())

    def test_a_second_backward_finds_its_states_again(self) -> None:
        net, y0 = Net(), unequal()
        sol = pn.solve(net, y0, [0.0, 1.5, 3.0], gradient=pn.SymplecticAdjoint(pn.Storage(checkpoints=3)))
        loss = sol.ys.square().sum()
        first = torch.autograd.grad(loss, (y0, *net.parameters()), retain_graph=True)
        assert_same(list(torch.autograd.grad(loss, (y0, *net.parameters()))), list(first), 1e-14)

    def test_dense_output_is_refused(self) -> None:
        with pytest.raises(InputError, match="dense=True keeps the state of every step"):
            pn.solve(Net(), unequal(), [0.0, 1.0], dense=True, gradient=pn.ACA(pn.Storage(checkpoints=3)))


class TestCost:
    @pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
    @pytest.mark.parametrize("storage", [pn.Storage(), pn.Storage(keep="steps"), pn.Storage(checkpoints=4)], ids=repr)
    def test_evaluations_going_back_are_counted(self, kind: Any, storage: pn.Storage) -> None:
        calls = 0

        class Counted(Net):
            def forward(self, t: Tensor, y: Tensor) -> Tensor:
                nonlocal calls
                calls += 1
                return super().forward(t, y)

        y0 = unequal()
        sol = pn.solve(Counted(), y0, [0.0, 0.4, 1.0], t0=0.3, gradient=kind(storage))
        before = calls
        sol.ys.sum().backward()
        assert sol.stats.gradient is not None
        assert sol.stats.gradient.evaluations == calls - before > 0

    def test_is_told(self) -> None:
        _, sol, _ = long_solve(pn.Storage(checkpoints=10))
        told = str(sol.stats)
        assert re.search(
            r"symplectic keeps checkpoints \(10 states of 500 steps, [\d.]+ KiB\), \d+ evaluations going back", told
        )
        _, sol, _ = long_solve(pn.Storage(), "direct")
        assert "direct keeps graph (of 500 steps" in str(sol.stats)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"limit": 0}, "number of bytes above zero"),
        ({"limit": -5}, "number of bytes above zero"),
        ({"limit": float("nan")}, "number of bytes above zero"),
        ({"limit": "1 GB"}, "number of bytes above zero"),
        ({"limit": True}, "number of bytes above zero"),
        ({"keep": "all"}, '"stages", "steps" or "checkpoints"; found \'all\''),
        ({"keep": "checkpoints"}, "needs checkpoints=NUMBER or limit=BYTES"),
        ({"checkpoints": 1}, "two or more"),
        ({"checkpoints": 3, "keep": "steps"}, 'goes with keep="checkpoints"'),
    ],
)
def test_storage_that_makes_no_sense_is_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=re.escape(word)):
        pn.Storage(**options)


def test_a_number_in_the_place_of_a_storage_is_refused() -> None:
    with pytest.raises(InputError, match=r"pn\.Storage\(limit=BYTES\)"):
        pn.ACA(100_000)  # type: ignore[arg-type]
