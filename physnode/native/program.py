"""The C++ source of one solve: a method, a controller and a field, for any batch, span, tolerance and parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from physnode.native.emit import Body, Slots, Store, uniform_statements, vector_type
from physnode.native.expressions import Array, Graph, Node, Unsupported, as_array, walk
from physnode.native.lowering import constants, lowered
from physnode.native.reverse import Outer, depends_on, pull

__all__ = ["Program", "Reads"]

_SCALARS = {torch.float64: "double", torch.float32: "float", torch.int64: "int64_t"}


class Reads:
    """The tensors that the code is given, the same for all trajectories."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors: list[Tensor] = []
        self.free: list[bool] = []
        """Which of them a gradient is wanted of."""
        self._arrays: dict[int, Array] = {}

    def array(self, tensor: Tensor, *, free: bool = False) -> Array:
        """Its entries; whole numbers and masks, by which other things are read, are constants of the code."""
        if not tensor.dtype.is_floating_point:
            return constants(self.graph, tensor)
        if tensor.dtype not in (torch.float64, torch.float32):
            raise Unsupported(f"it reads a tensor of {tensor.dtype}")
        return self.number(tensor, free=free)

    def number(self, tensor: Tensor, *, free: bool = False) -> Array:
        """Its entries as they are at each solve, whatever the dtype."""
        if id(tensor) not in self._arrays:
            number = len(self.tensors)
            self._arrays[id(tensor)] = self.graph.inputs(f"p{number}", tuple(tensor.shape), tensor.dtype, uniform=True)
            self.tensors.append(tensor)
            self.free.append(free)
        return self._arrays[id(tensor)]


@dataclass
class FieldCode:
    """One function of the field, and its transpose."""

    name: str
    size: int
    saved: dict[str, int] = field(default_factory=dict)
    """How many values of each vector type its transpose reads."""


