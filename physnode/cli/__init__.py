"""The command line: ``physnode systems | simulate | fit | predict | diagnose | data``, one file a command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version as installed
from typing import Annotated, Any

import torch
import typer
from typer.core import TyperGroup

from physnode.cli import data
from physnode.cli.diagnose import diagnose_command
from physnode.cli.diagnose_gradient import diagnose_gradient_command
from physnode.cli.fit import fit_command
from physnode.cli.output import complain
from physnode.cli.predict import predict_command
from physnode.cli.simulate import simulate_command
from physnode.cli.systems import systems_command

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Commands of one word, or of two: ``diagnose`` takes a folder, unless what follows makes a command of its own."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        both = " ".join(args[:2])
        return super().resolve_command(ctx, [both, *args[2:]] if both in self.commands else args)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fit dynamical systems to observed trajectories: known physics plus a learned term, with error bars.",
)
app.command("systems")(systems_command)
app.command("simulate")(simulate_command)
app.command("fit")(fit_command)
app.command("predict")(predict_command)
app.command("diagnose")(diagnose_command)
app.command("diagnose gradient")(diagnose_gradient_command)
app.add_typer(data.app, name="data")

# typer raises its own kind of usage error, whose base is not public by name
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"physnode {installed('physnode')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 something was refused or failed, 2 wrong usage, 130 interrupted.

    A mistake of the user is one line on standard error, never a traceback. Small tensors are fastest on one thread, so the
    command runs on one; the number of threads is as before when this returns.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        status = app(args=words, prog_name="physnode", standalone_mode=False, obj=words)
    except _UsageError as error:
        return _misused(error)
    except (typer.Abort, KeyboardInterrupt):
        complain("error: interrupted")
        return 130
    finally:
        torch.set_num_threads(threads)
    return status if isinstance(status, int) else 0


def _misused(error: Exception) -> int:
    """Say what is wrong with the words of the command; for a command without any, that is its help."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    if type(error).__name__ == "NoArgsIsHelpError":
        if message:  # some versions of typer have printed it by now
            typer.echo(message, err=True)
        return 2
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", None) or "physnode"
    complain(f"error: {message.rstrip('.')}; see {command} --help")
    return int(getattr(error, "exit_code", 2))
