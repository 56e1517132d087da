"""Weigh three bodies from the first half of their orbits, then predict the second half.

One trajectory in space, its start known exactly; the positions are seen at 1000 times in [0, 1] and the three masses are
unknown. Bodies 2 and 3 pass each other closely at t = 0.87, bodies 1 and 3 at t = 1.04, just after the last position that is
seen, so that a small error of the masses becomes a large one of the orbits at t = 2.

The masses are found twice: by a torch optimizer, with the gradient of a solve (ACA by default), and by ``pn.fit``.

The protocol is that of Zhuang et al., Adaptive Checkpoint Adjoint Method for Gradient Estimation in Neural ODE, ICML 2020
(arXiv 2006.02493), except that the truth is computed at a tolerance of 1e-12, and everything is in float64.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import physnode as pn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The units of the protocol, in SI: one solar mass, the width of the orbit of α Centauri B about A and half of its period.
MASS, LENGTH, TIME = 1.989e30, 5.326e12, 79.91 * 365 * 24 * 3600 * 0.51
GRAVITY = 6.67408e-11 * MASS * TIME**2 / LENGTH**3
MASSES = torch.tensor([1.1, 1.1, 0.9], dtype=torch.float64)
POSITIONS = torch.tensor([[0.0, 0.2, 0.0], [0.5, 0.0, 0.5], [0.0, 0.0, 0.5]], dtype=torch.float64)
VELOCITIES = torch.tensor([[0.0, 3e3, 0.0], [0.0, 0.0, 3e3], [3e3, 0.0, 0.0]], dtype=torch.float64) * TIME / LENGTH  # of 3 km/s
START = torch.stack((POSITIONS, VELOCITIES)).flatten()
METHOD, STEPS = "dop853", pn.Adaptive(rtol=1e-9, atol=1e-10)

TRAINING = torch.linspace(0, 1, 1000, dtype=torch.float64)
TEST = torch.linspace(0, 2, 2000, dtype=torch.float64) + 1 / 1999  # between the training times, but for the first
TEST[0] = 0.0


def true_positions(times: Tensor) -> Tensor:
    """Positions ``(T, 9)`` of the true bodies."""
    bodies = pn.systems.ThreeBody(MASSES, GRAVITY, dimensions=3)
    sol = pn.solve(bodies, START, times, method="dop853", controller=pn.Adaptive(rtol=1e-12, atol=1e-13))
    positions: Tensor = sol.ys[:, :9]
    return positions


def guess(seed: int = 0) -> pn.systems.ThreeBody:
    """The model with its masses free, each drawn from [0.9, 1.1]."""
    masses = 0.9 + 0.2 * torch.rand(3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return pn.systems.ThreeBody(masses, GRAVITY, dimensions=3, free=("masses",))


def predict(model: pn.systems.ThreeBody, times: Tensor, gradient: str = "aca") -> Tensor:
    """Positions ``(T, 9)``, differentiable in the masses."""
    sol = pn.solve(model, START, times, method=METHOD, controller=STEPS, gradient=gradient, compile=True)
    positions: Tensor = sol.ys[:, :9]
    return positions


def squared_error(positions: Tensor, truth: Tensor) -> Tensor:
    """Squared error ``(T,)``, summed over the nine coordinates."""
    return (positions - truth).square().sum(-1)


def descend(model: pn.systems.ThreeBody, seen: Tensor, gradient: str = "aca") -> int:
    """Fit the masses in place by L-BFGS; returns how many gradients that took.

    The weights 0.01^t are the protocol's: without them the end of the trajectory, where errors have grown most, hides the rest.
    """
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=50, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )
    count = 0

    def closure() -> Tensor:
        nonlocal count
        count += 1
        optimizer.zero_grad()
        loss = (0.01**TRAINING * squared_error(predict(model, TRAINING, gradient), seen)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return count


def least_squares(model: pn.systems.ThreeBody, seen: Tensor) -> pn.FitResult:
    """The same in three lines: data, the exact start, a fit. The positions have no noise; sigma is about the solver's error."""
    orbits = {"position": seen.view(-1, 3, 3), "velocity": torch.full((len(seen), 3, 3), torch.nan)}
    data = pn.data.from_arrays(
        TRAINING,
        orbits,
        initial={"position": POSITIONS, "velocity": VELOCITIES},
        sigma={"position": 1e-8, "velocity": 1.0},
    )
    with torch.no_grad():
        return pn.fit(model, data, initial_states="known", integrator=METHOD, controller=STEPS, progress=False)


