"""Errors that existing handlers still catch.

torchdiffeq checks by ``assert``, so callers have learnt to catch ``AssertionError``. These are physnode's errors and that one
too, and they are raised under ``python -O`` as well.
"""

from __future__ import annotations

from physnode.errors import InputError, SolveError

__all__ = ["ArgumentError", "IntegrationError", "NotFloatingError"]


class ArgumentError(InputError, AssertionError):
    """An argument cannot be used, where torchdiffeq raises AssertionError."""


class NotFloatingError(InputError, TypeError):
    """Times or states that are no floating-point numbers, where torchdiffeq raises TypeError."""


class IntegrationError(SolveError, AssertionError):
    """The solution could not be followed to its end: the message says when, why, and what to do."""
