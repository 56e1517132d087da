"""What people type after an option, turned into numbers and names, with the option named where it cannot be."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch

from physnode.engine import methods
from physnode.engine.controllers import Adaptive, Controller, Fixed
from physnode.errors import InputError

__all__ = ["assignments", "interval", "listed", "mean_and_sigma", "number", "numbers", "shares", "stepping"]

_COMMA = re.compile(r",(?![^\[]*\])")


def assignments(option: str, items: Sequence[str] | None) -> dict[str, str]:
    """``["a=1", "b=2"]`` as a dictionary of text."""
    found: dict[str, str] = {}
    for item in items or []:
        name, mark, value = (part.strip() for part in item.partition("="))
        if not (mark and name and value):
            raise InputError(f"{option} '{item}' must be NAME=VALUE")
        if name in found:
            raise InputError(f"{option} names '{name}' twice")
        found[name] = value
    return found


def stepping(integrator: str, rtol: float | None, atol: float | None, dt: float | None) -> Controller | None:
    """How steps are chosen: fixed ones of ``dt``, or by tolerances; None where nothing was said and nothing is needed.

    Raises:
        InputError: an unknown method, one without an error estimate and no ``dt``, or both ``dt`` and tolerances.
    """
    method = methods.get(integrator)
    if dt is not None:
        if rtol is not None or atol is not None:
            raise InputError("--dt fixes the step, so there is nothing for a tolerance to choose; give one of them")
        return Fixed(dt)
    try:
        Adaptive().check(method, torch.float64)
    except InputError:
        raise InputError(f"{integrator} takes steps of fixed length; give it: --dt 0.01") from None
    return None if rtol is None and atol is None else Adaptive(rtol, atol)


def number(option: str, text: str) -> float:
    """One finite number."""
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{option}: '{text}' is not a number") from None
    if not math.isfinite(value):
        raise InputError(f"{option}: '{text}' is not a finite number")
    return value


def numbers(option: str, text: str) -> list[float]:
    """Numbers separated by commas."""
    return [number(option, part.strip()) for part in text.split(",")]


def interval(option: str, text: str) -> tuple[float | None, float | None]:
    """``low:high``; an end that is left out is open."""
    low, mark, high = (part.strip() for part in text.partition(":"))
    if not mark or not (low or high):
        raise InputError(f"{option} '{text}' must be LOWEST:HIGHEST; leave an end out if there is no limit")
    return (number(option, low) if low else None, number(option, high) if high else None)


def mean_and_sigma(option: str, text: str) -> tuple[float, float]:
    """``mean:sigma``, both needed."""
    mean, mark, sigma = (part.strip() for part in text.partition(":"))
    if not (mark and mean and sigma):
        raise InputError(f"{option} '{text}' must be two numbers with a colon between them")
    return number(option, mean), number(option, sigma)


def listed(items: Sequence[str] | None) -> list[str]:
    """Names, one or several (separated by commas) each time the option is given; a comma inside brackets does not count."""
    return [part.strip() for item in items or [] for part in _COMMA.split(item) if part.strip()]


def shares(option: str, text: str) -> list[float]:
    """Shares of train, valid and test as ``0.5,0.2,0.3``."""
    found = numbers(option, text)
    if len(found) not in (2, 3):
        raise InputError(f"{option} '{text}' must be the shares of train,valid,test (or train,test), such as 0.5,0.2,0.3")
    return found
