"""The statements of one C++ function: one variable a node, one loop a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from physnode.native.expressions import Graph, Node, Unsupported, reached
from physnode.native.spelling import LARGEST, TABLE, literal, vector_expression, vector_type

__all__ = ["Body", "Slots", "Store"]


@dataclass
class Slots:
    """Places of the uniform values that varying code reads, by table."""

    nodes: dict[str, list[Node]] = field(default_factory=lambda: defaultdict(list))
    _place: dict[int, int] = field(default_factory=dict)

    def has(self, node: Node) -> bool:
        """Whether a node has a place already."""
        return node.number in self._place

    def place(self, node: Node) -> tuple[str, int]:
        """Table and place of one node."""
        table = TABLE[node.dtype]
        if node.number not in self._place:
            self._place[node.number] = len(self.nodes[table])
            self.nodes[table].append(node)
        return table, self._place[node.number]

    def first_of(self, nodes: Sequence[Node]) -> tuple[str, int] | None:
        """Table and first place of different nodes that lie one after the other, None if they do not."""
        if len({node.number for node in nodes}) < len(nodes):
            return None
        places = [self.place(node) for node in nodes]
        table, first = places[0]
        return places[0] if places == [(table, first + i) for i in range(len(nodes))] else None


@dataclass(frozen=True)
class Store:
    """Nodes to be written to consecutive places of an array, or added to it."""

    target: str
    first: int
    nodes: Sequence[Node]
    add: bool = False


Vector = Callable[["Body", Node], str]
"""Emits the call that a vector node is, and returns the name of the array that holds its entries."""


class Body:
    """The statements of one function."""

    def __init__(
        self,
        graph: Graph,
        slots: Slots,
        arrays: Mapping[str, str],
        vectors: Mapping[str, Vector],
        saved: Mapping[int, tuple[str, int]] | None = None,
    ) -> None:
        """``arrays`` names the C++ array of each varying input, ``vectors`` emits vector nodes by their operation, ``saved``
        are nodes that are found in an array already."""
        self.graph, self.slots, self.arrays, self.vectors = graph, slots, arrays, vectors
        self.saved = dict(saved or {})
        self.lines: list[str] = []
        self.pinned: dict[int, str] = {}
        """Arrays that runs must be put into, by run."""
        self._where: dict[int, str] = {}
        self._array_of_run: dict[int, str] = {}
        self._gathered: dict[tuple[int, ...], str] = {}
        self._inlined: dict[int, list[Node]] = {}
        self._count = 0

    def emit(self, stores: Sequence[Store], outers: Sequence[tuple[str, Sequence[Node], Sequence[Node]]] = ()) -> list[str]:
        """Statements that compute and store everything; ``outers`` are calls ``name(rows, columns)`` with arrays of nodes."""
        wanted = [node for store in stores for node in store.nodes]
        wanted += [node for _, rows, columns in outers for node in (*rows, *columns)]
        order = [node for node in reached(wanted, self._is_there) if not node.uniform]
        if len(order) > LARGEST:
            raise Unsupported(f"its code would be {len(order)} statements long, above {LARGEST}")
        parts = self._parts(order)
        self._find_inlined(parts, order, stores, outers)
        for part in parts:
            if part[0].run is not None and part[0].run in self._inlined:
                continue
            if len(part) > 1:
                self._emit_run(part)
            else:
                self._emit_one(part[0])
        for store in stores:
            self._emit_store(store)
        for name, rows, columns in outers:
            self.lines.append(f"{name}({self.array(rows)}, {self.array(columns)});")
        return self.lines

    def _is_there(self, node: Node) -> bool:
        return node.uniform or node.number in self.saved

    def atom(self, node: Node) -> str:
        """An expression for a node that is available."""
        vector = vector_type(node.dtype)
        if node.op == "const":
            return f"b{vector}({literal(node)})"
        if node.uniform:
            table, place = self.slots.place(node)
            return f"b{vector}({table}[{place}])"
        if node.number in self.saved:
            array, place = self.saved[node.number]
            return f"{array}[{place}]"
        if node.op == "input":
            name, place = node.data
            return f"{self.arrays[name]}[{place}]"
        if node.run is not None and node.run in self._array_of_run:
            return f"{self._array_of_run[node.run]}[{node.place}]"
        if node.op == "item":
            return f"{self._where[node.args[0].number]}[{node.data}]"
        return self._where[node.number]

    def array(self, nodes: Sequence[Node]) -> str:
        """An array that holds ``nodes`` in their order: one that exists, or a new one."""
        base = self._base(nodes)
        if base is not None:
            return base
        key = tuple(node.number for node in nodes)
        if key not in self._gathered:
            name, vector = self._name("a"), vector_type(nodes[0].dtype)
            self.lines.append(f"{vector} {name}[{len(nodes)}];")
            self.lines += self._copied(name, 0, nodes)
            self._gathered[key] = name
        return self._gathered[key]

    def _copied(self, target: str, first: int, nodes: Sequence[Node], sign: str = "=") -> list[str]:
        """Statements that copy nodes, piece by piece where pieces lie one after the other."""
        lines, at = [], 0
        while at < len(nodes):
            length = self._longest(nodes, at)
            expression = self._indexed(nodes[at : at + length]) if length > 3 else None
            if expression is None:
                lines.append(f"{target}[{first + at}] {sign} {self.atom(nodes[at])};")
                at += 1
                continue
            lines.append(f"for (int i = 0; i < {length}; ++i) {target}[{first + at} + i] {sign} {expression};")
            at += length
        return lines

    def _longest(self, nodes: Sequence[Node], at: int) -> int:
        """How many nodes from ``at`` on lie one after the other in some array."""

        def lies(node: Node) -> tuple[str, int] | None:
            if node.op == "const" or (node.uniform and not self.slots.has(node)):
                return None
            if node.uniform:
                return self.slots.place(node)
            if node.number in self.saved:
                return self.saved[node.number]
            if node.op == "input":
                return node.data  # type: ignore[no-any-return]
            if node.run is not None and node.run in self._array_of_run:
                return self._array_of_run[node.run], node.place
            return (self._where[node.args[0].number], node.data) if node.op == "item" else None

        start = lies(nodes[at])
        length = 1
        while start is not None and at + length < len(nodes) and lies(nodes[at + length]) == (start[0], start[1] + length):
            length += 1
        return length

    def _parts(self, order: Sequence[Node]) -> list[list[Node]]:
        """What is computed, in order: whole runs, and single nodes."""
        computed = [node for node in order if node.op not in ("const", "input") and node.number not in self.saved]
        members: dict[int, int] = Counter(node.run for node in computed if node.run is not None)
        parts: list[list[Node]] = []
        done: set[int] = set()
        for node in computed:
            whole = node.run is not None and members[node.run] == len(self.graph.runs[node.run])
            if not whole or node.op == "item":
                parts.append([node])
            elif node.run not in done:
                assert node.run is not None
                done.add(node.run)
                parts.append(self.graph.runs[node.run])
        return parts

    def _find_inlined(
        self,
        parts: Sequence[Sequence[Node]],
        order: Sequence[Node],
        stores: Sequence[Store],
        outers: Sequence[tuple[str, Sequence[Node], Sequence[Node]]],
    ) -> None:
        """Runs that one loop alone reads, entry by entry, are computed inside it."""
        uses: Counter[int] = Counter()
        for node in order:
            if node.number not in self.saved:
                uses.update(arg.number for arg in node.args)
        for store in stores:
            uses.update(node.number for node in store.nodes)
        for _, rows, columns in outers:
            uses.update(2 * [node.number for node in (*rows, *columns)])
        whole = {part[0].run: part for part in parts if len(part) > 1}
        readers: list[list[Sequence[Node]]] = [
            [[node.args[place] for node in part] for place in range(len(part[0].args))] for part in whole.values()
        ]
        readers += [[store.nodes] for store in stores]
        for arguments in readers:
            for nodes in arguments:
                run = nodes[0].run
                if run is None or run not in whole or run in self.pinned or len(nodes) != len(whole[run]):
                    continue
                if all(a is b for a, b in zip(nodes, whole[run], strict=True)) and all(
                    uses[node.number] == 1 for node in nodes
                ):
                    self._inlined[run] = list(nodes)

    def _emit_run(self, part: Sequence[Node]) -> None:
        run = part[0].run
        assert run is not None
        expression = self._run_expression(part)
        name = self.pinned.get(run)
        if name is None:
            name = self._name("r")
            self.lines.append(f"{vector_type(part[0].dtype)} {name}[{len(part)}];")
        self.lines.append(f"for (int i = 0; i < {len(part)}; ++i) {name}[i] = {expression};")
        self._array_of_run[run] = name

    def _run_expression(self, part: Sequence[Node]) -> str:
        first = part[0]
        arguments = [self._indexed([node.args[place] for node in part]) for place in range(len(first.args))]
        return vector_expression(first, arguments)

    def _indexed(self, nodes: Sequence[Node]) -> str:
        """An expression in ``i`` for the i-th of ``nodes``."""
        first = nodes[0]
        if all(node is first for node in nodes):
            return self.atom(first)
        run = first.run
        if run in self._inlined and len(nodes) == len(self._inlined[run]) and nodes[0] is self._inlined[run][0]:
            return self._run_expression(self._inlined[run])
        if all(node.uniform and node.op != "const" for node in nodes):
            found = self.slots.first_of(nodes)
            if found is not None:
                return f"b{vector_type(first.dtype)}({found[0]}[{found[1]} + i])"
        base = self._base(nodes)
        return f"{self.array(nodes) if base is None else base}[i]"

    def _base(self, nodes: Sequence[Node]) -> str | None:
        """The array in which ``nodes`` lie one after the other, as an expression, if there is one."""
        if any(node.uniform for node in nodes) or self._longest(nodes, 0) < len(nodes):
            return None
        first = nodes[0]
        if first.number in self.saved:
            name, place = self.saved[first.number]
        elif first.op == "input":
            name, place = self.arrays[first.data[0]], first.data[1]
        elif first.run is not None and first.run in self._array_of_run:
            name, place = self._array_of_run[first.run], first.place
        elif first.op == "item":
            name, place = self._where[first.args[0].number], first.data
        else:
            return None
        return f"({name} + {place})" if place else name

    def _emit_one(self, node: Node) -> None:
        if node.op == "item":
            return
        if node.op in self.vectors:
            self._where[node.number] = self.vectors[node.op](self, node)
            return
        name = f"n{node.number}"
        expression = vector_expression(node, [self.atom(arg) for arg in node.args])
        self.lines.append(f"const {vector_type(node.dtype)} {name} = {expression};")
        self._where[node.number] = name

    def _emit_store(self, store: Store) -> None:
        sign = "+=" if store.add else "="
        nodes = store.nodes
        run = nodes[0].run if len(nodes) else None
        if run is not None and run in self._inlined and nodes[0] is self._inlined[run][0]:
            expression = self._run_expression(self._inlined[run])
            self.lines.append(f"for (int i = 0; i < {len(nodes)}; ++i) {store.target}[{store.first} + i] {sign} {expression};")
            return
        if len(nodes) and self._base(nodes) == f"{store.target}":  # computed in its place
            return
        self.lines += self._copied(store.target, store.first, nodes, sign)

    def new_array(self, node: Node, count: int) -> str:
        """Declare the array of a vector node."""
        name = self._name("v")
        self.lines.append(f"{vector_type(node.dtype)} {name}[{count}];")
        return name

    def _name(self, letter: str) -> str:
        self._count += 1
        return f"{letter}{self._count}"
