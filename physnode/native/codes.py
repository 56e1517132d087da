"""The codes of every field: made once for each structure, and kept as long as the field.

One serves every batch, span, tolerance and value of a parameter of problems with one key.
"""

from __future__ import annotations

import weakref
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from physnode.native.assembly import assemble
from physnode.native.build import COUNTS
from physnode.native.code import NativeCode, Read
from physnode.native.expressions import Unsupported
from physnode.native.library import Compiled
from physnode.native.problem import Problem, owner_of
from physnode.native.seen import changed, visible

__all__ = ["code_for", "known_code", "work_done"]

_MOST = 16
"""Codes that are kept for one field."""
_CHANGES = 8
"""How often the code of one problem may be made anew."""


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
    try:
        made = _codes_of(problem).made.get(problem.key)
    except Unsupported:
        return None
    return made if isinstance(made, NativeCode) and made.is_of(problem) else None


def code_for(problem: Problem, *, again: bool = False) -> NativeCode:
    """The code that serves a problem, made now if there is none; ``again``: made anew, since it is no longer the field's.

    Raises:
        Unsupported: there can be none; the message says why.
    """
    codes, key = _codes_of(problem), problem.key
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
    try:
        spent, key = _codes_of(problem).spent, problem.key
    except Unsupported:
        return 0
    spent[key] = spent.get(key, 0) + evaluations
    return spent[key]


def _codes_of(problem: Problem) -> _Codes:
    owner, _ = owner_of(problem.f)
    try:
        return _codes.setdefault(owner, _Codes())
    except TypeError:
        raise Unsupported(
            f"it is a {type(owner).__name__}, to which no code can be tied, since it cannot be hashed or referred to weakly; "
            "make it a function or an nn.Module"
        ) from None


def _make(problem: Problem) -> NativeCode:
    if problem.controller.structure is None:
        raise Unsupported("its steps are shared by all trajectories, or its controller is one of your own")
    if problem.method.implicit:
        raise Unsupported(f"{problem.method.name} iterates until its equations are solved")
    own, shared = problem.arguments
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
    named = {id(tensor): name for name, tensor in problem.named.items()}
    given = {id(value): name for name, value in shared.items() if isinstance(value, Tensor)}
    reads: list[Read] = [*(("number", name) for name in assembled.numbers), ("limit", None)]
    for tensor in assembled.tensors[len(reads) :]:
        if id(tensor) in named:
            reads.append(("member", named[id(tensor)]))
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
