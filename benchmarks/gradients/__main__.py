"""Measure every part, write the page and its figure, and fail if a figure misses its limit.

python -m benchmarks.gradients [--quick] [--only NAME ...] [--out docs/gradients.md] [--figure docs/figures/gradients.png]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.accuracy.tables import page
from benchmarks.gradients.consistency import linear
from benchmarks.gradients.identity import every_method
from benchmarks.gradients.memory_limit import long_solves, memory_limit
from benchmarks.gradients.networks import cases, networks
from benchmarks.gradients.panels import Part, draw
from benchmarks.gradients.rounding import rounding
from benchmarks.gradients.scaling import scaling
from benchmarks.gradients.stored_stages import stored_stages
from benchmarks.gradients.van_der_pol import there_and_back

__all__ = ["main", "parts"]

Maker = Callable[[], Part]


def parts(quick: bool) -> dict[str, Maker]:
    """What is measured, by name; the quick form takes fewer tolerances, steps and rows of a batch."""
    if quick:
        few = (1e-3, 1e-5, 1e-7)
        return {
            "linear": lambda: linear(few, (-0.2,)),
            "van-der-pol": lambda: there_and_back(few),
            "identity": lambda: every_method(few[:2], (0.25,)),
            "scaling": lambda: scaling((10, 30), ("heun", "dopri5"), (1, 4), repeats=1),
            "networks": lambda: networks(cases(batch=20, samples=100)),
            "rounding": lambda: rounding(("rk4",), steps=200),
            "stages": lambda: stored_stages(3, batch=20, samples=100),
            "memory-limit": lambda: memory_limit(long_solves(300)[:1], (20, 5), repeats=1),
        }
    return {
        "linear": linear,
        "van-der-pol": there_and_back,
        "identity": every_method,
        "scaling": scaling,
        "networks": networks,
        "rounding": rounding,
        "stages": stored_stages,
        "memory-limit": memory_limit,
    }


def preface(quick: bool, figure: str) -> str:
    """What the page is, and what it was measured with."""
    peer = ""
    if importlib.util.find_spec("torchdiffeq") is not None:
        peer = f", torchdiffeq {importlib.metadata.version('torchdiffeq')}"
    threads = torch.get_num_threads()
    return (
        "# What each gradient is worth and costs\n\nWritten by `make gradients`, in one run; do not edit. Every figure is "
        "measured, and one that is followed by a limit is held to it: the command fails if the limit is missed. 1.0e-09 (≤ "
        "5e-09) is a figure and its limit. Bytes are those of the storages that operations made and that are alive, counted "
        f"after every operation, so they are exact and free of an allocator's noise.\n\n{threads} thread"
        f"{'s' * (threads > 1)} of {platform.machine()} with {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"PyTorch {torch.__version__.split('+')[0]}{peer}; the {'quick' if quick else 'full'} form. torchdiffeq is told to "
        "end a step on the last time, there and back, as `pn.solve` does.\n\n"
        f"![gradient errors, memory and time]({figure})"
    )


def main(arguments: Sequence[str] | None = None, makers: dict[str, Maker] | None = None) -> int:
    """The command; returns its exit status: 1 if a limit was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradients", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under two minutes: smaller batches, fewer tolerances and steps")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of: {', '.join(parts(False))}; prints, writes nothing")
    parser.add_argument("--out", type=Path, default=Path("docs/gradients.md"), help="where the page goes")
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/gradients.png"), help="where its figure goes")
    chosen = parser.parse_args(arguments)
    known = parts(chosen.quick) if makers is None else makers
    unknown = sorted(set(chosen.only or ()) - set(known))
    if unknown:
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(known)}")
    made: list[Part] = []
    for name in chosen.only or known:
        begun = time.perf_counter()
        made.append(known[name]())
        print(f"{name:<14} {time.perf_counter() - begun:7.1f} s", file=sys.stderr, flush=True)
    tables = [table for part in made for table in part.tables]
    text = page(preface(chosen.quick, Path(os.path.relpath(chosen.figure, chosen.out.parent)).as_posix()), tables)
    if chosen.only:
        print(text, end="")
    else:
        chosen.out.write_text(text, encoding="utf-8")
        draw([panel for part in made for panel in part.panels], chosen.figure)
    misses = [miss for table in tables for miss in table.misses]
    for miss in misses:
        print(f"limit missed: {miss}", file=sys.stderr)
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
