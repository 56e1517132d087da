"""The functions of a solve, traced once for one trajectory.

The engine's own functions are traced as they are: ``begin``, ``advance``, the read-out and ``pull_back``. Wherever they call
the field, or the transpose of one of its evaluations, the trace holds an operation of its own: the field's code is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from physnode.engine.arguments import Arguments
from physnode.engine.controllers import Controller, Span
from physnode.engine.families.base import Method
from physnode.engine.field_function import FieldFunction
from physnode.engine.loop import Setting, State, advance, begin, first_status
from physnode.engine.status import Status
from physnode.native.expressions import Unsupported

__all__ = ["Engine", "OpaqueField", "trace_field", "traced"]

_library: Any = torch.library.Library("physnode", "DEF")  # type: ignore[no-untyped-call]  # lives as long as the process
_library.define("evaluate(Tensor t, Tensor y, str name) -> Tensor")
_library.define("transpose(Tensor t, Tensor y, Tensor w, str name) -> Tensor")
_library.impl("evaluate", lambda t, y, name: torch.zeros_like(y), "CompositeExplicitAutograd")
_library.impl("transpose", lambda t, y, w, name: torch.zeros_like(y), "CompositeExplicitAutograd")


_aten = torch.ops.aten
_MORE = (_aten.relu, _aten.gelu, _aten.leaky_relu, _aten._softmax, _aten._log_softmax)


@lru_cache(maxsize=1)
def _decompositions() -> Any:
    found = {**core_aten_decompositions(), **get_decompositions(_MORE)}
    for kept in (_aten.roll.default, _aten.softplus.default, _aten.elu.default):
        found.pop(kept, None)
    return found


def traced(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    """The operations of ``function`` on tensors like ``inputs``.

    Raises:
        Unsupported: it cannot be traced, for example since it asks for the value of a tensor.
    """
    try:
        found: fx.GraphModule = make_fx(lambda *given: function(*given), decomposition_table=_decompositions())(*inputs)
        written = [_written(node) for node in found.graph.nodes if _writes(node)]
        if any(node.op == "get_attr" for node in written):
            raise Unsupported("it writes into a tensor that it keeps")
        if written:  # y[..., 0] = ...: the same without writing
            found = make_fx(torch.func.functionalize(found), decomposition_table=_decompositions())(*inputs)
    except Unsupported:
        raise
    except Exception as problem:  # a user's field may raise anything, and then has no trace
        if "data-dependent control flow" in str(problem) or "tracing tensor" in str(problem):
            raise Unsupported(
                "it asks for the value of a tensor (if, float(t), bool(...)); write it with torch.where"
            ) from problem
        raise Unsupported(f"it cannot be traced: {type(problem).__name__}: {str(problem).splitlines()[0][:200]}") from problem
    return found


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _written(node: fx.Node) -> fx.Node:
    """Where the tensor comes from that a node writes to, or a view of it."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    schema = getattr(source.target, "_schema", None)
    views = schema is not None and any(value.alias_info is not None for value in schema.returns)
    return _written(source) if views else source


class _GivenArguments:
    """Arguments of one trajectory, as the trace sees them."""

    def __init__(self, constants: Mapping[str, Any]) -> None:
        self.constants = dict(constants)

    def at(self, t: Tensor) -> dict[str, Any]:
        return self.constants


def trace_field(
    f: FieldFunction, name: str, t: Tensor, y: Tensor, own: Mapping[str, Tensor], shared: Mapping[str, Any]
) -> fx.GraphModule:
    """``f`` itself ("field"), its drift or its kick, as a function of (t ``(1,)``, y ``(1, ·)``, *own).

    ``own`` are the arguments that each trajectory has of its own, for one trajectory; ``shared`` all others.
    """
    one = FieldFunction(f.field, (1,) * len(f.batch), f.dtype)
    one.differentiates = f.differentiates
    names = list(own)

    def call(t: Tensor, y: Tensor, *given: Tensor) -> Tensor:
        if f.args is not None:
            one.args = _GivenArguments({**shared, **dict(zip(names, given, strict=True))})  # type: ignore[assignment]
        function = one if name == "field" else getattr(one, name)
        value: Tensor = function(t, y)
        return value

    with torch.no_grad():
        return traced(call, t, y, *own.values())


class OpaqueField(FieldFunction):
    """A field whose calls are operations of their own in a trace."""

    def __init__(self, f: FieldFunction) -> None:
        self.__dict__.update(f.__dict__)
        self._caught: list[tuple[str, Tensor]] | None = None

    def on_step(self, t: Tensor, t_end: Tensor) -> FieldFunction:
        """Itself: a field that jumps is not compiled."""
        return self

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """As an operation."""
        return self._mark("field", t, y)

    def drift(self, t: Tensor, p: Tensor) -> Tensor:
        """As an operation."""
        return self._mark("drift", t, p)

    def kick(self, t: Tensor, q: Tensor) -> Tensor:
        """As an operation."""
        return self._mark("kick", t, q)

    def vjp(self, function: Callable[[Tensor], Tensor], x: Tensor, w: Tensor) -> Tensor:
        """The transpose of one evaluation, ``function`` being a call of this field at one time."""
        self._caught = []
        function(x)
        [(name, t)] = self._caught
        self._caught = None
        back: Tensor = torch.ops.physnode.transpose(t, x, w, name)
        return back

    def _mark(self, name: str, t: Tensor, y: Tensor) -> Tensor:
        if self._caught is not None:
            self._caught.append((name, t))
            return y
        out: Tensor = torch.ops.physnode.evaluate(t, y, name)
        return out


