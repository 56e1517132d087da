"""Weigh Jupiter, Saturn, Uranus and Neptune from half a century of JPL's ephemeris.

Known physics is Newton's law for five bodies: the four giants, and the Sun with the inner planets and the Moon taken as one
body at their common centre of mass. The giants' masses start 10 % wrong; they and all initial states are fitted.

Every body is measured as well as every other in angle: positions to a fixed share of its mean distance from the Sun,
velocities to the same share of its mean speed (the Sun's own reflex motion counts like Jupiter's). Only these ratios are
used; the size of the errors comes from the residuals. Those are smooth curves, the motions that five bodies under Newton's law
leave out, and not white noise, which is why the robust error is the one to read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import physnode as pn

INNER = ("sun", "mercury", "venus", "earthmoon", "mars")
OUTER = ("jupiter", "saturn", "uranus", "neptune")
DATA = Path(__file__).resolve().parents[1] / "data" / "solar_system" / "solar_system.h5"


def five_bodies(planets: pn.data.Trajectory) -> tuple[pn.data.Trajectories, torch.Tensor]:
    """The trajectory with the inner bodies joined, and the five GM (km^3/d^2)."""
    gm_all = dict(zip(bodies(planets), planets.parameters["gm"], strict=True))
    inner = torch.stack([gm_all[name] for name in INNER])
    gm = torch.stack([inner.sum(), *[gm_all[name] for name in OUTER]])
    values = {}
    for variable in ("position", "velocity"):
        tracks = {name: columns(planets, variable, name) for name in (*INNER, *OUTER)}
        centre = torch.stack([tracks[name] for name in INNER], dim=-1) @ (inner / inner.sum())
        values[variable] = torch.stack([centre, *[tracks[name] for name in OUTER]], dim=1).numpy()
    joined = pn.data.from_arrays(
        planets.t.numpy(),
        values,
        units={"time": "d", "position": "km", "velocity": "km d-1"},
        labels={name: {"body": ["inner", *OUTER], "space": ["x", "y", "z"]} for name in ("position", "velocity")},
    )
    return joined, gm


def bodies(planets: pn.data.Trajectory) -> list[str]:
    """The bodies of the file, in order."""
    named = [name.split("[")[1].split(",")[0] for name in planets.names if name.startswith("position")]
    return list(dict.fromkeys(named))


def columns(planets: pn.data.Trajectory, variable: str, body: str) -> torch.Tensor:
    """x, y, z of one body, ``(n, 3)``."""
    return planets.y[:, [i for i, name in enumerate(planets.names) if name.startswith(f"{variable}[{body},")]]


def relative_sigma(data: pn.data.Trajectories) -> dict[str, float]:
    """One number a body for positions and one for velocities, in proportion to its mean distance and speed."""
    values = data[0].y.reshape(len(data[0]), 2, 5, 3)
    size = (values[:, :, 1:] - values[:, :, :1]).norm(dim=-1).mean(0)
    size = torch.cat((size[:, :1], size), dim=1)  # the inner body moves because Jupiter does
    return {
        f"{variable}[{name}]": float(size[i, j])
        for i, variable in enumerate(("position", "velocity"))
        for j, name in enumerate(("inner", *OUTER))
    }


def report(result: pn.FitResult, gm: torch.Tensor) -> Table:
    """Fitted masses against JPL's."""
    table = Table(title="GM of the outer planets, km³/s², fitted to DE421, 1950-2000")
    for heading in (
        "planet",
        "fitted GM",
        "formal error",
        "robust error",
        "JPL's GM",
        "difference",
        "relative",
        "in robust errors",
    ):
        table.add_column(heading, justify="left" if heading == "planet" else "right")
    day = 86400.0**2
    for i, name in enumerate(OUTER, start=1):
        fitted, truth = result.parameters[f"gm[{i}]"], float(gm[i])
        formal, robust = result.errors[f"gm[{i}]"], result.robust_errors[f"gm[{i}]"]
        table.add_row(
            name.capitalize(),
            f"{fitted / day:,.2f}",
            f"{formal / day:,.2f}",
            f"{robust / day:,.2f}",
            f"{truth / day:,.2f}",
            f"{(fitted - truth) / day:+,.2f}",
            f"{(fitted - truth) / truth:+.1e}",
            f"{(fitted - truth) / robust:+.2f}",
        )
    return table


def figure(result: pn.FitResult, data: pn.data.Trajectories, path: Path) -> Path:
    """Residuals in km a planet, and the energy drift of the fitted orbits."""
    from matplotlib.figure import Figure

    years = 1950 + data[0].t / 365.25
    drawing = Figure(figsize=(9, 10), layout="constrained")
    axes = drawing.subplots(6, 1, sharex=True)
    residuals = result.residuals[0].reshape(len(years), 2, 5, 3)[:, 0]
    for axis, body, name in zip(axes, range(5), ("inner bodies", *OUTER), strict=False):
        for coordinate, label in enumerate("xyz"):
            axis.plot(years, residuals[:, body, coordinate], linewidth=1, label=label)
        axis.set_ylabel(f"{name}\n[km]")
    axes[0].legend(ncols=3, loc="lower right", fontsize="small")
    axes[0].set_title("JPL DE421 minus fitted five-body model")
    orbit = pn.solve(result.model, result.initial_states[0], data[0].t, method="dop853", controller=pn.Adaptive(1e-12, 1e-6))
    axes[5].plot(years, pn.diagnostics.energy_drift(result.model, orbit).relative)
    axes[5].set_ylabel("energy drift\nΔE / E")
    axes[5].set_xlabel("year")
    drawing.savefig(path, dpi=130)
    return path


def main() -> None:
    """Fit, print the table, save the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the run and its figure")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, gm = five_bodies(pn.data.open(DATA)[0])
    start = gm * torch.tensor([1.0, 1.1, 1.1, 1.1, 1.1])
    with torch.no_grad():
        result = pn.fit(
            pn.systems.NBody(start, free=("gm",)),
            data,
            fixed={"gm[0]": float(gm[0])},
            sigma=relative_sigma(data),
            absolute_sigma=False,
            controller=pn.Adaptive(rtol=1e-11, atol=1e-6),  # residuals are 1e-8 of the distances: stay far below them
            shooting="single",
            progress=not options.quiet,
        )
    console = Console(width=150)
    console.print(report(result, gm))
    sizes = result.residuals[0].reshape(-1, 2, 5, 3)[:, 0].square().sum(-1).mean(0).sqrt()
    listed = ", ".join(f"{name} {size:.0f}" for name, size in zip(("inner bodies", *OUTER), sizes, strict=True))
    console.print(f"root mean square residuals in km: {listed}")
    options.out.mkdir(parents=True, exist_ok=True)
    drawn = figure(result, data, options.out / "outer_planets.png")
    (options.out / "outer_planets.txt").write_text(result.summary() + "\n")
    console.print(f"figure: {drawn}\nsummary: {options.out / 'outer_planets.txt'}")


if __name__ == "__main__":
    main()
