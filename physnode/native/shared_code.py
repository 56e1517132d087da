"""What all trajectories share: tables of uniform values and packed matrices, and where their gradients are added up.

The tables are filled once a solve from the tensors that the code reads; gradients go back through what was computed on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from physnode.native.expressions import Array, Node, walk
from physnode.native.program import Program
from physnode.native.reverse import pull
from physnode.native.spelling import SCALAR, uniform_statements, vector_type

__all__ = ["gradients_struct", "uniform_struct"]

_TYPES = {"ud": "double", "us": "float", "ui": "int64_t"}


def uniform_struct(program: Program) -> str:
    """The tables of uniform values, and how they are computed from the tensors that the code reads."""
    lines: list[str] = []
    nodes = [node for table in program.slots.nodes.values() for node in table]
    computed = [node for node in nodes if node.op != "input"]
    entries = [node for (matrix, _) in program.packs for node in program.graph.matrices[matrix].flat]
    computed += [node for node in entries if node.op not in ("input", "const")]
    statements, name_of = uniform_statements(computed, _input)
    lines += statements
    for table, slots in program.slots.nodes.items():
        lines += _filled(table, slots, name_of)
    for (matrix, transposed), pack in program.packs.items():
        array = program.graph.matrices[matrix].T if transposed else program.graph.matrices[matrix]
        lines += _packed(pack, array, name_of)
    members = [f"  PN_ALIGNED {_TYPES[table]} {table}[{len(program.slots.nodes.get(table, ())) + 1}];" for table in _TYPES]
    for (matrix, _), pack in program.packs.items():
        array = program.graph.matrices[matrix]
        members.append(f"  PN_ALIGNED {SCALAR[array.flat[0].dtype]} {pack}[{array.size}];")
    fill = ["  void fill(const void* const* uniform) {", *(f"    {line}" for line in lines), "  }"]
    return "\n".join(["struct PN_ALIGNED Uniform {", *members, *fill, "};"])


def gradients_struct(program: Program) -> str:
    """Where the gradients of uniform values are added up, and how they are handed on to the tensors."""
    sizes = {table: len(program.owed.nodes.get(table, ())) for table in ("ud", "us")}
    members, flush, join, hand = [], [], [], []
    for table, vector in (("ud", "D"), ("us", "F")):
        count = sizes[table]
        members.append(f"  PN_ALIGNED {vector} {table}[{count + 1}]; double sum_{table}[{count + 1}];")
        flush.append(
            f"    for (int k = 0; k < {count}; ++k) {{ for (int l = 0; l < LANES; ++l) sum_{table}[k] += {table}[k][l]; "
            f"{table}[k] = {vector}{{}}; }}"
        )
        join.append(f"    for (int k = 0; k < {count}; ++k) sum_{table}[k] += other.sum_{table}[k];")
    for matrix, name in program.outers.items():
        array = program.graph.matrices[matrix]
        rows, columns = array.shape
        vector, scalar = vector_type(array.flat[0].dtype), SCALAR[array.flat[0].dtype]
        width = f"(({columns} + LANES - 1) / LANES)"
        members.append(f"  PN_ALIGNED {vector} {name}[{rows} * {width}]; double sum_{name}[{rows} * {columns}];")
        members.append(
            f"  void outer{matrix}(const {vector}* g, const {vector}* x) "
            f"{{ add_outer<{vector}, {scalar}, {rows}, {columns}>(g, x, {name}); }}"
        )
        flush.append(
            f"    for (int o = 0; o < {rows}; ++o) {{ for (int i = 0; i < {columns}; ++i) sum_{name}[o * {columns} + i] += "
            f"{name}[o * {width} + i / LANES][i % LANES]; "
            f"for (int i = 0; i < {width}; ++i) {name}[o * {width} + i] = {vector}{{}}; }}"
        )
        join.append(f"    for (int k = 0; k < {rows * columns}; ++k) sum_{name}[k] += other.sum_{name}[k];")
    hand += _handed_on(program)
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


def _handed_on(program: Program) -> list[str]:
    """The gradients of the tensors, from those of all uniform values that are computed from them."""
    lines: list[str] = []
    computed: list[tuple[Node, str]] = []
    for table, nodes in program.owed.nodes.items():
        direct = [(place, node) for place, node in enumerate(nodes) if node.op == "input"]
        for first, start, length in _stretches(direct):
            target = f"to_uniform[{first.data[0][1:]}][{first.data[1]} + i]"
            lines.append(f"for (int i = 0; i < {length}; ++i) {target} += sum_{table}[{start} + i];")
        computed += [(node, f"sum_{table}[{place}]") for place, node in enumerate(nodes) if node.op != "input"]
    for matrix, name in program.outers.items():
        array = program.graph.matrices[matrix]
        affine = _affine(array)
        if affine is not None:
            tensor, base, by_row, by_column = affine
            lines.append(
                f"for (int o = 0; o < {array.shape[0]}; ++o) for (int i = 0; i < {array.shape[1]}; ++i) "
                f"to_uniform[{tensor[1:]}][{base} + o * {by_row} + i * {by_column}] += sum_{name}[o * {array.shape[1]} + i];"
            )
            continue
        for place, node in enumerate(array.flat):
            if node.op == "input" and program.reads.is_free(node):
                lines.append(f"to_uniform[{node.data[0][1:]}][{node.data[1]}] += sum_{name}[{place}];")
            elif node.op not in ("input", "const"):
                computed.append((node, f"sum_{name}[{place}]"))
    return lines + _pulled(program, computed)


def _pulled(program: Program, computed: Sequence[tuple[Node, str]]) -> list[str]:
    if not computed:
        return []
    nodes = [node for node, _ in computed]
    leaves = {node.number for node in walk(nodes) if node.op == "input" and program.reads.is_free(node)}
    owed_in = program.graph.inputs("shares", (len(nodes),), torch.float64, uniform=True)
    cotangents = [program.graph.make("cast", node.dtype, w) for node, w in zip(nodes, owed_in.flat, strict=True)]
    pulled = pull(program.graph, nodes, cotangents, leaves, (), (), uniform=True)
    sums = [text for _, text in computed]

    def read(node: Node) -> str:
        if node.data[0] == "shares":
            return sums[int(node.data[1])]
        table, place = program.slots.place(node)
        return f"c.{table}[{place}]"

    shares = [(number, share) for number, share in pulled.inputs.items() if number in leaves]
    by_number = {node.number: node for node in walk(nodes)}
    statements, name_of = uniform_statements([share for _, share in shares], read, "b")
    for number, share in shares:
        node = by_number[number]
        statements.append(f"to_uniform[{node.data[0][1:]}][{node.data[1]}] += {name_of(share)};")
    return statements


def _input(node: Node) -> str:
    name, place = node.data
    return f"((const {SCALAR[node.dtype]}*)uniform[{name[1:]}])[{place}]"


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
        source = f"((const {SCALAR[first.dtype]}*)uniform[{first.data[0][1:]}])"
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
    scalar = SCALAR[array.flat[0].dtype]
    affine = _affine(array)
    head = f"pack<{scalar}, {rows}, {columns}>({pack}, [&](int o, int i) {{"
    if affine is not None:
        tensor, base, by_row, by_column = affine
        return [f"{head} return ((const {scalar}*)uniform[{tensor[1:]}])[{base} + o * {by_row} + i * {by_column}]; }});"]
    entries = ", ".join(
        _input(node) if node.op == "input" else name_of(node) if node.op != "const" else str(node.data) for node in array.flat
    )
    return [f"{{ const {scalar} entries[] = {{{entries}}};", f"{head} return entries[o * {columns} + i]; }}); }}"]
