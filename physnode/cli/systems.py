"""physnode systems: what known physics there is, with its constants, state and invariants."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from physnode.cli.models import known_system
from physnode.cli.output import handles_errors, print_json, show, table
from physnode.errors import InputError
from physnode.systems import System, registry

__all__ = ["systems_command"]


@handles_errors
def systems_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One system, in detail.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """List the systems that physnode knows, or describe one: equation, state, constants, what is conserved.

    Example: physnode systems pendulum
    """
    chosen = [name] if name is not None else list(registry())
    facts = [_facts(item) for item in chosen]
    if as_json:
        print_json({"systems": facts})
    elif name is None:
        rows = [
            (item["name"], item["description"], ", ".join(constant["name"] for constant in item["constants"])) for item in facts
        ]
        show(table("systems", ("name", "what it is", "constants"), rows))
        show("physnode systems NAME tells more about one of them")
    else:
        _show(facts[0])


def _show(item: dict[str, Any]) -> None:
    rows = [
        ("", item["description"]),
        ("equation", item["equation"]),
        (
            "state",
            ", ".join(entry["name"] + ("" if entry["unit"] == "1" else f" [{entry['unit']}]") for entry in item["state"]),
        ),
        ("energy", "yes" if item["energy"] else "no"),
        ("conserved", ", ".join(item["invariants"]) or "nothing"),
    ]
    show(table(item["name"], ("", ""), rows))
    constants = [
        (entry["name"], entry["default"], entry["unit"], f"[{entry['lower']:g}, {entry['upper']:g}]")
        for entry in item["constants"]
    ]
    show(table("constants", ("name", "default", "unit", "domain"), constants))
    show("State and conserved quantities are those of the default constants (for n-body, of two bodies).")


def _facts(name: str) -> dict[str, Any]:
    system = _example(name)
    defaults = {key: item.default for key, item in inspect.signature(type(system).__init__).parameters.items()}
    state = system.initial_states(1)
    return {
        "name": name,
        "description": system.description,
        "equation": _equation(type(system)),
        "state": [{"name": label, "unit": system.state_units.get(label.split("[")[0], "1")} for label in system.labels],
        "constants": [
            {
                "name": key,
                "default": "needed" if defaults[key] is inspect.Parameter.empty else defaults[key],
                "unit": system.units.get(key, "1"),
                "lower": 0.0 if 0 < domain.lower < 1e-300 else domain.lower,
                "upper": domain.upper,
            }
            for key, domain in system.domains.items()
        ],
        "options": [key for key in defaults if key not in ("self", "free", *system.domains)],
        "energy": hasattr(system, "energy"),
        "invariants": list(system.invariants(state[:, :1] * 0, state)),
    }


def _equation(kind: type) -> str:
    """The first paragraph, in the class or those it is made from, that says how the state moves."""
    for part in kind.__mro__:
        text = " ".join((part.__dict__.get("__doc__") or "").split("\n\n")[0].split())
        if "' = " in text:
            return text.rstrip(".:")
    return ""


def _example(name: str) -> System:
    """The system with default constants; bodies get masses where there are no defaults."""
    try:
        return known_system(name, {})
    except InputError:
        if name not in registry():
            raise
        return known_system(name, {"gm": [1.0, 1e-3]})