class Program:
    """Builds the source, function by function."""

    def __init__(self, dim: int, dtype: torch.dtype) -> None:
        if dtype not in (torch.float64, torch.float32):
            raise Unsupported(f"its states are {dtype}")
        self.dim, self.dtype = dim, dtype
        self.state_type = vector_type(dtype)
        self.graph = Graph()
        self.reads = Reads(self.graph)
        self.slots = Slots()
        self.owed = Slots()
        """Uniform values that a gradient is wanted of, where it is added up."""
        self.packs: dict[tuple[int, bool], str] = {}
        self.outers: dict[int, str] = {}
        self.functions: list[str] = []
        self.fields: dict[str, FieldCode] = {}
        self.arguments: dict[str, tuple[int, Array]] = {}
        self.args = 0

    # --- the field

    def add_argument(self, name: str, shape: Sequence[int]) -> None:
        """An argument that each trajectory has of its own, in the dtype of the state."""
        array = self.graph.inputs(f"arg_{name}", shape, self.dtype, uniform=False)
        self.arguments[name] = (self.args, array)
        self.args += array.size

    def add_field(
        self, name: str, size: int, trace: fx.GraphModule, given: dict[str, Array], free: set[int], *, differentiable: bool
    ) -> None:
        """A function of the field of ``size`` numbers; ``free`` are ids of tensors that a gradient is wanted of."""
        t = self.graph.inputs("t", (1,), torch.float64, uniform=False)
        x = self.graph.inputs(f"x{size}", (1, size), self.dtype, uniform=False)
        read = lambda tensor: self.reads.array(tensor, free=id(tensor) in free)  # noqa: E731
        [value] = lowered(self.graph, trace, [t, x, *given.values()], read, {})
        outputs = list(value.reshape(-1))
        code = FieldCode(name, size)
        self.fields[name] = code
        arrays = {"t": "(&t)", f"x{size}": "x", **{f"arg_{key}": f"(args + {at})" for key, (at, _) in self.arguments.items()}}
        head = f"(const Uniform& c, D t, const S* x, const S* args, S* __restrict out"
        lines = self._body(arrays).emit([Store("out", 0, outputs)])
        self._function(f"static void {name}{head})", lines)
        if differentiable:
            self._add_transpose(code, outputs, x, head, arrays)

    def _add_transpose(self, code: FieldCode, outputs: Sequence[Node], x: Array, head: str, arrays: dict[str, str]) -> None:
        size, name = code.size, code.name
        w = list(self.graph.inputs(f"w{size}", (size,), self.dtype, uniform=False))
        primal = [node for node in walk(outputs) if not node.uniform]
        used = sorted({node.data[0] for node in primal if node.op == "linear"})
        entries = [entry for number in used for entry in self.graph.matrices[number].flat]
        leaves = [node for node in walk([*outputs, *entries]) if node.op == "input" and node.uniform]
        free = {node.number for node in leaves if self._is_free(node)}
        matrices = self._free_matrices(used, free)
        own = [node for _, array in self.arguments.values() for node in array.flat]
        inputs = [*x.flat, *own]
        owed = pull(self.graph, outputs, w, {node.number for node in inputs}, free, matrices)
        zero = self.graph.const(0.0, self.dtype)
        stores = [Store("to_x", 0, [owed.inputs.get(node.number, zero) for node in x.flat])]
        if own:
            stores.append(Store("to_args", 0, [owed.inputs.get(node.number, zero) for node in own], add=True))
        shared = sorted(owed.uniform)
        by_number = {node.number: node for node in walk(outputs) if node.uniform}
        stores += self._owed_stores([by_number[number] for number in shared], [owed.uniform[number] for number in shared])
        calls = [(self._outer(outer), outer.rows, outer.columns) for outer in owed.outers]
        frontier = self._frontier(stores, owed.outers, {node.number for node in primal})
        saved: dict[int, tuple[str, int]] = {}
        for node in frontier:
            kind = vector_type(node.dtype)
            saved[node.number] = (f"save.{kind.lower()}", code.saved.setdefault(kind, 0))
            code.saved[kind] += 1
        fields = "".join(f" {kind} {kind.lower()}[{count}];" for kind, count in code.saved.items())
        self.functions.append(f"struct PN_ALIGNED Saved_{name} {{{fields} }};")
        body = self._body(arrays)
        whole = [
            node for node in frontier if node.run is not None and all(m.number in saved for m in self.graph.runs[node.run])
        ]
        for node in whole:
            assert node.run is not None
            if node.place == 0 and node.op not in ("item", "input"):
                array, place = saved[node.number]
                body.pinned[node.run] = f"({array} + {place})"
        keep = [
            Store(saved[node.number][0], saved[node.number][1], [node])
            for node in frontier
            if not (node.run in body.pinned and node.op not in ("item", "input"))
        ]
        lines = body.emit([Store("out", 0, list(outputs)), *_merged(keep)])
        self._function(f"static void {name}_save{head}, Saved_{name}& save)", lines)
        back = self._body({f"w{size}": "w"}, saved)
        tail = "(const Uniform& c, Gradients& gradients, const Saved_{0}& save, const S* w, S* __restrict to_x, S* __restrict to_args)"
        self._function(f"static void {name}_pull{tail.format(name)}", back.emit(stores, calls))

    def _is_free(self, node: Node) -> bool:
        return self.reads.free[int(node.data[0][1:])]

    def _free_matrices(self, numbers: Sequence[int], free: set[int]) -> set[int]:
        found = set()
        for number in numbers:
            entries = list(self.graph.matrices[number].flat)
            if depends_on(walk(entries), free, ()) & {entry.number for entry in entries}:
                found.add(number)
        return found

    def _owed_stores(self, nodes: Sequence[Node], shares: Sequence[Node]) -> list[Store]:
        """Shares of uniform values, added to their places."""
        pairs = [(node, share) for node, share in zip(nodes, shares, strict=True) if share.op != "const"]
        found = []
        for node, share in pairs:
            table, place = self.owed.place(node)
            if share.uniform:
                raise Unsupported("a gradient that does not depend on the state")
            found.append(Store(f"gradients.{table}", place, [share], add=True))
        return _merged(found)

    def _outer(self, outer: Outer) -> str:
        self.outers.setdefault(outer.matrix, f"w{outer.matrix}")
        return f"gradients.outer{outer.matrix}"

    def _frontier(self, stores: Sequence[Store], outers: Sequence[Outer], primal: set[int]) -> list[Node]:
        """Values of the evaluation itself that its transpose reads, whole runs side by side."""
        waiting = [node for store in stores for node in store.nodes]
        waiting += [node for outer in outers for node in (*outer.rows, *outer.columns)]
        seen: set[int] = set()
        found = []
        while waiting:
            node = waiting.pop()
            if node.number in seen or node.uniform:
                continue
            seen.add(node.number)
            if node.number in primal:
                found.append(node)
            else:
                waiting += node.args
        return sorted(found, key=lambda node: node.number)

    # --- the engine

    def call(self, t: Array, y: Array, name: str) -> Array:
        """A call of the field in a trace."""
        return self.graph.call("evaluate", (name, y.size), y.size, self.dtype, [*t.flat, *y.flat]).reshape(y.shape)

    def transpose(self, t: Array, y: Array, w: Array, name: str) -> Array:
        """The transpose of one in a trace."""
        args = [*t.flat, *y.flat, *w.flat]
        return self.graph.call("transpose", (name, y.size), y.size, self.dtype, args).reshape(y.shape)

    def lower(self, trace: fx.GraphModule, inputs: Sequence[Array]) -> list[Any]:
        """A traced function of the engine, for the given arrays."""
        calls = {"evaluate": self.call, "transpose": self.transpose}
        return lowered(self.graph, trace, inputs, lambda tensor: constants(self.graph, tensor), calls)

    def function(self, head: str, arrays: dict[str, str], stores: Sequence[Store], *, pulls: bool = False) -> None:
        """A function of the engine that stores nodes."""
        body = self._body(arrays)
        if pulls:
            saves = _Saves(self, stores)
            body.vectors = {**body.vectors, "evaluate": saves.evaluate, "transpose": saves.transpose}
        self._function(head, body.emit(stores))

    def _body(self, arrays: dict[str, str], saved: dict[int, tuple[str, int]] | None = None) -> Body:
        vectors: dict[str, Callable[[Body, Node], str]] = {"linear": self._emit_product, "evaluate": self._emit_call}
        return Body(self.graph, self.slots, arrays, vectors, saved)

    def _emit_call(self, body: Body, node: Node) -> str:
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
        scalar = _SCALARS[node.dtype]
        x = body.array(node.args)
        body.lines.append(f"product<{vector}, {scalar}, {outputs}, {inputs}>(c.{pack}, {x}, {out});")
        return out

    def _function(self, head: str, lines: Sequence[str]) -> None:
        tables = "  const double* ud = c.ud; const float* us = c.us; const int64_t* ui = c.ui;"
        self.functions.append("\n".join([f"{head} {{", tables, *(f"  {line}" for line in lines), "}"]))

    # --- what all trajectories share

    def uniform_struct(self) -> str:
        """The tables of uniform values, and how they are computed from the tensors that the code reads."""
        lines: list[str] = []
        nodes = [node for table in self.slots.nodes.values() for node in table]
        computed = [node for node in nodes if node.op != "input"]
        entries = [node for (matrix, _) in self.packs for node in self.graph.matrices[matrix].flat]
        computed += [node for node in entries if node.op not in ("input", "const")]
        statements, name_of = uniform_statements(computed, _input)
        lines += statements
        for table, members in self.slots.nodes.items():
            lines += _filled(table, members, name_of)
        for (matrix, transposed), pack in self.packs.items():
            array = self.graph.matrices[matrix].T if transposed else self.graph.matrices[matrix]
            lines += _packed(pack, array, name_of)
        members = [f"  PN_ALIGNED {_TYPES[table]} {table}[{len(self.slots.nodes.get(table, ())) + 1}];" for table in _TYPES]
        for (matrix, _), pack in self.packs.items():
            array = self.graph.matrices[matrix]
            members.append(f"  PN_ALIGNED {_SCALARS[array.flat[0].dtype]} {pack}[{array.size}];")
        fill = ["  void fill(const void* const* uniform) {", *(f"    {line}" for line in lines), "  }"]
        return "\n".join(["struct PN_ALIGNED Uniform {", *members, *fill, "};"])

    def gradients_struct(self) -> str:
        """Where the gradients of uniform values are added up, and how they are handed on to the tensors."""
        sizes = {table: len(self.owed.nodes.get(table, ())) for table in ("ud", "us")}
        members, flush, join, hand = [], [], [], []
        for table, vector in (("ud", "D"), ("us", "F")):
            count = sizes[table]
            members.append(f"  PN_ALIGNED {vector} {table}[{count + 1}]; double sum_{table}[{count + 1}];")
            flush.append(
                f"    for (int k = 0; k < {count}; ++k) {{ for (int l = 0; l < LANES; ++l) sum_{table}[k] += {table}[k][l]; "
                f"{table}[k] = {vector}{{}}; }}"
            )
            join.append(f"    for (int k = 0; k < {count}; ++k) sum_{table}[k] += other.sum_{table}[k];")
        for matrix, name in self.outers.items():
            array = self.graph.matrices[matrix]
            rows, columns = array.shape
            vector, scalar = vector_type(array.flat[0].dtype), _SCALARS[array.flat[0].dtype]
            width = f"(({columns} + LANES - 1) / LANES)"
            members.append(f"  PN_ALIGNED {vector} {name}[{rows} * {width}]; double sum_{name}[{rows} * {columns}];")
            members.append(
                f"  void outer{matrix}(const {vector}* g, const {vector}* x) "
                f"{{ add_outer<{vector}, {scalar}, {rows}, {columns}>(g, x, {name}); }}"
            )
            flush.append(
                f"    for (int o = 0; o < {rows}; ++o) {{ for (int i = 0; i < {columns}; ++i) sum_{name}[o * {columns} + i] += "
                f"{name}[o * {width} + i / LANES][i % LANES]; for (int i = 0; i < {width}; ++i) {name}[o * {width} + i] = {vector}{{}}; }}"
            )
            join.append(f"    for (int k = 0; k < {rows * columns}; ++k) sum_{name}[k] += other.sum_{name}[k];")
        hand += self._handed_on()
        return "\n".join(
            [
                "struct PN_ALIGNED Gradients {",
                *members,
                "  int since = 0;",
                "  Gradients() { std::memset((void*)this, 0, sizeof *this); }",
                "  void count() { if (++since == 256) flush(); }",  # sums over many records grow in double, whatever the state is
                "  void flush() {",
                "    since = 0;",
                *flush,
                "  }",
                "  void join(const Gradients& other) {",
                *join,
                "  }",
                "  void hand_on(const Uniform& c, double* const* to_uniform) {",
                *(f"    {line}" for line in hand),
                "  }",
                "};",
            ]
        )

    def _handed_on(self) -> list[str]:
        """The gradients of the tensors, from those of all uniform values that are computed from them."""
        lines: list[str] = []
        computed: list[tuple[Node, str]] = []
        for table, nodes in self.owed.nodes.items():
            direct = [(place, node) for place, node in enumerate(nodes) if node.op == "input"]
            for first, start, length in _stretches(direct):
                lines.append(
                    f"for (int i = 0; i < {length}; ++i) to_uniform[{first.data[0][1:]}][{first.data[1]} + i] += sum_{table}[{start} + i];"
                )
            computed += [(node, f"sum_{table}[{place}]") for place, node in enumerate(nodes) if node.op != "input"]
        for matrix, name in self.outers.items():
            array = self.graph.matrices[matrix]
            affine = _affine(array)
            if affine is not None:
                tensor, base, by_row, by_column = affine
                lines.append(
                    f"for (int o = 0; o < {array.shape[0]}; ++o) for (int i = 0; i < {array.shape[1]}; ++i) "
                    f"to_uniform[{tensor[1:]}][{base} + o * {by_row} + i * {by_column}] += sum_{name}[o * {array.shape[1]} + i];"
                )
                continue
            for place, node in enumerate(array.flat):
                if node.op == "input" and self._is_free(node):
                    lines.append(f"to_uniform[{node.data[0][1:]}][{node.data[1]}] += sum_{name}[{place}];")
                elif node.op not in ("input", "const"):
                    computed.append((node, f"sum_{name}[{place}]"))
        return lines + self._pulled_uniform(computed)

    def _pulled_uniform(self, computed: Sequence[tuple[Node, str]]) -> list[str]:
        if not computed:
            return []
        nodes = [node for node, _ in computed]
        leaves = {node.number for node in walk(nodes) if node.op == "input" and self._is_free(node)}
        owed_in = self.graph.inputs("shares", (len(nodes),), torch.float64, uniform=True)
        cotangents = [self.graph.make("cast", node.dtype, w) for node, w in zip(nodes, owed_in.flat, strict=True)]
        pulled = pull(self.graph, nodes, cotangents, leaves, (), (), uniform=True)
        sums = [text for _, text in computed]

        def read(node: Node) -> str:
            if node.data[0] == "shares":
                return sums[node.data[1]]
            table, place = self.slots.place(node)
            return f"c.{table}[{place}]"

        shares = [(number, share) for number, share in pulled.inputs.items() if number in leaves]
        by_number = {node.number: node for node in walk(nodes)}
        statements, name_of = uniform_statements([share for _, share in shares], read, "b")
        for number, share in shares:
            node = by_number[number]
            statements.append(f"to_uniform[{node.data[0][1:]}][{node.data[1]}] += {name_of(share)};")
        return statements


