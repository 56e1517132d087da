"""``check_gradient``: are the gradients of a solve right, and what does each of them cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import isabstract
from typing import Any

import torch
from torch import Tensor

from physnode import gradients as known_gradients
from physnode.diagnostics.checked_problem import Problem
from physnode.diagnostics.finite_differences import Quotient, derivative
from physnode.diagnostics.frozen_steps import FrozenSteps
from physnode.diagnostics.gradient_report import GradientCheck, GradientRow, bounds
from physnode.errors import InputError, PhysnodeError, SolveError
from physnode.gradients import Direct, Gradient
from physnode.live_bytes import LiveBytes

__all__ = ["check_gradient"]

_MOVE = 4e-3
"""How far the first differences move each variable, over its size."""


def check_gradient(
    field: Any,
    y0: Any,
    ts: Any,
    *,
    loss: Callable[[Any], Tensor] | None = None,
    data: Any = None,
    gradients: Iterable[str | Gradient] | None = None,
    finite_differences: int = 2,
    repeats: int = 3,
    seed: int = 0,
    args: Mapping[str, Any] | None = None,
    **options: Any,
) -> GradientCheck:
    """Hold gradient methods against a float64 reference and against finite differences, and measure what they cost.

    The loss is differentiated by the parameters of the field, by y0 and by the ``args`` that require a gradient, all on copies:
    nothing that was given is changed.

    * **Reference.** ``Direct``, in float64 on the steps that the solve took; a field of lower precision is copied into float64.
      The error of a method is ``‖g - g_ref‖ / ‖g_ref‖`` of the worst variable; one whose gradient is a tiny part of the whole
      is measured against that part of the whole at which rounding would pass for an error.
    * **Finite differences.** Along random directions of all variables together, each moved in proportion to its size: central
      differences in float64, extrapolated, on the same steps (an adaptive solve that chooses its steps anew differs by about
      its tolerance, which a difference quotient would divide by a small number). They know nothing of backward functions,
      so they find a field whose derivative is wrong. Given is the largest distance over the directions, relative to the root
      mean square of the derivatives.
    * **Costs.** Evaluations of the field forward (the search for steps included) and backward, each for the whole batch;
      seconds of both, the median of ``repeats``; the peak of the bytes of the tensors made, counted in a run of its own.

    Args:
        field: as for :func:`physnode.solve`; what it is to be differentiated by must be its parameters or ``args``.
        y0: the start.
        ts: output times.
        loss: a function of ``sol.ys``; by default half the mean square of the states, or of their distance to ``data``.
        data: what the default loss compares ``ys`` with, of the same shape.
        gradients: methods or their names; all that physnode has by default. Those that refuse the problem say why in a note.
        finite_differences: number of directions; 0 for none.
        repeats: how often each method is timed.
        seed: of the directions.
        args: as for :func:`physnode.solve`.
        **options: all else that ``solve`` takes (``method``, ``controller``, ``events``, ``t0``, ...).

    Returns:
        A :class:`GradientCheck`; ``ok`` if every exact method is within 1e-10 of the reference in float64 (1e-4 in float32),
        and within 1e-6 (1e-3) of finite differences, or ten times their own uncertainty.

    Raises:
        InputError: arguments that ``solve`` refuses, a field that cannot be copied, or that reads a tensor which requires a
            gradient and is none of its parameters.
        GradientError: the field has no gradient (it draws random numbers, changes its buffers).
        SolveError: the solve failed.
    """
    if "gradient" in options:
        raise InputError("check_gradient compares gradients: name them in gradients=[...]")
    if finite_differences < 0 or repeats < 1:
        raise InputError("finite_differences must not be negative, and repeats must be at least 1")
    problem = Problem.of(field, y0, ts, args, loss, data, options)
    chosen = [known_gradients.get(gradient) for gradient in (_known() if gradients is None else gradients)]
    _, _, sol = problem.gradient(Direct())
    _refuse_unknown(problem, sol.pieces[0].replay.theta if sol.pieces else ())
    frozen = FrozenSteps(sol)
    exact = problem if problem.dtype == torch.float64 else problem.double()
    if exact is problem:
        value, reference, _ = problem.gradient(Direct())
    else:
        value, reference, _ = exact.gradient(Direct(), controller=frozen)
    quotients: tuple[Quotient, ...] = ()
    directions, note = _directions(exact, finite_differences, seed), ""
    if directions:
        try:
            quotients = tuple(_along(exact, frozen, float(value), direction) for direction in directions)
        except (SolveError, InputError) as refusal:
            note = str(refusal).splitlines()[0]
    rows = tuple(_row(problem, gradient, reference, directions, quotients, repeats) for gradient in chosen)
    steps = int(sol.stats.accepted.max())
    return GradientCheck(rows, float(value), problem.dtype, steps, tuple(problem.variables), quotients, note)


def _known() -> list[Gradient]:
    kinds = (getattr(known_gradients, name) for name in known_gradients.__all__)
    return [kind() for kind in kinds if isinstance(kind, type) and issubclass(kind, Gradient) and not isabstract(kind)]


def _row(
    problem: Problem,
    gradient: Gradient,
    reference: list[Tensor],
    directions: list[list[Tensor]],
    quotients: Sequence[Quotient],
    repeats: int,
) -> GradientRow:
    exact = gradient.exact
    note = "" if exact else "not exact: its errors fall with the tolerances"
    counted = problem.counted()
    try:
        value = counted.value(counted.solve(gradient))
        forward = counted.calls.number
        torch.autograd.grad(value.sum(), list(counted.variables.values()), allow_unused=True)
        backward = counted.calls.number - forward
        with LiveBytes() as live:
            found = problem.gradient(gradient)[1]
        taken = []
        for _ in range(repeats):
            begun = time.perf_counter()
            problem.gradient(gradient)
            taken.append(time.perf_counter() - begun)
    except PhysnodeError as refusal:
        return GradientRow(gradient.name, None, None, None, None, None, None, exact, f"refused: {str(refusal).splitlines()[0]}")
    off = None
    if quotients:
        size = statistics.fmean(quotient.value**2 for quotient in quotients) ** 0.5
        far = [abs(_dot(found, along) - q.value) for along, q in zip(directions, quotients, strict=True)]
        off = max(far) / size if size else max(far)
    bound = bounds(problem.dtype)[0]
    error = _distance(found, reference, 10 * torch.finfo(problem.dtype).eps / bound)
    seconds = statistics.median(taken)
    return GradientRow(gradient.name, error, off, forward, backward, seconds, live.peak, exact, note)


def _distance(found: Sequence[Tensor], reference: Sequence[Tensor], floor: float) -> float:
    """The largest relative distance of a variable; the whole times ``floor`` is the least it is measured against."""
    whole = float(torch.stack([g.norm() for g in reference]).norm())
    errors = []
    for mine, wanted in zip(found, reference, strict=True):
        size = max(float(wanted.norm()), floor * whole)
        off = float((mine.to(wanted.dtype) - wanted).norm())
        errors.append(off / size if size else off)
    return float("nan") if any(error != error for error in errors) else max(errors)


def _directions(problem: Problem, count: int, seed: int) -> list[list[Tensor]]:
    """Random ones, each variable in proportion to its root mean square, or to 1 where it is zero."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        direction = []
        for variable in problem.variables.values():
            drawn = torch.randn(variable.shape, generator=generator, dtype=variable.dtype).to(variable.device)
            size = float(variable.detach().abs().square().mean().sqrt()) if variable.numel() else 0.0
            direction.append((size or 1.0) * drawn)
        found.append(direction)
    return found


