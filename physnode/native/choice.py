"""Whether a solve runs by native code: where it is asked for, can be had, and is the field's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from physnode.engine.controllers import Span
from physnode.engine.field_function import FieldFunction
from physnode.engine.tracing import Traced
from physnode.errors import CompileWarning, InputError
from physnode.native.code import NativeCode, Taped
from physnode.native.codes import code_for, known_code, work_done
from physnode.native.expressions import Unsupported
from physnode.native.library import Found
from physnode.native.problem import Problem

__all__ = ["Choice", "Native", "checked_choice", "choose", "recall", "warn_of_eager"]

Choice = bool | Literal["auto"]

_WORTH = 20_000
"""Evaluations by the eager driver, a few seconds, after which ``"auto"`` compiles: as long as that takes."""
_SAME = 1e4
"""Units in the last place by which the code and the field may differ (sums in another order)."""

_ASKED = 32
"""Trajectories of a large batch at which code and field are compared."""


@dataclass(frozen=True)
class Native:
    """The code of one solve."""

    code: NativeCode
    problem: Problem

    def solve(self, span: Span, times: Tensor, *, keep: bool) -> tuple[Found, Taped | None]:
        """Solve over ``span`` with outputs at ``times`` ``(B, T)``."""
        return self.code.solve(self.problem, span, times, keep=keep)


def checked_choice(compile: Choice) -> Choice:
    """``compile`` as it was given.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(compile, bool) and compile != "auto":
        raise InputError(f'compile must be True, False or "auto"; found {compile!r}')
    return compile


def recall(compile: Choice, problem: Problem, epoch: Tensor, last: Tensor) -> tuple[Native, Traced] | None:
    """The code that an earlier solve has made, and what a call of the field showed; None: the field is to be traced first.

    Only where the code reads nothing but parameters, buffers and arguments: then ``problem.theta``, all of these that want a
    gradient, is all that the field can read, as long as it gives what the code gives. That is asked at no more than some
    trajectories.
    """
    code = known_code(problem)
    if not compile or code is None or not code.reads_members:
        return None
    f, t, y, some = problem.f, epoch, problem.y0.detach(), problem
    if len(y) > _ASKED and len(f.batch) == 1 and f.args is None:
        rows = torch.linspace(0, len(y) - 1, _ASKED, dtype=torch.float64).long()
        t, y, last = epoch[rows], y[rows], last[rows]
        f = FieldFunction(f.field, (_ASKED,), f.dtype)
        f.differentiates = code.differentiates
        some = replace(problem, f=f, y0=y)
    problem.f.differentiates = f.differentiates = code.differentiates
    says = _agree_inside(code, some, (t, last))
    if says is None or not _each_by_itself(code, some, (t, last)):
        return None
    if problem.differentiable and not code.has_its_derivatives:
        return None
    return Native(code, problem), Traced(says, problem.theta, random=False, stateful=False, calls=1)


def choose(compile: Choice, problem: Problem, derivative: Tensor, span: Sequence[Tensor], reason: str | None) -> Native | None:
    """The code that is to solve ``problem``, whose field gives ``derivative`` ``(B, dim)`` at the start; None: none.

    ``span`` are start and end of each trajectory, ``(B,)``; ``reason`` says why there is none, if that is known already. Where
    the code was asked for and there is none, a warning says why.
    """
    if not compile or (compile == "auto" and (reason is not None or work_done(problem, 0) < _WORTH)):
        return None
    try:
        if reason is not None:
            raise Unsupported(reason)
        for again in (False, True):
            code = code_for(problem, again=again)
            alike = _agree(code, problem, derivative, span) and _each_by_itself(code, problem, span)
            if alike and _agree_inside(code, problem, span) is not None:
                if problem.differentiable and not _has_its_derivatives(code, problem, span):
                    raise Unsupported(
                        "the field's derivatives are not those of what it computes (detach, no_grad, a backward of its own)"
                    )
                return Native(code, problem)
        raise Unsupported(
            "its code does not give what the field gives; the field treats trajectories of a batch differently, or depends on "
            "something that a trace does not see"
        )
    except Unsupported as found:
        if compile is True:
            warn_of_eager(str(found), 5)
        return None


