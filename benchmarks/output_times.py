"""What output times cost: one forward solve with 10 and with 1000 of them, interleaved in one run, as a ratio of medians.

    python benchmarks/output_times.py [repeats]

The continuous extension reads outputs from stages that the steps leave behind, so evaluations do not grow with their number.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

import physnode as pn


def once(method: str, count: int) -> tuple[float, int]:
    """Seconds and field evaluations of one solve at batch 1."""
    ts = torch.linspace(0, 20, count, dtype=torch.float64)
    y0 = torch.tensor([1.5, 0.0], dtype=torch.float64)
    begun = time.perf_counter()
    sol = pn.solve(pn.systems.Pendulum(), y0, ts, method=method)
    return time.perf_counter() - begun, int(sol.stats.evaluations)


def main() -> None:
    """Print one line a method."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    torch.set_num_threads(1)
    print(f"{'method':<8} {'evaluations 10':>15} {'evaluations 1000':>17} {'time 1000 / time 10':>20}")
    with torch.no_grad():
        for method in ("bosh3", "dopri5", "tsit5", "dop853"):
            pairs = [(once(method, 10), once(method, 1000)) for _ in range(repeats)]
            few, many = (statistics.median(pair[i][0] for pair in pairs[2:]) for i in (0, 1))
            print(f"{method:<8} {pairs[0][0][1]:>15} {pairs[0][1][1]:>17} {many / few:>20.2f}")


if __name__ == "__main__":
    main()
