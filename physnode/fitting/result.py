"""What a fit returns: parameters with errors, residuals, how good the fit is, and what may be asked of it afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from physnode.data.trajectories import Trajectories
from physnode.errors import InputError
from physnode.fields import VectorField
from physnode.fitting.figures import fit_figure
from physnode.fitting.measurements import Measurements, Observe
from physnode.fitting.parameters import Shared
from physnode.fitting.prediction import Prediction, Validation, predict, validate
from physnode.fitting.problem import Solver
from physnode.fitting.report import summary
from physnode.fitting.saving import save
from physnode.fitting.uncertainty import propagate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["Derived", "FitResult"]


@dataclass(frozen=True)
class Derived:
    """A function of the parameters, with the uncertainty that theirs gives it."""

    value: Tensor
    covariance: Tensor

    @property
    def error(self) -> Tensor:
        """One standard deviation of each entry."""
        return self.covariance.diagonal().sqrt().reshape(self.value.shape)


@dataclass(frozen=True)
class FitResult:
    """The outcome of :func:`physnode.fit`."""

    model: VectorField
    """The fitted model; the one that was passed to ``fit`` is unchanged."""
    shared: Shared
    x: Tensor
    """All unknowns: shared parameters, then the initial states of each trajectory."""
    names: tuple[str, ...]
    """One name for each unknown."""
    covariance: Tensor
    """Formal covariance of all unknowns, in the order of ``names``."""
    robust_covariance: Tensor
    """The same with the sandwich estimate, which does not assume independent residuals."""
    finite_variances: Tensor
    """``(2, n)``: diagonals of both covariances within what is determined, where those have infinities."""
    null_directions: Tensor
    """``(k, n)``: combinations of unknowns that nothing determines."""
    initial_states: Tensor
    """``(trajectories, dim)``, at the first time of each trajectory."""
    states_free: bool
    measured: Measurements
    sigma: tuple[Tensor, ...]
    """Standard deviation of each measurement as it was used, ``(n_i, C)``."""
    sigma_source: str
    """``"given"`` or ``"estimated"``."""
    group_sigma: dict[str, float]
    """Estimated noise levels by group of channels; empty where they were given."""
    residuals: tuple[Tensor, ...]
    """Measured minus predicted, ``(n_i, C)`` in the units of the data; NaN where nothing was measured."""
    chi2: float
    dof: float
    """Measurements minus the effective number of unknowns."""
    absolute_sigma: bool
    converged: bool
    reason: str
    """Why the fit stopped."""
    warnings: tuple[str, ...]
    unidentified: tuple[str, ...]
    """Combinations of parameters that the data do not determine, in words."""
    history: tuple[dict[str, Any], ...]
    solver: Solver
    settings: dict[str, Any]
    observe: Observe | None = None
    spec: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def parameters(self) -> dict[str, float]:
        """Fitted value of each free physical parameter."""
        return {scalar.name: float(self.x[i]) for i, scalar in enumerate(self.shared.free)}

    @property
    def errors(self) -> dict[str, float]:
        """Formal error of each free physical parameter: one standard deviation if residuals are independent."""
        return {scalar.name: _root(self.covariance[i, i]) for i, scalar in enumerate(self.shared.free)}

    @property
    def robust_errors(self) -> dict[str, float]:
        """Error of each free physical parameter that allows for autocorrelated residuals."""
        return {scalar.name: _root(self.robust_covariance[i, i]) for i, scalar in enumerate(self.shared.free)}

    @property
    def correlation(self) -> Tensor:
        """Correlation matrix of the free physical parameters."""
        count = len(self.shared.free)
        block = self.covariance[:count, :count]
        root = block.diagonal().sqrt()
        return block / root / root.unsqueeze(-1)

    @property
    def reduced_chi2(self) -> float:
        """chi-square over degrees of freedom; 1 by construction where the noise was estimated from the residuals."""
        return self.chi2 / self.dof if self.dof > 0 else math.nan

    @property
    def deviance(self) -> float:
        """-2 ln L up to a constant: chi-square, plus Σ ln σ² where the noise was estimated and so is part of the model."""
        if self.sigma_source == "given":
            return self.chi2
        logs = [sigma[mask].log().sum() for sigma, mask in zip(self.sigma, self.measured.observed, strict=True)]
        return self.chi2 + 2 * float(torch.stack(logs).sum())

    @property
    def aic(self) -> float:
        """Akaike's criterion, deviance + 2 k, with k the effective number of unknowns (noise levels included)."""
        return self.deviance + 2 * self._counted

    @property
    def bic(self) -> float:
        """Schwarz's criterion, deviance + k ln n."""
        return self.deviance + self._counted * math.log(max(1, self.measured.rows_used))

    @property
    def _counted(self) -> float:
        return self.measured.rows_used - self.dof + len(self.group_sigma)

    def at_bound(self, name: str) -> bool:
        """Whether a physical parameter ended on a bound, where its formal error means little."""
        return any(scalar.name == name and scalar.at_bound(float(self.x[i])) for i, scalar in enumerate(self.shared.free))

    def summary(self) -> str:
        """One page: data, noise, convergence, parameters with both errors, goodness of fit, and what is not determined."""
        return summary(self)

    def plot(self, trajectory: int = 0) -> Figure:
        """Data with error bars, the fitted curve, and residuals over sigma, for one trajectory (by position)."""
        return fit_figure(self, trajectory)

    def derived(self, function: Callable[[Mapping[str, Tensor]], Tensor], *, robust: bool = False) -> Derived:
        """Value and covariance of any function of the free physical parameters, by its exact derivative.

        A function of what the data determine has an error even where single parameters have none, such as a product of two.

        Args:
            function: takes a dictionary of name to 0-dim tensor, returns a tensor.
            robust: propagate the robust covariance instead of the formal one.
        """
        count = len(self.shared.free)
        names = [scalar.name for scalar in self.shared.free]

        def flat(vector: Tensor) -> Tensor:
            return function({name: vector[i] for i, name in enumerate(names)})

        point = self.x[:count]
        value = flat(point)
        jacobian: Tensor = torch.func.jacrev(flat)(point).reshape(-1, count)
        covariance = (self.robust_covariance if robust else self.covariance)[:count, :count]
        finite, null = self.finite_variances[int(robust), :count], self.null_directions[:, :count]
        return Derived(value.detach(), propagate(jacobian, covariance, finite, null).detach())

    def predict(
        self,
        times: Sequence[float] | Tensor,
        *,
        band: float | None = 0.68,
        trajectory: int = 0,
        initial_state: Sequence[float] | Tensor | None = None,
    ) -> Prediction:
        """The fitted model at any times, with the band that the uncertainty of all unknowns gives it.

        Args:
            times: ``(T,)``, in any order, in the time of the trajectory.
            band: probability inside the band, or None for no band.
            trajectory: position of the trajectory whose initial state is used.
            initial_state: another state, at the first of ``times``; its own uncertainty is then taken as zero.
        """
        return predict(self, times, band, trajectory, initial_state)

    def validate(
        self,
        data: Trajectories,
        *,
        sigma: Mapping[str, float] | None = None,
        initial_states: Sequence[Any] | Tensor | None = None,
    ) -> Validation:
        """How well the fitted model, held fixed, describes other trajectories: only their initial states are estimated.

        Args:
            data: trajectories that measure what the fit was made on.
            sigma: ``{variable: standard deviation}`` in place of what the data say; by default what the fit was given, and the
                levels that it estimated where neither says anything.
            initial_states: guesses ``(trajectories, dim)`` to start from, needed where the state itself is not measured.
        """
        return validate(self, data, sigma, initial_states)

    def save(self, folder: str | Path) -> Path:
        """Write everything into a folder that ``physnode.load`` opens."""
        return save(self, Path(folder))

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value:.6g}" for name, value in list(self.parameters.items())[:6])
        return f"FitResult({values}; reduced chi-square {self.reduced_chi2:.3g}, converged={self.converged})"


def _root(value: Tensor) -> float:
    number = float(value)
    if math.isnan(number):
        raise InputError("the covariance is not a number; the fit has not ended properly")
    return math.sqrt(max(0.0, number))
