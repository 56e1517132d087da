"""From a traced solve to the whole C++ source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from physnode.engine.controllers import Controller
from physnode.engine.families.base import Method
from physnode.engine.field_function import FieldFunction
from physnode.engine.readout import ReadOut
from physnode.native.body import Store
from physnode.native.expressions import Array
from physnode.native.field_code import add_field
from physnode.native.program import Program, flat
from physnode.native.shared_code import gradients_struct, uniform_struct
from physnode.native.spelling import vector_type
from physnode.native.tracing import Engine, OpaqueField, trace_field, traced

__all__ = ["Assembled", "assemble"]

_MOVING = ("y", "lost", "dt", "memory", "t", "accepted", "rejected", "evaluations", "tried", "carry")


@dataclass(frozen=True)
class Assembled:
    """A source and what has to be given to it."""

    source: str
    tensors: tuple[Tensor, ...]
    """Those that are read, in their order: the controller's numbers, the limit of steps, then what the field reads."""
    numbers: tuple[str, ...]
    """The names of the controller's numbers."""
    arguments: tuple[str, ...]
    """The arguments that each trajectory has of its own."""


class _Layout:
    """Where the parts of a state lie in its three tables."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.places: dict[str, tuple[str, int]] = {}
        self.sizes = {"s": 0, "d": 0, "m": 0}
        for name, array in arrays.items():
            table = "s" if name in ("y", "lost", "carry") else "m" if name in ("accepted", "rejected", "evaluations") else "d"
            self.places[name] = (table, self.sizes[table])
            self.sizes[table] += array.size

    def reads(self, state: str) -> dict[str, str]:
        return {f"state_{name}": f"({state}.{table} + {at})" for name, (table, at) in self.places.items()}

    def stores(self, state: str, arrays: Mapping[str, Array]) -> list[Store]:
        return [
            Store(f"{state}.{table}", at, flat(arrays[name])) for name, (table, at) in self.places.items() if arrays[name].size
        ]


def assemble(
    f: FieldFunction,
    method: Method,
    controller: Controller,
    read: ReadOut,
    dim: int,
    dtype: torch.dtype,
    theta: Sequence[Tensor],
    own: Mapping[str, Tensor],
    shared: Mapping[str, Any],
    *,
    differentiable: bool,
) -> Assembled:
    """The source for solves of ``f`` whose arguments are ``own`` (of one trajectory) and ``shared``.

    ``theta`` are the tensors that a gradient is wanted of.

    Raises:
        Unsupported: some part has no native form.
    """
    program, device = Program(dim, dtype), "cpu"
    t, y = torch.zeros(1, dtype=torch.float64, device=device), torch.full((1, dim), 0.5, dtype=dtype, device=device)
    numbers = controller.numbers(dtype)
    engine = Engine(OpaqueField(f), method, controller, numbers, y)
    given = [program.reads.number(number) for number in engine.inputs]
    engine_code = _EngineCode(program, engine, given, read)
    engine_code.start(t, y)
    engine_code.trial(t, y)
    engine_code.read_out(t, y)
    if differentiable:
        engine_code.pull(t, y)
    engine_functions, program.functions = program.functions, []
    for name, value in own.items():
        program.add_argument(name, value.shape)
    arguments = [array for _, array in program.arguments.values()]
    free = {id(tensor) for tensor in theta}
    for name, size in sorted({*engine_code.called(), ("field", dim)}):
        trace = trace_field(f, name, t, torch.full((1, size), 0.5, dtype=dtype), own, shared)
        add_field(program, name, size, trace, arguments, free, differentiable=differentiable)
    field_functions = program.functions
    constants = {
        "DIM": dim,
        "ARGS": program.args,
        "STATE_S": engine_code.layout.sizes["s"],
        "STATE_D": engine_code.layout.sizes["d"],
        "STATE_M": engine_code.layout.sizes["m"],
        "AT_Y": engine_code.layout.places["y"][1],
        "AT_T": engine_code.layout.places["t"][1],
        "AT_TRIED": engine_code.layout.places["tried"][1],
        "AT_ACCEPTED": engine_code.layout.places["accepted"][1],
        "AT_REJECTED": engine_code.layout.places["rejected"][1],
        "AT_EVALUATIONS": engine_code.layout.places["evaluations"][1],
        "STAGES": engine_code.stages,
        "WEIGHTS": engine_code.weights,
        "READ_BY_STEPS": int(read == "restep"),
        "STEP_EVALUATIONS": method.evaluations,
        "EXTRA_EVALUATIONS": method.extra_evaluations if read == "interpolate" else 0,
    }
    single = vector_type(dtype) == "F"
    convert = "double_to_float(h)" if single else "h"
    gradients = gradients_struct(program) if differentiable else _NO_GRADIENTS
    source = "\n".join(
        [
            f"#define PN_STATE_IS_FLOAT {int(single)}",
            f"#define PN_DIFFERENTIABLE {int(differentiable)}",
            '#include "runtime.hpp"',
            *(f"constexpr int {name} = {value};" for name, value in constants.items()),
            f"PN_INLINE S to_state(D h) {{ return {convert}; }}",
            "struct PN_ALIGNED State { S s[STATE_S]; D d[STATE_D]; M m[STATE_M]; };",
            "constexpr int HELD = STAGES > WEIGHTS ? STAGES : WEIGHTS;",
            "struct PN_ALIGNED Step { D t_end; M accept, status; S y[DIM], stages[HELD * DIM + 1]; };",
            uniform_struct(program),
            gradients,
            '#include "layout.hpp"',
            *field_functions,
            *engine_functions,
            "" if differentiable else _NO_PULL,
            '#include "forward.hpp"',
            '#include "backward.hpp"',
            '#include "interface.hpp"',
            "",
        ]
    )
    return Assembled(source, tuple(program.reads.tensors), tuple(numbers), tuple(own))


_NO_GRADIENTS = (
    "struct Gradients { void count() {} void flush() {} void join(const Gradients&) {} "
    "void hand_on(const Uniform&, double* const*) {} };"
)
_NO_PULL = """
static void pull_plain(const Uniform&, Gradients&, const Lanes&, const S*, D, D, const S*, const S*, S*, S*) {}
static void pull_dense(const Uniform&, Gradients&, const Lanes&, const S*, D, D, const S*, const S*, const S*, S*, S*) {}
"""


class _EngineCode:
    """The engine's functions in a program."""

    layout: _Layout

    def __init__(self, program: Program, engine: Engine, numbers: Sequence[Array], read: ReadOut) -> None:
        self.program, self.engine, self.numbers, self.read = program, engine, list(numbers), read
        self.span = {name: self._input(name, (1,), torch.float64) for name in ("t0", "t1", "direction")}
        self.stages = self.weights = 0

    def called(self) -> set[tuple[str, int]]:
        """The functions of the field that the engine calls, with the sizes of what they take."""
        nodes = self.program.graph.nodes
        return {(node.data[0], node.data[1]) for node in nodes if node.op in ("evaluate", "transpose")}

    def start(self, t: Tensor, y: Tensor) -> None:
        """The function in which trajectories begin."""
        trace = traced(self.engine.start, t, t + 1, t + 1, y, *self.engine.inputs)
        y0 = self._input("y0", (1, y.shape[1]), y.dtype)
        derivative, status, *moving = self.program.lower(trace, [*self.span.values(), y0, *self.numbers])
        arrays = dict(zip(_MOVING, moving, strict=False))
        self.layout = _Layout(arrays)
        self._types = {
            name: (array.shape, array.flat[0].dtype if array.size else torch.float64) for name, array in arrays.items()
        }
        stores = [Store("derivative", 0, flat(derivative)), Store("(&status)", 0, flat(status))]
        head = "static void start(const Uniform& c, const Lanes& lanes, const S* y0, State& out, S* derivative, M& status)"
        self._function(head, {"y0": "y0"}, [*stores, *self.layout.stores("out", arrays)])

    def trial(self, t: Tensor, y: Tensor) -> None:
        """The function that tries one step."""
        state = {name: self._input(f"state_{name}", shape, dtype) for name, (shape, dtype) in self._types.items()}
        examples = [torch.zeros(shape, dtype=dtype) for shape, dtype in self._types.values()]
        trace = traced(self.engine.trial, t, t + 1, t + 1, *self.engine.inputs, *examples)
        out = self.program.lower(trace, [*self.span.values(), *self.numbers, *state.values()])
        status, t_end, accept, end, *rest = out
        moving, stages = dict(zip(state, rest, strict=False)), rest[len(state) :]
        self.stages = len(stages)
        stores = [
            Store("(&step.status)", 0, flat(status)),
            Store("(&step.t_end)", 0, flat(t_end)),
            Store("(&step.accept)", 0, flat(accept)),
            Store("step.y", 0, flat(end)),
            *self.layout.stores("out", moving),
        ]
        if self.read == "interpolate":
            stores += [Store("step.stages", number * y.shape[1], flat(stage)) for number, stage in enumerate(stages)]
        head = "static void trial(const Uniform& c, const Lanes& lanes, const State& in, State& out, Step& step)"
        self._function(head, self.layout.reads("in"), stores)

    def read_out(self, t: Tensor, y: Tensor) -> None:
        """The functions that read outputs inside a step."""
        dim = y.shape[1]
        extend: list[Store] = []
        weights: list[Store] = []
        restep: list[Store] = []
        carry = [torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in self._types.items() if name == "carry"]
        start, end = self._input("t", (1,), torch.float64), self._input("t_end", (1,), torch.float64)
        at = self._input("y", (1, dim), y.dtype)
        if self.read == "restep":
            trace = traced(self.engine.restep, t, t + 1, y, *carry)
            before = [self._input("state_carry", value.shape, value.dtype) for value in carry]
            restep = [Store("out", 0, flat(self.program.lower(trace, [start, end, at, *before])[0]))]
        else:
            fraction = self._input("theta", (1,), torch.float64)
            found = self.program.lower(traced(self.engine.weights, t + 0.5), [fraction])
            self.weights = len(found)
            weights = [Store("weight", number, flat(weight)) for number, weight in enumerate(found)]
            stages = [self._input(f"stage{number}", (1, dim), y.dtype) for number in range(self.stages)]
            if self.engine.method.extra_evaluations:
                trace = traced(self.engine.extend, t, t + 1, y, *_like(y, self.stages))
                extra = self.program.lower(trace, [start, end, at, *stages])
                extend = [Store("step.stages", (self.stages + number) * dim, flat(stage)) for number, stage in enumerate(extra)]
        places = {f"stage{number}": f"(step.stages + {number * dim})" for number in range(self.stages)}
        record = {"t": "(&record.t)", "t_end": "(&record.t_end)", "y": "record.y", **places}
        self._function(
            "static void extend(const Uniform& c, const Lanes& lanes, const Record& record, Step& step)", record, extend
        )
        self._function("static void weights(const Uniform& c, D theta, S* weight)", {"theta": "(&theta)"}, weights, lanes=False)
        head = "static void restep(const Uniform& c, const Lanes& lanes, D t, D t_end, const S* y, const State& before, S* out)"
        times = {"t": "(&t)", "t_end": "(&t_end)", "y": "y"}
        self._function(head, {**times, **self.layout.reads("before")}, restep)

    def pull(self, t: Tensor, y: Tensor) -> None:
        """The functions that pull one step back, with and without outputs inside it."""
        dim = y.shape[1]
        start, end = self._input("t", (1,), torch.float64), self._input("t_end", (1,), torch.float64)
        at, owed = self._input("y", (1, dim), y.dtype), self._input("owed", (1, dim), y.dtype)
        stages = [self._input(f"owed_stage{number}", (1, dim), y.dtype) for number in range(self.weights)]
        places = {f"owed_stage{number}": f"(stages + {number * dim})" for number in range(self.weights)}
        arrays = {"t": "(&t)", "t_end": "(&t_end)", "y": "y", "owed": "owed", **places}
        for name, more in (("plain", []), ("dense", stages)):
            trace = traced(self.engine.pull, t, t + 1, y, *_like(y, 1 + len(more)))
            back = self.program.lower(trace, [start, end, at, owed, *more])[0]
            given = "const S* stages, " if name == "dense" else ""
            head = (
                f"static void pull_{name}(const Uniform& c, Gradients& gradients, const Lanes& lanes, const S* args, "
                f"D t, D t_end, const S* y, const S* owed, {given}S* __restrict out, S* __restrict to_args)"
            )
            self.program.function(head, {**arrays, **self._span()}, [Store("out", 0, flat(back))], pulls=True)

    def _function(self, head: str, arrays: Mapping[str, str], stores: Sequence[Store], *, lanes: bool = True) -> None:
        given = self._span() if lanes else {}
        self.program.function(head, {**arrays, **given}, stores)
        if lanes:
            self.program.functions[-1] = self.program.functions[-1].replace("{\n", "{\n  const S* args = lanes.args;\n", 1)

    @staticmethod
    def _span() -> dict[str, str]:
        return {name: f"(&lanes.{name})" for name in ("t0", "t1", "direction")}

    def _input(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Array:
        return self.program.graph.inputs(name, tuple(shape), dtype, uniform=False)


def _like(y: Tensor, count: int) -> list[Tensor]:
    """Different tensors: a trace takes one that is given twice for one argument."""
    return [torch.zeros_like(y) for _ in range(count)]
