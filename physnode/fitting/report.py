"""The page a scientist reads after a fit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from physnode.fitting.result import FitResult

__all__ = ["summary"]

_MOST_STATES = 12


def summary(result: FitResult) -> str:
    """One page of plain text, about 110 columns wide."""
    measured = result.measured
    used, masked = measured.rows_used, measured.rows_masked
    lines = [
        f"Fit of {type(result.model).__name__} to {len(measured.t)} {'trajectory' if len(measured.t) == 1 else 'trajectories'}",
        "",
        f"  measurements used    {used} ({masked} missing and left out)",
        f"  noise level          {_noise(result)}",
        f"  converged            {'yes' if result.converged else 'NO'}: {result.reason}",
        f"  chi-square           {result.chi2:.6g} for {result.dof:.6g} degrees of freedom",
        f"  reduced chi-square   {result.reduced_chi2:.4g}{_verdict(result)}",
        f"  AIC, BIC             {result.aic:.6g}, {result.bic:.6g}",
        "",
        f"  {'parameter':<24}{'unit':<12}{'start':>14}{'value':>18}{'formal error':>14}{'robust error':>14}  note",
    ]
    errors, robust = result.errors, result.robust_errors
    position = 0
    for scalar in result.shared.scalars:
        if scalar.free:
            value = float(result.x[position])
            position += 1
            note = "at a bound" if result.at_bound(scalar.name) else ""
            numbers = f"{value:>18.10g}{_error(errors[scalar.name]):>14}{_error(robust[scalar.name]):>14}"
        else:
            numbers, note = f"{scalar.start:>18.10g}{'-':>14}{'-':>14}", "fixed"
        lines.append(f"  {scalar.name:<24}{scalar.unit:<12}{scalar.start:>14.6g}{numbers}  {note}".rstrip())
    weights = result.shared.size - len(result.shared.free)
    if weights:
        lines.append(f"  learned term: {weights} weights, {result.settings.get('learned_strength', 0):g} weight on its size")
    lines += _states(result)
    if result.unidentified:
        lines += ["", "  What the data do not tell apart", *[f"    {line}" for line in result.unidentified]]
    if result.warnings:
        lines += ["", "  Warnings", *[f"    {line}" for line in result.warnings]]
    lines += [
        "",
        "  Formal errors hold for independent residuals; robust errors allow for residuals that are correlated in time",
        "  (sandwich with a Bartlett kernel). Both are one standard deviation.",
    ]
    return "\n".join(lines)


def _noise(result: FitResult) -> str:
    if result.sigma_source == "given":
        return "given with the data" + (
            "" if result.absolute_sigma else ", taken as relative: errors are scaled by the residuals"
        )
    shown = ", ".join(f"{name} {value:.4g}" for name, value in list(result.group_sigma.items())[:6])
    more = ", ..." if len(result.group_sigma) > 6 else ""
    return f"estimated from the residuals: {shown}{more}"


def _verdict(result: FitResult) -> str:
    if result.sigma_source == "estimated":
        return "  (1 by construction: the noise was estimated)"
    if not result.dof > 0:
        return ""
    deviation = (result.chi2 - result.dof) / math.sqrt(2 * result.dof)
    return "" if abs(deviation) < 3 else f"  ({deviation:+.1f} standard deviations from 1)"


def _states(result: FitResult) -> list[str]:
    count = result.initial_states.numel()
    if not result.states_free:
        return [f"  initial states       {count} components, taken as known"]
    if count > _MOST_STATES:
        return [f"  initial states       {count} components, estimated"]
    start = result.shared.size
    lines = []
    for i in range(count):
        error = math.sqrt(max(0.0, float(result.covariance[start + i, start + i])))
        robust = math.sqrt(max(0.0, float(result.robust_covariance[start + i, start + i])))
        value = float(result.x[start + i])
        lines.append(f"  {result.names[start + i]:<50}{value:>18.10g}{_error(error):>14}{_error(robust):>14}")
    return lines


def _error(value: float) -> str:
    return "undetermined" if math.isinf(value) else f"{value:.3g}"
