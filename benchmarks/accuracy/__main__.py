"""Measure every table, write the page, and fail if a figure misses its limit.

python -m benchmarks.accuracy [--long] [--only NAME ...] [--out docs/accuracy.md]
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy
import torch

from benchmarks.accuracy.against_scipy import explicit_pairs, stiff
from benchmarks.accuracy.batches import batch_invariance, single_precision
from benchmarks.accuracy.orbits import figure_eight, known_orbits
from benchmarks.accuracy.orders import orders
from benchmarks.accuracy.solar_system import end_state, energies, round_off_growth
from benchmarks.accuracy.tables import Table, page

__all__ = ["main", "tables"]

Maker = Callable[[], Table]


def tables(long: bool) -> dict[str, Maker]:
    """What is measured, by name; the short form spans a tenth of the time where a run takes minutes."""
    periods, years = (100, 10_000) if long else (10, 1_000)
    return {
        "orders": orders,
        "figure-eight": lambda: figure_eight(periods),
        "known-orbits": known_orbits,
        "outer-planets": end_state,
        "energies": lambda: energies(years),
        "round-off": lambda: round_off_growth(years),
        "scipy": explicit_pairs,
        "stiff": lambda: stiff(64 if long else 8),
        "batches": batch_invariance,
        "float32": single_precision,
    }


def preface(long: bool) -> str:
    """What the page is, and what it was measured with."""
    versions = f"PyTorch {torch.__version__.split('+')[0]}, NumPy {np.__version__}, SciPy {scipy.__version__}"
    return (
        "# How accurate the methods are\n\nWritten by `make accuracy`, in one run; do not edit. Every figure is measured, "
        "and one that is followed by a limit is held to it: the command fails if the limit is missed.\n\nfloat64 on one "
        f"thread of {platform.machine()}, Python {platform.python_version()}, {versions}, {'full' if long else 'short'} "
        "spans. Reference digits: quadruple precision or closed forms (`benchmarks/accuracy/reference_orbits.py`). 1.0e-09 "
        "(≤ 5e-09) is a figure and its limit."
    )


def main(arguments: Sequence[str] | None = None, makers: dict[str, Maker] | None = None) -> int:
    """The command; returns its exit status: 1 if a limit was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.split("\n")[0])
    parser.add_argument("--long", action="store_true", help="full spans: 100 periods, 10,000 years, batches of 64")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"some of: {', '.join(tables(False))}; prints, writes no page"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/accuracy.md"), help="where the page goes")
    chosen = parser.parse_args(arguments)
    known = tables(chosen.long) if makers is None else makers
    unknown = sorted(set(chosen.only or ()) - set(known))
    if unknown:
        parser.error(f"no table is called {', '.join(unknown)}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    made: list[Table] = []
    for name in chosen.only or known:
        begun = time.perf_counter()
        table = known[name]()
        print(f"{name:<14} {time.perf_counter() - begun:7.1f} s", file=sys.stderr, flush=True)
        if table.rows:
            made.append(table)
    text = page(preface(chosen.long), made)
    if chosen.only:
        print(text, end="")
    else:
        chosen.out.write_text(text, encoding="utf-8")
    misses = [miss for table in made for miss in table.misses]
    for miss in misses:
        print(f"limit missed: {miss}", file=sys.stderr)
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
