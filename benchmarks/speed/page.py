"""The page and its figures, from the records."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.accuracy.tables import page
from benchmarks.speed import at_the_limit, growth
from benchmarks.speed.contenders import missing, versions
from benchmarks.speed.drawing import draw_growth, draw_work_precision
from benchmarks.speed.equal_error import equal_error
from benchmarks.speed.jobs import Record
from benchmarks.speed.problems import CASES
from benchmarks.speed.tables import comparison, limits
from benchmarks.speed.torch_contenders import COMPILES

__all__ = ["write"]


def write(records: Sequence[Record], out: Path, *, quick: bool) -> list[str]:
    """Write the page to ``out`` and its figures beside it; the limits that were missed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    shown = []
    for name, draw in (("speed_work_precision", draw_work_precision), ("speed_scaling", draw_growth)):
        if draw(records, out.parent / "figures" / f"{name}.png"):
            shown.append(f"![{name.replace('_', ' ')}](figures/{name}.png)")
    tables = [
        *limits(records),
        *at_the_limit.table(records),
        *growth.table(records),
        *equal_error(records),
        *comparison(records),
    ]
    out.write_text(page("\n\n".join([_preface(records, quick), *shown]), tables), encoding="utf-8")
    died = [
        f"{record['part']} {record['case']}: a process ended with {record['died']}" for record in records if "died" in record
    ]
    return [miss for table in tables for miss in table.misses] + died


def _preface(records: Sequence[Record], quick: bool) -> str:
    absent = missing()
    left_out = f" Not installed, and left out: {', '.join(absent)}." if absent else ""
    driver = "by its compiled driver" if COMPILES else "eagerly: this version has no compiled driver"
    device = ""
    if any(record.get("where") == "cuda" for record in records):
        device = f" The tables that say cuda were made on one {torch.cuda.get_device_name()}."
    return (
        "# How fast solves and gradients are\n\n"
        "Written by `make speed`; do not edit. The contenders of a table are measured in one run, in turn. "
        "Limits that a figure is followed by are held: the command fails if "
        "one is missed.\n\n"
        f"Everyone solves the same problems: {'; '.join(case.title.lower() for case in CASES.values())}. Networks have two "
        "hidden layers of tanh units with the same weights in every library. A batch is so many start states; each is seen at "
        "21 times; the gradient is that of the mean square of all outputs, by the constants of the physics and all weights. "
        "Times are medians of warm calls, for which contenders take turns in rounds; the first call, which compiles where "
        "there is something to compile, is a column of its own, for each batch in turn. Errors are those of the outputs, root "
        "mean square, each component over its own; those of gradients are the largest of any parameter, over its largest "
        "entry. Both are taken from a solve at rtol 1e-12 (planets: 1e-10), of outputs for the first 64 trajectories (planets: "
        "16), of gradients for batches up to 1024 (planets: 1), and the worst batch is shown. A contender that is off by half, "
        "whose call would take too long, or that needs more memory than there is, is not timed.\n\n"
        "At the same tolerance all use dopri5 and an integral controller where they have them: RK45 of SciPy is dopri5; "
        "gradsolve has tsit5, and stands beside physnode by tsit5; REBOUND's IAS15 runs at its default precision. SciPy and "
        "REBOUND take one trajectory after the other, and have no gradient. torchdiffeq has one step size for the batch, all "
        "others one for each trajectory. diffrax is mapped and compiled, with its default adjoint. torchode's gradient "
        "does not go through step sizes. gradsolve's recording knows the last states alone; its warm replay takes the steps of "
        "a mesh that was recorded before, which a change of the parameters makes out of date, so that a step of a fit costs "
        "both.\n\n"
        f"physnode runs {driver}. One thread is a process on one core; all threads are {os.cpu_count()} cores of "
        f"{platform.machine()}. Python {platform.python_version()}, PyTorch {torch.__version__.split('+')[0]}, {versions()}; "
        f"the {'quick' if quick else 'full'} form.{left_out}{device}"
    )
