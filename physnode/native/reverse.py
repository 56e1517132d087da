"""The transpose of scalar expressions: reverse-mode differentiation, run by run so that loops stay loops.

For the outputs y_i of a graph and cotangents w_i it makes the nodes of Σ_i w_i ∂y_i/∂x for inputs x, for uniform nodes that
varying ones read, and for matrices, whose share Σ g xᵀ is left as the pairs (g, x).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from physnode.native.expressions import Array, Graph, Node, Unsupported, as_array, walk

__all__ = ["Outer", "Owed", "depends_on", "pull"]


@dataclass(frozen=True)
class Outer:
    """A share of the gradient of a matrix: ``rows`` times ``columns`` transposed."""

    matrix: int
    rows: tuple[Node, ...]
    columns: tuple[Node, ...]


@dataclass
class Owed:
    """What is owed to whatever the outputs are made of."""

    inputs: dict[int, Node] = field(default_factory=dict)
    """By the number of the node."""
    uniform: dict[int, Node] = field(default_factory=dict)
    outers: list[Outer] = field(default_factory=list)


class _Rules:
    """Elementwise operations on arrays of nodes of one dtype."""

    def __init__(self, graph: Graph, dtype: torch.dtype) -> None:
        self.graph, self.dtype = graph, dtype

    def __call__(self, op: str, *values: Array | float) -> Array:
        arrays = [as_array([self.graph.const(v, self.dtype)], ()) if isinstance(v, int | float) else v for v in values]
        return self.graph.apply(op, self.dtype, *arrays)

    def where(self, mask: Array, a: Array | float, b: Array | float) -> Array:
        arrays = [as_array([self.graph.const(v, self.dtype)], ()) if isinstance(v, int | float) else v for v in (a, b)]
        return self.graph.apply("where", self.dtype, mask, *arrays)

    def mask(self, op: str, a: Array, b: Array | float) -> Array:
        other = as_array([self.graph.const(b, self.dtype)], ()) if isinstance(b, int | float) else b
        return self.graph.apply(op, torch.bool, a, other)


def _larger(o: _Rules, g: Array, first: Array, second: Array, sign: str) -> tuple[Array, Array]:
    half = o("mul", g, 0.5)
    tie = o.mask("eq", first, second)
    ahead, behind = o.mask(sign, first, second), o.mask(sign, second, first)
    return o.where(tie, half, o.where(ahead, g, 0.0)), o.where(tie, half, o.where(behind, g, 0.0))


def _power(o: _Rules, g: Array, y: Array, a: Array, b: Array) -> tuple[Array | None, ...]:
    to_base = o("mul", g, o("mul", b, o("pow", a, o("sub", b, 1.0))))
    if all(node.op == "const" for node in b.flat):
        return to_base, None
    return to_base, o.where(o.mask("eq", a, 0.0), 0.0, o("mul", g, o("mul", y, o("log", a))))


def _quotient(o: _Rules, g: Array, y: Array, a: Array, b: Array) -> tuple[Array | None, Array]:
    if all(node.op == "const" and node.data == 1 for node in a.flat):
        return None, o("neg", o("mul", g, o("mul", y, y)))
    share = o("div", g, b)
    return share, o("neg", o("mul", share, y))


def _angle(o: _Rules, g: Array, y: Array, a: Array, b: Array) -> tuple[Array, Array]:
    size = o("add", o("mul", a, a), o("mul", b, b))
    share = o.where(o.mask("eq", size, 0.0), 0.0, o("div", g, size))
    return o("mul", share, b), o("neg", o("mul", share, a))


Rule = Callable[..., tuple[Array | None, ...]]
_RULES: dict[str, Rule] = {
    "add": lambda o, g, y, a, b: (g, g),
    "sub": lambda o, g, y, a, b: (g, o("neg", g)),
    "mul": lambda o, g, y, a, b: (o("mul", g, b), o("mul", g, a)),
    "div": _quotient,
    "neg": lambda o, g, y, a: (o("neg", g),),
    "abs": lambda o, g, y, a: (o.where(o.mask("lt", a, 0.0), o("neg", g), o.where(o.mask("gt", a, 0.0), g, 0.0)),),
    "sqrt": lambda o, g, y, a: (o("div", o("mul", g, 0.5), y),),
    "sin": lambda o, g, y, a: (o("mul", g, o("cos", a)),),
    "cos": lambda o, g, y, a: (o("neg", o("mul", g, o("sin", a))),),
    "tan": lambda o, g, y, a: (o("mul", g, o("add", 1.0, o("mul", y, y))),),
    "exp": lambda o, g, y, a: (o("mul", g, y),),
    "exp2": lambda o, g, y, a: (o("mul", g, o("mul", y, math.log(2))),),
    "expm1": lambda o, g, y, a: (o("mul", g, o("add", y, 1.0)),),
    "log": lambda o, g, y, a: (o("div", g, a),),
    "log2": lambda o, g, y, a: (o("div", g, o("mul", a, math.log(2))),),
    "log10": lambda o, g, y, a: (o("div", g, o("mul", a, math.log(10))),),
    "log1p": lambda o, g, y, a: (o("div", g, o("add", a, 1.0)),),
    "tanh": lambda o, g, y, a: (o("mul", g, o("sub", 1.0, o("mul", y, y))),),
    "sigmoid": lambda o, g, y, a: (o("mul", g, o("mul", y, o("sub", 1.0, y))),),
    "sinh": lambda o, g, y, a: (o("mul", g, o("cosh", a)),),
    "cosh": lambda o, g, y, a: (o("mul", g, o("sinh", a)),),
    "asin": lambda o, g, y, a: (o("div", g, o("sqrt", o("sub", 1.0, o("mul", a, a)))),),
    "acos": lambda o, g, y, a: (o("neg", o("div", g, o("sqrt", o("sub", 1.0, o("mul", a, a))))),),
    "atan": lambda o, g, y, a: (o("div", g, o("add", 1.0, o("mul", a, a))),),
    "asinh": lambda o, g, y, a: (o("div", g, o("sqrt", o("add", 1.0, o("mul", a, a)))),),
    "acosh": lambda o, g, y, a: (o("div", g, o("sqrt", o("sub", o("mul", a, a), 1.0))),),
    "atanh": lambda o, g, y, a: (o("div", g, o("sub", 1.0, o("mul", a, a))),),
    "erf": lambda o, g, y, a: (o("mul", g, o("mul", 2 / math.sqrt(math.pi), o("exp", o("neg", o("mul", a, a))))),),
    "atan2": _angle,
    "hypot": lambda o, g, y, a, b: (o("div", o("mul", g, a), y), o("div", o("mul", g, b), y)),
    "pow": _power,
    "maximum": lambda o, g, y, a, b: _larger(o, g, a, b, "gt"),
    "minimum": lambda o, g, y, a, b: _larger(o, g, a, b, "lt"),
    "where": lambda o, g, y, m, a, b: (None, o.where(m, g, 0.0), o.where(m, 0.0, g)),
    "floor": lambda o, g, y, a: (None,),
    "ceil": lambda o, g, y, a: (None,),
}


def depends_on(nodes: Sequence[Node], leaves: Collection[int], matrices: Collection[int]) -> set[int]:
    """The numbers of those ``nodes``, each after its arguments, that depend on ``leaves`` (numbers) or ``matrices``."""
    found: set[int] = set()
    for node in nodes:
        by_matrix = node.op == "linear" and node.data[0] in matrices
        if node.number in leaves or by_matrix or any(arg.number in found for arg in node.args):
            found.add(node.number)
    return found


def pull(
    graph: Graph,
    outputs: Sequence[Node],
    cotangents: Sequence[Node],
    inputs: Collection[int],
    free: Collection[int],
    matrices: Collection[int],
    *,
    uniform: bool = False,
) -> Owed:
    """What ``outputs`` with their ``cotangents`` owe to the ``inputs`` (numbers of nodes), to uniform nodes that depend on
    ``free`` ones, and to ``matrices``. With ``uniform`` the outputs are uniform themselves.

    Raises:
        Unsupported: an operation that has no derivative here.
    """
    nodes = walk(outputs)
    active = depends_on(nodes, {*inputs, *free}, matrices)
    owed, given = Owed(), defaultdict[int, list[Node]](list)
    for output, cotangent in zip(outputs, cotangents, strict=True):
        given[output.number].append(cotangent)
    for part in reversed(_parts(nodes, active)):
        if not any(given[node.number] for node in part):
            continue
        g = _summed(graph, [given[node.number] for node in part], part[0].dtype)
        first = part[0]
        if first.number in inputs or (first.op == "input" and uniform):
            owed.inputs.update({node.number: share for node, share in zip(part, g.flat, strict=True)})
        elif first.uniform and not uniform:
            owed.uniform.update({node.number: share for node, share in zip(part, g.flat, strict=True)})
        elif first.op == "item":
            source = first.args[0]
            given[source.number] = [_Shares(dict(zip((node.data for node in part), g.flat, strict=True)), given[source.number])]
        elif first.op == "linear":
            _pull_product(graph, first, g.flat[0], given, active, matrices, owed)
        else:
            _pull_elementwise(graph, part, g, given, active)
    return owed


class _Shares(Node):
    """What the entries of a vector are owed, until the vector's own turn."""

    __slots__ = ("entries",)

    def __init__(self, entries: dict[int, Node], before: Sequence[Node]) -> None:
        self.entries = dict(before[0].entries) if before else {}  # type: ignore[attr-defined]
        self.entries.update(entries)


