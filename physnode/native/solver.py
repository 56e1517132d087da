"""Solves by native code: which code serves a solve, what it is given, and what it finds.

The code of a field is made once for each structure (method, dimension, dtype, kind of controller, shapes) and serves every
batch, span, tolerance and value of a parameter. Whether it is still the field's is seen at every solve: the code's own value at
the start is held against the field's.
"""

from __future__ import annotations

import weakref
from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from physnode.engine.controllers import Controller, Span
from physnode.engine.families.base import Method
from physnode.engine.field_function import FieldFunction
from physnode.engine.kept_states import KeptStates
from physnode.engine.readout import ReadOut
from physnode.engine.records import Records
from physnode.fields import FunctionField, Sum
from physnode.native.assembly import Assembled, assemble
from physnode.native.build import COUNTS
from physnode.native.expressions import Unsupported
from physnode.native.library import Compiled, Found, Start
from physnode.native.seen import Seen, changed, visible
from physnode.native.tracing import split_arguments
from physnode.states import StructuredField

__all__ = ["NativeCode", "Problem", "Taped", "code_for", "known_code", "tensors_of", "work_done"]

_MOST = 16
"""Codes that are kept for one field."""
_CHANGES = 8
"""How often the code of one problem may be made anew."""
_ROWS_A_THREAD = 64

_Read = tuple[str, Any]


