"""Part one: the same tableau at the same tolerance, everyone in turn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.contenders import Contender, Setting, arrays
from benchmarks.speed.everyone import everyone
from benchmarks.speed.jobs import Job, Record
from benchmarks.speed.problems import Problem, build, tolerances
from benchmarks.speed.reference import ABSURD, Reference, reference
from benchmarks.speed.timing import History, first_call, free_memory, rounds

__all__ = ["measure", "start_up"]

COMPILED = ("physnode", "diffrax", "gradsolve")
"""Packages whose first call is longer than the next."""


def measure(job: Job) -> Iterator[Record]:
    """One record for each batch, mode and contender."""
    dtype = getattr(torch, job.dtype)
    for mode in job.modes:
        past: dict[str, History] = {}
        for batch in sorted(job.batches):
            problem = build(job.case, batch, dtype, job.device)
            rtol = 1e-10 if problem.case.physics == "planets" else 1e-12
            wanted = reference(job.case, batch, Path(job.folder), gradient=mode == "gradient", rtol=rtol)
            yield from _cell(job, problem, mode, wanted, past)


def _cell(job: Job, problem: Problem, mode: str, wanted: Reference, past: dict[str, History]) -> Iterator[Record]:
    """Everyone at one batch size."""
    told = {"part": job.part, "case": job.case, "dtype": job.dtype, "where": job.where, "mode": mode}
    records: dict[str, Record] = {}
    runs, estimates, peaks = {}, {}, {}
    for contender in everyone(job):
        if not contender.takes(problem.case.physics, bool(problem.case.width), mode):
            continue
        history = past.setdefault(contender.name, History())
        record: Record = {**told, "batch": problem.batch, "contender": contender.name}
        records[contender.name] = record
        seconds = history.seconds(problem.batch, one_by_one=contender.one_by_one)
        if seconds > job.patience.cap:
            record["skipped"] = "not tried after a smaller batch" if seconds == math.inf else f"about {seconds:.0f} s expected"
        elif history.bytes(problem.batch) > 0.8 * free_memory():
            record["skipped"] = f"about {history.bytes(problem.batch) / 2**30:.0f} GiB expected"
        else:
            found = start_up(contender, problem, mode, wanted, record, job)
            if found is not None:
                runs[contender.name], estimates[contender.name], peaks[contender.name] = found
    for name, taken in rounds(runs, estimates, job.patience).items():
        records[name]["seconds"] = taken
        past[name].points.append((problem.batch, sorted(taken)[len(taken) // 2], peaks[name]))
    for name, record in records.items():
        if "skipped" in record and name in past:  # what did not run here will not at a larger batch
            past[name].points.append((problem.batch, math.inf, 0))
    yield from records.values()


def start_up(
    contender: Contender, problem: Problem, mode: str, wanted: Reference, record: Record, job: Job
) -> tuple[Any, float, int] | None:
    """The first call and its errors, into the record; what to run, a warm call's seconds, bytes. None: not to be timed."""
    rtol, atol = tolerances(problem.y0.dtype)
    if contender.package == "rebound":
        rtol = 1e-9  # its own default, of another meaning
    setting = Setting(contender.method, rtol, atol, mode == "gradient")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept: list[Any] = []

            def first() -> Any:
                kept.append(contender.prepare(problem, setting))
                return kept[0]()

            record["first"], (ys, gradients), peak = first_call(first)
            record["error"] = wanted.error(arrays([ys])[0])
            record["gradient_error"] = wanted.gradient_error(arrays(gradients))
            worst = max(record["error"], record["gradient_error"] or 0.0)
            if not worst < ABSURD:
                record["skipped"] = f"off by {worst:.0e}"
                return None
            warm = record["first"]
            if contender.package in COMPILED or warm < job.patience.cap / 5:  # else once must do
                warm, _, peak = first_call(kept[0])  # without the memory that compiling took
    except Exception as failure:  # of any library, whose row then says so
        record["skipped"] = f"{type(failure).__name__}: {str(failure).strip().splitlines()[0][:100]}"
        return None
    return kept[0], warm, peak
