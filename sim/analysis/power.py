"""Power over time: watts as a step function, whose integral is the energy of the run but for the rounding of floats.

Arithmetic takes its energy evenly while its task computes, a transfer while channels serve it, in proportion to what they
deliver; static power is there all along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.analysis.energy import MW_PER_W, STATIC, Energy, hops_of
from sim.analysis.rules import Rules
from sim.analysis.sums import times
from sim.base.integers import LARGEST
from sim.base.units import ceil_div
from sim.log import derived
from sim.log.tables import EventLog
from sim.machine.energy import EnergyRates

Times = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """time: ps, ascending from 0 to the end of the run. watts: from each time on; 0 from the last.

    tasks: fJ of arithmetic and transfer of each task [row]; empty if the log has no rows.
    """

    time: Times
    watts: Floats
    tasks: npt.NDArray[Any]

    def means(self, width: int) -> Floats:
        """Mean watts of parts of `width` ps each, from 0; of the last one until the end of the run."""
        end = int(self.time[-1])
        edges = np.minimum(np.arange(ceil_div(max(end, 1), width) + 1, dtype=np.int64) * width, end)
        until = np.append(0.0, np.cumsum(self.watts[:-1] * np.diff(self.time)))
        return np.asarray(np.round(np.diff(np.interp(edges, self.time, until)) / np.maximum(np.diff(edges), 1), 6))


def power(log: EventLog, rules: Rules, energy: Energy) -> Power:
    """The power of a log; of one without rows each step takes its energy evenly, and without steps the run.

    rules: of a run whose energy is known.
    """
    assert rules.energy is not None
    tasks = np.zeros(0, dtype=np.int64)
    if log.has_rows:
        compute, moved = _arithmetic(log, rules.energy), _moved(log, rules.energy)
        tasks = compute + moved  # each below 2^62, or Python integers
        parts = [_computing(log, compute, stream=rules.execution == "stream"), *_transfers(log, moved)]
    elif len(log.steps):
        parts = [(log.steps.released, log.steps.end, energy.by_step[:, :STATIC].astype(float).sum(axis=1))]
    else:
        whole = np.array([0, energy.makespan], dtype=np.int64)
        parts = [(whole[:1], whole[1:], np.array([float(energy.compute + energy.memory + energy.link)]))]
    start, end, each = (np.concatenate(column) for column in zip(*parts, strict=True))
    keep = (each > 0) & (start < end)
    static = rules.energy.power(log.engines) / MW_PER_W
    return _stepped(start[keep], end[keep], each[keep] / (end - start)[keep] / MW_PER_W, static, energy.makespan, tasks)


def _stepped(start: Times, end: Times, watts: Floats, static: float, makespan: int, tasks: npt.NDArray[Any]) -> Power:
    """The sum of what is drawn in intervals, and of static power all along."""
    time = np.concatenate([[0, makespan], start, end])
    open_ = np.concatenate([[0, 0], np.ones(len(start)), -np.ones(len(end))])
    change = np.concatenate([[0.0, 0.0], watts, -watts])
    order = np.argsort(time, kind="stable")
    time = time[order]
    last = np.append(time[1:] != time[:-1], True)
    # Sums of floats leave dust behind, so idle is 0 by count, and values keep microwatts.
    drawn = np.where(np.cumsum(open_[order]) > 0.5, np.round(np.maximum(np.cumsum(change[order]), 0.0), 6), 0.0)
    found = np.where(time < makespan, drawn + static, 0.0)
    return Power(time=time[last], watts=found[last], tasks=tasks)


def _arithmetic(log: EventLog, rates: EnergyRates) -> npt.NDArray[Any]:
    """Energy of the arithmetic of each task, fJ [row]."""
    of_flop = [np.array([rates.of_flop(dtype) or 0 for dtype in graph.ops.dtype.tolist()])[graph.op] for graph in log.graphs]
    rate = np.concatenate([np.zeros(0, dtype=np.int64), *of_flop])[derived.form(log)]
    flops = derived.flops(log)
    fits = int(flops.max(initial=0)) * int(rate.max(initial=0)) < LARGEST
    return np.asarray((flops if fits else flops.astype(object)) * rate)


def _moved(log: EventLog, rates: EnergyRates) -> npt.NDArray[Any]:
    """Energy of the bytes of each task, fJ [row]: each moves them over one path, of one link or several."""
    found: npt.NDArray[Any] = np.zeros(len(log.tasks), dtype=np.int64)
    of_graph = [hops_of(graph, log.machine, rates) for graph in log.graphs]
    hops = np.concatenate([np.zeros(0, dtype=np.int64), *of_graph])[derived.form(log)]
    for path, rate in enumerate(rates.of_byte):
        if rate:
            found = found + times(derived.path_bytes(log, path) * hops, rate)
    return found


def _computing(log: EventLog, energy: npt.NDArray[Any], *, stream: bool) -> tuple[Times, Times, Floats]:
    """When tasks compute, and what that takes: start, end, fJ [row]."""
    tasks = log.tasks
    after_load = (not stream) & (tasks.loaded < tasks.end)
    return np.where(after_load, tasks.loaded, tasks.start), tasks.end, energy.astype(float)


def _transfers(log: EventLog, energy: npt.NDArray[Any]) -> list[tuple[Times, Times, Floats]]:
    """When channels serve transfers, and what that takes: of each service interval, and of tasks that no channel served."""
    tasks, services, moved = log.tasks, log.services, energy.astype(float)
    delivered = np.zeros(len(tasks))
    np.add.at(delivered, services.task, services.work)
    share = services.work / np.maximum(delivered[services.task], 1.0)
    return [
        (services.start, services.end, moved[services.task] * share),
        (tasks.start, tasks.end, np.where(delivered > 0, 0.0, moved)),
    ]
