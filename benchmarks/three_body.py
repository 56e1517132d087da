"""What each gradient costs and finds on the masses of three bodies, in one run.

    python -m benchmarks.three_body [--out docs/three_body.md] [--repeats 3] [--seed 0]

The problem is that of ``examples/three_body.py``. All rows take the same method, tolerances and output times, so that they
differ in how the gradient is found; torchdiffeq itself is measured too where it is installed. Some minutes: most of them go to
the fits by the continuous adjoint, which solves backward from each of the 1000 output times to the one before.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import physnode as pn
from benchmarks.accuracy.tables import Table, page
from examples.three_body import GRAVITY, MASSES, START, TEST, TRAINING, guess, squared_error, true_positions
from physnode.compat.torchdiffeq import odeint_adjoint
from physnode.live_bytes import LiveBytes

METHOD, RTOL, ATOL = "dopri5", 1e-7, 1e-9  # torchdiffeq's defaults

Predict = Callable[["Counted", Tensor], Tensor]


class Counted(pn.systems.ThreeBody):
    """Three bodies that count how often their field is evaluated."""

    calls = 0

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """The accelerations, counted."""
        self.calls += 1
        return super().acceleration(t, q, v)

    @classmethod
    def start(cls, seed: int) -> Counted:
        """The example's guess."""
        return cls(guess(seed).masses.detach(), GRAVITY, dimensions=3, free=("masses",))


@dataclass(frozen=True)
class Cost:
    """One gradient at the start masses."""

    gradient: Tensor
    forward: int
    """Evaluations of the field."""
    backward: int
    kept: int
    """Bytes alive between forward and backward."""
    peak: int


def by_solve(gradient: str, model: Counted, ts: Tensor) -> Tensor:
    """Positions by ``pn.solve``."""
    sol = pn.solve(model, START, ts, method=METHOD, controller=pn.Adaptive(RTOL, ATOL), gradient=gradient)
    positions: Tensor = sol.ys[:, :9]
    return positions


def by_odeint(odeint: Any, more: dict[str, Any], model: Counted, ts: Tensor) -> Tensor:
    """Positions by a function with torchdiffeq's interface."""
    positions: Tensor = odeint(model, START, ts, method=METHOD, rtol=RTOL, atol=ATOL, **more)[:, :9]
    return positions


def ways() -> dict[str, Predict]:
    """How positions are predicted, by the name of the gradient."""
    found: dict[str, Predict] = {name: partial(by_solve, name) for name in ("direct", "aca", "symplectic")}
    # a given option of the backward solve, an empty one too, asks for that solve in place of the exact replay
    found["continuous adjoint"] = partial(by_odeint, odeint_adjoint, {"adjoint_options": {}})
    if importlib.util.find_spec("torchdiffeq") is not None:
        peer = importlib.import_module("torchdiffeq")
        found["torchdiffeq `odeint`"] = partial(by_odeint, peer.odeint, {})
        found["torchdiffeq `odeint_adjoint`"] = partial(by_odeint, peer.odeint_adjoint, {})
    return found


def loss_of(predict: Predict, model: Counted, seen: Tensor) -> Tensor:
    """The loss of the protocol."""
    return (0.01**TRAINING * squared_error(predict(model, TRAINING), seen)).mean()


def cost(predict: Predict, seed: int, seen: Tensor) -> Cost:
    """Count evaluations and bytes of one gradient."""
    model = Counted.start(seed)
    with LiveBytes() as live:
        loss = loss_of(predict, model, seen)
        forward, kept = model.calls, live.now
        loss.backward()  # type: ignore[no-untyped-call]
    assert model.masses.grad is not None
    return Cost(model.masses.grad, forward, model.calls - forward, kept, live.peak)


def converged_gradient(seed: int, seen: Tensor) -> Tensor:
    """The gradient at tight tolerances, ``(3,)``."""

    def predict(model: Counted, ts: Tensor) -> Tensor:
        positions: Tensor = pn.solve(model, START, ts, method="dop853", controller=pn.Adaptive(1e-12, 1e-13)).ys[:, :9]
        return positions

    return cost(predict, seed, seen).gradient


def seconds(predict: Predict, seed: int, seen: Tensor) -> float:
    """Wall time of one gradient, forward and backward."""
    model = Counted.start(seed)
    begun = time.perf_counter()
    loss_of(predict, model, seen).backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - begun


