"""What ``solve`` returns: the trajectories, how each of them ended, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from physnode.engine.records import Met
from physnode.engine.status import describe_failures
from physnode.errors import InputError
from physnode.fields import VectorField
from physnode.gradients import Gradient, GradientCost, Outputs, Replay, Swept, attach_tape, moved_start
from physnode.gradients.same_field import refuse_another_field
from physnode.native.code import Taped
from physnode.states import StateAdapter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Events", "Piece", "Solution", "Statistics", "outputs_of"]


@dataclass(frozen=True)
class Statistics:
    """Counts of one solve, each of shape ``(*batch,)``."""

    accepted: Tensor
    """Steps that were kept."""
    rejected: Tensor
    """Trial steps that failed the error test."""
    evaluations: Tensor
    """Evaluations of the field on behalf of this trajectory, the starting step and the outputs included."""
    gradient: GradientCost | None = None
    """What is kept for the gradient, and what the way back has cost so far; None where there is none to take."""

    def __str__(self) -> str:
        parts = ((name, getattr(self, name)) for name in ("accepted", "rejected", "evaluations"))
        told = ", ".join(f"{name} {_range(value)}" for name, value in parts)
        return told if self.gradient is None else f"{told}; {self.gradient}"


@dataclass(frozen=True)
class Events:
    """The events that each trajectory met, in the order of time, padded to the largest number ``E`` of a trajectory."""

    t: Tensor
    """``(*batch, E)`` in float64, NaN beyond a trajectory's own number; differentiable."""
    y: Any
    """States on arrival, before any jump, ``(*batch, E, dim)``; differentiable."""
    index: Tensor
    """Which of ``events`` it was, ``(*batch, E)``; -1 beyond a trajectory's own number."""

    @property
    def count(self) -> Tensor:
        """How many events each trajectory met, ``(*batch,)``."""
        return (self.index >= 0).sum(-1)

    @classmethod
    def of(cls, outputs: Outputs, met: Met, batch: tuple[int, ...]) -> Events:
        """Those of one way of a solve: what they are from ``met``, when and where from ``outputs``, which carry gradients."""
        shape = (*batch, met.which.shape[-1])
        states = outputs.event_states.reshape(*shape, outputs.event_states.shape[-1])
        return cls(outputs.event_times.reshape(shape), states, met.which.reshape(shape))

    @classmethod
    def joined(cls, ways: Sequence[Events], ys: Tensor, adapter: StateAdapter | None) -> Events:
        """Those of all ways of a solve, sorted by time; states in the structure of the adapter."""
        batch = tuple(ys.shape[:-2])
        if not ways:
            empty = ys.new_zeros(*batch, 0, dtype=torch.float64)
            found = cls(empty, ys.new_zeros(*batch, 0, ys.shape[-1]), torch.zeros_like(empty, dtype=torch.int64))
        elif len(ways) == 1:
            found = ways[0]
        else:
            t = torch.cat([way.t for way in ways], -1)
            order = torch.nan_to_num(t.detach(), nan=torch.inf).argsort(-1)
            y, index = torch.cat([way.y for way in ways], -2), torch.cat([way.index for way in ways], -1)
            t, index = t.gather(-1, order), index.gather(-1, order)
            y = y.gather(-2, order.unsqueeze(-1).expand(*order.shape, y.shape[-1]))
            most = int((index >= 0).sum(-1).max()) if index.numel() else 0
            found = cls(t[..., :most], y[..., :most, :], index[..., :most])
        return found if adapter is None else cls(found.t, adapter.unflatten(found.y), found.index)

    def __repr__(self) -> str:
        return f"Events({int(self.count.sum())} met by {max(1, self.count.numel())} trajectories)"


