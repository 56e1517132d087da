"""How every command speaks: results on stdout, trouble in one line on stderr, and an exit status that scripts can trust.

Exit status: 0 done; 1 a file was refused, or something was found or failed; 2 the command was used wrongly; 130 interrupted.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from physnode.errors import InputError, PhysnodeError

P = ParamSpec("P")
R = TypeVar("R")

_PAGE = 110


def fail(message: object, status: int = 1) -> NoReturn:
    """End the command: one line on stderr, and the exit status."""
    complain(f"error: {message}")
    raise typer.Exit(status)


def complain(message: object) -> None:
    """One line on stderr, whatever the message holds."""
    typer.echo(" ".join(str(message).split()), err=True)


def print_json(value: Any) -> None:
    """One JSON object on stdout; numbers JSON lacks (NaN, infinities) become null."""
    typer.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """A table of plain text; ``right`` names the columns of numbers. Markup in the cells is shown, not obeyed."""
    out = Table(title=Text(title), title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        number = column in right  # a number in two lines cannot be read
        out.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in rows:
        out.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return out


def show(*items: Any) -> None:
    """Tables or lines on stdout; as wide as the terminal, or, in a file or a pipe, as a page of a fit."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PAGE
    console = Console(file=sys.stdout, width=wide)
    for item in items:
        console.print(Text(item) if isinstance(item, str) else item, soft_wrap=isinstance(item, str))


def handles_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn physnode's own errors into one line and an exit status, and warnings into one line each."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_args, **_kwargs: complain(f"warning: {message}")
            try:
                return command(*args, **kwargs)
            except InputError as error:
                fail(error, 2)
            except PhysnodeError as error:
                fail(error)
            except BrokenPipeError:
                # The reader of a pipe went away; without this Python complains again when it flushes at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(1) from None
            except OSError as error:
                fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error)
            except MemoryError:
                fail("there is not enough memory for this; ask for fewer or shorter trajectories")
            except KeyboardInterrupt:
                fail("interrupted", 130)

    return run


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
