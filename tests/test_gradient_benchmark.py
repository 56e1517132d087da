"""The gradient benchmark measures what it says: its oracles are right, wrong gradients are found, a missed limit fails it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import physnode as pn
from physnode.gradients import SymplecticAdjoint

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def _from_the_root():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield


class Careless(SymplecticAdjoint):
    """A symplectic adjoint whose gradient of the start is off by one part in 1e12."""

    def attach(self, replay, outputs, y0):
        return super().attach(replay, outputs, y0 + 1e-12 * (y0 - y0.detach()))


def test_gradients_are_consistent_on_a_linear_field():
    from benchmarks.gradients.consistency import linear

    part = linear((1e-3, 1e-6), (-0.2,))
    (table,) = part.tables
    assert table.misses == []
    rows = {row[1]: row[2:] for row in table.rows}
    assert {"direct", "aca", "symplectic", "continuous"} <= set(rows)
    assert float(rows["continuous"][0]) > 1e-8
    assert float(rows["forward error, physnode"][0]) > 1e-5
    assert "≤ 1" in rows["aca"][-1]
    assert len(part.panels[0].lines) == len(rows)


def test_an_inexact_gradient_is_a_miss(monkeypatch):
    from benchmarks.gradients import consistency, contenders, identity

    monkeypatch.setattr(contenders.pn, "SymplecticAdjoint", Careless)
    assert len(consistency.linear((1e-4,), (-0.2,)).tables[0].misses) == 2  # with steps kept, too
    ratios, _ = identity.worst_over_limit(pn.methods.dopri5, pn.Fixed(0.5))
    assert ratios["symplectic"] > 1
    assert ratios["aca"] <= 1


@pytest.mark.parametrize("name", pn.methods.available())
def test_the_identity_holds_for_every_method(name):
    from benchmarks.gradients.identity import worst_over_limit

    method = pn.methods.get(name)
    controller = pn.Fixed(0.5) if method.error_order is None else pn.Adaptive(1e-3, 1e-3)
    ratios, steps = worst_over_limit(method, controller)
    assert steps >= 2
    assert max(ratios.values()) <= 1


def test_the_tangent_of_the_steps_is_their_derivative():
    from benchmarks.gradients.extended import tangent_of_steps
    from benchmarks.gradients.van_der_pol import VanDerPol
    from physnode.engine.tableaus import BUTCHER

    orbit = VanDerPol()
    y = torch.tensor([2.0, 0.3], dtype=torch.float64)
    torch.testing.assert_close(torch.from_numpy(orbit.plain(y.numpy()).astype(np.float64)), orbit(y[:1] * 0, y))
    jacobian = torch.func.jacfwd(lambda x: orbit(x[:1] * 0, x))(y)
    torch.testing.assert_close(torch.from_numpy(orbit.jacobian(y.numpy()).astype(np.float64)), jacobian)

    steps = (0.1, 0.15, -0.05)
    end, tangent = tangent_of_steps(orbit.plain, orbit.jacobian, y.tolist(), steps, BUTCHER["dopri5"])

    def follow(x):
        for step in steps:
            x = pn.solve(orbit, x, [0.0, step], method="dopri5", controller=pn.Fixed(1.0), gradient="direct").ys[-1]
        return x

    torch.testing.assert_close(torch.from_numpy(end.astype(np.float64)), follow(y), atol=1e-14, rtol=0)
    torch.testing.assert_close(torch.from_numpy(tangent.astype(np.float64)), torch.func.jacfwd(follow)(y), atol=1e-14, rtol=0)


def test_both_parts_of_an_error_are_found_there_and_back():
    from benchmarks.gradients.van_der_pol import there_and_back

    (table,) = there_and_back((1e-5,)).tables
    assert table.misses == []
    rows = {row[0]: row[1] for row in table.rows}
    assert float(rows["forward error, physnode"]) > 1e-3
    assert float(rows["symplectic"]) < 1e-10


def test_fields_hold_the_derivatives_they_say():
    from benchmarks.gradients.fields import gas, kdv

    waves, u = kdv(3, points=20, hidden=8)
    u = u.double().requires_grad_()
    waves = waves.double()
    (slope,) = torch.autograd.grad(waves.energy(u), u)
    expected = (slope.roll(-1, -1) - slope.roll(1, -1)) / (2 * waves.dx)
    torch.testing.assert_close(waves(torch.zeros(3, 1), u), expected)
    rates = (waves(torch.zeros(3, 1), u) * slope).sum(-1).detach()
    assert float(rates.abs().max()) < 1e-10, "the energy is not conserved"

    flow, y = gas(4)
    flow, y = flow.double(), y.double()
    found = flow(torch.full((4, 1), 0.3, dtype=torch.float64), y)
    for row in range(4):
        time = torch.full((4, 1), 0.3, dtype=torch.float64)

        def moved(z, row=row, time=time):
            return flow(time, torch.cat((torch.cat((y[:row, :-1], z[None], y[row + 1 :, :-1])), y[:, -1:]), -1))[row, :-1]

        jacobian = torch.func.jacrev(moved)(y[row, :-1])
        noise = flow.get_buffer("noise")[row]
        torch.testing.assert_close(found[row, -1], -noise @ jacobian @ noise)


def test_costs_are_counted():
    from benchmarks.gradients.contenders import Setting, ours
    from benchmarks.gradients.fields import layered
    from benchmarks.gradients.measure import cost

    field, y0 = layered(4, 16, 1), torch.ones(5, 4, dtype=torch.float64)
    setting = Setting("rk4", (0.0, 1.0), dt=0.1)
    costs = {name: cost(ours(name), field, y0, setting) for name in ("direct", "aca")}
    for found in costs.values():
        torch.testing.assert_close(found.to_start, costs["direct"].to_start)
        assert len(found.to_parameters) == 4
        assert found.peak == max(found.forward_peak, found.backward_peak) >= found.kept
    assert costs["direct"].backward == 0
    assert 40 <= costs["aca"].backward <= 41  # one more may ask whether the field is still the same
    assert costs["aca"].kept < costs["direct"].kept
    assert costs["aca"].backward_peak < costs["aca"].forward_peak, "the two are not counted apart"


def test_the_theory_grows_by_a_record_a_step(monkeypatch):
    from benchmarks.gradients import scaling as module
    from benchmarks.gradients.fields import layered
    from benchmarks.gradients.scaling import evaluation_bytes, scaling, theory

    field, y0 = layered(4, 16, 1), torch.ones(5, 4, dtype=torch.float64)
    assert theory(field, y0, 11, 6) - theory(field, y0, 10, 6) == 5 * (4 + 2) * 8
    assert evaluation_bytes(field, y0) >= 5 * 16 * 8
    monkeypatch.setattr(module, "STEPS", 4)
    part = scaling((4,), ("heun",), (1,), repeats=1)
    assert len(part.tables) == 3
    assert len(part.panels) == 6
    assert {"theory", "aca", "symplectic"} <= {line.name for line in part.panels[0].lines}


def test_small_forms_of_the_other_parts_hold():
    from benchmarks.gradients.memory_limit import long_solves, memory_limit
    from benchmarks.gradients.networks import cases, networks
    from benchmarks.gradients.rounding import rounding

    assert rounding(("rk4",), steps=100).tables[0].misses == []
    part = networks(cases(batch=5, samples=5)[:1])
    assert part.tables[0].misses == []
    assert any("direct" in row for row in part.tables[0].rows)
    (table,) = memory_limit(long_solves(60)[:1], (50,), repeats=1).tables
    assert table.misses == []
    assert [row[1] for row in table.rows] == ["`direct`", "50 %"]


def test_the_command_fails_when_a_limit_is_missed(tmp_path, capsys):
    from benchmarks.accuracy.tables import Figure, Table
    from benchmarks.gradients.__main__ import main
    from benchmarks.gradients.panels import Panel, Part

    def made(value):
        table, panel = Table("Numbers", "Text.", ("case", "error")), Panel("Panel", "x", "y", log_x=True, log_y=True)
        table.add("one", Figure(value, at_most=1.0))
        panel.add("aca", [1.0, 2.0], [3.0, 4.0])
        panel.add("theory", [1.0, 2.0], [1.0, 1.0], dashed=True)
        return Part([table], [panel])

    out, figure = tmp_path / "page.md", tmp_path / "figures" / "page.png"
    options = ["--out", str(out), "--figure", str(figure)]
    assert main(options, {"good": lambda: made(0.5)}) == 0
    assert "| one | 5.0e-01 (≤ 1) |" in out.read_text()
    assert "](figures/page.png)" in out.read_text()
    assert figure.stat().st_size > 5000
    assert main(options, {"good": lambda: made(0.5), "bad": lambda: made(2.0)}) == 1
    assert "limit missed: Numbers: one: error: 2.0e+00" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--only", "nothing"])
    assert "no part is called nothing" in capsys.readouterr().err


def test_the_page_is_the_one_that_the_command_writes():
    text = (ROOT / "docs" / "gradients.md").read_text()
    heads = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert "Written by `make gradients`" in text
    assert "the full form" in text, "written by a quick run"
    assert heads[0] == "Consistency on dz/dt = k z"
    assert (ROOT / "docs" / "figures" / "gradients.png").exists()