@dataclass(frozen=True)
class Piece:
    """The solve in one direction from the epoch of y0."""

    make_replay: Callable[[], Replay]
    y0: Tensor
    met: Met | None = None
    """The events found on the way, if there were any to meet."""
    taped: Taped | None = None
    """The steps as native code has left them."""

    @cached_property
    def replay(self) -> Replay:
        """The steps, to be made again."""
        return self.make_replay()

    def attach(self, how: Gradient, outputs: Outputs, cost: GradientCost) -> Outputs:
        """The ``outputs`` as a differentiable function of all that they depend on."""
        if self.taped is not None and isinstance(how, Swept):
            cost.note_tape(self.taped)
            return Outputs.without_events(attach_tape(self.taped, outputs.ys, self.y0, lambda: self.replay, cost))
        cost.note(self.replay.records, how.kept_instead)
        return how.attach(self.replay, outputs, self.y0)


def outputs_of(ys: Tensor, met: Met | None) -> Outputs:
    """What one way of a solve found, ``ys`` ``(B, T, dim)`` and its events."""
    return Outputs.without_events(ys) if met is None else Outputs(ys, met.t, met.y)


@dataclass(frozen=True)
class Solution:
    """Trajectories at the requested times.

    ``ts`` ``(T,)`` or ``(*batch, T)`` in float64; ``ys`` ``(*batch, T, dim)``; ``status`` ``(*batch,)`` of
    :class:`physnode.engine.status.Status` values (0 means that the end, or a terminal event, was reached). Where a trajectory
    failed or ended on an event, ``ys`` is NaN from there on. For structured states ``ys`` has their structure.
    """

    ts: Tensor
    ys: Any
    stats: Statistics
    status: Tensor
    reached: Tensor
    """The last time each trajectory got to, ``(*batch,)``."""
    last_step: Tensor
    """The length of each trajectory's last trial step, ``(*batch,)``."""
    events: Events
    """The events met; empty where none were asked for."""
    field: VectorField
    gradient: Gradient
    pieces: tuple[Piece, ...]
    """The accepted steps, forward and backward from the epoch; empty unless ``dense`` or a gradient was asked for."""
    dense: bool
    adapter: StateAdapter | None = None
    """How a structured state is laid out; None for a plain tensor."""

    @property
    def ok(self) -> Tensor:
        """Which trajectories reached their end, ``(*batch,)`` bool."""
        return self.status == 0

    @property
    def failures(self) -> str:
        """One line a kind of failure, naming trajectories, times and remedies; empty if there is none."""
        batch = tuple(self.status.shape)
        return describe_failures(self.status.reshape(-1), self.reached.reshape(-1), self.last_step.reshape(-1), batch)

    def at(self, times: Sequence[float] | Tensor | np.ndarray[Any, Any] | float) -> Any:
        """States at any times inside the span, from the recorded steps; needs ``dense=True``.

        Args:
            times: a number, ``(T',)`` or ``(*batch, T')``, in any order.

        Returns:
            ``(*batch, T', dim)``, or ``(*batch, dim)`` for a number; differentiable like ``ys``.

        Raises:
            InputError: the solve was not dense, or a time lies outside its span.
            GradientError: a parameter of the field, or a constant that it reads, was changed since the solve.
        """
        if not self.dense:
            raise InputError("sol.at needs the steps of the solve; call solve(..., dense=True)")
        wanted = torch.as_tensor(times, dtype=torch.float64, device=self.status.device)
        scalar = wanted.ndim == 0
        batch = tuple(self.status.shape)
        rows = max(1, self.status.numel())
        wanted = wanted.reshape(1) if scalar else wanted
        if wanted.ndim > 1 and tuple(wanted.shape[:-1]) != batch:
            raise InputError(
                f"sol.at was given times with leading axes {tuple(wanted.shape[:-1])} for the batch {batch}; "
                "give a number, (T,) for all, or (*batch, T)"
            )
        wanted = wanted.expand(*batch, wanted.shape[-1]).reshape(rows, -1)
        low = torch.stack([torch.minimum(p.replay.span.t0, p.replay.span.t1) for p in self.pieces]).amin(0).unsqueeze(-1)
        high = torch.stack([torch.maximum(p.replay.span.t0, p.replay.span.t1) for p in self.pieces]).amax(0).unsqueeze(-1)
        outside = ~((wanted.detach() >= low) & (wanted.detach() <= high))
        if bool(outside.any()):
            raise InputError(
                f"sol.at was asked for t = {float(wanted[outside][0]):.6g}, outside the solved span "
                f"[{float(low.min()):.6g}, {float(high.max()):.6g}]; solve for a longer span"
            )
        values: Tensor | None = None
        for piece in self.pieces:
            span = piece.replay.span
            mine = (wanted - span.t0.unsqueeze(-1)) * span.direction.unsqueeze(-1) >= 0
            replay = piece.replay.at(torch.where(mine, wanted, span.t0.unsqueeze(-1)))
            if piece is self.pieces[0]:
                replay.bound_to(replay.theta, partial(refuse_another_field, replay, piece.y0))
            found = replay.bound_to(replay.theta, partial(replay.read, piece.y0))
            if torch.is_grad_enabled() and (piece.y0.requires_grad or replay.theta or replay.moving is not None):
                found = self.gradient.attach(replay, outputs_of(found, piece.met), piece.y0).ys
            values = found if values is None else torch.where(mine.unsqueeze(-1), found, values)
        assert values is not None
        first = self.pieces[0]
        epoch = first.replay.span.t0 if first.replay.moving is None else first.replay.moving.t0
        values = moved_start(first.replay.f, epoch, wanted, first.y0, values)
        shaped = values.reshape(*batch, wanted.shape[-1], values.shape[-1])
        shaped = shaped.squeeze(-2) if scalar else shaped
        return shaped if self.adapter is None else self.adapter.unflatten(shaped)

    @property
    def flat(self) -> Tensor:
        """``ys`` as one real tensor ``(*batch, T, dim)``, whatever the structure of the state."""
        return self.ys if self.adapter is None else self.adapter.joined(self.ys, tuple(self.status.shape), self.ts.shape[-1])

    def invariants(self) -> dict[str, Tensor]:
        """What the field says is conserved, along the trajectories: each ``(*batch, T)``.

        Raises:
            InputError: the field declares no invariants (a sum with a learned term declares none).
        """
        ys = self.flat
        times = self.ts.to(ys.dtype).expand(ys.shape[:-1]).unsqueeze(-1)
        found = self.field.invariants(times, ys)
        if not found:
            raise InputError(f"{type(self.field).__name__} declares no invariants; ask the known term of a sum, or write them")
        return found

    def plot(self) -> Figure:
        """Each component against time, one line a trajectory; a matplotlib figure that is not shown."""
        from matplotlib.figure import Figure

        ys = self.flat
        dim = ys.shape[-1]
        figure = Figure(figsize=(8, 1.5 + 1.4 * dim), layout="constrained")
        axes = figure.subplots(dim, 1, sharex=True, squeeze=False)[:, 0]
        values = ys.detach().cpu().reshape(-1, ys.shape[-2], dim)
        times = self.ts.cpu().expand(ys.shape[:-1]).reshape(-1, ys.shape[-2])
        for component, axis in enumerate(axes):
            for row in range(len(values)):
                axis.plot(times[row].numpy(), values[row, :, component].numpy(), linewidth=1)
            axis.set_ylabel(f"y[{component}]")
        axes[-1].set_xlabel("t")
        return figure

    def __repr__(self) -> str:
        good = int(self.ok.sum())
        return f"Solution(ys={tuple(self.flat.shape)}, ok={good} of {max(1, self.ok.numel())}, {self.stats})"


def _range(value: Tensor) -> str:
    low, high = int(value.min()), int(value.max())
    return str(low) if low == high else f"{low} to {high}"
