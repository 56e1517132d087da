"""Which jobs a run is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from benchmarks.speed import at_the_limit, growth, same_tolerance, work_precision
from benchmarks.speed.jobs import Job, Record
from benchmarks.speed.problems import CASES
from benchmarks.speed.timing import Patience

__all__ = ["DTYPES", "PARTS", "Plan", "measure", "plan"]

PARTS = {
    "same": same_tolerance.measure,
    "work-precision": work_precision.measure,
    "limit": at_the_limit.measure,
    "scaling": growth.measure,
}
DTYPES = ("float64", "float32")
BATCHES = (1, 64, 1024, 16384)


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    parts: tuple[str, ...] = tuple(PARTS)
    cases: tuple[str, ...] | None = None
    batches: tuple[int, ...] | None = None
    dtypes: tuple[str, ...] = DTYPES
    quick: bool = False
    peers: bool = True
    cap: float = 20.0
    folder: str = "."

    def at(self, batches: tuple[int, ...]) -> tuple[int, ...]:
        """The batches that were asked for, or these."""
        return batches if self.batches is None else self.batches


def measure(job: Job) -> Iterator[Record]:
    """What the child does."""
    if job.one_thread:
        torch.set_num_threads(1)
    yield from PARTS[job.part](job)


def plan(wanted: Plan) -> list[Job]:
    """All jobs, in order."""
    patience = Patience(wanted.cap, 0.3, 7, quickly=0.1) if wanted.quick else Patience(wanted.cap)
    common = Job("", "", (), folder=wanted.folder, quick=wanted.quick, peers=wanted.peers, patience=patience)
    jobs: list[Job] = []
    for part in wanted.parts:
        job = replace(common, part=part)
        jobs += (
            _same(job, wanted) if part == "same" else _work(job, wanted) if part == "work-precision" else _alone(job, wanted)
        )
    return jobs


def _same(job: Job, wanted: Plan) -> list[Job]:
    cases = wanted.cases or (("three-bodies", "three-bodies-network") if wanted.quick else tuple(CASES))
    batches = wanted.at((64,) if wanted.quick else BATCHES)
    jobs = [replace(job, case=case, batches=batches) for case in cases if "float64" in wanted.dtypes]
    if wanted.quick:
        return jobs
    few = tuple(batch for batch in batches if 1 < batch <= 1024) if wanted.batches is None else batches
    if "float32" in wanted.dtypes:  # which cannot follow a hundred revolutions at these tolerances
        short = [case for case in cases if CASES[case].physics != "planets"]
        jobs += [replace(job, case=case, batches=few, dtype="float32", modes=("gradient",)) for case in short]
    if "float64" in wanted.dtypes:
        many = wanted.at((1024,))
        bodies = [case for case in cases if CASES[case].physics == "bodies"]
        jobs += [replace(job, case=case, batches=many, modes=("gradient",), one_thread=False) for case in bodies]
    if torch.cuda.is_available():
        large = wanted.at((*BATCHES, 2**17, 2**20))
        on_device = replace(job, batches=large, device="cuda", one_thread=False)
        jobs += [replace(on_device, case=case, dtype=dtype) for case in cases for dtype in wanted.dtypes]
    return jobs


def _work(job: Job, wanted: Plan) -> list[Job]:
    if wanted.quick:
        return [replace(job, case=case, batches=wanted.at((64,))) for case in wanted.cases or ("three-bodies-network",)]
    return [
        replace(job, case=case, batches=wanted.at((1,) if CASES[case].physics == "planets" else (64,)))
        for case in wanted.cases or tuple(case for case in CASES if case != "three-bodies")
    ]


def _alone(job: Job, wanted: Plan) -> list[Job]:
    if job.part == "limit":
        return [replace(job, case="three-bodies-network", batches=wanted.at((64,) if wanted.quick else (1024,)))]
    batches = wanted.at((64, 256, 1024) if wanted.quick else (64, 256, 1024, 4096, 16384))
    return [replace(job, case="three-bodies-network", batches=batches, modes=("gradient",))]
