"""The Sun and the four giant planets over thousands of years: whether the energy error stays bounded, or how it grows."""

from __future__ import annotations

from math import nan
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import physnode as pn
from benchmarks.accuracy.reference_orbits import KNOWN, OUTER_G, OUTER_MASSES
from benchmarks.accuracy.runs import pairwise_energy, registered, run, tensor
from benchmarks.accuracy.tables import Figure, Table

__all__ = ["end_state", "energies", "round_off_growth"]

YEAR = 365.25
START = tensor(KNOWN["outer planets"].start)
Extended = NDArray[Any]


def _system() -> pn.systems.NBody:
    return pn.systems.NBody([OUTER_G * mass for mass in OUTER_MASSES])


def _errors(ys: Tensor) -> NDArray[np.float64]:
    """(E - E_0)/E_0 ``(..., T)``, evaluated in extended precision."""
    energy: Extended = pairwise_energy(ys, OUTER_MASSES, OUTER_G, 3)
    return np.asarray((energy - energy[..., :1]) / energy[..., :1], dtype=np.float64)


def end_state() -> Table:
    """The state after a hundred revolutions of Jupiter."""
    table = Table(
        "Outer planets after 1186 years",
        "Sun, Jupiter, Saturn, Uranus, Neptune over 433259 days (100 revolutions of Jupiter). Error: the largest over all "
        "positions, in AU.",
        ("method", "steps", "error", "energy error", "evaluations"),
    )
    [(days, goal)] = KNOWN["outer planets"].later.items()
    for method, controller, name, limit in (
        ("kahan_li8", pn.Fixed(days / 10_000), "100 a revolution of Jupiter", 1e-8),
        ("gauss_radau15", pn.Adaptive(1e-11, 1e-15), "rtol 1e-11, atol 1e-15", 1e-10),
        ("dop853", pn.Adaptive(1e-13, 1e-17), "rtol 1e-13, atol 1e-17", 1e-7),
    ):
        if registered(method):
            found = run(_system(), START, [0.0, days], method, controller)
            error = float((found.ys[-1] - tensor(goal))[:15].abs().max())
            table.add(
                method,
                name,
                Figure(error, at_most=limit),
                Figure(abs(float(_errors(found.ys)[-1]))),
                int(found.evaluations),
            )
    return table


def energies(years: int = 10_000) -> Table:
    """Symplectic methods: the energy error oscillates and has no trend."""
    table = Table(
        f"Outer planets over {years:,} years: energy of symplectic methods",
        "Largest |ΔE/E| until each time, in extended precision at outputs every 2500 days. Trend: the slope of a straight "
        "line through |ΔE/E| times the whole span, with its standard error, in units of the mean |ΔE/E|. Tenths: root mean "
        "square of ΔE/E over the last tenth of the span over that of the first.",
        ("method", "step", "to 100 years", "to 1,000", f"to {years:,}", "trend", "last tenth / first tenth"),
    )
    for method, dt in (("kahan_li8", 100.0), ("leapfrog", 25.0)):
        times = np.arange(0.0, years * YEAR, 2500.0)
        errors = np.abs(_errors(run(_system(), START, times, method, pn.Fixed(dt)).ys))
        slope, spread = _line(times / times[-1], errors / errors.mean())
        tenth = len(times) // 10
        ratio = float(np.sqrt(np.mean(errors[-tenth:] ** 2) / np.mean(errors[1 : tenth + 1] ** 2)))
        until = [Figure(float(errors[times <= span * YEAR].max())) for span in (100, min(1000, years), years)]
        table.add(method, f"{dt:g} d", *until, f"{slope:+.3f} ± {spread:.3f}", Figure(ratio, at_most=1.5, form=".2f"))
    return table


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Slope of the least-squares line and its standard error."""
    centred = x - x.mean()
    slope = float((centred * y).sum() / (centred * centred).sum())
    left = y - y.mean() - slope * centred
    return slope, float(np.sqrt((left * left).sum() / (len(x) - 2) / (centred * centred).sum()))


def round_off_growth(years: int = 10_000, starts: int = 16) -> Table:
    """Methods at round-off: the energy error of an unbiased sum grows like the square root of time (Brouwer 1937)."""
    table = Table(
        f"Outer planets over {years:,} years: round-off at high order",
        f"{starts} starts that differ by about 1e-9 in the planets' positions, as one batch. Root mean square of ΔE/E over "
        "the starts, in extended precision at the outputs; slope of it against time on log-log axes over the second to the "
        "last decade. An unbiased sum of roundings gives 0.5, a biased one 1.",
        ("method", "steps", "100 years", "1,000 years", f"{years:,} years", "slope", "evaluations"),
    )
    generator = torch.Generator().manual_seed(7)
    shift = torch.zeros(starts, 30, dtype=torch.float64)
    shift[:, 3:15] = 1e-9 * torch.randn(starts, 12, generator=generator, dtype=torch.float64)
    times = np.concatenate(([0.0], np.geomspace(50.0, years, 40))) * YEAR
    settings = (("gauss_radau15", pn.Adaptive(1e-11, 1e-15), "rtol 1e-11, atol 1e-15", 0.6),)
    for method, controller, name, limit in settings:
        if not registered(method):
            continue
        found = run(_system(), START + shift, times, method, controller)
        rms = np.sqrt(np.mean(_errors(found.ys) ** 2, axis=0))[1:]
        at = [Figure(float(np.interp(span, times[1:] / YEAR, rms))) for span in (100, min(1000, years), years)]
        late = times[1:] >= 100 * YEAR
        slope = float(np.polyfit(np.log(times[1:][late]), np.log(rms[late]), 1)[0]) if (rms[late] > 0).all() else nan
        table.add(method, name, *at, Figure(slope, at_most=limit, form=".2f"), int(found.evaluations.max()))
    return table
