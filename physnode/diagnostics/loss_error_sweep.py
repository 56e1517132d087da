"""One backward sweep over recorded steps that weighs the local error of each with its adjoint state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from physnode.diagnostics.better_steps import better_step
from physnode.engine.families.base import Step
from physnode.gradients import Replay
from physnode.gradients.starts import starts_backward

__all__ = ["Contributions", "sweep"]


@dataclass(frozen=True)
class Contributions:
    """What each step adds to a loss, ``(B, N)`` each, in float64."""

    t: Tensor
    """Where steps start; NaN beyond a row's own number."""
    t_end: Tensor
    sharp: Tensor
    """By a better step: λ_{n+1} · e_n, and what the outputs inside the step add."""
    embedded: Tensor | None
    """λ_{n+1} · e_n with the method's own estimate of e_n."""
    weight: Tensor
    """Σ_i (λ_{n+1,i} y_{n+1,i})², by which the rounding of states is weighed."""

    @classmethod
    def joined(cls, ways: Sequence[Contributions]) -> Contributions:
        """Those of all ways of a solve in order of time, each row's own at the front."""
        t, t_end = torch.cat([way.t for way in ways], -1), torch.cat([way.t_end for way in ways], -1)
        order = torch.nan_to_num(torch.minimum(t, t_end), nan=torch.inf).argsort(dim=-1, stable=True)
        most = int(torch.isfinite(t).sum(-1).max()) if t.numel() else 0
        order = order[:, :most]

        def arranged(values: Sequence[Tensor]) -> Tensor:
            return torch.cat(list(values), -1).gather(-1, order)

        estimates = [way.embedded for way in ways if way.embedded is not None]
        return cls(
            t.gather(-1, order),
            t_end.gather(-1, order),
            arranged([way.sharp for way in ways]),
            arranged(estimates) if len(estimates) == len(ways) else None,
            arranged([way.weight for way in ways]),
        )


def sweep(replay: Replay, gamma: Tensor) -> Contributions:
    """Weigh the steps of ``replay``, whose failed trajectories rest, for ∂L/∂y ``gamma`` ``(B, T, dim)``."""
    records, plan, method = replay.records, replay.plan, replay.method
    rows_total, slots = len(gamma), records.slots
    sharp = torch.zeros(slots, rows_total, dtype=torch.float64, device=gamma.device)
    embedded, weight = torch.zeros_like(sharp), torch.zeros_like(sharp)
    owed = torch.zeros_like(gamma[:, 0])
    following: Tensor | None = None
    for slot, y, _ in starts_backward(replay):
        t, t_end = records.t[slot], records.t_end[slot]
        active = records.active(slot)
        moved = active.unsqueeze(-1)
        here = plan.within(slot)
        rows, fractions = plan.rows[here], plan.fractions[here]
        given, inner = gamma[rows, plan.columns[here]], fractions != 1.0
        owed = torch.where(moved, owed, 0.0)
        back, step, values = _pull_back(replay, slot, y, owed, given)
        with torch.no_grad():
            f = replay.f.on_step(t, t_end)
            change, better = better_step(f, method, replay.read_out, t, t_end, y, rows[inner], fractions[inner])
            adjoint = owed.index_add(0, rows[~inner], given[~inner])
            # the end as the solve made it, rounding and unfinished iterations included; of the last step, as it is made again
            end = step.y if following is None else torch.where((slot + 1 < records.count).unsqueeze(-1), following, step.y)
            sharp[slot] = torch.where(active, _product(adjoint, (end - y) - change), 0.0)
            sharp[slot].index_add_(0, rows[inner], _product(given[inner], values[inner] - better))
            weight[slot] = (adjoint.double() * end.double()).square().sum(-1)
            if method.error_order is not None:
                error = step.error or replay.step(replay.f, slot, y)[0].error
                embedded[slot] = torch.where(active, _product(adjoint, _combined(error)), 0.0)
        owed, following = torch.where(moved, back, owed), y.clone()  # its place may be given to another state
    resting = torch.arange(slots, device=gamma.device).unsqueeze(-1) >= records.count
    return Contributions(
        torch.where(resting, torch.nan, records.t).T,
        torch.where(resting, torch.nan, records.t_end).T,
        sharp.T,
        None if method.error_order is None else embedded.T,
        torch.where(resting, 0.0, weight).T,
    )


def _pull_back(replay: Replay, slot: int, y: Tensor, owed: Tensor, given: Tensor) -> tuple[Tensor, Step, Tensor]:
    """The adjoint state at the start of a slot, its steps, and the outputs inside them."""
    with torch.enable_grad():
        start = y.clone().requires_grad_()
        step, values = replay.step(replay.f, slot, start)
        (back,) = torch.autograd.grad((step.y, values), start, (owed, given))
    return back, step, values


def _product(weights: Tensor, errors: Tensor) -> Tensor:
    return (weights.double() * errors.double()).sum(-1)


def _combined(errors: Sequence[Tensor]) -> Tensor:
    """One estimate from one, or from the fifth- and third-order pair of an eighth-order method, component by component.

    Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, II.10, eq. 10.17.
    """
    if len(errors) == 1:
        return errors[0]
    fifth, third = errors
    denominator = (fifth.square() + 0.01 * third.square()).sqrt()
    return torch.where(denominator > 0, fifth * fifth.abs() / denominator, 0.0)
