"""The graph of scalar expressions: simplifications that keep the value, and the transposes of single operations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from physnode.native.expressions import Graph, Node, walk
from physnode.native.reverse import pull

D, B = torch.float64, torch.bool
FUNCTIONS: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative, "abs": np.abs,
    "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos, "tan": np.tan, "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1,
    "log": np.log, "log2": np.log2, "log10": np.log10, "log1p": np.log1p, "tanh": np.tanh, "sinh": np.sinh, "cosh": np.cosh,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "atan2": np.arctan2, "hypot": np.hypot, "pow": np.power, "maximum": np.maximum, "minimum": np.minimum,
    "floor": np.floor, "ceil": np.ceil, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "and": np.logical_and, "or": np.logical_or, "not": np.logical_not,
    "where": np.where, "erf": np.vectorize(math.erf), "isfinite": np.isfinite,
}  # fmt: skip


def value(outputs: list[Node], inputs: dict[int, float]) -> list[float]:
    """What nodes are worth."""
    known: dict[int, Any] = dict(inputs)
    with np.errstate(all="ignore"):
        for node in walk(outputs):
            if node.op == "const":
                known[node.number] = node.data
            elif node.op == "cast":
                known[node.number] = float(known[node.args[0].number])
            elif node.number not in known:
                known[node.number] = FUNCTIONS[node.op](*(known[arg.number] for arg in node.args))
    return [known[node.number] for node in outputs]


EDGES = [0.0, -0.0, 1.0, -1.0, 2.5, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div"])
@pytest.mark.parametrize("constant", EDGES)
@pytest.mark.parametrize("turned", [False, True])
def test_arithmetic_with_a_constant_keeps_its_value(op: str, constant: float, turned: bool) -> None:
    """The sign of a zero that is added to another zero may be lost."""
    graph = Graph()
    [x] = graph.inputs("x", (1,), D, uniform=False)
    c = graph.const(constant, D)
    node = graph.make(op, D, *((c, x) if turned else (x, c)))
    for at in EDGES:
        with np.errstate(all="ignore"):
            wanted = FUNCTIONS[op](*((constant, at) if turned else (at, constant)))
        [found] = value([node], {x.number: at})
        assert found == wanted or (np.isnan(found) and np.isnan(wanted))


def test_constants_are_told_apart() -> None:
    graph = Graph()
    assert graph.const(0.0, D) is not graph.const(-0.0, D)
    assert graph.const(math.nan, D) is graph.const(math.nan, D)
    assert graph.const(1, torch.int64) is not graph.const(1.0, D)
    assert graph.const(True, B) is not graph.const(1, torch.int64)


def test_equal_expressions_are_one_node() -> None:
    graph = Graph()
    x, y = graph.inputs("x", (2,), D, uniform=False)
    assert graph.make("mul", D, x, y) is graph.make("mul", D, x, y)
    assert graph.make("sub", D, x, y) is not graph.make("sub", D, y, x)
    mask = graph.make("lt", B, x, y)
    assert graph.make("where", D, mask, x, x) is x
    assert graph.make("and", B, mask, graph.const(True, B)) is mask
    assert graph.make("or", B, mask, graph.const(True, B)) is graph.const(True, B)
    assert graph.make("not", B, graph.make("not", B, mask)) is mask


ONE = [
    "neg", "abs", "sqrt", "sin", "cos", "tan", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "tanh", "sinh",
    "cosh", "asin", "acos", "atan", "asinh", "atanh", "erf", "acosh", "floor", "ceil",
]  # fmt: skip
TWO = ["add", "sub", "mul", "div", "atan2", "hypot", "pow", "maximum", "minimum"]


@pytest.mark.parametrize("op", [*ONE, *TWO])
@pytest.mark.parametrize("size", [1, 20], ids=["one node", "a run"])
def test_transposes_equal_differences(op: str, size: int) -> None:
    generator = np.random.default_rng(3)
    graph, count = Graph(), 1 + (op in TWO)
    arrays = [graph.inputs(f"x{k}", (size,), D, uniform=False) for k in range(count)]
    w = graph.inputs("w", (size,), D, uniform=False)
    outputs = list(graph.apply(op, D, *arrays))
    leaves = [node for array in arrays for node in array]
    owed = pull(graph, outputs, list(w), {node.number for node in leaves}, (), ())
    low = 1.2 if op == "acosh" else 0.2
    at = dict(zip((node.number for node in leaves), low + 0.6 * generator.random(len(leaves)), strict=True))
    weights = dict(zip((node.number for node in w), generator.standard_normal(size), strict=True))
    for node in leaves[:: max(1, size // 3)]:
        share = owed.inputs.get(node.number)
        found = 0.0 if share is None else value([share], {**at, **weights})[0]
        ends = []
        for step in (1e-6, -1e-6):
            moved = {**at, node.number: at[node.number] + step}
            ends.append(sum(v * weights[k.number] for v, k in zip(value(outputs, moved), w, strict=True)))
        assert found == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6, abs=1e-8)


def test_shares_of_one_input_add_up() -> None:
    graph = Graph()
    x = graph.inputs("x", (3,), D, uniform=False)
    w = graph.inputs("w", (2,), D, uniform=False)
    outputs = [graph.make("mul", D, x[0], x[1]), graph.make("add", D, graph.make("mul", D, x[0], x[0]), x[1])]
    owed = pull(graph, outputs, list(w), {node.number for node in x}, (), ())
    at = {x[0].number: 2.0, x[1].number: 3.0, x[2].number: 9.0, w[0].number: 5.0, w[1].number: 7.0}
    assert value([owed.inputs[x[0].number], owed.inputs[x[1].number]], at) == [5 * 3 + 7 * 4, 5 * 2 + 7]
    assert x[2].number not in owed.inputs
