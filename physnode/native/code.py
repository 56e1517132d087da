"""Code that solves, and what it leaves behind: the steps, and how outputs are pulled back through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from physnode.engine.controllers import Span
from physnode.engine.kept_states import KeptStates
from physnode.engine.records import Records
from physnode.native.assembly import Assembled
from physnode.native.library import Compiled, Found, Start
from physnode.native.problem import Problem
from physnode.native.seen import Seen, changed, visible

__all__ = ["NativeCode", "Read", "Taped"]

_ROWS_A_THREAD = 64

Read = tuple[str, Any]
"""Where a tensor that code reads is found: what kind of place, and its name there."""


@dataclass
class NativeCode:
    """Code for one problem."""

    assembled: Assembled
    compiled: Compiled
    reads: tuple[Read, ...]
    """Where each tensor that the code reads is found."""
    differentiates: bool
    """Whether the field takes a derivative itself by ``torch.autograd``."""
    dtype: torch.dtype
    """Of the state."""
    seen: Seen
    """What it holds of the field as it was."""
    each_by_itself: bool = False
    """Whether the field was seen to treat each trajectory of a batch by itself."""
    has_its_derivatives: bool = False
    """Whether the code's derivatives were seen to be the field's."""

    def is_of(self, problem: Problem) -> bool:
        """Whether nothing that it holds of the field has changed."""
        return not changed(self.seen, visible(problem.f.field))

    @property
    def reads_members(self) -> bool:
        """Whether it reads parameters, buffers and arguments only."""
        return all(kind != "other" for kind, _ in self.reads)

    @cached_property
    def resolution(self) -> float:
        """The coarsest unit in the last place of what it computes with: a network may be coarser than the state."""
        read = {tensor.dtype for tensor in self.assembled.tensors if tensor.is_floating_point()}
        return max(torch.finfo(dtype).eps for dtype in (self.dtype, *read))

    def solve(self, problem: Problem, span: Span, times: Tensor, *, keep: bool) -> tuple[Found, Taped | None]:
        """Solve over ``span`` with outputs at ``times`` ``(B, T)``."""
        start, current = self._start(problem, problem.y0, *span, times)
        found = self.compiled.solve(start, keep=keep, threads=_threads(len(problem.y0)))
        if found.tape is None:
            return found, None
        return found, Taped(self, problem, tuple(current), found, problem.method.evaluations)

    def _start(
        self, problem: Problem, y: Tensor, t0: Tensor, t1: Tensor, direction: Tensor, times: Tensor
    ) -> tuple[Start, list[Tensor]]:
        current, uniform = self._shared(problem)
        own, _ = problem.arguments
        args = [own[name].detach().reshape(len(y), -1) for name in self.assembled.arguments]
        return Start(
            y.detach().contiguous(),
            t0.contiguous(),
            t1.contiguous(),
            direction.contiguous(),
            times if times.stride(-1) == 1 else times.contiguous(),
            torch.cat(args, dim=-1).contiguous() if args else y.new_empty(len(y), 0),
            uniform,
        ), current

    def _shared(self, problem: Problem) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The tensors that the code reads, as they are now, and as it reads them; looked up once a solve."""
        kept = problem.read_by.get(id(self))
        if kept is None:
            current = self._current(problem)
            kept = problem.read_by[id(self)] = current, tuple(tensor.detach().contiguous() for tensor in current)
        return kept

    def field(self, problem: Problem, t: Tensor, y: Tensor) -> Tensor:
        """The code's own dy/dt at ``t`` ``(B,)`` and ``y`` ``(B, dim)``."""
        return self.compiled.field(self._start(problem, y, t, t, t, t.unsqueeze(-1))[0])

    def agrees(self, problem: Problem, t: Tensor, t_end: Tensor, field_says: Tensor, units: float) -> bool:
        """Whether it gives what the field gives at ``t`` ``(B,)`` and ``y0``, to so many ``units`` in the last place.

        They are those of the field's largest component, or of y0 over the length of the solve, which ends at ``t_end``.
        """
        start = self._start(problem, problem.y0, t, t_end, t, t.unsqueeze(-1))[0]
        return self.compiled.agrees(start, field_says, units * self.resolution)

    def transpose(self, problem: Problem, t: Tensor, y: Tensor, cotangents: Tensor) -> list[Tensor]:
        """What y ``(B, dim)`` and each of ``problem.theta`` are owed by the code's own dy/dt, for its ``cotangents``."""
        start, current = self._start(problem, y, t, t, t, t.unsqueeze(-1))
        to_y, to_args, to_uniform = self.compiled.transpose(start, cotangents, _wanted(current, problem.theta))
        return [to_y, *_shares(problem, current, problem.theta, to_args, to_uniform)]

    def reads_all(self, problem: Problem) -> bool:
        """Whether every tensor that the field reads and that is none of its parameters is one that the code reads."""
        current = {id(tensor) for tensor in self._shared(problem)[0]}
        parameters = {id(tensor) for tensor in problem.f.field.parameters()}
        return all(id(tensor) in current or id(tensor) in parameters or problem.is_argument(tensor) for tensor in problem.theta)

    def _current(self, problem: Problem) -> list[Tensor]:
        """The tensors that the code reads, as they are now."""
        numbers = problem.controller.numbers(problem.y0.dtype)
        own = problem.named
        shared = {} if problem.f.args is None else problem.f.args.constants
        found = []
        tables: dict[str, Mapping[str, Tensor]] = {"number": numbers, "member": own, "shared": shared}
        for kind, name in self.reads:
            found.append(
                torch.tensor(problem.max_steps) if kind == "limit" else name if kind == "other" else tables[kind][name]
            )
        return found