def _each_by_itself(code: NativeCode, problem: Problem, span: Sequence[Tensor]) -> bool:
    """Whether code and field agree at different states side by side; asked once, since a batch may start where none differs."""
    if code.each_by_itself or not problem.f.batch or problem.arguments[0]:
        return True
    first, last = (time[:1].expand(3) for time in span)
    start = problem.y0[:1].detach()
    steps = torch.arange(3 * start.numel(), dtype=start.dtype).cos().reshape(3, -1)
    y = start + 0.01 * torch.where(start == 0, 1.0, start.abs()) * steps
    f = FieldFunction(problem.f.field, (*(1,) * (len(problem.f.batch) - 1), 3), problem.f.dtype, problem.f.args)
    f.differentiates = problem.f.differentiates
    try:
        with torch.no_grad():
            says = f(first, y)
    except Exception:  # a field that takes no other batch, or no other state, has been asked at the start alone
        return True
    code.each_by_itself = _agree(code, replace(problem, f=f, y0=y), says, (first, last))
    return code.each_by_itself


def _has_its_derivatives(code: NativeCode, problem: Problem, span: Sequence[Tensor]) -> bool:
    """Whether the transposes of code and field agree at the start, a little beside it; asked once."""
    if code.has_its_derivatives:
        return True
    first, _ = span
    y0 = problem.y0.detach()
    beside = 1e-3 * torch.arange(y0.numel(), dtype=torch.float64).cos().reshape(y0.shape).to(y0.dtype)
    y = y0 + beside * torch.where(y0 == 0, 1.0, y0.abs())
    w = torch.arange(y0.numel(), dtype=torch.float64).sin().reshape(y0.shape).to(y0.dtype)
    with torch.enable_grad():
        given = y.clone().requires_grad_()
        says = problem.f(first, given)
        wanted: Sequence[Tensor | None] = [None] * (1 + len(problem.theta))
        if says.requires_grad:
            wanted = torch.autograd.grad(says, (given, *problem.theta), w, allow_unused=True)
    for mine, other in zip(code.transpose(problem, first, y, w), wanted, strict=True):
        other = torch.zeros_like(mine) if other is None else other
        known = torch.isfinite(other)
        mine, other = mine[known], other[known]
        if known.any() and not bool(((mine - other).abs() <= _SAME * code.resolution * other.abs().max()).all()):
            return False
    code.has_its_derivatives = True
    return True


def warn_of_eager(reason: str, level: int = 3) -> None:
    """Say why a solve that was to be compiled is not; ``level`` counts the calls up to the one of ``solve``."""
    warnings.warn(
        f"this solve is not compiled: {reason}. The eager driver solves it, to the same result; compile=False says that "
        "this is meant",
        CompileWarning,
        stacklevel=level,
    )


def _agree_inside(code: NativeCode, problem: Problem, span: Sequence[Tensor]) -> Tensor | None:
    """What the field gives at times inside the span, each trajectory a little beside its start; None where the code differs.

    A time of its own for each trajectory shows what the start does not: a force that begins at zero, an argument of all.
    """
    first, last = span
    y, t = problem.y0.detach(), first
    rows = torch.arange(1, len(y) + 1, dtype=torch.float64)
    inside = first + (last - first) * (rows * 0.6180339887498949 % 1)
    beside = y + 1e-3 * torch.arange(y.numel(), dtype=y.dtype).cos().reshape(y.shape) * torch.where(y == 0, 1.0, y.abs())
    with torch.no_grad():
        try:
            says = problem.f(inside, beside)
            y, t = beside, inside
        except Exception:  # a field that is not defined there
            says = problem.f(t, y)
    return says if _agree(code, replace(problem, y0=y), says, (t, t + (last - first))) else None


def _agree(code: NativeCode, problem: Problem, field_says: Tensor, span: Sequence[Tensor]) -> bool:
    """Whether code and field agree at the start."""
    first, last = span
    return code.agrees(problem, first, last, field_says, _SAME)
