"""What one child process measures, how it is started with one thread or all, and what it says on its standard output."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.speed.timing import Patience

__all__ = ["Job", "Launch", "Record", "environment", "launch", "settle"]

Record = dict[str, Any]
"""One measurement, as it goes into the JSON file."""


@dataclass(frozen=True)
class Job:
    """One part of the benchmark in one process."""

    part: str
    case: str
    batches: tuple[int, ...]
    dtype: str = "float64"
    modes: tuple[str, ...] = ("forward", "gradient")
    one_thread: bool = True
    device: str = "cpu"
    folder: str = "."
    """Where references are kept."""
    quick: bool = False
    peers: bool = True
    patience: Patience = field(default_factory=Patience)

    def told(self) -> str:
        """As text, for the command line of the child."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of(cls, text: str) -> Job:
        """From that text."""
        values: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in json.loads(text).items()}
        return cls(**{**values, "patience": Patience(**values["patience"])})

    @property
    def where(self) -> str:
        """As the records and tables have it."""
        if self.device != "cpu":
            return self.device
        return "one thread" if self.one_thread else "all threads"


Launch = Callable[[Job], Iterator[Record]]


def environment(job: Job) -> dict[str, str]:
    """The environment of the child: numbers of threads are read when libraries are loaded."""
    found = {**os.environ, "JAX_ENABLE_X64": "1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if job.device == "cpu":
        found["JAX_PLATFORMS"] = "cpu"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        found.pop(name, None)
        if job.one_thread:
            found[name] = "1"
    if job.one_thread:
        found["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return found


def settle(job: Job) -> None:
    """In the child, before anything large is loaded: one core for one thread."""
    if job.one_thread and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def launch(job: Job) -> Iterator[Record]:
    """The records of a child, as it makes them; one that dies leaves what it had and a record that says so."""
    command = [sys.executable, "-m", "benchmarks.speed", "--child", job.told()]
    with subprocess.Popen(command, env=environment(job), stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    if child.returncode:
        yield {"part": job.part, "case": job.case, "died": child.returncode, "job": job.told()}
