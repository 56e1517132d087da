"""Where a fit begins: initial states read off the data, a typical size of each component, and how to cut for shooting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from physnode.data.trajectories import Trajectories, Trajectory
from physnode.errors import InputError
from physnode.fields import SecondOrder, VectorField
from physnode.fitting.measurements import Measurements, even_cuts

__all__ = ["StateGuess", "follows", "has_exact_start", "known_starts", "state_dim", "state_labels", "window_cuts"]

_ROWS_PER_WINDOW = 12
_MOST_WINDOWS = 16
_NEARBY_ROWS = 7


def state_labels(model: VectorField) -> list[str] | None:
    """Names of the components of the state, from the model or the first of its terms that has them."""
    for module in model.modules():
        labels = getattr(module, "labels", None) if isinstance(module, VectorField) else None
        if labels is not None:
            return list(labels)
    return None


def state_dim(model: VectorField) -> int | None:
    """Number of components of the state, from the model or the first of its terms that tells."""
    for module in model.modules():
        dim = getattr(module, "dim", None) if isinstance(module, VectorField) else None
        if dim is not None:
            return int(dim)
    labels = state_labels(model)
    return None if labels is None else len(labels)


def has_exact_start(item: Trajectory) -> bool:
    """Whether a trajectory carries the exact initial value of every state variable."""
    return bool(item.variables) and set(item.variables) <= set(item.initial)


def known_starts(data: Trajectories, columns: Sequence[int] | None, dim: int, *, noisy: bool) -> Tensor:
    """Initial states ``(trajectories, dim)`` that are exact: those kept with the data, else the first rows.

    ``columns`` says which component of the state each one of ``y`` is; ``noisy`` that standard deviations were given for all
    rows apart from the data.

    Raises:
        InputError: a component is missing, or a first row is known to be noisy.
    """
    if columns is None or sorted(columns) != list(range(dim)):
        raise InputError('initial_states="known" needs the whole state in the data; estimate initial states instead')
    starts = torch.zeros(len(data), dim, dtype=torch.float64)
    for i, item in enumerate(data):
        if has_exact_start(item):
            row = torch.cat([item.initial[name].reshape(-1) for name in item.variables])
        else:
            if not bool(item.observed[0].all()):
                raise InputError('initial_states="known" needs every component of the first row; estimate them instead')
            if noisy or (item.sigma is not None and bool((item.sigma[0] > 0).any())):
                raise InputError(
                    'initial_states="known" takes the first row as exact, but its standard deviation is not zero in trajectory '
                    f"{item.id}; estimate initial states, or keep exact ones with the data (from_arrays(..., initial=...))"
                )
            row = item.y[0]
        starts[i, list(columns)] = row.to(torch.float64)
    return starts


class StateGuess:
    """States at any row of the data: measured components as they are, velocities that were not measured from nearby slopes."""

    def __init__(self, measured: Measurements, dim: int, model: VectorField) -> None:
        if measured.state_columns is None:
            raise InputError(
                "with observe= the state itself is not measured, so a fit needs somewhere to start; pass initial_states, one "
                "guess a trajectory of shape (trajectories, dim)"
            )
        self.measured, self.dim = measured, dim
        columns = measured.state_columns
        half = dim // 2
        self.slopes: dict[int, int] = {}
        missing = [i for i in range(dim) if i not in columns]
        for i in missing:
            if isinstance(model, SecondOrder) and i >= half and (i - half) in columns:
                self.slopes[i] = columns.index(i - half)
            else:
                raise InputError(
                    f"component {i} of the state is not in the data and cannot be guessed; pass initial_states of shape "
                    f"(trajectories, {dim})"
                )
        self.direct = {column: channel for channel, column in enumerate(columns)}

    def at(self, trajectory: int, row: int) -> Tensor:
        """The state ``(dim,)`` at one row of one trajectory."""
        state = torch.zeros(self.dim, dtype=torch.float64)
        for column, channel in self.direct.items():
            state[column] = self._value(trajectory, row, channel)
        for column, channel in self.slopes.items():
            state[column] = self._slope(trajectory, row, channel)
        return state

    def along(self, trajectory: int) -> Tensor:
        """The state at every row ``(n_i, dim)``."""
        return torch.stack([self.at(trajectory, row) for row in range(len(self.measured.t[trajectory]))])

    def _series(self, trajectory: int, channel: int) -> tuple[np.ndarray, np.ndarray]:
        seen = self.measured.observed[trajectory][:, channel].numpy()
        if not seen.any():
            raise InputError(
                f"{self.measured.names[channel]} is never observed in trajectory {self.measured.ids[trajectory]}; "
                "drop that trajectory, or pass initial_states"
            )
        return self.measured.t[trajectory].numpy()[seen], self.measured.values[trajectory][:, channel].numpy()[seen]

    def _value(self, trajectory: int, row: int, channel: int) -> float:
        t, values = self._series(trajectory, channel)
        return float(np.interp(float(self.measured.t[trajectory][row]), t, values))

    def _slope(self, trajectory: int, row: int, channel: int) -> float:
        t, values = self._series(trajectory, channel)
        centre = float(self.measured.t[trajectory][row])
        near = np.argsort(np.abs(t - centre))[:_NEARBY_ROWS]
        if len(near) < 2:
            return 0.0
        offsets = t[near] - centre
        degree = min(2, len(near) - 1)
        return float(np.polynomial.polynomial.polyfit(offsets, values[near], degree)[1])


def window_cuts(measured: Measurements, windows: int | None) -> list[list[int]]:
    """Rows at which each trajectory is cut: into ``windows`` windows, or into as many as its length asks for."""
    cuts = []
    for t in measured.t:
        wanted = windows if windows is not None else min(_MOST_WINDOWS, max(1, len(t) // _ROWS_PER_WINDOW))
        cuts.append(even_cuts(len(t), wanted))
    return cuts


def follows(values: Sequence[Tensor], predicted: Sequence[Tensor], observed: Sequence[Tensor], limit: float = 0.7) -> bool:
    """Whether a prediction follows the data: its error is below ``limit`` of the data's own spread, in each channel."""
    data, model, mask = torch.cat(list(values)), torch.cat(list(predicted)), torch.cat(list(observed))
    for channel in range(data.shape[1]):
        seen = mask[:, channel]
        if int(seen.sum()) > 1:
            spread = data[seen, channel].std()
            error = (model[seen, channel] - data[seen, channel]).square().mean().sqrt()
            if not bool(error <= limit * spread):
                return False
    return True
