"""A traced function of PyTorch's operations as scalar expressions of one trajectory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from physnode.native.expressions import Array, Graph, Unsupported, as_array
from physnode.native.operations import OPERATIONS, Made

__all__ = ["constants", "lowered"]


def constants(graph: Graph, tensor: Tensor) -> Array:
    """The entries of a tensor as constants of the code."""
    return as_array([graph.const(value, tensor.dtype) for value in tensor.detach().reshape(-1).tolist()], tensor.shape)


def lowered(
    graph: Graph,
    traced: fx.GraphModule,
    inputs: Sequence[Array],
    read: Callable[[Tensor], Array],
    calls: Mapping[str, Callable[..., Array]],
) -> list[Array]:
    """What the ``traced`` function returns, for the arrays ``inputs`` in the place of its arguments.

    ``read`` gives the array of a tensor that the function reads from outside; ``calls`` are operations that are not PyTorch's.

    Raises:
        Unsupported: an operation that has no such form.
    """
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)

    def value_of(argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda node: values[node])

    for node in traced.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            values[node] = read(_attribute(traced, str(node.target)))
        elif node.op == "output":
            out = value_of(node.args[0])
            return list(out) if isinstance(out, list | tuple) else [out]
        elif str(node.target) == "<built-in function getitem>":
            values[node] = values[node.args[0]][node.args[1]]
        else:
            values[node] = _operation(graph, node, value_of(node.args), value_of(node.kwargs), calls)
    raise Unsupported("the trace returns nothing")


def _operation(graph: Graph, node: fx.Node, args: Any, kwargs: Any, calls: Mapping[str, Callable[..., Array]]) -> Any:
    packet = getattr(node.target, "_opname", None) or str(node.target)
    if packet in calls:
        return calls[packet](*args)
    known = OPERATIONS.get(packet)
    if known is None:
        raise Unsupported(f"it uses {node.target}, for which no native code is known")
    shown = node.meta.get("val")
    if not isinstance(shown, Tensor):
        made = Made(graph, torch.float64, ())
        return known(made, *args, **_plain(kwargs))
    made = Made(graph, shown.dtype, tuple(shown.shape))
    out = known(made, *args, **_plain(kwargs))
    if not isinstance(out, np.ndarray) or out.shape != made.shape:
        raise Unsupported(f"{node.target} of shape {made.shape} came out as {getattr(out, 'shape', out)}")
    return out


def _plain(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments that say more than where and how a tensor lies."""
    return {
        name: value for name, value in kwargs.items() if name in ("alpha", "beta", "dim", "keepdim", "rounding_mode", "value")
    }


def _attribute(module: fx.GraphModule, target: str) -> Tensor:
    found: Any = module
    for name in target.split("."):
        found = getattr(found, name)
    if not isinstance(found, Tensor):
        raise Unsupported(f"it reads {type(found).__name__}, which is no tensor")
    return found
