"""The end of a fit: from the last vector of unknowns to a result with covariances, warnings and a fitted model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from physnode.errors import FitError
from physnode.fitting.problem import Problem
from physnode.fitting.result import FitResult
from physnode.fitting.run_folder import RunFolder
from physnode.fitting.starts import state_labels
from physnode.fitting.uncertainty import Determination, combination, determine

if TYPE_CHECKING:
    from physnode.fitting.stages import Outcome

__all__ = ["conclude"]

_MOST_UNKNOWNS = 4000
_STRONG = 0.95
_POOR = 1.5


def conclude(
    outcome: Outcome,
    *,
    absolute_sigma: bool | None,
    settings: dict[str, Any],
    spec: dict[str, Any] | None,
    folder: RunFolder | None,
) -> FitResult:
    """Judge the outcome and put it into words and numbers."""
    problem, x = outcome.problem, outcome.x
    measured = problem.measured
    with torch.no_grad():
        solution = problem.solve(x, dense=True)
        if not bool(solution.ok.all()):
            raise FitError(
                f"the fit ended where the model cannot be integrated: {solution.failures}. Start nearer to the data, give "
                "bounds, or use multiple shooting"
            )
        rows = problem.rows(x, solution)
        residuals = tuple(problem.residuals(x, solution))
    sigma = tuple(problem.sigma[i, : len(t)] for i, t in enumerate(measured.t))
    warnings: list[str] = []
    kept = torch.arange(problem.size)
    if problem.size > _MOST_UNKNOWNS:
        kept = torch.cat((torch.arange(len(problem.shared.free)), torch.arange(problem.shared.size, problem.size)))
        warnings.append(
            f"{problem.size} unknowns are too many for a joint covariance: errors take the network weights as given, so they "
            "are too small"
        )
    with torch.no_grad():
        jacobian = problem.jacobian(x, solution)[:, kept]
    count = len(rows.data)
    scores = _scores(problem, rows.data, jacobian[:count])
    found = determine(jacobian[:count], jacobian[count:], scores, _ridge(problem)[kept])
    chi2 = float(rows.data.square().sum())
    dof = count - found.effective
    absolute = measured.sigma is not None if absolute_sigma is None else absolute_sigma
    factor = 1.0 if absolute or measured.sigma is None else chi2 / dof if dof > 0 else torch.inf
    covariance, robust = _full(found.covariance * factor, kept, problem.size), _full(found.robust, kept, problem.size)
    names = unknown_names(problem)
    if dof <= 0:
        warnings.append("there are at least as many effective unknowns as measurements: errors mean nothing")
    if not outcome.converged:
        warnings.append(f"not converged: {outcome.reason}")
    if absolute and dof > 0 and chi2 / dof > _POOR and chi2 - dof > 5 * (2 * dof) ** 0.5:
        warnings.append(
            f"the model does not describe the data: reduced chi-square {chi2 / dof:.3g}; errors that assume it does are too "
            "small"
        )
    bounded = [scalar.name for scalar, value in zip(problem.shared.free, x.tolist(), strict=False) if scalar.at_bound(value)]
    if bounded:
        warnings.append(f"at a bound: {', '.join(bounded)}; their errors, and those correlated with them, mean little")
    if not problem.states_free and measured.sigma is None:
        warnings.append("initial states are taken as exact: if the first rows are noisy, the errors are far too small")
    result = FitResult(
        model=_fitted(problem, x),
        shared=problem.shared,
        x=x,
        names=tuple(names),
        covariance=covariance,
        robust_covariance=robust,
        finite_variances=_spread(found.finite * torch.tensor([[factor], [1.0]], dtype=torch.float64), kept, problem.size),
        null_directions=_spread(found.null, kept, problem.size),
        initial_states=problem.split(x)[1].clone(),
        states_free=problem.states_free,
        measured=measured,
        sigma=sigma,
        sigma_source="given" if measured.sigma is not None else "estimated",
        group_sigma=_levels(outcome),
        residuals=residuals,
        chi2=chi2,
        dof=dof,
        absolute_sigma=absolute,
        converged=outcome.converged,
        reason=outcome.reason,
        warnings=tuple(warnings),
        unidentified=tuple(_in_words(found, [names[i] for i in kept.tolist()], problem)),
        history=outcome.history,
        solver=problem.solver,
        settings=settings,
        observe=problem.observe,
        spec=spec,
    )
    if folder is not None:
        folder.conclude(result)
    return result


def _ridge(problem: Problem) -> Tensor:
    """Inverse prior variances that the covariance adds: one for each network weight, none for physics.

    Weights act on inputs and outputs that are scaled to order one, so a unit normal around the fitted value is weak; without
    it, what the network does where there are no data would count as certain (the linearised Laplace approximation: Daxberger
    et al., NeurIPS 2021).
    """
    ridge = torch.zeros(problem.size, dtype=torch.float64)
    ridge[len(problem.shared.free) : problem.shared.size] = 1.0
    return ridge


def unknown_names(problem: Problem) -> list[str]:
    """One name for each unknown: parameters, then ``initial angle [trajectory 3]``."""
    labels = state_labels(problem.model)
    if labels is None or len(labels) != problem.dim:
        labels = [f"y[{i}]" for i in range(problem.dim)]
    names = problem.shared.names
    if problem.states_free:
        names += [f"initial {label} [trajectory {number}]" for number in problem.measured.ids for label in labels]
    return names


def _scores(problem: Problem, data: Tensor, jacobian: Tensor) -> list[Tensor]:
    """Scores of each trajectory by time, ``(n_i, unknowns)``: the sum over channels of Jᵀr."""
    mask = problem.windows.mask
    windows, times = mask.shape[:2]
    place = torch.arange(windows * times).view(windows, times, 1).expand(mask.shape)[mask]
    table = jacobian.new_zeros(windows * times, jacobian.shape[1]).index_add(0, place, jacobian * data.unsqueeze(-1))
    by_window = table.view(windows, times, -1)
    return [by_window[i, : len(t)][mask[i, : len(t)].any(-1)] for i, t in enumerate(problem.measured.t)]


def _spread(rows: Tensor, kept: Tensor, size: int) -> Tensor:
    """Rows over the kept unknowns, as rows over all."""
    full = rows.new_zeros(len(rows), size)
    full[:, kept] = rows
    return full


def _full(block: Tensor, kept: Tensor, size: int) -> Tensor:
    """A covariance over the kept unknowns, as one over all: zero for those taken as given."""
    if len(kept) == size:
        return block
    full = block.new_zeros(size, size)
    full[kept.unsqueeze(-1), kept] = block
    return full


def _levels(outcome: Outcome) -> dict[str, float]:
    if outcome.levels is None:
        return {}
    names, _ = outcome.problem.measured.groups
    return {name: float(value) for name, value in zip(names, outcome.levels, strict=True)}


def _fitted(problem: Problem, x: Tensor) -> Any:
    model = problem.model
    with torch.no_grad():
        for name, value in problem.shared.unpack(problem.split(x)[0]).items():
            model.get_parameter(name).copy_(value)
    return model


def _in_words(found: Determination, names: Sequence[str], problem: Problem) -> list[str]:
    """Combinations that are not determined, and pairs of physical parameters that are strongly correlated."""
    physical = len(problem.shared.free)
    weights = problem.shared.size - physical
    lines = []
    for vector, ratio in found.weak:
        share = float(vector[physical : physical + weights].square().sum())
        if share < 0.5:
            how = "not determined" if ratio < 1e-13 else "hardly determined"
            lines.append(f"{how}: {combination(vector, names)}")
    diagonal = found.covariance.diagonal()[:physical].sqrt()
    for i in range(physical):
        for j in range(i):
            value = float(found.covariance[i, j] / (diagonal[i] * diagonal[j]))
            if abs(value) > _STRONG:
                lines.append(f"strongly correlated ({value:+.3f}): {names[j]} and {names[i]}")
    return lines
