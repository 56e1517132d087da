"""The table of the best methods at equal error."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.accuracy.tables import Table
from benchmarks.speed.jobs import Record
from benchmarks.speed.problems import CASES
from benchmarks.speed.tables import median, milliseconds
from benchmarks.speed.torch_contenders import OURS

__all__ = ["equal_error"]


def equal_error(records: Sequence[Record]) -> list[Table]:
    """One table a case and batch: who reaches the error, with what, and how fast."""
    groups: dict[tuple[str, int, float], list[Record]] = {}
    for record in records:
        if record["part"] == "work-precision" and "contender" in record:
            groups.setdefault((record["case"], record["batch"], record["target"]), []).append(record)
    return [_table(*key, found) for key, found in groups.items()]


def _table(case: str, batch: int, target: float, records: Sequence[Record]) -> Table:
    table = Table(
        f"{CASES[case].title}: best methods at an error of {target:.0e}, batch {batch}",
        "float64, one thread. Each library's tolerance is adjusted until the outputs have this error; of its methods the "
        "fastest is shown. Milliseconds, and over physnode's; a dash: no gradient, not reached, or not within the time.",
        ("", "method", "rtol", "error", "forward", "forward and gradient"),
    )
    at_target = {(record["contender"], record["mode"]): record for record in records if "mode" in record}
    for name in dict.fromkeys(record["contender"] for record in records):
        known = [at_target[name, mode] for mode in ("forward", "gradient") if (name, mode) in at_target]
        cells = []
        for mode in ("forward", "gradient"):
            taken, ours = median(at_target.get((name, mode))), median(at_target.get((OURS, mode)))
            ratio = "" if name == OURS or math.isnan(taken / ours) else f" ({taken / ours:.2f})"
            cells.append(milliseconds(taken) + ratio)
        if known:
            table.add(name, known[0]["method"], f"{known[0]['rtol']:.1e}", f"{known[0]['error']:.1e}", *cells)
        else:
            tried = [record for record in records if record["contender"] == name]
            why = "; ".join(f"{record['method']}: {record['failed'] or 'not reached'}" for record in tried)
            table.add(name, why, "–", "–", *cells)
    return table
