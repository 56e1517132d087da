"""A model as plain data, so that a run folder can build it again without executing anything it holds.

Known are physnode's systems, learned terms and sums of them; a model from a user's own file is named by that file and the
function that builds it, and loaded only where the user names them again.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from physnode import systems
from physnode.errors import InputError
from physnode.fields import Sum, VectorField, add
from physnode.nn import Residual

__all__ = ["build", "describe"]


def describe(model: VectorField) -> dict[str, Any] | None:
    """The model as JSON-ready data, or None if it holds anything that physnode does not know."""
    if isinstance(model, Sum):
        terms = [describe(term) for term in model.terms]  # type: ignore[arg-type]
        return None if any(term is None for term in terms) else {"sum": terms}
    if isinstance(model, Residual):
        layers = model.network.layers
        return {
            "learned": {
                "dim": model.dim,
                "width": layers[0].out_features if len(layers) > 1 else 1,
                "depth": len(layers) - 1,
                "acts_on": "state" if type(model).__name__ == "StateResidual" else "acceleration",
                "inputs": list(model.inputs),
                "activation": model.network.activation,
            }
        }
    for name, kind in systems.registry().items():
        if type(model) is kind:
            assert isinstance(model, systems.System)
            return {"system": name, "options": _options(model), "free": list(model.free)}
    return None


def build(spec: dict[str, Any]) -> VectorField:
    """The model that ``describe`` described, with fresh weights.

    Raises:
        InputError: the description is not understood.
    """
    try:
        if "sum" in spec:
            model = build(spec["sum"][0])
            for term in spec["sum"][1:]:
                model = add(model, build(term))
            return model
        if "learned" in spec:
            learned: VectorField = Residual(**spec["learned"])
            return learned
        if "system" in spec:
            return systems.registry()[spec["system"]](**spec["options"], free=tuple(spec["free"]))
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise InputError(f"the description of the model is damaged ({error}): {str(spec)[:120]}") from error
    if "factory" in spec:
        raise InputError(
            f"the model was built by {spec['factory']}, which is not run without being asked: "
            "build it yourself and pass it as load(folder, model=...)"
        )
    raise InputError(f"the description of the model is not understood: {str(spec)[:120]}")


def _options(model: systems.System) -> dict[str, Any]:
    """The arguments of the constructor, read back from the attributes of the same names."""
    found: dict[str, Any] = {}
    for name in inspect.signature(type(model).__init__).parameters:
        if name not in ("self", "free") and hasattr(model, name):
            value = getattr(model, name)
            found[name] = value.tolist() if isinstance(value, Tensor) else value
    return found