@dataclass(frozen=True)
class Engine:
    """What one method under one controller does to one trajectory ``(1, dim)``."""

    f: OpaqueField
    method: Method
    controller: Controller
    numbers: Mapping[str, Tensor]
    """The numbers of the controller that may change from solve to solve."""
    y: Tensor

    @property
    def inputs(self) -> list[Tensor]:
        """The numbers of the controller and the limit of steps, as the traces take them."""
        return [*self.numbers.values(), torch.tensor(1)]

    def _setting(
        self, t0: Tensor, t1: Tensor, direction: Tensor, y: Tensor, carry: Tensor | None, given: Sequence[Tensor]
    ) -> Setting:
        controller = self.controller.with_numbers(dict(zip(self.numbers, given, strict=False)))
        limit: Any = given[len(self.numbers)]
        return Setting(self.f, self.method, controller, Span(t0, t1, direction), y, carry, limit)

    def start(self, t0: Tensor, t1: Tensor, direction: Tensor, y0: Tensor, *given: Tensor) -> tuple[Tensor | None, ...]:
        """(derivative, status, *state) where the loop begins."""
        derivative = self.f(t0, y0)
        carry = self.method.start(self.f, t0, y0, derivative)
        setting = self._setting(t0, t1, direction, y0, carry, given)
        status = first_status(setting.span, y0, derivative)
        spent = int(carry is not None and not self.method.shares_derivative(self.f))
        state = begin(setting, y0, derivative, carry, status, spent)
        return derivative, status, *_moving(state)

    def trial(self, t0: Tensor, t1: Tensor, direction: Tensor, *given: Tensor) -> tuple[Tensor | None, ...]:
        """(status, t_end, accept, state at the end, *moving state, *stages) of one trial from a running state."""
        count = len(self.inputs)
        y, lost, dt, memory, t, accepted, rejected, evaluations, tried, *carry = given[count:]
        setting = self._setting(t0, t1, direction, y, carry[0] if carry else None, given[:count])
        none = torch.zeros_like(accepted)
        state = State(
            t=t,
            y=y,
            lost=lost,
            dt=dt,
            carry=carry[0] if carry else None,
            memory=memory,
            accepted=accepted,
            rejected=rejected,
            status=torch.full_like(none, int(Status.RUNNING)),
            fresh=torch.zeros_like(none, dtype=torch.bool),
            signs=none.unsqueeze(-1)[:, :0],
            evaluations=evaluations,
            tried=tried,
            crowd=none,
            leaving=none.unsqueeze(-1)[:, :0] > 0,
        )
        following, trial = advance(setting, state)
        return following.status, trial.t_end, trial.accept, trial.step.y, *_moving(following), *trial.step.stages

    def extend(self, t: Tensor, t_end: Tensor, y: Tensor, *stages: Tensor) -> tuple[Tensor, ...]:
        """The further stages of the continuous extension."""
        return self.method.extend(self.f, t, t_end, y, stages)[len(stages) :]

    def weights(self, fraction: Tensor) -> tuple[Tensor, ...]:
        """The weights of the continuous extension, in the dtype of the state."""
        return tuple(weight.to(self.y.dtype) for weight in self.method.output_weights(fraction))

    def restep(self, t: Tensor, t_end: Tensor, y: Tensor, *carry: Tensor) -> Tensor:
        """The state that a shorter step leads to."""
        return self.method.step(self.f, t, t_end, y, carry[0] if carry else None).y

    def pull(self, t: Tensor, t_end: Tensor, y: Tensor, owed: Tensor, *stages: Tensor) -> Tensor:
        """What the start of a step is owed beyond ``owed``."""
        return self.method.pull_back(self.f, self.f.vjp, t, t_end, y, owed, stages)


def _moving(state: State) -> tuple[Tensor | None, ...]:
    return (
        state.y, state.lost, state.dt, state.memory, state.t, state.accepted, state.rejected, state.evaluations, state.tried,
        *(() if state.carry is None else (state.carry,)),
    )  # fmt: skip


def split_arguments(args: Arguments, batch: tuple[int, ...]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arguments that each trajectory has of its own, and those that all share.

    Raises:
        Unsupported: a sampled signal.
    """
    if args.signals:
        raise Unsupported(f"args[{next(iter(args.signals))!r}] is a sampled signal")
    own: dict[str, Tensor] = {}
    shared: dict[str, Any] = {}
    for name, value in args.constants.items():
        per_row = isinstance(value, Tensor) and batch and tuple(value.shape[: len(batch)]) == batch
        (own if per_row else shared)[name] = value
    return own, shared
