"""The contenders of a job."""

from __future__ import annotations

from benchmarks.speed.contenders import Contender
from benchmarks.speed.jax_contenders import jax_contenders
from benchmarks.speed.jobs import Job
from benchmarks.speed.other_contenders import other_contenders
from benchmarks.speed.torch_contenders import torch_contenders

__all__ = ["everyone"]


def everyone(job: Job) -> list[Contender]:
    """All that are installed, or this package alone; on another device than the CPU, without those that know only that."""
    ours = torch_contenders()
    if not job.peers:
        return [contender for contender in ours if contender.package == "physnode"]
    return [*ours, *jax_contenders(), *(other_contenders() if job.device == "cpu" else [])]