_TYPES = {"ud": "double", "us": "float", "ui": "int64_t"}


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
        if self._key(node) not in self._pulled:
            return self.program._emit_call(body, node)
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
        name, size = node.data
        if self._key(node) not in self._kept:
            self._save(body, node)
        out = body.new_array(node, size)
        w = body.array(node.args[size + 1 :])
        body.lines.append(f"{name}_pull(c, gradients, {self._kept[self._key(node)]}, {w}, {out}, to_args);")
        return out


def _input(node: Node) -> str:
    name, place = node.data
    return f"((const {_SCALARS[node.dtype]}*)uniform[{name[1:]}])[{place}]"


def _merged(stores: Sequence[Store]) -> list[Store]:
    """Stores to places one after the other as one."""
    found: list[Store] = []
    for store in sorted(stores, key=lambda store: (store.target, store.first)):
        last = found[-1] if found else None
        follows = last is not None and last.target == store.target and last.add == store.add
        same_run = follows and last is not None and last.nodes[0].run is not None and last.nodes[0].run == store.nodes[0].run
        if last is not None and same_run and last.first + len(last.nodes) == store.first:
            found[-1] = Store(last.target, last.first, [*last.nodes, *store.nodes], last.add)
        else:
            found.append(store)
    return found


def _stretches(places: Sequence[tuple[int, Node]]) -> list[tuple[Node, int, int]]:
    """Inputs that lie one after the other, both where they are read and where they are put: (first, place, length)."""
    found: list[tuple[Node, int, int]] = []
    for place, node in places:
        if found:
            first, start, length = found[-1]
            if (place, node.data) == (start + length, (first.data[0], first.data[1] + length)):
                found[-1] = (first, start, length + 1)
                continue
        found.append((node, place, 1))
    return found