def figure(truth: Tensor, start: Tensor, fitted: Tensor) -> Figure:
    """Orbits on the test times, projected on the plane of x and z, and how far the predictions are from the truth."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(11, 5), layout="constrained")
    orbits, away = drawing.subplots(1, 2, width_ratios=[1.1, 1])
    seen = int((TEST < 1).sum())
    for body, colour in enumerate(("tab:blue", "tab:orange", "tab:green")):
        true, first, last = (ys.view(-1, 3, 3)[:, body, ::2].T.numpy() for ys in (truth, start, fitted))
        orbits.plot(*true[:, :seen], color=colour, linewidth=7, alpha=0.35, solid_capstyle="butt")
        orbits.plot(*true[:, seen:], color="0.6", linewidth=7, alpha=0.35, solid_capstyle="butt")
        orbits.plot(*first, color=colour, linewidth=1, linestyle=":")
        orbits.plot(*last, color=colour, linewidth=1.2)
        orbits.plot(*true[:, 0], "o", color=colour, markersize=6, zorder=5)
        orbits.plot(*true[:, seen - 1], "s", color=colour, markersize=6, markeredgecolor="black", zorder=5)
    styles: tuple[tuple[dict[str, Any], str], ...] = (
        ({"color": "tab:blue", "linewidth": 7, "alpha": 0.35}, "truth, fitted: t < 1"),
        ({"color": "0.6", "linewidth": 7, "alpha": 0.35}, "truth, not fitted: 1 < t < 2"),
        ({"color": "0.2", "linewidth": 1, "linestyle": ":"}, "start masses"),
        ({"color": "0.2", "linewidth": 1.2}, "fitted masses"),
        ({"color": "0.2", "linestyle": "", "marker": "o"}, "t = 0"),
        ({"color": "0.6", "linestyle": "", "marker": "s", "markeredgecolor": "black"}, "t = 1"),
    )
    for style, label in styles:
        orbits.plot([], [], label=label, **style)
    low, high = truth.amin(0).view(3, 3).amin(0), truth.amax(0).view(3, 3).amax(0)
    orbits.set_xlim(float(low[0]) - 0.1, float(high[0]) + 0.5)
    orbits.set_ylim(float(low[2]) - 0.1, float(high[2]) + 0.1)
    orbits.set_aspect("equal")
    orbits.set_xlabel("x")
    orbits.set_ylabel("z")
    orbits.legend(fontsize="small", loc="lower right")
    for positions, dashes, label in ((start, ":", "start masses"), (fitted, "-", "fitted masses")):
        distance = squared_error(positions, truth).sqrt()[1:]  # at the start it is zero
        away.semilogy(TEST[1:].numpy(), distance.numpy(), dashes, color="black", linewidth=1, label=label)
    away.axvspan(0, 1, color="0.92", zorder=0)
    away.text(0.03, 0.96, "fitted", transform=away.transAxes, fontsize="small", color="0.4", verticalalignment="top")
    away.set_xlim(0, 2)
    away.set_xlabel("t")
    away.set_ylabel("distance from the truth, over nine coordinates")
    away.legend(fontsize="small", loc="lower right")
    return drawing


def main() -> None:
    """Fit twice, print the table, save the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the figure")
    parser.add_argument("--gradient", choices=("aca", "symplectic", "direct"), default="aca", help="of the torch optimizer")
    parser.add_argument("--seed", type=int, default=0, help="of the start masses")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        seen, truth = true_positions(TRAINING), true_positions(TEST)
        start = predict(guess(options.seed), TEST)
    table = Table(title="Masses of three bodies from positions in [0, 1], tested on [0, 2]")
    for heading in ("", "masses", "largest mass error", "squared error in [0, 1]", "in [0, 2]", "seconds"):
        table.add_column(heading, justify="right" if heading else "left")

    def row(name: str, model: pn.systems.ThreeBody, seconds: str) -> Tensor:
        with torch.no_grad():
            masses, ys = model.masses.detach(), predict(model, TEST)
            on_seen = squared_error(predict(model, TRAINING), seen).mean()
        table.add_row(
            name,
            " ".join(f"{float(mass):.9f}" for mass in masses),
            f"{float((masses - MASSES).abs().max()):.1e}",
            f"{float(on_seen):.1e}",
            f"{float(squared_error(ys, truth).mean()):.1e}",
            seconds,
        )
        return ys

    row("start", guess(options.seed), "")
    by_gradient = guess(options.seed)
    begun = time.perf_counter()
    count = descend(by_gradient, seen, options.gradient)
    fitted = row(f"L-BFGS, {count} gradients ({options.gradient})", by_gradient, f"{time.perf_counter() - begun:.1f}")
    begun = time.perf_counter()
    result = least_squares(guess(options.seed), seen)
    row("pn.fit", result.model, f"{time.perf_counter() - begun:.1f}")  # type: ignore[arg-type]
    Console(width=150).print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "three_body.png"
    figure(truth, start, fitted).savefig(path, dpi=110)
    print(f"figure: {path}")


if __name__ == "__main__":
    main()
