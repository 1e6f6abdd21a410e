"""What must hold of every run, checked on every run. A failure is a defect of the simulator, never of the input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sim.analysis.bounds import Bounds
from sim.analysis.context import Rules, grid
from sim.errors import SimulationError
from sim.eventlog import EventLog
from sim.units import ceil_div, format_time

_STEPS = 64  # compared at once: their times stay near the processor


def check(log: EventLog, rules: Rules, bounds: Bounds) -> list[str]:
    """Return the names of the invariants that were checked; raises SimulationError at the first that does not hold."""
    passed = []
    for name, holds in CHECKS.items():
        trouble = holds(log, rules, bounds)
        if trouble:
            raise SimulationError(f"invariant does not hold: {name}: {trouble}")
        passed.append(name)
    return passed


def _times_in_order(log: EventLog, _rules: Rules, _bounds: Bounds) -> str | None:
    t = log.tasks
    bad = ~((t.ready <= t.start) & (t.start <= t.loaded) & (t.loaded <= t.end) & (t.start < t.end) & (t.ready >= 0))
    return f"{log.name(int(np.flatnonzero(bad)[0]))}" if bad.any() else None


def _after_inputs(log: EventLog, _rules: Rules, _bounds: Bounds) -> str | None:
    for number, graph in enumerate(log.graphs):
        end, ready = grid(log, number, log.tasks.end), grid(log, number, log.tasks.ready)
        consumer = np.repeat(np.arange(len(graph)), np.diff(graph.input_start))
        for first in range(0, len(end), _STEPS):
            here = slice(first, first + _STEPS)
            late = np.take(end[here], graph.inputs, axis=1) > np.take(ready[here], consumer, axis=1)
            if late.any():
                return f"{graph.name(int(consumer[np.argwhere(late)[0][1]]))} was ready before an input ended"
    return None


def _engines_exclusive(log: EventLog, _rules: Rules, _bounds: Bounds) -> str | None:
    rows = np.flatnonzero(log.tasks.engine >= 0)
    rows = rows[np.lexsort((log.tasks.start[rows], log.tasks.engine[rows]))]
    engine, start, end = log.tasks.engine[rows], log.tasks.start[rows], log.tasks.end[rows]
    clash = (engine[1:] == engine[:-1]) & (start[1:] < end[:-1])
    return f"engine {engine[1:][clash][0]} ran two tasks at once" if clash.any() else None


def _kv_order(log: EventLog, _rules: Rules, _bounds: Bounds) -> str | None:
    layers = sorted({layer for graph in log.graphs for layer in (*graph.kv_loads, *graph.kv_stores)})
    loaded = np.full((len(log.steps), len(layers)), np.iinfo(np.int64).max)  # [step, layer]: the first load began
    stored = np.zeros((len(log.steps), len(layers)), dtype=np.int64)  # the last store ended
    for number, graph in enumerate(log.graphs):
        steps = np.flatnonzero(log.steps.graph == number)
        start, end = grid(log, number, log.tasks.start), grid(log, number, log.tasks.end)
        for index, layer in enumerate(layers):
            if layer in graph.kv_loads:
                loaded[steps, index] = start[:, list(graph.kv_loads[layer])].min(axis=1)
            if layer in graph.kv_stores:
                stored[steps, index] = end[:, list(graph.kv_stores[layer])].max(axis=1)
    order = np.lexsort((log.steps.token, log.steps.sequence))
    for mine in np.split(order, np.flatnonzero(np.diff(log.steps.sequence[order])) + 1):
        early = loaded[mine[1:]] < np.maximum.accumulate(stored[mine], axis=0)[:-1]
        if early.any():
            position, index = np.argwhere(early)[0]
            step = mine[1:][position]
            token = f"{log.steps.sequence[step]}.{log.steps.token[step]}"
            return f"token {token} loaded layer {layers[index]} before it was stored"
    return None


def _barriers(log: EventLog, rules: Rules, _bounds: Bounds) -> str | None:
    if rules.dependency == "known":
        return None
    order = np.lexsort((log.steps.token, log.steps.sequence))
    same = log.steps.sequence[order][1:] == log.steps.sequence[order][:-1]
    early = same & (log.steps.released[order][1:] < log.steps.end[order][:-1])
    return "a step was released before the one before it had ended" if early.any() else None


def _work_conserved(log: EventLog, _rules: Rules, _bounds: Bounds) -> str | None:
    delivered = np.zeros(len(log.tasks), dtype=np.int64)
    np.add.at(delivered, log.grants.task, log.grants.work)
    bad = delivered != log.tasks.work
    return f"{log.name(int(np.flatnonzero(bad)[0]))} asked for one amount and got another" if bad.any() else None


def _never_over_capacity(log: EventLog, _rules: Rules, _bounds: Bounds) -> str | None:
    g = log.grants
    if not len(g):
        return None
    order = (
        slice(None) if log.channels == 1 and (g.start[1:] >= g.start[:-1]).all() else np.lexsort((g.end, g.start, g.channel))
    )
    channel, start, end, work = g.channel[order], g.start[order], g.end[order], g.work[order]
    new = np.concatenate(([True], (channel[1:] != channel[:-1]) | (start[1:] != start[:-1]) | (end[1:] != end[:-1])))
    first = np.flatnonzero(new)
    if (np.add.reduceat(work, first) > (end - start)[first]).any():
        return "the channel delivered more than its bandwidth"
    overlap = (channel[first][1:] == channel[first][:-1]) & (start[first][1:] < end[first][:-1])
    return "intervals of service overlap" if overlap.any() else None


def _never_idle(log: EventLog, rules: Rules, _bounds: Bounds) -> str | None:
    if not rules.work_conserving_channel:
        return None
    for channel in range(log.channels):
        row = _waited_while_idle(log, rules, log.grants.channel == channel)
        if row is not None:
            return f"channel {channel} was idle while {log.name(row)} was eligible"
    return None


def _waited_while_idle(log: EventLog, rules: Rules, here: npt.NDArray[np.bool_]) -> int | None:
    """A row whose part on one channel, the one of the grants `here`, was not all there while that channel served nobody."""
    task = log.grants.task[here]
    if not len(task):
        return None
    last = np.zeros(len(log.tasks), dtype=np.int64)
    last[task] = log.grants.end[here]  # grants are in order of end, so the last one stays
    rows = np.flatnonzero(last)
    issued, arrived = log.tasks.start[rows], last[rows]
    start, end = log.grants.start[here], log.grants.end[here]
    new = np.concatenate(([True], (start[1:] != start[:-1]) | (end[1:] != end[:-1])))  # equal or disjoint, in order of end
    start, end = start[new], end[new]
    busy_before = np.concatenate(([0], np.cumsum(end - start)))

    def busy(t: np.ndarray[tuple[int], np.dtype[np.int64]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        i = np.searchsorted(start, t, side="right")
        inside = np.where(i > 0, np.minimum(t, end[i - 1]) - start[i - 1], 0)
        return busy_before[np.maximum(i - 1, 0)] + inside

    idle = (busy(arrived) - busy(issued + rules.latency)) < arrived - issued - rules.latency
    return int(rows[idle][0]) if idle.any() else None


def _bounds_hold(log: EventLog, rules: Rules, bounds: Bounds) -> str | None:
    # An interval of service moves up to 1 ps of work per transfer from one to the last of them, and may lose the fraction
    # of one: a transfer can be that much faster than its port (never faster than the channel), or later than it would be.
    rounding = len(log.grants) * ceil_div(rules.slowest.denominator, rules.slowest.numerator)
    if bounds.lower > log.makespan + (rounding if rules.fastest < 1 else 0):
        return f"makespan {format_time(log.makespan)} is below the lower bound {format_time(bounds.lower)}"
    if bounds.upper is not None and bounds.upper + rounding < log.makespan:
        return f"makespan {format_time(log.makespan)} is above the upper bound {format_time(bounds.upper)}"
    return None


CHECKS: dict[str, Callable[[EventLog, Rules, Bounds], str | None]] = {
    "ready <= start <= loaded <= end": _times_in_order,
    "tasks start after all their inputs end": _after_inputs,
    "no engine runs two tasks at once": _engines_exclusive,
    "KV order per sequence and layer": _kv_order,
    "sampled steps are barriers": _barriers,
    "bytes requested = bytes delivered": _work_conserved,
    "channel never above its bandwidth": _never_over_capacity,
    "channel never idle while a transfer is eligible": _never_idle,
    "lower bound <= makespan <= upper bound": _bounds_hold,
}
