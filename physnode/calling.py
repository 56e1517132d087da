"""How a user's function is called: with ``args`` where it takes them, without where it does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

__all__ = ["Args", "takes", "with_args"]

Args = Mapping[str, Any]
"""What a solve hands to a field by name: signals already as their value at ``t``."""


def with_args(function: Callable[..., Tensor], args: Args | None, *given: Tensor) -> Tensor:
    """``function(*given, args)`` where the function takes so many arguments, else ``function(*given)``."""
    return function(*given, args) if args is not None and takes(function, len(given) + 1) else function(*given)


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function, a bound method or a module can be called with ``count`` positional arguments."""
    if isinstance(function, nn.Module):
        reads: bool | None = getattr(function, "reads_args", None)  # a VectorField knows
        if reads is not None:
            return count < 3 or (count == 3 and reads)
        function = function.forward
    plain = getattr(function, "__func__", None)
    try:
        return _places(plain) - 1 >= count if plain is not None else _places(function) >= count
    except TypeError:  # not hashable
        return _places.__wrapped__(function) >= count


@lru_cache(maxsize=1024)
def _places(function: Callable[..., Any]) -> float:
    """How many positional arguments a function can take."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a built-in that does not say
        return 2
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return float("inf")
    return sum(parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters)