def _filled(table: str, nodes: Sequence[Node], name_of: Callable[[Node], str]) -> list[str]:
    lines = []
    for first, start, length in _stretches([(place, node) for place, node in enumerate(nodes) if node.op == "input"]):
        source = f"((const {_SCALARS[first.dtype]}*)uniform[{first.data[0][1:]}])"
        lines.append(f"for (int i = 0; i < {length}; ++i) {table}[{start} + i] = {source}[{first.data[1]} + i];")
    lines += [f"{table}[{place}] = {name_of(node)};" for place, node in enumerate(nodes) if node.op != "input"]
    return lines


def _affine(array: Array) -> tuple[str, int, int, int] | None:
    """(tensor, first place, step by row, step by column) of a matrix whose entries lie evenly in one tensor."""
    first = array.flat[0]
    if first.op != "input" or any(node.op != "input" or node.data[0] != first.data[0] for node in array.flat):
        return None
    places = np.array([node.data[1] for node in array.flat]).reshape(array.shape)
    by_row = int(places[1, 0] - places[0, 0]) if array.shape[0] > 1 else 0
    by_column = int(places[0, 1] - places[0, 0]) if array.shape[1] > 1 else 0
    expected = places[0, 0] + by_row * np.arange(array.shape[0])[:, None] + by_column * np.arange(array.shape[1])
    return (first.data[0], int(places[0, 0]), by_row, by_column) if (places == expected).all() else None


def _packed(pack: str, array: Array, name_of: Callable[[Node], str]) -> list[str]:
    rows, columns = array.shape
    scalar = _SCALARS[array.flat[0].dtype]
    affine = _affine(array)
    head = f"pack<{scalar}, {rows}, {columns}>({pack}, [&](int o, int i) {{"
    if affine is not None:
        tensor, base, by_row, by_column = affine
        return [f"{head} return ((const {scalar}*)uniform[{tensor[1:]}])[{base} + o * {by_row} + i * {by_column}]; }});"]
    entries = ", ".join(
        _input(node) if node.op == "input" else name_of(node) if node.op != "const" else str(node.data) for node in array.flat
    )
    return [f"{{ const {scalar} entries[] = {{{entries}}};", f"{head} return entries[o * {columns} + i]; }}); }}"]


def flat(value: Array | None) -> list[Node]:
    """The nodes of an array, none of None."""
    return [] if value is None else list(as_array(list(value.flat), (value.size,)))
