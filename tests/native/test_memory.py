"""What a tape keeps: time and state of each accepted step, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import physnode as pn

D = torch.float64
BLOCK = 65536 + 1024
"""Bytes that a tape grows by."""


@pytest.mark.parametrize(("rows", "horizon"), [(8, 50.0), (8, 200.0), (64, 50.0), (61, 100.0)])
def test_grows_with_steps_and_rows_alone(rows: int, horizon: float, help: Any) -> None:
    y0 = help.unequal(rows).requires_grad_()
    y0.data[:, 2] = 1.0
    sol = pn.solve(help.rotor, y0, [0.0, horizon], method="rk4", controller=pn.Fixed(0.1), compile=True)
    steps = int(sol.stats.accepted.max())
    kept = sol.stats.gradient.bytes
    needed = steps * rows * (3 + 2) * 8
    assert needed <= kept <= 1.35 * needed + 2 * BLOCK  # idle lanes, a mask, what a record is rounded up by, two blocks
    assert sol.stats.gradient.kept == "steps"
    assert sol.stats.gradient.steps == steps


def test_trajectories_of_unequal_length_take_each_others_place(help: Any) -> None:
    """The register is refilled as lanes become free: not one slot a step of the longest."""
    y0 = help.unequal(64).requires_grad_()
    y0.data[:, 2] = 1.0
    ends = torch.cat((torch.full((4, 1), 400.0), torch.full((60, 1), 4.0)))
    ts = torch.cat((torch.zeros(64, 1), ends), -1).double()
    sol = pn.solve(help.rotor, y0, ts, method="rk4", controller=pn.Fixed(0.1), compile=True)
    total = int(sol.stats.accepted.sum())
    assert total == 4 * 4000 + 60 * 40
    assert sol.stats.gradient.bytes <= 2.2 * total * 5 * 8 + 2 * BLOCK


def test_evaluations_going_back_are_counted(help: Any) -> None:
    y0 = help.unequal(3).requires_grad_()
    options = {"method": "rk4", "controller": pn.Fixed(0.1)}
    sol = pn.solve(help.rotor, y0, [0.0, 1.0], compile=True, **options)
    assert sol.stats.gradient.evaluations == 0
    sol.ys.sum().backward()
    assert sol.stats.gradient.evaluations == 10 * 4
    assert "steps" in str(sol.stats)
