"""Learn the damping of a pendulum from noisy, irregular, gappy data, and predict beyond them with an error band.

The known physics is an undamped pendulum whose frequency is fitted. A small network that sees the angular velocity is added to
its acceleration and learns what is missing. The first 8 seconds of each training trajectory are fitted; the rest of them is the
test span of the figure. Other trajectories, whose initial states are estimated, tell whether the model reaches the noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

import physnode as pn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATA = Path(__file__).resolve().parents[1] / "data" / "pendulum" / "pendulum.h5"
LAST_FITTED = 8.0
SHOWN = 3


def fit(data: pn.data.Trajectories, *, progress: bool) -> pn.FitResult:
    """An undamped pendulum plus a learned torque of the angular velocity, fitted up to ``LAST_FITTED``."""
    generator = torch.Generator().manual_seed(1)
    learned = pn.nn.Residual(2, 32, 2, inputs=("v",), generator=generator)
    model = pn.systems.Pendulum(frequency=1.8, free=("frequency",)) + learned
    return pn.fit(model, data.split("train").select(t1=LAST_FITTED), adam_steps=200, max_iterations=30, progress=progress)


def learned_torque(result: pn.FitResult, velocity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The learned acceleration at angular velocities ``(n,)``, and its standard deviation from the fit's covariance."""
    [term] = [module for module in result.model.modules() if isinstance(module, pn.nn.AccelerationResidual)]
    names = list(result.shared.weights)
    inner = {name: name.split(".", 2)[2] for name in names}
    v = velocity.unsqueeze(-1)

    def torque(vector: torch.Tensor) -> torch.Tensor:
        tensors = result.shared.unpack(vector)
        weights = {inner[name]: tensors[name] for name in names}
        out: torch.Tensor = torch.func.functional_call(term, weights, (torch.zeros_like(v), torch.cat((v, v), -1)))
        return out[:, 1]

    shared = result.x[: result.shared.size]
    jacobian = torch.func.jacrev(torque)(shared)
    covariance = result.covariance[: len(shared), : len(shared)]
    with torch.no_grad():
        return torque(shared), torch.einsum("ni,ij,nj->n", jacobian, covariance, jacobian).clamp(min=0).sqrt()


def figure(result: pn.FitResult, data: pn.data.Trajectories) -> Figure:
    """Data, fit and band into the test span; residuals over sigma; learned torque against the true one."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(10, 6.5), layout="constrained")
    halves: Any = drawing.subfigures(1, 2, width_ratios=[1.6, 1])
    left, right = halves
    upper, strip = left.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    track = data.split("train")[SHOWN]
    seen = track.observed[:, 0]
    t, angle = track.t[seen], track.y[seen, 0]
    assert track.sigma is not None
    sigma = track.sigma[seen, 0]
    fine = torch.linspace(float(track.t[0]), float(track.t[-1]), 800, dtype=torch.float64)
    curve = result.predict(fine, band=0.68, trajectory=SHOWN)
    assert curve.lower is not None
    assert curve.upper is not None
    upper.errorbar(t.numpy(), angle.numpy(), sigma.numpy(), fmt=".", color="black", markersize=3, elinewidth=0.8, label="data")
    upper.plot(fine.numpy(), curve.y[:, 0].numpy(), color="tab:orange", linewidth=1.2, label="fitted model")
    upper.fill_between(
        fine.numpy(), curve.lower[:, 0].numpy(), curve.upper[:, 0].numpy(), color="tab:orange", alpha=0.35, label="68 % band"
    )
    upper.axvspan(LAST_FITTED, float(track.t[-1]), color="0.92", zorder=0)
    upper.text(LAST_FITTED + 0.1, upper.get_ylim()[0] * 0.95, "not fitted", fontsize="small", color="0.4")
    upper.set_ylabel("angle [rad]")
    upper.legend(loc="upper right", fontsize="small")
    at_data = result.predict(t, band=None, trajectory=SHOWN).y[:, 0]
    assert curve.error is not None
    width = (curve.error[:, 0] / sigma[0]).numpy()
    strip.axhspan(-1, 1, color="0.94", zorder=0)
    strip.fill_between(fine.numpy(), -width, width, color="tab:orange", alpha=0.6, linewidth=0)
    strip.plot(t.numpy(), ((angle - at_data) / sigma).numpy(), ".", color="black", markersize=3)
    strip.axvspan(LAST_FITTED, float(track.t[-1]), color="0.92", zorder=-1)
    strip.set_ylabel("residual / σ")
    strip.set_xlabel("t [s]")
    panel: Any = right.subplots()
    limit = float(torch.cat([item.y[:, 1] for item in data.split("train").select(t1=LAST_FITTED)]).abs().max())
    velocity = torch.linspace(-limit, limit, 200, dtype=torch.float64)
    value, error = learned_torque(result, velocity)
    damping = float(track.parameters["damping"])
    panel.plot(
        velocity.numpy(), (-damping * velocity).numpy(), color="black", linestyle="--", linewidth=1, label="true damping"
    )
    panel.plot(velocity.numpy(), value.detach().numpy(), color="tab:orange", label="learned")
    panel.fill_between(
        velocity.numpy(), (value - error).detach().numpy(), (value + error).detach().numpy(), color="tab:orange", alpha=0.35
    )
    panel.set_xlabel("angular velocity [rad/s]")
    panel.set_ylabel("learned torque / (m l²) [rad/s²]")
    panel.legend(fontsize="small")
    return drawing


def main() -> None:
    """Fit, validate, print, save the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the figure")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = pn.data.open(DATA)
    result = fit(data, progress=not options.quiet)
    console = Console(width=130)
    console.print(result.summary(), markup=False, highlight=False)
    console.print(f"test trajectories: {result.validate(data.split('test'))}", markup=False)
    states = torch.cat([item.y[item.observed.all(-1)] for item in data.split("test")])
    value, _ = learned_torque(result, states[:, 1])
    truth = -data[0].parameters["damping"] * states[:, 1]
    share = 1 - float((value - truth).square().sum() / (truth - truth.mean()).square().sum())
    console.print(f"learned torque on visited test states: 1 - SS_res / SS_tot = {share:.4f}", markup=False)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "learned_damping.png"
    figure(result, data).savefig(path, dpi=110)
    console.print(f"figure: {path}")


if __name__ == "__main__":
    main()
