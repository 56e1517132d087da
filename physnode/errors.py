"""Every error physnode raises on purpose.

    PhysnodeError
    +-- InputError (ValueError)      an argument cannot be used: wrong shape, unknown name, contradicting options
    +-- SolveError (RuntimeError)    a trajectory could not be integrated to its end
    +-- GradientError (RuntimeError) the gradient asked for cannot be computed exactly
    +-- DataError (ValueError)       a trajectory file, or its content, cannot be used
    +-- FitError (RuntimeError)      a fit cannot start or go on

and the one warning of its own:

    CompileWarning (UserWarning)     a solve that was to be compiled runs by the eager driver

A message says what was found, what was needed and what to do. The command line prints it on one line, without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["CompileWarning", "DataError", "FitError", "GradientError", "InputError", "PhysnodeError", "SolveError", "name_hint"]


class PhysnodeError(Exception):
    """Base of every error that physnode raises on purpose."""


class InputError(PhysnodeError, ValueError):
    """An argument cannot be used as it was given."""


class SolveError(PhysnodeError, RuntimeError):
    """At least one trajectory could not be integrated to its end; the message names trajectories, times and reasons."""


class GradientError(PhysnodeError, RuntimeError):
    """The gradient that was asked for cannot be computed exactly, so none is returned."""


class DataError(PhysnodeError, ValueError):
    """A trajectory file, or what it holds, cannot be used."""


class FitError(PhysnodeError, RuntimeError):
    """A fit cannot start or cannot go on."""


class CompileWarning(UserWarning):
    """A solve that was to be compiled cannot be; it runs by the eager driver, and the message says why."""


def name_hint(word: object, known: Iterable[str]) -> str:
    """`` Did you mean "pendulum"?`` for a name that is nearly one of the ``known``, else nothing."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""
