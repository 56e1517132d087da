"""Trajectory data: one file format (HDF5, netCDF-4 compatible), read and written safely, seen as tensors.

`from_arrays` and `read_csv` build a `Trajectories`; `write` and `open` move it to and from a file; `validate` says what is
wrong with a file and `info` what it holds. `simulate` makes a dataset from a known system.
"""

from physnode.data.batching import Batch, collate
from physnode.data.build import from_arrays
from physnode.data.files import concat, info, open, write
from physnode.data.findings import Finding, Report
from physnode.data.importers import read_csv
from physnode.data.reading import validate
from physnode.data.sampling import Gaps
from physnode.data.simulate import simulate
from physnode.data.trajectories import Observation, Trajectories, Trajectory

__all__ = [
    "Batch",
    "Finding",
    "Gaps",
    "Observation",
    "Report",
    "Trajectories",
    "Trajectory",
    "collate",
    "concat",
    "from_arrays",
    "info",
    "open",
    "read_csv",
    "simulate",
    "validate",
    "write",
]
