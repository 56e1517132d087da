"""How far a loss is off because the solve behind it is not exact, and where in time that error is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from physnode.diagnostics.loss_error_sweep import Contributions, sweep
from physnode.engine.families.base import Method
from physnode.errors import InputError
from physnode.solution import Solution
from physnode.torch_internals import is_wrapped

__all__ = ["LossError", "loss_error"]

_COARSEST = 0.01
"""The largest rtol that is ever advised: beyond it, errors are no longer proportional to it."""


@dataclass(frozen=True)
class LossError:
    """What the steps of a solve add to a loss. Print it, or see :func:`loss_error` for what each number means."""

    loss: float
    """The loss as it was computed."""
    estimate: float
    """Computed minus true loss, with its sign; failed trajectories are left out."""
    indicator: float | None
    """The size of the error by the method's own error estimates, mostly too large; None where the method has none."""
    rounding: float
    """About what rounding of the states adds to the loss: below this, an estimate says nothing."""
    parts: Tensor
    """The share of each trajectory in ``estimate``, ``(*batch,)``; they add up to it."""
    indicator_parts: Tensor | None
    """The indicator of each trajectory alone, ``(*batch,)``."""
    per_step: Tensor
    """The share of each accepted step, ``(*batch, N)`` in order of time; 0 beyond a trajectory's own number of steps."""
    t: Tensor
    """Where the steps start, ``(*batch, N)``; NaN beyond a trajectory's own number."""
    t_end: Tensor
    """Where they end; before ``t`` for a solve that goes backward in time."""
    ok: Tensor
    """Which trajectories count, ``(*batch,)`` bool."""
    method: Method
    rtol: float | None
    """The relative tolerance of the solve; None for fixed steps."""

    @property
    def corrected(self) -> float:
        """The loss without the estimated error."""
        return self.loss - self.estimate

    def largest(self, count: int = 5) -> list[tuple[tuple[int, ...], float, float, float]]:
        """The steps that add most: (trajectory, start, end, share), the largest share first."""
        flat = self.per_step.reshape(-1)
        found = []
        for place in flat.abs().argsort(descending=True, stable=True)[:count].tolist():
            index = torch.unravel_index(torch.tensor(place), self.per_step.shape)
            where = tuple(int(i) for i in index)
            if bool(torch.isfinite(self.t[where])):
                found.append((where[:-1], float(self.t[where]), float(self.t_end[where]), float(self.per_step[where])))
        return found

    def rtol_for(self, error: float) -> float:
        """The ``rtol`` at which the loss would be off by about ``error``, with ``atol`` changed in the same proportion.

        A controller keeps the estimated error of a step, which falls like h^(q+1), at the tolerance, while the error of the
        solve falls like h^p: error ~ rtol^(p/(q+1)). For a pair that goes on with its better result (local extrapolation:
        p = q + 1, all embedded explicit pairs here) errors are proportional to tolerances. That holds on the average, and
        not where errors of different signs happen to cancel; what is extrapolated is therefore the larger of the estimate
        and of the root of the sum of the squares of its parts. Over 20 starts each of four systems, asked for a tenth and a
        hundredth of the error at 1e-6 (bosh3: 1e-5), the median of reached over wanted was 0.3 to 1.1, and it was above 3
        for none with tsit5, dopri5 and bosh3; with dop853, whose steps are few and long, 0.1 to 1.3, and above 3 for one in
        ten. Asking for a larger
        error is less certain, and above 0.01 nothing is advised. The advice lies on the safe side more often than not: ask
        again at the new tolerance.

        Raises:
            InputError: ``error`` is not positive or is below rounding, or the solve had fixed steps.
        """
        if not error > 0:
            raise InputError(f"error must be positive; found {error!r}")
        size = max(abs(self.estimate), float(self.per_step.square().sum().sqrt()))
        if self.rtol is None or self.method.error_order is None:
            factor = 1.0 if size == 0 else (error / size) ** (1 / self.method.order)
            raise InputError(f"the solve had fixed steps, and no rtol; give Fixed steps about {factor:.3g} times as long")
        if error < self.rounding:
            raise InputError(
                f"an error of {error:.2g} is below what rounding alone adds to this loss, about {self.rounding:.2g}; "
                "ask for more, or solve in float64"
            )
        if size == 0:
            return self.rtol
        wanted: float = self.rtol * (error / size) ** ((self.method.error_order + 1) / self.method.order)
        return min(_COARSEST, wanted)

    def __str__(self) -> str:
        share = f" ({abs(self.estimate / self.loss):.2g} of it)" if self.loss else ""
        lines = [
            f"loss              {self.loss:.10g}",
            f"estimated error   {self.estimate:+.3g}{share}; the loss without it: {self.corrected:.10g}",
        ]
        if self.indicator is not None:
            lines.append(f"indicator         {self.indicator:.3g}, by the error estimates of {self.method.name}")
        lines.append(f"rounding          about {self.rounding:.1g}")
        if not bool(self.ok.all()):
            lines.append(f"left out          {int((~self.ok).sum())} failed trajectories")
        for number, (where, start, end, part) in enumerate(self.largest(3)):
            place = f" of trajectory {where[0] if len(where) == 1 else where}" if where else ""
            lines.append(f"{'' if number else 'made mostly in':18}t = {start:.6g} to {end:.6g}{place}: {part:+.3g}")
        return "\n".join(lines)