def _parts(nodes: Sequence[Node], active: Collection[int]) -> list[list[Node]]:
    """The active nodes, run by run, in an order in which arguments come first."""
    parts: dict[tuple[str, int], list[Node]] = defaultdict(list)
    for node in sorted((node for node in nodes if node.number in active), key=lambda node: node.number):
        key = ("node", node.number) if node.run is None or node.uniform else ("run", node.run)
        parts[key].append(node)
    return sorted(parts.values(), key=lambda part: part[0].number)


def _summed(graph: Graph, shares: Sequence[Sequence[Node]], dtype: torch.dtype) -> Array:
    if any(isinstance(share, _Shares) for each in shares for share in each):
        return as_array([shares[0][0]], (1,))
    zero = graph.const(0.0, dtype)
    most = max(len(each) for each in shares)
    total: Array | None = None
    for number in range(most):
        column = as_array([each[number] if number < len(each) else zero for each in shares], (len(shares),))
        total = column if total is None else graph.apply("add", dtype, total, column)
    assert total is not None
    return total


def _pull_elementwise(
    graph: Graph, part: Sequence[Node], g: Array, given: dict[int, list[Node]], active: Collection[int]
) -> None:
    first = part[0]
    arrays = [as_array([node.args[place] for node in part], (len(part),)) for place in range(len(first.args))]
    if first.op == "cast":
        shares: tuple[Array | None, ...] = (graph.apply("cast", first.args[0].dtype, g),)
        if not first.args[0].dtype.is_floating_point:
            return
    elif first.op in _RULES:
        shares = _RULES[first.op](_Rules(graph, first.dtype), g, as_array(part, (len(part),)), *arrays)
    else:
        raise Unsupported(f"{first.op!r} is not differentiated here")
    for array, share in zip(arrays, shares, strict=True):
        if share is None:
            continue
        for node, owed in zip(array.flat, np.broadcast_to(share, array.shape).flat, strict=True):
            if node.number in active:
                given[node.number].append(owed)


def _pull_product(
    graph: Graph,
    node: Node,
    shares: Node,
    given: dict[int, list[Node]],
    active: Collection[int],
    matrices: Collection[int],
    owed: Owed,
) -> None:
    matrix, transposed = node.data
    count = graph.matrices[matrix].shape[1 if transposed else 0]
    zero = graph.const(0.0, node.dtype)
    entries: dict[int, Node] = shares.entries  # type: ignore[attr-defined]
    g = [entries.get(place, zero) for place in range(count)]
    if any(arg.number in active for arg in node.args):
        back = graph.call("linear", (matrix, not transposed), len(node.args), node.dtype, g)
        for arg, share in zip(node.args, back.flat, strict=True):
            if arg.number in active:
                given[arg.number].append(share)
    if matrix in matrices:
        pair = (tuple(g), node.args)
        owed.outers.append(Outer(matrix, *(reversed(pair) if transposed else pair)))
