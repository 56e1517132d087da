"""How single expressions are written in C++, for vectors of trajectories and for what they all share.

Types: ``D`` and ``F`` are vectors of double and float with one entry a trajectory, ``M`` of 64-bit integers, in which a mask is
-1 or 0. Uniform values stand in tables ``ud`` (double), ``us`` (float) and ``ui`` (integers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from physnode.native.expressions import Node, Unsupported, walk

__all__ = [
    "LARGEST",
    "SCALAR",
    "TABLE",
    "literal",
    "scalar_expression",
    "uniform_statements",
    "vector_expression",
    "vector_type",
]

LARGEST = 40_000
"""Statements beyond which a function takes too long to compile."""

_VECTOR = {torch.float64: "D", torch.float32: "F", torch.bool: "M", torch.int64: "M"}
TABLE = {torch.float64: "ud", torch.float32: "us", torch.bool: "ui", torch.int64: "ui"}
SCALAR = {torch.float64: "double", torch.float32: "float", torch.bool: "int64_t", torch.int64: "int64_t"}
"""Types of uniform values."""
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_LOGIC = {"and": "&", "or": "|"}


def vector_type(dtype: torch.dtype) -> str:
    """The C++ type of one number a trajectory."""
    if dtype not in _VECTOR:
        raise Unsupported(f"it computes in {dtype}")
    return _VECTOR[dtype]


def literal(node: Node) -> str:
    """A constant, to the last bit."""
    value = node.data
    if node.dtype is torch.bool:
        return "(-1)" if value else "0"
    if node.dtype is torch.int64:
        return str(value)
    if value != value or value in (float("inf"), -float("inf")):
        return "NAN" if value != value else "INFINITY" if value > 0 else "-INFINITY"
    return f"(float){value.hex()}" if node.dtype is torch.float32 else value.hex()


def vector_expression(node: Node, arguments: Sequence[str]) -> str:
    """The expression of a node that differs between trajectories."""
    if node.op == "cast":
        return f"{_cast_name(node.args[0].dtype, node.dtype)}({arguments[0]})"
    return _expression(node, arguments)


def _cast_name(source: torch.dtype, target: torch.dtype) -> str:
    names = {torch.float64: "double", torch.float32: "float", torch.bool: "mask", torch.int64: "int"}
    return f"{names[source]}_to_{names[target]}"


def _expression(node: Node, arguments: Sequence[str]) -> str:
    op = node.op
    if op in _INFIX:
        if op == "mul" and node.dtype is torch.bool:
            return f"({arguments[0]} & {arguments[1]})"
        return f"({arguments[0]} {_INFIX[op]} {arguments[1]})"
    if op in _COMPARE:
        return f"{op}({arguments[0]}, {arguments[1]})"
    if op in _LOGIC:
        return f"({arguments[0]} {_LOGIC[op]} {arguments[1]})"
    if op == "not":
        return f"(~{arguments[0]})"
    if op == "neg":
        return f"(-{arguments[0]})"
    name = {"where": "sel"}.get(op, f"v_{op}")
    return f"{name}({', '.join(arguments)})"


def scalar_expression(node: Node, arguments: Sequence[str]) -> str:
    """The expression of a uniform node, in C++ scalars."""
    if node.op == "const":
        return literal(node)
    if node.op == "cast":
        if node.dtype is torch.bool:
            return f"-(int64_t)({arguments[0]} != 0)"
        value = f"(-({arguments[0]}))" if node.args[0].dtype is torch.bool else arguments[0]
        return f"({SCALAR[node.dtype]})({value})"
    if node.op in _COMPARE:
        return f"-(int64_t)({arguments[0]} {_COMPARE[node.op]} {arguments[1]})"
    if node.op == "where":
        return f"({arguments[0]} ? {arguments[1]} : {arguments[2]})"
    if node.op not in (*_INFIX, *_LOGIC, "not", "neg"):
        return f"s_{node.op}({', '.join(arguments)})"
    return _expression(node, arguments)


def uniform_statements(
    nodes: Sequence[Node], read: Callable[[Node], str], prefix: str = "u"
) -> tuple[list[str], Callable[[Node], str]]:
    """Statements that compute uniform ``nodes``, and how each is then called; ``read`` gives the expression of an input."""
    lines: list[str] = []
    names: dict[int, str] = {}

    def name_of(node: Node) -> str:
        return names[node.number]

    for node in walk(nodes):
        if node.op == "input":
            names[node.number] = read(node)
        elif node.op == "const":
            names[node.number] = literal(node)
        else:
            if not node.uniform or node.op in ("item", "linear"):
                raise Unsupported(f"{node.op!r} of uniform values")
            names[node.number] = f"{prefix}{node.number}"
            expression = scalar_expression(node, [names[arg.number] for arg in node.args])
            lines.append(f"const {SCALAR[node.dtype]} {prefix}{node.number} = {expression};")
    if len(lines) > LARGEST:
        raise Unsupported(f"what is computed from its parameters alone would be {len(lines)} statements long")
    return lines, name_of
