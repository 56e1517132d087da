"""Steps as long as a tolerance allows.

Sources: Hairer, Norsett, Wanner, Solving ODEs I, II.4 (error norm, starting step, factor limits) and II.10 (two estimates);
Söderlind, Digital filters in adaptive time-stepping, ACM TOMS 29 (2003) (PI and PID coefficients).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor

from physnode.engine.controllers.base import Controller, Span, Verdict
from physnode.engine.families.base import Method, Step
from physnode.engine.field_function import FieldFunction
from physnode.errors import InputError

__all__ = ["Adaptive"]

_DEFAULT_TOLERANCES = {torch.float64: (1e-6, 1e-9), torch.float32: (1e-4, 1e-6)}


class Adaptive(Controller):
    """Steps whose estimated local error meets ``atol + rtol max(|x_n|, |x_{n+1}|)`` in the root mean square over the state.

    The next step is h · clip(safety · e_n^β1 e_{n-1}^β2 e_{n-2}^β3) with e = (1 / error ratio)^(1/(q+1)), q the order of the
    estimate, β1 = i + p + d, β2 = -(p + 2d), β3 = d. The default is integral control, as in Hairer's codes.

    Args:
        rtol: relative tolerance; by default 1e-6 for float64 states, 1e-4 for float32.
        atol: absolute tolerance, a number or one per component ``(dim,)``; by default 1e-9 for float64, 1e-6 for float32, times
            the largest entry of a trajectory's first state where that is below 1, so that small units are no coarser.
        per_trajectory: one step size per trajectory; False: all trajectories share the smallest.
        first_step: length of the first trial; None: Hairer's starting-step algorithm (two evaluations).
        min_step, max_step: limits of a step's length. A trial refused at ``min_step`` fails the trajectory.
        safety, min_factor, max_factor: the constants of the formula.
        icoeff, pcoeff, dcoeff: i, p, d; (0.3, 0.4, 0) is a common PI controller (Söderlind 2003).
        norm: the error ratio ``(B,)`` from errors over their tolerances ``(B, dim)``, in place of the root mean square; for
            states whose parts are to be judged apart.
    """

    def __init__(
        self,
        rtol: float | None = None,
        atol: float | Sequence[float] | Tensor | None = None,
        *,
        per_trajectory: bool = True,
        first_step: float | None = None,
        min_step: float = 0.0,
        max_step: float = float("inf"),
        safety: float = 0.9,
        min_factor: float = 0.2,
        max_factor: float = 10.0,
        icoeff: float = 1.0,
        pcoeff: float = 0.0,
        dcoeff: float = 0.0,
        norm: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if rtol is not None and not rtol >= 0:
            raise InputError(f"rtol must not be negative; found {rtol!r}")
        atol_tensor = None if atol is None else torch.as_tensor(atol, dtype=torch.float64).detach()
        if atol_tensor is not None and not bool((atol_tensor >= 0).all()):
            raise InputError(f"atol must not be negative; found {atol!r}")
        if rtol == 0 and atol_tensor is not None and bool((atol_tensor == 0).any()):
            raise InputError("rtol and atol are both zero for some component; give at least one of them a positive value")
        if first_step is not None and not first_step > 0:
            raise InputError(f"first_step must be positive; found {first_step!r}")
        if not 0 <= min_step <= max_step:
            raise InputError(f"steps need 0 <= min_step <= max_step; found {min_step!r} and {max_step!r}")
        if not (0 < safety < 1 and 0 < min_factor < 1 < max_factor):
            raise InputError(
                "step factors need 0 < safety < 1 and min_factor < 1 < max_factor; "
                f"found {safety!r}, {min_factor!r}, {max_factor!r}"
            )
        self.rtol, self.atol = rtol, atol_tensor
        self.per_trajectory = per_trajectory
        self.first_step, self.min_step, self.max_step = first_step, min_step, max_step
        self.safety, self.min_factor, self.max_factor = safety, min_factor, max_factor
        self.norm = _rms if norm is None else norm
        self.betas = (icoeff + pcoeff + dcoeff, -(pcoeff + 2 * dcoeff), dcoeff)
        self._remembered = 2 if any(self.betas[1:]) else 0
        """Past ratios that the formula reads."""

    def __repr__(self) -> str:
        atol = None if self.atol is None else self.atol.tolist()
        return f"Adaptive(rtol={self.rtol!r}, atol={atol!r}, per_trajectory={self.per_trajectory})"

    def tolerances(self, dtype: torch.dtype) -> tuple[float, Tensor]:
        """(rtol, atol) that are used for states of ``dtype``."""
        atol = torch.tensor(_defaults(dtype)[1], dtype=torch.float64) if self.atol is None else self.atol
        return self.relative_tolerance(dtype), atol

    def check(self, method: Method, dtype: torch.dtype) -> None:
        """Refuse methods without an error estimate, and tolerances below the resolution of the state's dtype."""
        if method.error_order is None:
            raise InputError(
                f"{method.name} has no error estimate, and step-size control would spoil a symplectic method; "
                "give a step: controller=pn.Fixed(dt)"
            )
        rtol = self.relative_tolerance(dtype)
        floor = 10 * torch.finfo(dtype).eps
        if 0 < rtol < floor:
            raise InputError(f"rtol={rtol:g} is below what {dtype} can resolve ({floor:.2g}); raise rtol or use float64")

    def tuned(self, method: Method, y: Tensor) -> Method:
        """An implicit method stops its iterations by the tolerances."""
        return method.tuned(*self._scales(y, _size(y))) if method.implicit else method

    def relative_tolerance(self, dtype: torch.dtype) -> float:
        """rtol."""
        return _defaults(dtype)[0] if self.rtol is None else self.rtol

    def numbers(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tolerances, but for a default ``atol``, which is measured by the start."""
        rtol, atol = self.tolerances(dtype)
        relative = {"rtol": torch.tensor(rtol, dtype=torch.float64)}
        return relative if self.atol is None else {**relative, "atol": atol}

    def with_numbers(self, numbers: Mapping[str, Tensor]) -> Adaptive:
        """The same with other tolerances."""
        other = copy.copy(self)
        other.__dict__.update(numbers)
        return other

    def on(self, device: torch.device) -> Adaptive:
        """The same with ``atol`` on the device."""
        if self.atol is None or self.atol.device == device:
            return self
        other = copy.copy(self)
        other.atol = self.atol.to(device)
        return other

    @property
    def structure(self) -> Hashable:
        """Everything but the tolerances; None where trajectories share their steps."""
        if not self.per_trajectory or type(self) is not Adaptive:
            return None
        atol = None if self.atol is None else tuple(self.atol.shape)
        limits = (self.first_step, self.min_step, self.max_step, self.safety, self.min_factor, self.max_factor)
        return ("adaptive", atol, limits, self.norm, self.betas)

    def start(self, method: Method, f: FieldFunction, span: Span, y: Tensor, derivative: Tensor) -> tuple[Tensor, Tensor, int]:
        """The first trial by Hairer, Norsett, Wanner I, II.4, or ``first_step``.

        The memory ends with whether the last trial was refused, and the size of the starting state up to 1, by which a default
        ``atol`` is measured; before them it holds two past ratios, where the formula reads them.
        """
        length = (span.t1 - span.t0).abs()
        size = _size(y)
        ones = torch.ones_like(length)
        memory = torch.stack((*[ones] * self._remembered, torch.zeros_like(length), size), dim=-1)
        if self.first_step is not None:
            return torch.full_like(length, self.first_step).clamp(self.min_step, self.max_step), memory, 0
        rtol, atol = self._scales(y, size)
        scale = atol + rtol * y.abs()
        d0, d1 = self._measured(y / scale), self._measured(derivative / scale)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
        h0 = torch.minimum(torch.nan_to_num(h0, nan=1e-6), length).clamp(max=self.max_step)
        signed = span.direction * h0
        other = f(span.t0 + signed, torch.addcmul(y, signed.to(y.dtype).unsqueeze(-1), derivative))
        d2 = self._measured((other - derivative) / scale) / h0
        assert method.error_order is not None
        largest = torch.maximum(d1, d2)
        h1 = torch.where(largest <= 1e-15, (h0 * 1e-3).clamp(min=1e-6), (0.01 / largest) ** (1 / (method.error_order + 1)))
        dt = torch.minimum(100 * h0, torch.nan_to_num(h1, nan=0.0, posinf=0.0))
        dt = torch.where(dt > 0, dt, h0).clamp(self.min_step, self.max_step)
        dt = torch.minimum(dt, length)
        if not self.per_trajectory:
            dt = _smallest_of(dt, length > 0)
        return dt, memory, 1

    def propose(self, span: Span, t: Tensor, dt: Tensor) -> Tensor:
        """``t + dt``, or the end if that is no farther."""
        return torch.where(dt >= (span.t1 - t).abs() * (1 - 1e-12), span.t1, torch.addcmul(t, span.direction, dt))

    def judge(
        self,
        method: Method,
        running: Tensor,
        t: Tensor,
        t_end: Tensor,
        dt: Tensor,
        y: Tensor,
        step: Step,
        memory: Tensor,
    ) -> Verdict:
        """The error test and the next length."""
        rtol, atol = self._scales(y, memory[..., -1])
        scale = atol + rtol * torch.maximum(y.abs(), step.y.abs())
        ratio = _combined([self._measured(error / scale) for error in step.error])
        ratio = torch.add(ratio, step.y.sum(-1), alpha=0.0)  # not a number where the state is not finite
        ratio = torch.nan_to_num(ratio, nan=torch.inf, posinf=torch.inf)
        assert method.error_order is not None
        exponent = 1 / (method.error_order + 1)
        if step.unsolved is not None:  # an error for which the formula gives half the step
            ratio = torch.where(step.unsolved, max(1.5, 2 * self.safety) ** (1 / exponent), ratio)
        too_large = ratio > 1
        if not self.per_trajectory:
            ratio = torch.where(running, ratio, 0.0).amax().expand_as(ratio)
        accept = ratio <= 1
        inverse = ratio.clamp(min=1e-10) ** -exponent
        factor = self._factor(accept, inverse, memory)
        length = (t_end - t).abs()
        smallest = self._smallest(t)
        # the length of a trial differs from dt by rounding, or by the cut at the end of the span
        stuck = too_large & (torch.minimum(length, dt) <= smallest)
        dt_next = length * factor
        if self.max_step < torch.inf:
            dt_next = dt_next.clamp(max=self.max_step)
        # a step that was cut to end on a jump, an event or the end says nothing against the step that was meant
        arrived_short = accept & (length < dt * (1 - 1e-9))
        dt_next = torch.where(running, torch.maximum(dt_next, torch.where(arrived_short, dt, smallest)), dt)
        if not self.per_trajectory:
            dt_next = _smallest_of(dt_next, running & ~arrived_short & ~stuck)
        return Verdict(accept, dt_next, self._remember(running, accept, inverse, memory), stuck)

    def _factor(self, accept: Tensor, inverse: Tensor, memory: Tensor) -> Tensor:
        """By how much the next step is longer than this one: by nothing after one that was refused."""
        beta1, beta2, beta3 = self.betas
        factor = self.safety * (inverse if beta1 == 1 else inverse**beta1)
        if self._remembered:
            history = memory[..., 0] ** beta2 * memory[..., 1] ** beta3
            factor = torch.where(accept, factor * history, self.safety * inverse)
        factor = factor.clamp(self.min_factor, self.max_factor)
        return torch.where(memory[..., -2] > 0, factor.clamp(max=1.0), factor)

    def _remember(self, running: Tensor, accept: Tensor, inverse: Tensor, memory: Tensor) -> Tensor:
        """The memory behind this trial."""
        refused = torch.where(running, (~accept).to(memory.dtype), memory[..., -2])
        past: tuple[Tensor, ...] = ()
        if self._remembered:
            moved, last = running & accept, memory[..., 0]
            past = (torch.where(moved, inverse, last), torch.where(moved, last, memory[..., 1]))
        return torch.stack((*past, refused, memory[..., -1]), dim=-1)

    def _measured(self, scaled: Tensor) -> Tensor:
        """The norm of errors over their tolerances, ``(B,)`` in float64.

        Raises:
            InputError: a norm of the caller's own has another shape.
        """
        size = self.norm(scaled)
        if size.shape != scaled.shape[:-1]:
            raise InputError(
                f"norm must map errors of shape {tuple(scaled.shape)} to {tuple(scaled.shape[:-1])}, one number a trajectory; "
                f"found {tuple(size.shape)}"
            )
        return size.to(torch.float64)

    def _smallest(self, t: Tensor) -> Tensor:
        """The shortest step that still moves the time, or ``min_step``."""
        resolution = 4 * torch.finfo(torch.float64).eps * t.abs()
        return torch.clamp(resolution, min=max(self.min_step, 1e-40))

    def _scales(self, y: Tensor, size: Tensor) -> tuple[float, Tensor]:
        rtol, atol = self.relative_tolerance(y.dtype), self.atol
        if atol is None:
            return rtol, (_defaults(y.dtype)[1] * size).to(y.dtype).unsqueeze(-1)
        if atol.ndim and atol.shape[-1] != y.shape[-1]:
            raise InputError(
                f"atol has {atol.shape[-1]} entries for a state of {y.shape[-1]}; give one number or one per component"
            )
        # an atol of zero and a component at rest at zero would make 0 / 0
        return rtol, atol.to(y).clamp(min=torch.finfo(y.dtype).tiny)


def _defaults(dtype: torch.dtype) -> tuple[float, float]:
    """rtol and atol where the caller gives none."""
    return _DEFAULT_TOLERANCES.get(dtype, (1e-2, 1e-3))


def _smallest_of(dt: Tensor, involved: Tensor) -> Tensor:
    """The smallest of ``dt`` ``(B,)`` among the trajectories ``involved``, for all; ``dt`` itself where there are none."""
    smallest = torch.where(involved, dt, torch.inf).amin()
    return torch.where(torch.isfinite(smallest), smallest, dt)


def _size(y: Tensor) -> Tensor:
    """The largest entry of each state up to 1, by which a default ``atol`` is measured, ``(B,)``."""
    size = y.abs().amax(-1).to(torch.float64)
    return torch.where((size > 0) & (size < 1), size, 1.0)


def _rms(x: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return size / sqrt(x.shape[-1])


def _combined(norms: Sequence[Tensor]) -> Tensor:
    """One error ratio from one estimate, or from the fifth- and third-order pair of an eighth-order method (HNW II.10)."""
    if len(norms) == 1:
        return norms[0]
    fifth, third = norms
    denominator = (fifth.square() + 0.01 * third.square()).sqrt()
    return torch.where(denominator > 0, fifth.square() / denominator, 0.0 * denominator)
