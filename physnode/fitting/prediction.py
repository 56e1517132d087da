"""What a fitted model says: predictions with a band, and how it does on trajectories it has not seen."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from scipy import stats
from torch import Tensor

from physnode.data.trajectories import Trajectories
from physnode.errors import InputError
from physnode.fitting.least_squares import minimise
from physnode.fitting.measurements import cut
from physnode.fitting.problem import Problem
from physnode.fitting.progress import Reporter
from physnode.fitting.setup import measure
from physnode.fitting.starts import StateGuess, window_cuts
from physnode.fitting.uncertainty import propagate
from physnode.gradients.forward import tangents
from physnode.solve import solve

if TYPE_CHECKING:
    from physnode.fitting.result import FitResult

__all__ = ["Prediction", "Validation", "predict", "validate"]


@dataclass(frozen=True)
class Prediction:
    """A predicted trajectory: ``t (T,)`` and ``y (T, dim)``, and the band from ``lower`` to ``upper`` if it was asked for."""

    t: Tensor
    y: Tensor
    lower: Tensor | None
    upper: Tensor | None
    error: Tensor | None
    """One standard deviation of each entry of ``y``, from the covariance of all unknowns."""


@dataclass(frozen=True)
class Validation:
    """How a fitted model describes other trajectories whose initial states were estimated."""

    chi2: float
    dof: int
    """Measurements minus the estimated components of the initial states."""
    per_trajectory: dict[int, float]
    """Reduced chi-square of each trajectory by its id."""
    residuals: tuple[Tensor, ...]
    initial_states: Tensor
    converged: bool

    @property
    def reduced_chi2(self) -> float:
        """chi-square over degrees of freedom: near 1 where the model reaches the noise level."""
        return self.chi2 / self.dof if self.dof > 0 else float("nan")

    def __str__(self) -> str:
        worst = max(self.per_trajectory.items(), key=lambda item: item[1])
        return (
            f"reduced chi-square {self.reduced_chi2:.3f} over {len(self.per_trajectory)} trajectories "
            f"({self.dof} degrees of freedom; worst: trajectory {worst[0]} with {worst[1]:.3f})"
        )


def predict(
    result: FitResult,
    times: Sequence[float] | Tensor,
    band: float | None,
    trajectory: int,
    initial_state: Sequence[float] | Tensor | None,
) -> Prediction:
    """See :meth:`physnode.FitResult.predict`."""
    wanted = torch.as_tensor(times, dtype=torch.float64).reshape(-1)
    if not len(wanted):
        raise InputError("predict needs at least one time")
    if band is not None and not 0 < band < 1:
        raise InputError(f"band is a probability between 0 and 1; found {band!r}")
    ordered, place = torch.unique(wanted, return_inverse=True)
    own = initial_state is None
    if own and not 0 <= trajectory < len(result.initial_states):
        raise InputError(f"there are {len(result.initial_states)} trajectories; found position {trajectory}")
    if initial_state is None:
        state, epoch = result.initial_states[trajectory], result.measured.t[trajectory][0]
    else:
        state, epoch = torch.as_tensor(initial_state, dtype=torch.float64).reshape(-1), wanted[0]
        if len(state) != result.initial_states.shape[1]:
            raise InputError(f"initial_state needs {result.initial_states.shape[1]} components; found {len(state)}")
    with torch.no_grad():
        solution = solve(
            result.model, state.unsqueeze(0), ordered, t0=float(epoch),
            method=result.solver.method, controller=result.solver.controller, dense=True,
        )  # fmt: skip
        y = solution.ys[0]
        if band is None:
            return Prediction(wanted, y[place], None, None, None)
        size = result.shared.size
        dim = len(state) if own and result.states_free else 0
        basis = torch.eye(size + dim, dtype=torch.float64)
        shared = result.x[:size]
        directions = torch.func.vmap(lambda v: torch.func.jvp(result.shared.unpack, (shared,), (v,))[1])(basis[:, :size])
        dstate = basis[:, size:] if dim else basis.new_zeros(size, len(state))
        changes: Tensor | None = None
        for piece in solution.pieces:
            replay = piece.replay
            found = tangents(replay, state.unsqueeze(0), dstate.unsqueeze(1), result.shared.unpack(shared), directions)[:, 0]
            mine = ((ordered - epoch) * replay.span.direction[0] >= 0).unsqueeze(-1)
            changes = found if changes is None else torch.where(mine, found, changes)
        assert changes is not None
        jacobian = changes.movedim(0, -1)
        first = size + trajectory * len(state)
        index = torch.cat((torch.arange(size), torch.arange(first, first + dim)))
        covariance = result.covariance[index.unsqueeze(-1), index]
        finite, null = result.finite_variances[0, index], result.null_directions[:, index]
        variances = [propagate(row, covariance, finite, null).diagonal() for row in jacobian]
        error = torch.stack(variances).clamp(min=0).sqrt()
    half = float(stats.norm.ppf(0.5 + band / 2)) * error
    return Prediction(wanted, y[place], (y - half)[place], (y + half)[place], error[place])


def validate(
    result: FitResult,
    data: Trajectories,
    sigma: Mapping[str, float] | None,
    initial_states: Sequence[Any] | Tensor | None,
) -> Validation:
    """See :meth:`physnode.FitResult.validate`."""
    dim = result.initial_states.shape[1]
    levels = result.settings.get("sigma") if sigma is None else sigma
    measured = measure(result.model, data, result.observe, result.initial_states[:1], levels)
    if measured.names != result.measured.names:
        raise InputError(
            f"these trajectories measure {', '.join(measured.names[:6])}, "
            f"the fit was made on {', '.join(result.measured.names[:6])}"
        )
    windows = cut(measured, window_cuts(measured, 1))
    spread = windows.sigma
    if measured.sigma is None:
        if not result.group_sigma:
            raise InputError(
                "these trajectories carry no standard deviations, and the fit has none to lend; write them into the data"
            )
        names, group = measured.groups
        spread = torch.tensor([result.group_sigma[name] for name in names], dtype=torch.float64)[group].expand(spread.shape)
    if initial_states is not None:
        starts = torch.as_tensor(initial_states, dtype=torch.float64)
        if tuple(starts.shape) != (len(measured.t), dim):
            raise InputError(f"initial_states must have shape ({len(measured.t)}, {dim}); found {tuple(starts.shape)}")
    else:
        guess = StateGuess(measured, dim, result.model)
        starts = torch.stack([guess.at(i, 0) for i in range(len(measured.t))])
    held = replace(
        result.shared, scalars=tuple(replace(item, free=False) for item in result.shared.scalars), weights=(), tensors={}
    )
    problem = Problem(
        model=copy.deepcopy(result.model),
        shared=held,
        windows=windows,
        measured=measured,
        solver=result.solver,
        sigma=spread,
        state_scale=starts.square().mean(0).sqrt().clamp(min=1e-300),
        observe=result.observe,
    )
    found = minimise(problem, starts.reshape(-1), Reporter(None), stage="initial states")
    with torch.no_grad():
        residuals = problem.residuals(found.x)
    scaled = [residual / spread[i, : len(residual)] for i, residual in enumerate(residuals)]
    sums = [float(torch.nan_to_num(item).square().sum()) for item in scaled]
    counts = [int(mask.sum()) for mask in measured.observed]
    return Validation(
        chi2=sum(sums),
        dof=sum(counts) - starts.numel(),
        per_trajectory={
            number: chi2 / max(1, count - dim) for number, chi2, count in zip(measured.ids, sums, counts, strict=True)
        },
        residuals=tuple(residuals),
        initial_states=found.x.reshape(starts.shape),
        converged=found.converged,
    )
