"""The fit as mathematics: from a vector of unknowns to residuals, their Jacobian, and a loss with its gradient.

Unknowns: the shared parameters (physical scalars, then weights), then one initial state a window. Rows of the residual
vector, all in units of one standard deviation:

    (measured - predicted) / sigma                      one row a measured scalar
    weight (end of a window - start of the next) / s    one row a component and inner window boundary
    (parameter - prior mean) / prior sigma              one row a prior
    sqrt(strength M / V) learned term / its scale       one row a component and visited state (V of them)

The Jacobian is found in forward mode on the recorded steps: one tangent for each shared parameter and one for each state
component, which serves all windows at once, since no window's initial state moves another window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from physnode.engine.controllers import Adaptive, Controller
from physnode.engine.families.base import Method
from physnode.errors import FitError, InputError
from physnode.fields import SecondOrder, Sum, VectorField, split_state
from physnode.fitting.forward_mode import forward_jacobians
from physnode.fitting.measurements import Measurements, Observe, Windows
from physnode.fitting.parameters import Prior, Shared, fields_in
from physnode.gradients import Gradient
from physnode.gradients.binding import with_tensors
from physnode.gradients.forward import tangents
from physnode.gradients.replay import Replay
from physnode.native.choice import Choice
from physnode.solution import Solution
from physnode.solve import solve

__all__ = ["Problem", "Rows", "Solver", "learned_terms"]

_FAILED = 1e6


@dataclass(frozen=True)
class Solver:
    """How trajectories are integrated during a fit."""

    method: str | Method = "dop853"
    controller: Controller = field(default_factory=lambda: Adaptive(rtol=1e-8, atol=1e-10))
    gradient: str | Gradient = "aca"
    compile: Choice = False


@dataclass(frozen=True)
class Rows:
    """Residual rows by kind, each a flat tensor."""

    data: Tensor
    continuity: Tensor
    prior: Tensor
    learned: Tensor

    @property
    def all(self) -> Tensor:
        """All rows, in this order."""
        return torch.cat((self.data, self.continuity, self.prior, self.learned))


@dataclass(frozen=True)
class Problem:
    """One fit: a model, windows of data, and what else is known."""

    model: VectorField
    shared: Shared
    windows: Windows
    measured: Measurements
    solver: Solver
    sigma: Tensor
    """Standard deviation of each measured entry, ``(S, T, C)``."""
    state_scale: Tensor
    """A typical size of each state component, ``(dim,)``."""
    observe: Observe | None = None
    continuity: float = 0.0
    """Weight of the continuity rows."""
    priors: Mapping[str, Prior] | None = None
    strength: float = 0.0
    """Weight of the learned term's own size; it picks the smallest learned term among those that fit equally well."""
    visited: Tensor | None = None
    """States ``(V, dim)`` at which the learned term's size is measured."""
    states_free: bool = True
    """Whether initial states are unknowns."""
    known_states: Tensor | None = None
    """Initial states ``(S, dim)`` where they are not unknowns."""

    @property
    def dim(self) -> int:
        """Components of the state."""
        return len(self.state_scale)

    @property
    def count(self) -> int:
        """Number of windows."""
        return len(self.windows.t)

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return self.shared.size + (self.count * self.dim if self.states_free else 0)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(shared parameters, initial states ``(S, dim)``)."""
        shared = x[: self.shared.size]
        if self.states_free:
            return shared, x[self.shared.size :].reshape(self.count, self.dim)
        assert self.known_states is not None
        return shared, self.known_states

    def solve(self, x: Tensor, *, dense: bool = False) -> Solution:
        """The trajectories of one vector; failed windows are NaN."""
        shared, states = self.split(x)
        return with_tensors(self.model, self.shared.unpack(shared), lambda: self._integrate(states, dense))

    def rows(self, x: Tensor, solution: Solution | None = None) -> Rows:
        """Residual rows at ``x``; windows that could not be integrated give large, finite rows."""
        shared, states = self.split(x)
        solution = self.solve(x) if solution is None else solution
        return self._rows(shared, states, solution.ys, self.shared.unpack(shared))

    def jacobian(self, x: Tensor, solution: Solution, chunk: int | None = None) -> Tensor:
        """d rows / d x at ``x``, dense ``(rows, unknowns)``; ``solution`` is the dense solve at this ``x``.

        Tangents that belong to the initial state of one window fill only that window's rows.
        """
        shared, states = self.split(x)
        p = len(shared)
        [piece] = solution.pieces
        width = p + (self.dim if self.states_free else 0)
        size = chunk or max(1, min(width, int(2e7 // max(1, piece.replay.times.numel() * max(self.dim, 16)))))
        bases = torch.split(torch.eye(width, dtype=x.dtype), size)
        parts = [self._columns(shared, states, piece.replay, basis) for basis in bases]
        predicted, ends = (torch.cat(pieces).movedim(0, -1) for pieces in zip(*parts, strict=True))
        prior, learned = forward_jacobians(
            lambda v: (self._prior_rows(v), self._learned_rows(self.shared.unpack(v))), shared, max(1, size)
        )
        by_window = -predicted / self.sigma.unsqueeze(-1)
        mask = self.windows.mask
        ok = piece.replay.ok.view(-1, 1, 1, 1)
        by_window = torch.where(ok, by_window, 0.0)
        rows = by_window[mask]
        window_of = torch.arange(self.count).view(-1, 1, 1).expand(mask.shape)[mask]
        inner = (self.windows.following >= 0).nonzero().flatten()
        scaled = self.continuity / self.state_scale.view(1, -1, 1) * torch.where(ok[..., 0], ends, 0.0)
        jump = scaled[inner].reshape(len(inner) * self.dim, width)
        out = x.new_zeros(len(rows) + len(jump) + len(prior) + len(learned), self.size)
        top = len(rows)
        out[:top, :p] = rows[:, :p]
        out[top : top + len(jump), :p] = jump[:, :p]
        if self.states_free:
            component = torch.arange(self.dim)
            place = p + window_of.unsqueeze(-1) * self.dim + component
            out[:top].scatter_(1, place, rows[:, p:])
            if len(inner):
                own = p + inner.repeat_interleave(self.dim).unsqueeze(-1) * self.dim + component
                out[top : top + len(jump)].scatter_(1, own, jump[:, p:])
                nxt = p + self.windows.following[inner].unsqueeze(-1) * self.dim + component
                lines = top + torch.arange(len(jump))
                out[lines, nxt.reshape(-1)] -= self.continuity / self.state_scale.repeat(len(inner))
        bottom = top + len(jump)
        out[bottom : bottom + len(prior), :p] = prior
        out[bottom + len(prior) :, :p] = learned
        return out

    def _columns(self, shared: Tensor, states: Tensor, replay: Replay, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Changes of predictions ``(P, S, T, C)`` and of window ends ``(P, S, dim)`` along rows of ``basis``."""
        p = len(shared)
        dstates = basis[:, p:].unsqueeze(1).expand(-1, self.count, -1) if self.states_free else None
        theta = self.shared.unpack(shared)
        dtheta = torch.func.vmap(lambda v: torch.func.jvp(self.shared.unpack, (shared,), (v,))[1])(basis[:, :p]) if p else {}
        dy0 = states.new_zeros(len(basis), *states.shape) if dstates is None else dstates.contiguous()
        dys = tangents(replay, states, dy0, theta, dtheta)
        ends = dys[:, torch.arange(self.count), self.windows.last]
        if self.observe is None:
            return self._predicted(dys), ends
        ys = replay.run(replay.f, states).ys
        changes = torch.func.vmap(lambda dy: torch.func.jvp(self._predicted, (ys,), (dy,))[1])(dys)
        return changes, ends

    def loss(self, x: Tensor) -> Tensor:
        """Half the sum of squared rows over the number of measurements: near 1/2 at the noise.

        The solve is differentiated with respect to the model's own tensors, and the result is tied to ``x`` afterwards: what a
        sweep reads are then leaves, which is its fast path.
        """
        shared, states = self.split(x)
        tied = self.shared.unpack(shared)
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in tied.items()}
        start = states.detach().requires_grad_(self.states_free)
        prior = shared.detach().requires_grad_()
        solution = with_tensors(self.model, leaves, lambda: self._integrate(start, dense=False))
        if not bool(solution.ok.all()):
            raise FitError(f"the model could not be integrated during the fit:\n{solution.failures}")
        rows = self._rows(prior, start, solution.ys, leaves).all
        value = 0.5 * rows.square().sum() / max(1, int(self.windows.mask.sum()))
        if not x.requires_grad:
            return value.detach()
        wanted = [*leaves.values(), prior, *([start] if self.states_free else [])]
        ends = [*tied.values(), shared, *([states] if self.states_free else [])]
        found = torch.autograd.grad(value, wanted, allow_unused=True)
        linear = [(end * back).sum() for end, back in zip(ends, found, strict=True) if back is not None]
        total = torch.stack(linear).sum()
        return value.detach() + total - total.detach()

    def predicted(self, solution: Solution) -> Tensor:
        """What would be measured, ``(S, T, C)``."""
        return self._predicted(solution.ys)

    def residuals(self, x: Tensor, solution: Solution | None = None) -> list[Tensor]:
        """Measured minus predicted where each window is a whole trajectory, ``(n_i, C)``; NaN where nothing was measured."""
        predicted = self.predicted(self.solve(x) if solution is None else solution)
        difference = torch.where(self.windows.mask, self.windows.values - predicted, torch.nan)
        return [difference[i, : len(t)] for i, t in enumerate(self.measured.t)]

    def _integrate(self, states: Tensor, dense: bool) -> Solution:
        return solve(
            self.model,
            states,
            self.windows.t,
            t0=self.windows.t[:, 0],
            method=self.solver.method,
            controller=self.solver.controller,
            gradient=self.solver.gradient,
            compile=self.solver.compile,
            dense=dense,
            on_failure="report",
        )

    def _predicted(self, ys: Tensor) -> Tensor:
        if self.observe is None:
            assert self.measured.state_columns is not None
            return ys[..., list(self.measured.state_columns)]
        found = self.observe(self.windows.t.unsqueeze(-1), ys)
        return torch.cat([value.reshape(*ys.shape[:-1], -1) for value in found.values()], dim=-1)

    def _rows(self, shared: Tensor, states: Tensor, ys: Tensor, tensors: dict[str, Tensor]) -> Rows:
        mask = self.windows.mask
        data = ((self.windows.values - self._predicted(ys)) / self.sigma)[mask]
        inner = self.windows.following >= 0
        ends = ys[torch.arange(self.count), self.windows.last]
        gap = (ends[inner] - states[self.windows.following[inner]]) * (self.continuity / self.state_scale)
        return Rows(
            torch.nan_to_num(data, nan=_FAILED, posinf=_FAILED, neginf=-_FAILED),
            torch.nan_to_num(gap.reshape(-1), nan=_FAILED, posinf=_FAILED, neginf=-_FAILED),
            self._prior_rows(shared),
            self._learned_rows(tensors),
        )

    def _prior_rows(self, shared: Tensor) -> Tensor:
        names = [scalar.name for scalar in self.shared.free]
        chosen = [(names.index(name), prior) for name, prior in (self.priors or {}).items()]
        if not chosen:
            return shared.new_zeros(0)
        return torch.stack([(shared[i] - prior.mean) / prior.sigma for i, prior in chosen])

    def _learned_rows(self, tensors: dict[str, Tensor]) -> Tensor:
        if not self.strength or self.visited is None:
            return self.state_scale.new_zeros(0)
        visited = self.visited
        t = visited.new_zeros(len(visited), 1)
        values = with_tensors(
            self.model, tensors, lambda: [learned_value(term, t, visited) for term in learned_terms(self.model)]
        )
        weight = (self.strength * float(self.windows.mask.sum()) / len(visited)) ** 0.5
        return torch.cat([(weight * value).reshape(-1) for value in values])


