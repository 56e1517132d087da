"""The code of the field: one evaluation, and its transpose.

An evaluation whose transpose follows leaves behind what that reads of it, so that nothing is computed twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, fx

from physnode.native.body import Body, Store
from physnode.native.expressions import Array, Node, Unsupported, reached, walk
from physnode.native.lowering import lowered
from physnode.native.program import Program
from physnode.native.reverse import Outer, Owed, depends_on, pull
from physnode.native.spelling import vector_type

__all__ = ["add_field"]

_SAVED = 4_000
"""Inner values of an evaluation, beyond which those of a step do not fit on the stack."""
_HEAD = "(const Uniform& c, D t, const S* x, const S* args, S* __restrict out"
_TAIL = "(const Uniform& c, Gradients& gradients, const {saved}& save, const S* w, S* __restrict to_x, S* __restrict to_args)"


def add_field(
    program: Program,
    name: str,
    size: int,
    trace: fx.GraphModule,
    arguments: Sequence[Array],
    free: Collection[int],
    *,
    differentiable: bool,
) -> None:
    """A function of the field of ``size`` numbers; ``free`` are ids of tensors that a gradient is wanted of."""
    t = program.graph.inputs("t", (1,), torch.float64, uniform=False)
    x = program.graph.inputs(f"x{size}", (1, size), program.dtype, uniform=False)

    def read(tensor: Tensor) -> Array:
        return program.reads.array(tensor, free=id(tensor) in free)

    [value] = lowered(program.graph, trace, [t, x, *arguments], read, {})
    outputs = list(value.reshape(-1))
    places = {f"arg_{key}": f"(args + {at})" for key, (at, _) in program.arguments.items()}
    arrays = {"t": "(&t)", f"x{size}": "x", **places}
    lines = program.body(arrays).emit([Store("out", 0, outputs)])
    program.define(f"static void {name}{_HEAD})", lines)
    if differentiable:
        _add_transpose(program, name, outputs, x, arrays)


def _add_transpose(program: Program, name: str, outputs: Sequence[Node], x: Array, arrays: Mapping[str, str]) -> None:
    size = x.size
    w = list(program.graph.inputs(f"w{size}", (size,), program.dtype, uniform=False).flat)
    primal = [node for node in walk(outputs) if not node.uniform]
    own = [node for _, array in program.arguments.values() for node in array.flat]
    owed = _owed(program, outputs, w, [*x.flat, *own], primal)
    zero = program.graph.const(0.0, program.dtype)
    stores = [Store("to_x", 0, [owed.inputs.get(node.number, zero) for node in x.flat])]
    if own:
        stores.append(Store("to_args", 0, [owed.inputs.get(node.number, zero) for node in own], add=True))
    stores += _shared_stores(program, outputs, owed)
    outers = [(f"gradients.outer{outer.matrix}", outer.rows, outer.columns) for outer in owed.outers]
    program.outers |= {outer.matrix: f"w{outer.matrix}" for outer in owed.outers}
    saved = _saved(program, _frontier(program, stores, owed.outers, {node.number for node in primal}))
    counts = Counter(array for array, _ in saved.values())
    if sum(counts.values()) > _SAVED:
        raise Unsupported(f"one evaluation has {sum(counts.values())} inner values, above {_SAVED}")
    members = " ".join(f"{array[-1].upper()} {array[-1]}[{count}];" for array, count in counts.items())
    program.functions.append(f"struct PN_ALIGNED Saved_{name} {{ {members} }};")
    body = program.body(arrays)
    keep = _kept(program, body, saved)
    program.define(f"static void {name}_save{_HEAD}, Saved_{name}& save)", body.emit([Store("out", 0, list(outputs)), *keep]))
    back = program.body({f"w{size}": "w"}, saved)
    program.define(f"static void {name}_pull{_TAIL.format(saved=f'Saved_{name}')}", back.emit(stores, outers))


def _owed(program: Program, outputs: Sequence[Node], w: Sequence[Node], inputs: Sequence[Node], primal: Sequence[Node]) -> Owed:
    """What one evaluation owes to its inputs, to what all trajectories share, and to matrices."""
    graph = program.graph
    used = sorted({node.data[0] for node in primal if node.op == "linear"})
    entries = [entry for number in used for entry in graph.matrices[number].flat]
    leaves = [node for node in walk([*outputs, *entries]) if node.op == "input" and node.uniform]
    free = {node.number for node in leaves if program.reads.is_free(node)}
    matrices = {
        number
        for number in used
        if depends_on(walk(list(graph.matrices[number].flat)), free, ()) & {node.number for node in graph.matrices[number].flat}
    }
    return pull(graph, outputs, w, {node.number for node in inputs}, free, matrices)


def _shared_stores(program: Program, outputs: Sequence[Node], owed: Owed) -> list[Store]:
    """The shares of uniform values, added to their places."""
    shared = [node for node in walk(outputs) if node.uniform and node.number in owed.uniform]
    found = []
    for node in sorted(shared, key=lambda node: node.number):
        share = owed.uniform[node.number]
        if share.op == "const":
            continue
        if share.uniform:
            raise Unsupported("it has a gradient that does not depend on the state")
        table, place = program.owed.place(node)
        found.append(Store(f"gradients.{table}", place, [share], add=True))
    return _merged(found)


def _frontier(program: Program, stores: Sequence[Store], outers: Sequence[Outer], primal: set[int]) -> list[Node]:
    """Values of the evaluation itself that its transpose reads, whole runs side by side."""
    waiting = [node for store in stores for node in store.nodes]
    waiting += [node for outer in outers for node in (*outer.rows, *outer.columns)]
    ends = reached(waiting, lambda node: node.uniform or node.number in primal)
    found = [node for node in ends if node.number in primal and not node.uniform]
    return sorted(
        found, key=lambda node: (node.number if node.run is None else program.graph.runs[node.run][0].number, node.place)
    )


def _saved(program: Program, frontier: Sequence[Node]) -> dict[int, tuple[str, int]]:
    """Array and place of each value that is left behind."""
    counts: Counter[str] = Counter()
    saved = {}
    for node in frontier:
        array = f"save.{vector_type(node.dtype).lower()}"
        saved[node.number] = (array, counts[array])
        counts[array] += 1
    return saved


def _kept(program: Program, body: Body, saved: Mapping[int, tuple[str, int]]) -> list[Store]:
    """How values are left behind: whole runs are computed in their place, the others copied there."""
    stores = []
    nodes = {node.number: node for node in program.graph.nodes}
    for number, (array, place) in saved.items():
        node = nodes[number]
        run = [] if node.run is None or node.op in ("item", "input") else program.graph.runs[node.run]
        if run and all(member.number in saved for member in run):
            assert node.run is not None
            body.pinned[node.run] = f"({array} + {saved[run[0].number][1]})"
        else:
            stores.append(Store(array, place, [node]))
    return _merged(stores)


def _merged(stores: Sequence[Store]) -> list[Store]:
    """Stores of one run to places one after the other as one."""
    found: list[Store] = []
    for store in sorted(stores, key=lambda store: (store.target, store.first)):
        last = found[-1] if found else None
        if (
            last is not None
            and (last.target, last.add, last.first + len(last.nodes)) == (store.target, store.add, store.first)
            and last.nodes[0].run is not None
            and last.nodes[0].run == store.nodes[0].run
        ):
            found[-1] = Store(last.target, last.first, [*last.nodes, *store.nodes], last.add)
        else:
            found.append(store)
    return found
