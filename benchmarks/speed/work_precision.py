"""Part two: each library's best method, at the tolerance with which it reaches the same error."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.speed.contenders import Contender, Run, Setting, arrays
from benchmarks.speed.everyone import everyone
from benchmarks.speed.jobs import Job, Record
from benchmarks.speed.problems import Problem, build
from benchmarks.speed.reference import Reference, reference
from benchmarks.speed.timing import Patience, rounds

__all__ = ["TARGET", "Curve", "measure"]

SCANNED = (1e-5, 3e-8, 1e-10)
FINEST = 1e-13
TARGET = {"bodies": 1e-8, "pendulum": 1e-8, "planets": 1e-5}
"""The error, root mean square over all outputs; a hundred revolutions magnify any error too far for 1e-8."""
DEARER = 4.0
"""What a solve with its gradient may cost, in forward solves."""
NEAR = 2.0
"""Within this factor of the target an error is that of the target."""


Point = tuple[float, float, float]
"""(rtol, error, seconds)."""


@dataclass
class Curve:
    """Errors and seconds of one method of one contender, forward."""

    contender: Contender
    method: str
    points: list[Point] = field(default_factory=list)
    """From loose to tight, and last at the target."""
    failed: str = ""

    def tolerance_for(self, target: float) -> float:
        """On the straight line, of logarithms, through the two points about the target."""
        known = sorted((point for point in self.points if point[1] > 0), key=lambda point: abs(math.log(point[1] / target)))
        if len(known) < 2:
            return target
        (a, at_a, _), (b, at_b, _) = known[:2]
        slope = math.log(at_a / at_b) / math.log(a / b) if a != b else 1.0
        slope = min(3.0, max(0.4, slope))
        return min(1e-3, max(FINEST, float(a * (target / at_a) ** (1 / slope))))

    def seconds_at(self, rtol: float) -> float:
        """What a tighter tolerance should take, by the fifth root of the tolerance."""
        if not self.points:
            return 0.0
        last, _, taken = self.points[-1]
        return float(taken * max(1.0, (last / rtol) ** 0.2))


def measure(job: Job) -> Iterator[Record]:
    """One record for each curve, and one for each contender and mode at the target."""
    for batch in job.batches:
        problem = build(job.case, batch)
        target = TARGET[problem.case.physics]
        wanted = reference(job.case, batch, Path(job.folder), gradient=False)
        told = {"part": job.part, "case": job.case, "batch": batch, "target": target}
        best: list[Curve] = []
        scanned: dict[tuple[str, str], list[Point]] = {}
        for contender in everyone(job):
            if not contender.best or not contender.takes(problem.case.physics, bool(problem.case.width), contender.modes[0]):
                continue
            methods = contender.best[:1] if job.quick else contender.best
            if "forward" in contender.modes:
                curves = [_scan(contender, method, problem, wanted, target, job.patience) for method in methods]
            else:  # its forward solve is that of its library, which was scanned before
                curves = [Curve(contender, method, scanned[contender.package, method]) for method in methods]
            for curve in curves:
                scanned[contender.package, curve.method] = curve.points
                if "forward" in contender.modes:
                    found = {"contender": contender.name, "method": curve.method, "points": curve.points}
                    yield {**told, **found, "failed": curve.failed}
            reached = [curve for curve in curves if curve.points and curve.points[-1][1] <= NEAR * target]
            if reached:
                best.append(min(reached, key=lambda curve: curve.points[-1][2]))
        for mode in ("forward", "gradient"):
            for record in _at_target(best, problem, mode, job.patience):
                yield {**told, **record}


def _scan(contender: Contender, method: str, problem: Problem, wanted: Reference, target: float, patience: Patience) -> Curve:
    """Some tolerances, and last the one that reaches the target, corrected once if it is off."""
    curve = Curve(contender, method)
    for rtol in SCANNED:
        if not _add(curve, rtol, problem, wanted, patience):
            break
    if len(curve.points) < 2:
        return curve
    for _ in range(2):
        if not _add(curve, curve.tolerance_for(target), problem, wanted, patience):
            break
        if target / NEAR <= curve.points[-1][1] <= NEAR * target:
            break
    return curve


def _add(curve: Curve, rtol: float, problem: Problem, wanted: Reference, patience: Patience) -> bool:
    """One more point; False if it was not to be had."""
    if curve.seconds_at(rtol) > patience.cap / 3:
        curve.failed = f"rtol {rtol:.0e}: about {curve.seconds_at(rtol):.0f} s expected"
        return False
    try:
        run = _prepared(curve, rtol, problem, "forward")
        error = wanted.error(arrays([run()[0]])[0])
        begun = time.perf_counter()
        run()
        once = time.perf_counter() - begun
        taken = sorted(rounds({"": run}, {"": once}, Patience(budget=patience.budget / 4, rounds=5, quickly=0.1))[""])
    except Exception as failure:  # of any library, whose curve then ends
        curve.failed = f"rtol {rtol:.0e}: {type(failure).__name__}"
        return False
    curve.points.append((rtol, error, taken[len(taken) // 2]))
    curve.failed = ""
    return math.isfinite(error)


def _prepared(curve: Curve, rtol: float, problem: Problem, mode: str) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return curve.contender.prepare(problem, Setting(curve.method, rtol, rtol * 1e-3, mode == "gradient"))


def _at_target(best: list[Curve], problem: Problem, mode: str, patience: Patience) -> Iterator[Record]:
    """Everyone in turn, each at the tolerance that reaches the target."""
    runs, estimates, curves = {}, {}, {}
    for curve in best:
        if mode not in curve.contender.modes or (mode == "gradient" and DEARER * curve.points[-1][2] > patience.cap):
            continue
        run = _prepared(curve, curve.points[-1][0], problem, mode)
        run()
        begun = time.perf_counter()
        run()
        name = curve.contender.name
        runs[name], estimates[name], curves[name] = run, time.perf_counter() - begun, curve
    for name, seconds in rounds(runs, estimates, patience).items():
        rtol, error, _ = curves[name].points[-1]
        yield {"contender": name, "method": curves[name].method, "mode": mode, "rtol": rtol, "error": error, "seconds": seconds}