@dataclass(frozen=True)
class Problem:
    """What a code is made for."""

    f: FieldFunction
    method: Method
    controller: Controller
    read: ReadOut
    y0: Tensor
    """``(B, dim)``."""
    theta: tuple[Tensor, ...]
    """Tensors that a gradient is wanted of."""
    differentiable: bool

    def split(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Arguments that each trajectory has of its own, ``(B, ...)``, and those that all share."""
        if self.f.args is None:
            return {}, {}
        own, shared = split_arguments(self.f.args, self.f.batch)
        return {name: value.reshape(len(self.y0), *value.shape[len(self.f.batch) :]) for name, value in own.items()}, shared

    def key(self, named: Mapping[str, Tensor]) -> Hashable:
        """Problems of one key are served by one code, as long as what the field holds beside tensors stays as it is."""
        own, shared = self.split()
        names = {id(tensor): name for name, tensor in named.items()}
        return (
            _owner(self.f)[1],
            self.y0.shape[-1],
            self.y0.dtype,
            len(self.f.batch),
            self.method,
            self.controller.structure,
            self.read,
            self.differentiable,
            frozenset(names.get(id(tensor), id(tensor)) for tensor in self.theta if not self._is_argument(tensor)),
            tuple((name, tuple(value.shape[1:]), value.dtype, value.requires_grad) for name, value in own.items()),
            tuple((name, _kind(value)) for name, value in shared.items()),
            tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in named.items()),
        )

    def _is_argument(self, tensor: Tensor) -> bool:
        return self.f.args is not None and any(value is tensor for value in self.f.args.constants.values())


def _kind(value: Any) -> Hashable:
    """What of a shared argument is built into the code."""
    if isinstance(value, Tensor):
        built_in = None if value.is_floating_point() else tuple(value.reshape(-1).tolist())  # places to read from
        return tuple(value.shape), value.dtype, value.requires_grad, built_in
    return repr(value)


@dataclass
class NativeCode:
    """Code for one problem."""

    assembled: Assembled
    compiled: Compiled
    reads: tuple[_Read, ...]
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

    def solve(self, problem: Problem, span: Span, times: Tensor, max_steps: int, *, keep: bool) -> tuple[Found, Taped | None]:
        """Solve over ``span`` with outputs at ``times`` ``(B, T)``."""
        start, current = self._start(problem, problem.y0, *span, times, max_steps)
        found = self.compiled.solve(start, keep=keep, threads=_threads(len(problem.y0)))
        if found.tape is None:
            return found, None
        return found, Taped(self, problem, tuple(current), found, problem.method.evaluations)

    def _start(
        self, problem: Problem, y: Tensor, t0: Tensor, t1: Tensor, direction: Tensor, times: Tensor, max_steps: int
    ) -> tuple[Start, list[Tensor]]:
        current = self._current(problem, max_steps)
        own, _ = problem.split()
        args = [own[name].detach().reshape(len(y), -1) for name in self.assembled.arguments]
        return Start(
            y.detach().contiguous(),
            t0.contiguous(),
            t1.contiguous(),
            direction.contiguous(),
            times if times.stride(-1) == 1 else times.contiguous(),
            torch.cat(args, dim=-1).contiguous() if args else y.new_empty(len(y), 0),
            tuple(tensor.detach().contiguous() for tensor in current),
        ), current

    def field(self, problem: Problem, t: Tensor, y: Tensor) -> Tensor:
        """The code's own dy/dt at ``t`` ``(B,)`` and ``y`` ``(B, dim)``."""
        return self.compiled.field(self._start(problem, y, t, t, t, t.unsqueeze(-1), 1)[0])

    def transpose(self, problem: Problem, t: Tensor, y: Tensor, cotangents: Tensor) -> list[Tensor]:
        """What y ``(B, dim)`` and each of ``problem.theta`` are owed by the code's own dy/dt, for its ``cotangents``."""
        start, current = self._start(problem, y, t, t, t, t.unsqueeze(-1), 1)
        to_y, to_args, to_uniform = self.compiled.transpose(start, cotangents, _wanted(current, problem.theta))
        return [to_y, *_shares(problem, current, problem.theta, to_args, to_uniform)]

    def reads_all(self, problem: Problem) -> bool:
        """Whether every tensor that the field reads and that is none of its parameters is one that the code reads."""
        current = {id(tensor) for tensor in self._current(problem, 1)}
        parameters = {id(tensor) for tensor in problem.f.field.parameters()}
        return all(
            id(tensor) in current or id(tensor) in parameters or problem._is_argument(tensor) for tensor in problem.theta
        )

    def _current(self, problem: Problem, max_steps: int) -> list[Tensor]:
        """The tensors that the code reads, as they are now."""
        numbers = problem.controller.numbers(problem.y0.dtype)
        members = _members(problem.f)
        shared = {} if problem.f.args is None else problem.f.args.constants
        found = []
        tables: dict[str, Mapping[str, Tensor]] = {"number": numbers, "member": members, "shared": shared}
        for kind, name in self.reads:
            found.append(torch.tensor(max_steps) if kind == "limit" else name if kind == "other" else tables[kind][name])
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
    own, _ = problem.split()
    for name in own:
        assert problem.f.args is not None
        tensor = problem.f.args.constants[name]
        size = tensor[(0,) * len(problem.f.batch)].numel()
        share = to_args[:, at : at + size].reshape(tensor.shape)
        found[id(tensor)] = found[id(tensor)] + share if id(tensor) in found else share
        at += size
    return found


@dataclass
class _Codes:
    """The codes of one field, and why there is none."""

    made: OrderedDict[Hashable, NativeCode | Unsupported] = field(default_factory=OrderedDict)
    spent: dict[Hashable, int] = field(default_factory=dict)
    """Evaluations of the field that the eager driver has made in problems that wait for their code."""

    changes: Counter[Hashable] = field(default_factory=Counter)
    """How often a code was made anew."""

    def refuse_change(self, key: Hashable) -> None:
        """Count that a code is made anew.

        Raises:
            Unsupported: that has been too often.
        """
        self.changes[key] += 1
        if self.changes[key] > _CHANGES:
            raise Unsupported(
                "a plain number, word or flag that it holds changes from solve to solve, which needs new code each time; make "
                "it a tensor, a parameter or one of args"
            )


_codes: weakref.WeakKeyDictionary[Any, _Codes] = weakref.WeakKeyDictionary()


def known_code(problem: Problem) -> NativeCode | None:
    """The code that was made for such a problem before."""
    made = _codes_of(problem).made.get(problem.key(_members(problem.f)))
    return made if isinstance(made, NativeCode) and made.is_of(problem) else None


def code_for(problem: Problem, *, again: bool = False) -> NativeCode:
    """The code that serves a problem, made now if there is none; ``again``: made anew, since it is no longer the field's.

    Raises:
        Unsupported: there can be none; the message says why.
    """
    codes, key = _codes_of(problem), problem.key(_members(problem.f))
    made = None if again else codes.made.get(key)
    if made is None or (isinstance(made, NativeCode) and not (made.reads_all(problem) and made.is_of(problem))):
        try:
            if made is not None or again:
                codes.refuse_change(key)
            made = _make(problem)
        except Unsupported as reason:
            made = reason
        except Exception as mishap:  # a field may do what nobody has thought of; the eager driver solves it
            made = Unsupported(f"no code could be made of it ({type(mishap).__name__}: {str(mishap)[:200]})")
        codes.made[key] = made
        while len(codes.made) > _MOST:
            codes.made.popitem(last=False)
    if isinstance(made, Unsupported):
        raise made
    return made


def work_done(problem: Problem, evaluations: int) -> int:
    """Evaluations that the eager driver has made in problems like this one, ``evaluations`` more now."""
    spent, key = _codes_of(problem).spent, problem.key(_members(problem.f))
    spent[key] = spent.get(key, 0) + evaluations
    return spent[key]


def _codes_of(problem: Problem) -> _Codes:
    owner, _ = _owner(problem.f)
    try:
        return _codes.setdefault(owner, _Codes())
    except TypeError:  # it cannot be referred to weakly
        return _Codes()


def _owner(f: FieldFunction) -> tuple[Any, Hashable]:
    """What a field was made from, which outlives the solve, and how it was made."""
    owner: Any = f.field
    how: list[Hashable] = []
    while isinstance(owner, FunctionField | StructuredField | Sum):
        if isinstance(owner, Sum):  # a sum that is written in the call is another one each time; its terms are not
            first, *others = owner.terms
            how.append((type(owner), *(id(term.function if isinstance(term, FunctionField) else term) for term in others)))
            owner = first
        elif isinstance(owner, StructuredField):
            how.append(owner.adapter.structure)
            owner = owner.field
        else:
            how.append("function")
            owner = owner.function
    if isinstance(owner, MethodType):
        how.append(owner.__func__)
        owner = owner.__self__
    return owner, tuple(how)


def _make(problem: Problem) -> NativeCode:
    if problem.controller.structure is None:
        raise Unsupported("its steps are shared by all trajectories, or its controller is one of your own")
    if problem.method.implicit:
        raise Unsupported(f"{problem.method.name} iterates until its equations are solved")
    own, shared = problem.split()
    if any(value.dtype is not problem.y0.dtype for value in own.values()):
        raise Unsupported("an argument of each trajectory has another dtype than the state")
    rank = len(problem.f.batch)
    examples = {name: value[:1].detach().reshape(*(1,) * rank, *value.shape[1:]) for name, value in own.items()}
    COUNTS["traced"] += 1
    before = visible(problem.f.field)
    assembled = assemble(
        problem.f,
        problem.method,
        problem.controller,
        problem.read,
        problem.y0.shape[-1],
        problem.y0.dtype,
        problem.theta,
        examples,
        shared,
        differentiable=problem.differentiable,
    )
    members = {id(tensor): name for name, tensor in _members(problem.f).items()}
    given = {id(value): name for name, value in shared.items() if isinstance(value, Tensor)}
    reads: list[_Read] = [*(("number", name) for name in assembled.numbers), ("limit", None)]
    for tensor in assembled.tensors[len(reads) :]:
        if id(tensor) in members:
            reads.append(("member", members[id(tensor)]))
        elif id(tensor) in given:
            reads.append(("shared", given[id(tensor)]))
        else:
            reads.append(("other", tensor))
    for path in changed(before, visible(problem.f.field)):  # a call changes it: a count of calls, say
        del before[path]
    return NativeCode(
        assembled,
        Compiled(assembled.source, problem.y0.shape[-1]),
        tuple(reads),
        problem.f.differentiates,
        problem.y0.dtype,
        before,
    )


def tensors_of(f: FieldFunction) -> tuple[Tensor, ...]:
    """Parameters and arguments that want a gradient."""
    given = () if f.args is None else f.args.constants.values()
    found = [*f.field.parameters(), *(value for value in given if isinstance(value, Tensor))]
    return tuple({id(tensor): tensor for tensor in found if tensor.requires_grad}.values())


def _members(f: FieldFunction) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(f.field.named_parameters()), **dict(f.field.named_buffers())}


def _threads(rows: int) -> int:
    """As many as PyTorch may use, and no more than have enough to do."""
    return max(1, min(torch.get_num_threads(), rows // _ROWS_A_THREAD))
