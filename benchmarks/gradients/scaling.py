"""Bytes and seconds of each gradient against the number of steps, of stages, and of layers of the network.

What the symplectic adjoint should need is known (Matsubara, Miyatake, Yaguchi, NeurIPS 2021, table 1): the records of the
steps, one evaluation's graph, and little else. The sum of these is the line that it is held against.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

import physnode as pn
from benchmarks.accuracy.tables import Figure, Table
from benchmarks.gradients.contenders import Setting, contenders
from benchmarks.gradients.fields import layered
from benchmarks.gradients.measure import cost, differentiate, interleaved
from benchmarks.gradients.panels import Column, Panel, Part, by_column
from physnode.live_bytes import LiveBytes

__all__ = ["COUNTS", "evaluation_bytes", "scaling", "theory"]

COUNTS = (10, 30, 100, 300, 1000)
METHODS = ("heun", "bosh3", "dopri5", "dop853")
LAYERS = (1, 2, 4, 8)
BATCH, DIM, WIDTH = 64, 4, 128
STEPS = 30
"""Where the number of steps is not what varies."""
TIMED = 100
"""The most steps that are timed; beyond, time is proportional to them."""
HELD = 1.2
"""How far above the theory the symplectic adjoint may be."""


def evaluation_bytes(field: nn.Module, y0: Tensor) -> int:
    """The most bytes that are alive while one evaluation of the field is made and pulled back, alone."""
    y = y0.detach().requires_grad_()
    t = torch.zeros(*y0.shape[:-1], 1, dtype=y0.dtype)
    with LiveBytes() as live:
        value = field(t, y)
        torch.autograd.grad(value, (y, *field.parameters()), torch.ones_like(value))
    peak: int = live.peak
    return peak


def theory(field: nn.Module, y0: Tensor, steps: int, stages: int) -> int:
    """Bytes that a symplectic adjoint with its steps kept needs at least, for outputs at the start and the end.

    Start states and two float64 times of N steps; outputs and their cotangents; states and adjoints of one step's s stages;
    one evaluation with its graph, pulled back alone, in which one copy of the parameters' gradient is on its way; and the
    parameters' gradient itself.
    """
    size = y0.numel() * y0.element_size()
    records = steps * (size + 16 * (y0.numel() // y0.shape[-1]))
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in field.parameters())
    return records + 2 * 2 * size + 2 * stages * size + evaluation_bytes(field, y0) + parameters


def scaling(
    counts: Sequence[int] = COUNTS, methods: Sequence[str] = METHODS, layers: Sequence[int] = LAYERS, repeats: int = 2
) -> Part:
    """Three sweeps, each a table and two panels."""
    tables, memory, clocks = [], [], []
    for what, label, cases in (
        ("steps", "steps", [(count, "dopri5", count, 2) for count in counts]),
        ("stages", "stages", [(pn.methods.get(name).evaluations, name, STEPS, 2) for name in methods]),
        ("layers of the network", "layers", [(number, "dopri5", STEPS, number) for number in layers]),
    ):
        table, bytes_panel, seconds_panel = _sweep(what, label, cases, repeats)
        tables.append(table)
        memory.append(bytes_panel)
        clocks.append(seconds_panel)
    return Part(tables, [*memory, *clocks])


def _sweep(what: str, label: str, cases: Sequence[tuple[int, str, int, int]], repeats: int) -> tuple[Table, Panel, Panel]:
    fixed = {"steps": "`dopri5`, 2 layers", "stages": f"{STEPS} steps, 2 layers"}.get(what, f"`dopri5`, {STEPS} steps")
    held = "symplectic, steps kept"
    table = Table(
        f"Memory and time against the number of {what}",
        f"Fixed steps of [0, 1] ({fixed}); network of width {WIDTH} on {BATCH} states of dimension {DIM}, float64; L = |y(1)|² "
        "with gradients of y(0) and of the network. KiB: the most bytes of tensors alive at once. Theory: start states and "
        "times of the steps, outputs and cotangents, states and adjoints of one step's stages, one evaluation with its "
        f"graph pulled back (measured alone, a copy of the parameters' gradient in it), and that gradient; `{held}` is held "
        f"to {HELD:g} times it, its way back and the forward solve apart. Milliseconds: medians of forward "
        "and backward together, contenders in turn.",
        ("", *(f"{name} ({x})" if what == "stages" else f"{x:,}" for x, name, _, _ in cases)),
    )
    memory = Panel(f"Memory against {what}", label, "KiB at the peak", log_x=what != "layers of the network", log_y=True)
    clock = Panel(f"Time against {what}", label, "ms, forward and backward", memory.log_x, log_y=True)
    columns: list[Column] = []
    for _, name, steps, depth in cases:
        field = layered(DIM, WIDTH, depth)
        y0 = torch.randn(BATCH, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        setting = Setting(name, (0.0, 1.0), dt=1 / steps)
        known = contenders(setting)
        costs = {who: cost(contender, field, y0, setting) for who, contender in known.items()}
        least = theory(field, y0, steps, pn.methods.get(name).evaluations)
        column: Column = {f"{who}, KiB": Figure(found.peak / 1024, form=",.0f") for who, found in costs.items()}
        column["theory, KiB"] = Figure(least / 1024, form=",.0f")
        column["way back / theory"] = Figure(costs[held].backward_peak / least, at_most=HELD, form=".2f")
        column["forward solve / theory"] = Figure(costs[held].forward_peak / least, at_most=HELD, form=".2f")
        runs = {who: partial(differentiate, contender, field, y0, setting) for who, contender in known.items()}
        taken = interleaved(runs, repeats) if steps <= TIMED else {}
        column.update({f"{who}, ms": Figure(1e3 * statistics.median(ms), form=",.0f") for who, ms in taken.items()})
        columns.append(column)
    by_column(table, columns)
    for who in columns[0]:
        quantity = who.rsplit(", ", 1)
        if len(quantity) == 2:
            points = [(x, column[who]) for (x, *_), column in zip(cases, columns, strict=True) if who in column]
            values = [cell.value for _, cell in points if isinstance(cell, Figure)]
            panel = memory if quantity[1] == "KiB" else clock
            panel.add(quantity[0], [x for x, _ in points], values, dashed=quantity[0] == "theory")
    return table, memory, clock
