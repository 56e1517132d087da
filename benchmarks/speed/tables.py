"""The records of the comparison at equal tolerance as tables: times, ratios, and the limits that they are held to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from benchmarks.accuracy.tables import Figure, Table
from benchmarks.speed.jobs import Record
from benchmarks.speed.problems import CASES
from benchmarks.speed.torch_contenders import OURS

__all__ = ["comparison", "limits", "median", "milliseconds"]

Key = tuple[str, int]
ONE = "one thread"
LIMITED = "one thread, float64, forward and gradient, dopri5 at rtol 1e-6, atol 1e-9"


def median(record: Record | None) -> float:
    """Seconds of a warm call; NaN where there are none."""
    return statistics.median(record["seconds"]) if record and record.get("seconds") else math.nan


def milliseconds(seconds: float) -> str:
    """Three digits, or a dash."""
    return "–" if math.isnan(seconds) else f"{1e3 * seconds:.3g}"


def comparison(records: Sequence[Record]) -> list[Table]:
    """A table for each case, way of counting threads, precision and mode."""
    groups: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        if record["part"] == "same" and "contender" in record:
            key = (record["case"], record["mode"], record["dtype"], record["where"])
            groups.setdefault(key, []).append(record)
    order = {name: k for k, name in enumerate(CASES)}
    keys = sorted(groups, key=lambda key: (key[3] != ONE, key[2] != "float64", order[key[0]], key[1] != "gradient"))
    return [_times(*key, groups[key]) for key in keys]


def _times(case: str, mode: str, dtype: str, where: str, records: Sequence[Record]) -> Table:
    batches = sorted({record["batch"] for record in records})
    by_key: dict[Key, Record] = {(record["contender"], record["batch"]): record for record in records}
    what = "forward and gradient" if mode == "gradient" else "forward"
    table = Table(
        f"{CASES[case].title}: {what}, {dtype}, {where}",
        "",
        (
            "milliseconds (over physnode)",
            *(f"batch {batch}" for batch in batches),
            "first call, s",
            "error",
            *(("gradient's error",) if mode == "gradient" else ()),
        ),
    )
    notes = []
    for name in dict.fromkeys(record["contender"] for record in records):
        row = [by_key.get((name, batch)) for batch in batches]
        cells = []
        for batch, record in zip(batches, row, strict=True):
            taken, ours = median(record), median(by_key.get((OURS, batch)))
            ratio = "" if name == OURS or math.isnan(taken / ours) else f" ({taken / ours:.2f})"
            cells.append(milliseconds(taken) + ratio)
            if record and "skipped" in record:
                notes.append(f"{name} at {batch}: {record['skipped']}")
        first = " / ".join(f"{record['first']:.2g}" if record and "first" in record else "–" for record in row)
        errors = [_worst(row, "error"), *([_worst(row, "gradient_error")] if mode == "gradient" else [])]
        table.add(name, *cells, first, *errors)
    table.text = "Not timed: " + "; ".join(notes) + "." if notes else "Everyone was timed."
    return table


def _worst(row: Sequence[Record | None], key: str) -> str:
    known = [record[key] for record in row if record and record.get(key) is not None]
    return f"{max(known):.1e}" if known else "–"


def limits(records: Sequence[Record]) -> list[Table]:
    """What the comparison is held to: ratios of one thread in float64 with the gradient."""
    held: dict[tuple[str, str, int], Record] = {}
    for record in records:
        if [record.get(key) for key in ("part", "mode", "dtype", "where")] == ["same", "gradient", "float64", ONE]:
            held[record["case"], record["contender"], record["batch"]] = record

    def against(peer: str, ours: str = OURS) -> dict[Key, float]:
        found = {}
        for case, name, batch in held:
            if name == peer:
                ratio = median(held[case, name, batch]) / median(held.get((case, ours, batch)))
                if not math.isnan(ratio):
                    found[case, batch] = ratio
        return found

    tables = [
        _held("torchdiffeq's `odeint`", "torchdiffeq", against("torchdiffeq"), _by_torchdiffeq),
        _held("diffrax", "diffrax", against("diffrax"), _by_diffrax, mean=2.0),
        _held(
            "gradsolve's warm replay",
            "gradsolve, which has no dopri5, beside physnode by tsit5",
            against("gradsolve, warm replay", f"{OURS}, tsit5"),
            lambda network, batch: 1.0 if batch >= 64 else None,
        ),
    ]
    return [table for table in tables if table.rows]


def _by_torchdiffeq(network: bool, batch: int) -> float | None:
    if batch < 1024:
        return 5.0 if network else 15.0
    return 1.3 if network else 5.0


def _by_diffrax(network: bool, batch: int) -> float | None:
    if batch == 1:
        return 0.5 if network else 1.0
    return 1.0 if batch >= 64 else None


def _held(
    name: str,
    whose: str,
    ratios: dict[Key, float],
    least: Callable[[bool, int], float | None],
    mean: float | None = None,
) -> Table:
    batches = sorted({batch for _, batch in ratios})
    table = Table(
        f"Held: times faster than {name}",
        f"Time of {whose} over that of physnode; {LIMITED}.",
        ("", *(f"batch {batch}" for batch in batches)),
    )
    for case in (case for case in CASES if any(case == other for other, _ in ratios)):
        network = bool(CASES[case].width)
        cells = [
            Figure(ratios[case, batch], at_least=least(network, batch), form=".2f") if (case, batch) in ratios else "–"
            for batch in batches
        ]
        table.add(CASES[case].title, *cells)
    many = [math.log(ratio) for (_, batch), ratio in ratios.items() if batch >= 64]
    if mean is not None and many:
        value = Figure(math.exp(statistics.fmean(many)), at_least=mean, form=".2f")
        table.add("geometric mean from batch 64 up", value, *([""] * (len(batches) - 1)))
    return table
