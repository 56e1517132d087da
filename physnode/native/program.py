"""The C++ source of one solve: a method, a controller and a field, for any batch, span, tolerance and parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from physnode.native.body import Body, Slots, Store, Vector
from physnode.native.expressions import Array, Graph, Node, Unsupported, walk
from physnode.native.lowering import constants, lowered
from physnode.native.spelling import SCALAR, vector_type

__all__ = ["Program", "Reads", "flat"]

_LARGEST = 300_000
"""Numbers, the same for all trajectories, that code is made for."""


class Reads:
    """The tensors that the code is given, the same for all trajectories."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors: list[Tensor] = []
        self.free: list[bool] = []
        """Which of them a gradient is wanted of."""
        self._arrays: dict[int, Array] = {}
        self._size = 0

    def array(self, tensor: Tensor, *, free: bool = False) -> Array:
        """Its entries; whole numbers and masks, by which other things are read, are constants of the code."""
        if not tensor.dtype.is_floating_point:
            return constants(self.graph, tensor)
        if tensor.dtype not in (torch.float64, torch.float32):
            raise Unsupported(f"it reads a tensor of {tensor.dtype}")
        return self.number(tensor, free=free)

    def is_free(self, node: Node) -> bool:
        """Whether a gradient is wanted of the tensor that an input belongs to."""
        return self.free[int(node.data[0][1:])]

    def number(self, tensor: Tensor, *, free: bool = False) -> Array:
        """Its entries as they are at each solve, whatever the dtype."""
        if id(tensor) not in self._arrays:
            self._size += tensor.numel()
            if self._size > _LARGEST:
                raise Unsupported(f"it reads more than {_LARGEST} numbers, for which products of whole batches are better")
            number = len(self.tensors)
            self._arrays[id(tensor)] = self.graph.inputs(f"p{number}", tuple(tensor.shape), tensor.dtype, uniform=True)
            self.tensors.append(tensor)
            self.free.append(free)
        return self._arrays[id(tensor)]