def _along(problem: Problem, frozen: FrozenSteps, value: float, direction: list[Tensor]) -> Quotient:
    """The derivative along ``direction`` on the frozen steps.

    Raises:
        InputError: the steps cannot be made again.
    """

    def at(step: float) -> float:
        with torch.no_grad():
            moved = problem.moved(direction, step)
            return float(moved.value(moved.solve(Direct(), controller=frozen)))

    again = at(0.0)
    if not abs(again - value) <= 1e-9 * max(abs(value), 1e-300):
        raise InputError(f"the steps made again give the loss {again:.12g}, not {value:.12g}")
    return derivative(at, _MOVE)


def _dot(gradient: Sequence[Tensor], direction: Sequence[Tensor]) -> float:
    """Σ Re(conj(g) v): the derivative along ``direction``."""
    total = 0.0
    for g, v in zip(gradient, direction, strict=True):
        total += float((g.to(v.dtype).conj() * v).real.sum())
    return total


def _refuse_unknown(problem: Problem, theta: Sequence[Tensor]) -> None:
    known = {id(variable) for variable in problem.variables.values()}
    for tensor in theta:
        if tensor.is_leaf and id(tensor) not in known:
            raise InputError(
                f"the field reads a tensor of shape {tuple(tensor.shape)} that requires a gradient and is none of its "
                "parameters, so check_gradient cannot move it; make the field an nn.Module that holds it, or give it in args"
            )
