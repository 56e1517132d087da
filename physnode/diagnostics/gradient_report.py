"""What a check of gradients found: one row a method, and whether all is right."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from physnode.diagnostics.finite_differences import Quotient
from physnode.errors import GradientError

__all__ = ["GradientCheck", "GradientRow", "bounds"]

_BOUNDS = {torch.float64: (1e-10, 1e-6), torch.float32: (1e-4, 1e-3)}


def bounds(dtype: torch.dtype) -> tuple[float, float]:
    """The largest error of an exact gradient of a solve in ``dtype``, and its largest distance to finite differences."""
    return _BOUNDS.get(dtype, _BOUNDS[torch.float32])


@dataclass(frozen=True)
class GradientRow:
    """What one gradient method found, and what it cost."""

    name: str
    error: float | None
    """Distance to the float64 reference, of the worst variable, relative to it; None where the method refuses the problem."""
    from_differences: float | None
    """Distance of its directional derivatives to those by finite differences, relative; None where there are none."""
    forward: int | None
    """Evaluations of the field, each for the whole batch, until the loss was known."""
    backward: int | None
    seconds: float | None
    """Forward and backward together, median."""
    peak_bytes: int | None
    """The most bytes of tensors alive at once that were made on the way."""
    exact: bool
    """Whether the method promises the exact gradient of the steps made."""
    note: str = ""


@dataclass(frozen=True)
class GradientCheck:
    """One row a gradient method. Print it; ``ok`` says whether all is right."""

    rows: tuple[GradientRow, ...]
    loss: float
    dtype: torch.dtype
    steps: int
    """Accepted steps of the trajectory that took most."""
    variables: tuple[str, ...]
    """What the loss was differentiated by."""
    differences: tuple[Quotient, ...]
    """The derivatives by finite differences, one a direction; empty if none were asked for or they could not be made."""
    note: str = ""
    """Why there are no finite differences."""

    @property
    def wrong(self) -> tuple[str, ...]:
        """What is wrong, one line each: empty if nothing is."""
        bound, far = bounds(self.dtype)
        slack = _slack(self.differences, far)
        found = []
        for row in self.rows:
            if not row.exact or row.error is None:
                continue
            if not row.error <= bound:
                found.append(f"{row.name}: off by {row.error:.1e} from Direct in float64 on the same steps (at most {bound:g})")
            if row.from_differences is not None and not row.from_differences <= slack:
                found.append(f"{row.name}: off by {row.from_differences:.1e} from finite differences (at most {slack:.1g})")
        return tuple(found)

    @property
    def ok(self) -> bool:
        """Whether every exact method that takes the problem agrees with the reference, and with finite differences."""
        return not self.wrong

    def raise_if_wrong(self) -> None:
        """Do nothing if all is right.

        Raises:
            GradientError: with what is wrong; if all methods agree with each other but not with finite differences, the
                derivative of the field itself is wrong.
        """
        if self.ok:
            return
        agreed = all("finite" in line for line in self.wrong)
        hint = (
            "; the methods agree with each other, so the backward of the field (or of the loss) does not fit its forward: look "
            "for a torch.autograd.Function, a detach or an in-place edit, or a kink"
        )
        raise GradientError("; ".join(self.wrong) + (hint if agreed else ""))

    def __str__(self) -> str:
        head = ("gradient", "error", "from differences", "evaluations", "backward", "ms", "KiB at peak", "")
        table: list[tuple[str, ...]] = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        lines = []
        for line in table:
            columns = [cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:-1], strict=True)]
            lines.append("  ".join((line[0].ljust(widths[0]), *columns, line[-1])).rstrip())
        lines.insert(1, "-" * len(lines[0]))
        more = f" and {len(self.variables) - 6} more" if len(self.variables) > 6 else ""
        kind = str(self.dtype).removeprefix("torch.")
        lines.append(f"{kind}, {self.steps} steps, loss {self.loss:.6g}, by {', '.join(self.variables[:6])}{more}")
        if self.note:
            lines.append(f"no finite differences: {self.note}")
        lines.extend(self.wrong or ("ok",))
        return "\n".join(lines)


def _cells(row: GradientRow) -> tuple[str, ...]:
    ms = None if row.seconds is None else f"{1e3 * row.seconds:.1f}"
    kib = None if row.peak_bytes is None else f"{row.peak_bytes / 1024:.0f}"
    error, off = (None if x is None else f"{x:.1e}" for x in (row.error, row.from_differences))
    cells = (row.name, error, off, row.forward, row.backward, ms, kib, row.note)
    return tuple("" if cell is None else str(cell) for cell in cells)


def _slack(quotients: Sequence[Quotient], far: float) -> float:
    """How far a right gradient may be from finite differences: at most 1e-3, however uncertain they are."""
    if not quotients:
        return far
    size = statistics.fmean(quotient.value**2 for quotient in quotients) ** 0.5
    worst = max(quotient.uncertainty for quotient in quotients)
    return max(far, min(1e-3, 10 * worst / size)) if size else far