class Program:
    """Builds the source, function by function."""

    def __init__(self, dim: int, dtype: torch.dtype) -> None:
        if dtype not in (torch.float64, torch.float32):
            raise Unsupported(f"its states are {dtype}")
        self.dim, self.dtype = dim, dtype
        self.graph = Graph()
        self.reads = Reads(self.graph)
        self.slots = Slots()
        self.owed = Slots()
        """Uniform values that a gradient is wanted of, where it is added up."""
        self.packs: dict[tuple[int, bool], str] = {}
        """Names of packed matrices, by number and whether they are transposed."""
        self.outers: dict[int, str] = {}
        """Names of the gradients of matrices, by number."""
        self.functions: list[str] = []
        self.arguments: dict[str, tuple[int, Array]] = {}
        """Arguments that each trajectory has of its own: where they begin, and their entries."""
        self.args = 0

    def add_argument(self, name: str, shape: Sequence[int]) -> None:
        """An argument that each trajectory has of its own, in the dtype of the state."""
        array = self.graph.inputs(f"arg_{name}", shape, self.dtype, uniform=False)
        self.arguments[name] = (self.args, array)
        self.args += array.size

    def _call(self, t: Array, y: Array, name: str) -> Array:
        """A call of the field in a trace."""
        return self.graph.call("evaluate", (name, y.size), y.size, self.dtype, [*t.flat, *y.flat]).reshape(y.shape)

    def _transpose(self, t: Array, y: Array, w: Array, name: str) -> Array:
        """The transpose of one in a trace."""
        args = [*t.flat, *y.flat, *w.flat]
        return self.graph.call("transpose", (name, y.size), y.size, self.dtype, args).reshape(y.shape)

    def lower(self, trace: fx.GraphModule, inputs: Sequence[Array]) -> list[Any]:
        """A traced function of the engine, for the given arrays."""
        calls: dict[str, Callable[..., Array]] = {"evaluate": self._call, "transpose": self._transpose}
        return lowered(self.graph, trace, inputs, lambda tensor: constants(self.graph, tensor), calls)

    def function(self, head: str, arrays: Mapping[str, str], stores: Sequence[Store], *, pulls: bool = False) -> None:
        """A function of the engine that stores nodes."""
        body = self.body(arrays)
        if pulls:
            saves = _Saves(self, stores)
            body.vectors = {**body.vectors, "evaluate": saves.evaluate, "transpose": saves.transpose}
        self.define(head, body.emit(stores))

    def body(self, arrays: Mapping[str, str], saved: Mapping[int, tuple[str, int]] | None = None) -> Body:
        """The statements of a function whose inputs stand in ``arrays``, or are ``saved``."""
        vectors: dict[str, Vector] = {"linear": self._emit_product, "evaluate": self.emit_call}
        return Body(self.graph, self.slots, arrays, vectors, saved)

    def emit_call(self, body: Body, node: Node) -> str:
        """A call of the field."""
        name, size = node.data
        out = body.new_array(node, size)
        time, x = body.atom(node.args[0]), body.array(node.args[1:])
        body.lines.append(f"{name}(c, {time}, {x}, args, {out});")
        return out

    def _emit_product(self, body: Body, node: Node) -> str:
        matrix, transposed = node.data
        outputs, inputs = self.graph.matrices[matrix].shape[:: -1 if transposed else 1]
        pack = self.packs.setdefault((matrix, transposed), f"{'t' if transposed else 'w'}{matrix}")
        out, vector = body.new_array(node, outputs), vector_type(node.dtype)
        scalar = SCALAR[node.dtype]
        x = body.array(node.args)
        body.lines.append(f"product<{vector}, {scalar}, {outputs}, {inputs}>(c.{pack}, {x}, {out});")
        return out

    def define(self, head: str, lines: Sequence[str]) -> None:
        """A function of these statements."""
        tables = "  const double* ud = c.ud; const float* us = c.us; const int64_t* ui = c.ui;"
        self.functions.append("\n".join([f"{head} {{", tables, *(f"  {line}" for line in lines), "}"]))


class _Saves:
    """Evaluations in a backward step whose transposes follow: they leave behind what those read."""

    def __init__(self, program: Program, stores: Sequence[Store]) -> None:
        self.program = program
        self._pulled = {self._key(node) for node in walk([n for s in stores for n in s.nodes]) if node.op == "transpose"}
        self._kept: dict[Any, str] = {}

    @staticmethod
    def _key(node: Node) -> tuple[Any, ...]:
        size = node.data[1]
        return (node.data[0], *(arg.number for arg in node.args[: size + 1]))

    def evaluate(self, body: Body, node: Node) -> str:
        """A call of the field."""
        if self._key(node) not in self._pulled:
            return self.program.emit_call(body, node)
        return self._save(body, node)

    def _save(self, body: Body, node: Node) -> str:
        name, size = node.data
        out, kept = body.new_array(node, size), f"saved{len(self._kept)}"
        self._kept[self._key(node)] = kept
        time, x = body.atom(node.args[0]), body.array(node.args[1 : size + 1])
        body.lines.append(f"Saved_{name} {kept};")
        body.lines.append(f"{name}_save(c, {time}, {x}, args, {out}, {kept});")
        return out

    def transpose(self, body: Body, node: Node) -> str:
        """The transpose of one."""
        name, size = node.data
        if self._key(node) not in self._kept:
            self._save(body, node)
        out = body.new_array(node, size)
        w = body.array(node.args[size + 1 :])
        body.lines.append(f"{name}_pull(c, gradients, {self._kept[self._key(node)]}, {w}, {out}, to_args);")
        return out


def flat(value: Array | None) -> list[Node]:
    """The nodes of an array, none of None."""
    return [] if value is None else list(value.flat)
