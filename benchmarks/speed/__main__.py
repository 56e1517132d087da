"""Measure every part in processes of their own, write the page, its figures and all measurements, fail if a limit is missed.

python -m benchmarks.speed [--quick] [--only PART ...] [--cases NAME ...] [--batches N ...] [--dtypes NAME ...]
                           [--cap SECONDS] [--out docs/speed.md] [--json out/speed.json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def child(told: str) -> int:
    """One job in this process; a record a line."""
    from benchmarks.speed.jobs import Job, settle

    job = Job.of(told)
    settle(job)  # before PyTorch is loaded
    from benchmarks.speed.plan import measure

    for record in measure(job):
        print(json.dumps(record), flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 1 if a limit was missed."""
    from benchmarks.speed.jobs import launch
    from benchmarks.speed.page import write
    from benchmarks.speed.plan import DTYPES, PARTS, Plan, plan
    from benchmarks.speed.problems import CASES

    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under three minutes: fewer cases, batches and rounds")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=None, metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--batches", nargs="+", type=int, default=None, metavar="N", help="numbers of trajectories")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), metavar="NAME", help=", ".join(DTYPES))
    parser.add_argument("--cap", type=float, default=20.0, help="seconds; a call expected to take longer is not made")
    parser.add_argument("--without-peers", action="store_true", help="time this package alone")
    parser.add_argument("--out", type=Path, default=Path("docs/speed.md"), help="the page; figures go into figures/ beside it")
    parser.add_argument("--json", type=Path, default=Path("out/speed.json"), help="all measurements")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.child is not None:
        return child(chosen.child)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        wanted = Plan(
            tuple(chosen.only),
            None if chosen.cases is None else tuple(chosen.cases),
            None if chosen.batches is None else tuple(chosen.batches),
            tuple(chosen.dtypes),
            chosen.quick,
            not chosen.without_peers,
            chosen.cap,
            folder,
        )
        for job in plan(wanted):
            begun = time.perf_counter()
            chosen.json.parent.mkdir(parents=True, exist_ok=True)
            for record in launch(job):  # kept at once: a run that is stopped leaves what it had
                records.append(record)
                chosen.json.write_text(json.dumps(records, indent=1), encoding="utf-8")
            what = f"{job.part} {job.case} {job.dtype}, {job.where}"
            print(f"{what:<64} {time.perf_counter() - begun:7.1f} s", file=sys.stderr, flush=True)
    misses = write(records, chosen.out, quick=chosen.quick)
    for miss in misses:
        print(f"limit missed: {miss}", file=sys.stderr)
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