def loss_error(sol: Solution, loss: Callable[[Any], Tensor]) -> LossError:
    """Estimate how far ``loss(sol.ys)`` is off because ``sol`` was made with steps of finite length.

    With γ_m = ∂L/∂y(t_m) the adjoint states λ_n = (∂y_{n+1}/∂y_n)ᵀ λ_{n+1} + (outputs inside the step) of the recorded steps
    say what an error of the state is worth. To first order in the errors

        L(computed) - L(true) = Σ_n λ_{n+1} · e_n + Σ_m γ_m · (y_m - ŷ_m),

    with e_n the local error of step n: where it ended minus where a better step from the same start ends. Outputs inside a
    step add what their interpolation is off, ŷ_m being the better value there. The better step is one of DOP853, for methods
    of order 8 and above and for implicit ones two half steps, extrapolated. This is ``estimate``: right to a few per cent
    where errors are small, to a factor of two at rtol = 1e-4 where steps are barely shorter than the motion. The cost is one
    gradient (as by ACA, without parameters) and one better step a record. What is off in a model, or in the data, is not seen.

    ``indicator`` takes e_n from the method's embedded error estimate in its place: the larger of the absolute sum of all
    λ_{n+1} · e_n and the root of the sum of their squares. It is mostly too large, since the embedded estimate belongs to
    the lower order of the pair. On pendulum, three bodies and a learned field at tolerances of 1e-4 to 1e-8 it was 1 to 45
    times the true error (root mean square over 20 starts) with bosh3, dopri5, tsit5 and dop853, and below half of it for 1 %
    of the trajectories. The plain sum was that for 4 % of them, by cancelling, and the squares alone for 5 %; the sum of
    absolute values never was, but it went beyond 100 times the error. With heun, dprkn6 and radau5, whose estimates are much
    larger than their errors, the indicator is hundreds to thousands of times too large; where tolerances are too loose to
    resolve the field it can be too small. It does not see what interpolation between steps is off.

    In float32 the better steps are float32 too, and errors below ``rounding`` are not seen. Jumps of the field, ``args``,
    solves that go both ways in time and structured states are taken as they are. Source of local errors weighed by adjoint
    states: Cao & Petzold, A posteriori error estimation and global error control for ordinary differential equations by the
    adjoint method, SIAM J. Sci. Comput. 26 (2004) 359.

    Args:
        sol: a solution made with ``dense=True``, or with a gradient that keeps steps ("aca", "symplectic").
        loss: a function of ``sol.ys``, in the structure of the state, that gives one number.

    Raises:
        InputError: ``sol`` has no steps, has met events, or was made inside a ``torch.func`` transform; or the loss is not one
            finite number that depends on the states.
        GradientError: a parameter of the field was changed in place since the solve.
    """
    if not sol.pieces or any(p.replay.records.slots and not p.replay.records.y.has(0) for p in sol.pieces):
        raise InputError(
            "loss_error needs the states from which steps started; call solve(..., dense=True), or solve with "
            'gradient="aca" or "symplectic"'
        )
    for piece in sol.pieces:
        event = piece.replay.records.event
        if event is not None and bool((event >= 0).any()):
            raise InputError(
                "loss_error does not know the error that the times of events add; solve without events, or up to the first one"
            )
    flat = sol.flat.detach()
    if is_wrapped(flat):
        raise InputError("loss_error cannot look into a solution made inside a torch.func transform; call it outside")
    value, gamma = _slopes(sol, loss, flat)
    batch = tuple(sol.status.shape)
    found: list[Contributions] = []
    for piece in sol.pieces:
        replay = piece.replay.at(piece.replay.times).without_failures()
        found.append(replay.bound_to(replay.theta, partial(sweep, replay, gamma)))
    whole = Contributions.joined(found)
    replay = sol.pieces[0].replay
    embedded = whole.embedded
    return LossError(
        loss=value,
        estimate=float(whole.sharp.sum()),
        indicator=None if embedded is None else float(_size(embedded.reshape(1, -1))),
        rounding=torch.finfo(flat.dtype).eps * float(whole.weight.sum().sqrt()),
        parts=whole.sharp.sum(-1).reshape(batch),
        indicator_parts=None if embedded is None else _size(embedded).reshape(batch),
        per_step=whole.sharp.reshape(*batch, -1),
        t=whole.t.reshape(*batch, -1),
        t_end=whole.t_end.reshape(*batch, -1),
        ok=sol.ok,
        method=replay.method,
        rtol=replay.controller.relative_tolerance(flat.dtype),
    )


def _size(terms: Tensor) -> Tensor:
    """The larger of |Σ| and the root of the sum of squares along the last axis."""
    return torch.maximum(terms.sum(-1).abs(), terms.square().sum(-1).sqrt())


def _slopes(sol: Solution, loss: Callable[[Any], Tensor], flat: Tensor) -> tuple[float, Tensor]:
    """The loss, and ∂L/∂y ``(B, T, dim)`` of the trajectories that are well; 0 for the others."""
    with torch.enable_grad():
        states = flat.clone().requires_grad_()
        value = loss(states if sol.adapter is None else sol.adapter.unflatten(states))
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"the loss must be one number, a tensor of shape (); found {shape}")
        if not value.requires_grad:
            raise InputError("the loss does not depend on the states; it must be a differentiable function of sol.ys")
        if not bool(torch.isfinite(value)):
            hint = "; failed trajectories are NaN: write the loss over ys[sol.ok]" if not bool(sol.ok.all()) else ""
            raise InputError(f"the loss must be finite; found {float(value.detach())}{hint}")
        (slopes,) = torch.autograd.grad(value.sum(), states, allow_unused=True)
    if slopes is None:
        raise InputError("the loss does not depend on the states; it must be a differentiable function of sol.ys")
    slopes = torch.where(sol.ok[..., None, None], slopes, 0.0)
    if not bool(torch.isfinite(slopes).all()):
        raise InputError("the loss has no finite derivative at these states (a root or a logarithm at zero?)")
    return float(value.detach()), slopes.reshape(-1, *slopes.shape[-2:])