def learned_terms(model: VectorField) -> list[VectorField]:
    """The terms of a model that hold network weights and no physical constant: what a fit learns."""
    terms = list(model.terms) if isinstance(model, Sum) else [model]
    found = []
    for term in terms:
        assert isinstance(term, VectorField)
        fields = fields_in(term)
        weights = any(True for module in term.modules() if module not in fields for _ in module.parameters(recurse=False))
        if weights and not any(True for module in fields for _ in module.parameters(recurse=False)):
            found.append(term)
    return found


def learned_value(term: VectorField, t: Tensor, y: Tensor) -> Tensor:
    """The learned term at states ``y``, in units of its own output scale where it has one."""
    if isinstance(term, SecondOrder):
        q, v = split_state(y)
        value = term.acceleration(t, q, v)
    else:
        value = term(t, y)
    scale = [buffer for name, buffer in term.named_buffers() if name.endswith("output_scale")]
    return value / scale[0] if len(scale) == 1 else value


def returned_widths(observe: Callable[[Tensor, Tensor], Mapping[str, Tensor]], dim: int) -> dict[str, int]:
    """Names and widths of what an observation function returns for states of ``dim`` components.

    Raises:
        InputError: it fails, or returns something other than a dictionary of tensors with the leading axes of the state.
    """
    t, y = torch.zeros(2, 3, 1, dtype=torch.float64), torch.ones(2, 3, dim, dtype=torch.float64)
    try:
        found = observe(t, y)
    except Exception as error:
        raise InputError(
            f"observe failed when it was tried on t (2, 3, 1) and y (2, 3, {dim}): {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"observe must return a dictionary of name to tensor; found {type(found).__name__}")
    for name, value in found.items():
        if not isinstance(value, Tensor) or tuple(value.shape[:2]) != (2, 3):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f'observe must return tensors with the leading axes of y, (*batch, T); "{name}" has {shape}')
    return {name: value[0, 0].numel() for name, value in found.items()}
