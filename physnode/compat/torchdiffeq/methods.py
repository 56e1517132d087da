"""The methods of torchdiffeq by name, and the options each kind of them takes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from enum import Enum
from typing import Any

from physnode import methods
from physnode.compat.torchdiffeq import implicit_tables, tables
from physnode.engine.families.base import Method
from physnode.engine.families.explicit_rk import ExplicitRungeKutta
from physnode.engine.families.implicit_rk import ImplicitRungeKutta
from physnode.errors import InputError, name_hint

__all__ = ["METHODS", "OPTIONS", "Kind", "checked_options", "find"]


class Kind(Enum):
    """How a method chooses its steps, and whose loop it runs in."""

    ADAPTIVE = "adaptive"
    FIXED = "fixed"
    ADAMS = "adams"
    SCIPY = "scipy"


METHODS: dict[str, tuple[Kind, Method | None]] = {
    "dopri5": (Kind.ADAPTIVE, methods.dopri5),
    "dopri8": (Kind.ADAPTIVE, methods.dopri8),
    "tsit5": (Kind.ADAPTIVE, methods.tsit5),
    "bosh3": (Kind.ADAPTIVE, methods.bosh3),
    "fehlberg2": (Kind.ADAPTIVE, ExplicitRungeKutta(tables.FEHLBERG2)),
    "adaptive_heun": (Kind.ADAPTIVE, methods.heun),
    "euler": (Kind.FIXED, methods.euler),
    "midpoint": (Kind.FIXED, methods.midpoint),
    "heun2": (Kind.FIXED, methods.heun),
    "heun3": (Kind.FIXED, ExplicitRungeKutta(tables.HEUN3)),
    "rk4": (Kind.FIXED, ExplicitRungeKutta(tables.RK4_38)),
    **{name: (Kind.FIXED, ImplicitRungeKutta(table)) for name, table in implicit_tables.IMPLICIT.items()},
    "explicit_adams": (Kind.ADAMS, None),
    "implicit_adams": (Kind.ADAMS, None),
    "fixed_adams": (Kind.ADAMS, None),
    "scipy_solver": (Kind.SCIPY, None),
}

_FIXED = ("step_size", "grid_constructor", "perturb", "interp", "norm")
OPTIONS: dict[Kind, tuple[str, ...]] = {
    Kind.ADAPTIVE: (
        "first_step", "min_step", "max_step", "safety", "ifactor", "dfactor", "max_num_steps", "dtype", "step_t", "jump_t",
        "norm",
    ),
    Kind.FIXED: _FIXED,
    Kind.ADAMS: ("step_size", "grid_constructor", "interp", "norm", "max_order", "max_iters"),
    Kind.SCIPY: ("solver", "min_step", "max_step", "norm"),
}  # fmt: skip


def find(method: str | None) -> tuple[str, Kind, Method | None]:
    """The name, the kind and the engine's method; None is ``dopri5``.

    Raises:
        InputError: an unknown name; the message lists the known ones.
    """
    name = "dopri5" if method is None else method
    if name not in METHODS:
        listed = ", ".join(f'"{known}"' for known in METHODS)
        raise InputError(f"Invalid method {method!r}.{name_hint(name, METHODS)} Must be one of {listed}")
    kind, found = METHODS[name]
    return name, kind, found


def checked_options(name: str, kind: Kind, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the options with those the method does not know left out, each with a warning that names the nearest one."""
    given = {} if options is None else dict(options)
    known = OPTIONS[kind]
    if name in implicit_tables.IMPLICIT:
        known = (*known, "max_iters")  # Newton's iteration stops where rounding stops it, and needs far fewer
    for word in [word for word in given if word not in known]:
        warnings.warn(f"{name}: unexpected option {word!r} is ignored.{name_hint(word, known)}", stacklevel=5)
        del given[word]
    if given.get("interp", "linear") not in ("linear", "cubic"):
        raise InputError(f'interp must be "linear" or "cubic"; found {given["interp"]!r}')
    return given