def fit(predict: Predict, seed: int, seen: Tensor) -> tuple[Counted, int]:
    """The fitted model, and how many gradients L-BFGS took."""
    model = Counted.start(seed)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=50, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )
    taken = 0

    def closure() -> Tensor:
        nonlocal taken
        taken += 1
        optimizer.zero_grad()
        loss = loss_of(predict, model, seen)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return model, taken


def tables(repeats: int, seed: int) -> list[Table]:
    """Costs and findings of every gradient."""
    with torch.no_grad():
        seen, truth = true_positions(TRAINING), true_positions(TEST)
    chosen = ways()
    costs = {name: cost(predict, seed, seen) for name, predict in chosen.items()}
    rounds = [{name: seconds(predict, seed, seen) for name, predict in chosen.items()} for _ in range(repeats)]
    single = Table(
        "One gradient",
        "At the start masses, loss on 1000 output times. Evaluations of the field, counted in it; `direct` makes the accepted "
        "steps again with a graph before it returns. KiB: storages of the tensors that operations made and that are alive, "
        "counted after every operation, between forward and backward and at the peak of both; the outputs, 141 KiB, are in "
        "both. Seconds: median of forward and backward together, the gradients taken in turn. Deviations: the largest over the "
        "three masses, relative to the largest component, from `direct`, which differentiates the same steps (torchdiffeq "
        "takes its own), and from the gradient at a tolerance of 1e-12, which holds the error of the forward solve too.",
        (
            "gradient",
            "evaluations forward",
            "backward",
            "KiB kept",
            "KiB at the peak",
            "seconds",
            "from `direct`",
            "from the converged gradient",
        ),
    )
    converged = converged_gradient(seed, seen)
    for name, found in costs.items():
        single.add(
            name,
            found.forward,
            found.backward,
            found.kept // 1024,
            found.peak // 1024,
            f"{statistics.median(taken[name] for taken in rounds):.2f}",
            *(
                f"{float((found.gradient - wanted).abs().max() / wanted.abs().max()):.1e}"
                for wanted in (costs["direct"].gradient, converged)
            ),
        )
    fits = Table(
        "Fit",
        "L-BFGS with strong Wolfe line search from the same start masses until it stops. Squared errors are summed over the "
        "nine coordinates; mean over the test times in [0, 2].",
        ("gradient", "gradients taken", "test error", "mass errors", "seconds"),
    )
    for name, predict in chosen.items():
        begun = time.perf_counter()
        model, taken = fit(predict, seed, seen)
        wall = time.perf_counter() - begun
        with torch.no_grad():
            error = float(squared_error(predict(model, TEST), truth).mean())
        off = " ".join(f"{float(x):+.1e}" for x in model.masses.detach() - MASSES)
        fits.add(name, taken, f"{error:.1e}", off, f"{wall:.0f}")
    return [single, fits]


def main() -> None:
    """Measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, help="the page; by default it is printed")
    parser.add_argument("--repeats", type=int, default=3, help="of the timing")
    parser.add_argument("--seed", type=int, default=0, help="of the start masses")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = tables(options.repeats, options.seed)
    peer = ""
    if importlib.util.find_spec("torchdiffeq") is not None:
        peer = f", torchdiffeq {importlib.metadata.version('torchdiffeq')}"
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__.split('+')[0]}{peer}"
    written = page(
        "# Three bodies: what each gradient costs\n\nWritten by `python -m benchmarks.three_body`, in one run; do not edit. "
        "The problem is that of [the example](examples.md#three-bodies): three masses from 1000 positions in [0, 1]. "
        f"`{METHOD}`, rtol {RTOL:g}, atol {ATOL:g} for every row, forward and backward; start masses of seed {options.seed}."
        f"\n\nfloat64 on one thread of {platform.machine()}, {versions}. `direct`, `aca` and `symplectic` are those of "
        "`pn.solve`; `continuous adjoint` is `physnode.compat.torchdiffeq.odeint_adjoint(..., adjoint_options={})`, which "
        "solves the adjoint equation backward from each output time to the one before.",
        found,
    )
    if options.out is None:
        print(written)
    else:
        options.out.write_text(written)


if __name__ == "__main__":
    main()