@dataclass
class Taped:
    """The accepted steps of a native solve, and how to pull outputs back through them."""

    code: NativeCode
    problem: Problem
    current: tuple[Tensor, ...]
    found: Found
    evaluations: int
    """Evaluations of one step."""

    @property
    def bytes(self) -> int:
        """What the steps take."""
        assert self.found.tape is not None
        return self.found.tape.bytes

    @property
    def slots(self) -> int:
        """The largest number of steps of a trajectory."""
        return int(self.found.accepted.max())

    def records(self) -> Records:
        """Times and states of the steps, slot by slot."""
        assert self.found.tape is not None
        t, t_end, y = self.found.tape.records()
        states = KeptStates(self.problem.y0.detach())
        states.extend(y.unbind(0))
        return Records(t, t_end, states.closed(self.found.accepted), self.found.accepted)

    def pull(self, cotangents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What y0 ``(B, dim)`` and each of the problem's ``theta`` are owed by the outputs' ``cotangents`` ``(B, T, dim)``."""
        assert self.found.tape is not None
        theta = self.problem.theta
        to_y0, to_args, to_uniform = self.found.tape.pull(cotangents, _wanted(self.current, theta))
        return to_y0, _shares(self.problem, self.current, theta, to_args, to_uniform)


def _wanted(current: Sequence[Tensor], theta: Sequence[Tensor]) -> list[bool]:
    ids = {id(tensor) for tensor in theta}
    return [id(tensor) in ids for tensor in current]


def _shares(
    problem: Problem, current: Sequence[Tensor], theta: Sequence[Tensor], to_args: Tensor, to_uniform: Sequence[Tensor | None]
) -> list[Tensor]:
    """What each of ``theta`` is owed, from what is owed to the ``current`` tensors and the arguments of each trajectory."""
    places = {id(tensor): number for number, tensor in enumerate(current)}
    to_own = _by_argument(problem, to_args)
    shares = []
    for tensor in theta:
        share = to_own.get(id(tensor))
        found = to_uniform[places[id(tensor)]] if id(tensor) in places else None
        if found is not None:
            share = found.to(tensor.dtype) if share is None else share + found.to(tensor.dtype)
        shares.append(torch.zeros_like(tensor) if share is None else share)
    return shares


def _by_argument(problem: Problem, to_args: Tensor) -> dict[int, Tensor]:
    """What each argument that trajectories have of their own is owed, by the id of its tensor."""
    found: dict[int, Tensor] = {}
    at = 0
    own, _ = problem.arguments
    for name in own:
        assert problem.f.args is not None
        tensor = problem.f.args.constants[name]
        size = tensor[(0,) * len(problem.f.batch)].numel()
        share = to_args[:, at : at + size].reshape(tensor.shape)
        found[id(tensor)] = found[id(tensor)] + share if id(tensor) in found else share
        at += size
    return found


def _threads(rows: int) -> int:
    """As many as PyTorch may use, and no more than have enough to do."""
    return max(1, min(torch.get_num_threads(), rows // _ROWS_A_THREAD))
