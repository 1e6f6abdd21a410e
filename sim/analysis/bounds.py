"""Bounds on the makespan, from the tasks alone: no schedule, no code of the simulator.

    lower = max(T, W / m, C / n / most)          upper = T + W / m + C / least + transfers

T: the longest path through the data, with arrivals, latencies and transfers at the most that one can get; W: work on m
engines; C: work of n channels, of which a busy one delivers from `least` to `most` of its bandwidth (1, unless its efficiency
depends on concurrency). The upper bound is Graham's (1966), with the channel as a second resource: at each instant the longest
path advances, or all engines are busy, or the channel is. It holds where no engine is held while it waits, SRAM is unbounded,
there is one channel, scheduler and channel conserve work; time in which a batched loop had nobody to serve comes on top.
`least` is no more than one port can draw (the queue of a DMA is served in order, so it may be alone at the channel); one
picosecond a transfer is for times that round up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.analysis.context import Rules, grid
from sim.eventlog import EventLog
from sim.lowering import weight_products
from sim.tasks import TaskGraph
from sim.units import ceil_div

Times = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Picoseconds. upper is None where the theorem does not apply."""

    critical_path: int
    compute: int
    memory: int
    upper: int | None

    @property
    def lower(self) -> int:
        """The largest of the three lower bounds."""
        return max(self.critical_path, self.compute, self.memory)

    def gap(self, makespan: int) -> float:
        """How far a makespan is above the lower bound: 0.07 is 7 %."""
        return makespan / self.lower - 1 if self.lower else 0.0


def few_tiles(log: EventLog, limits: Bounds) -> int | None:
    """The fewest tiles of a product by weights that leaves engines idle; None where more tiles could hardly help.

    They could where the longest path is most of the run, though the engines together have time for twice the work, and a
    product on that path is cut for fewer engines than there are.
    """
    if 2 * limits.critical_path <= log.makespan or 2 * limits.compute >= limits.critical_path:
        return None
    fewest = min(
        int(graph.parts[graph.computes & np.array(weight_products(graph.ops))[graph.op]].min(initial=log.engines))
        for graph in log.graphs
    )
    return fewest if fewest < log.engines else None


def bounds(log: EventLog, rules: Rules) -> Bounds:
    """Compute all bounds."""
    longest = _longest_path(log, rules)
    compute = ceil_div(int(log.tasks.compute.sum()), log.engines)
    work = int(log.tasks.work.sum())
    # Which channel a transfer goes to is the machine's: no schedule changes it, so the fullest channel counts.
    fullest = max(int(log.grants.work[log.grants.channel == channel].sum()) for channel in range(log.channels))
    most, least = rules.efficiency[1], rules.slowest
    memory = ceil_div(fullest * most.denominator, most.numerator)
    applies = (
        rules.execution == "prefetch"
        and not rules.bounded_sram
        and rules.work_conserving_channel
        and rules.work_conserving_scheduler
        and log.channels == 1
    )
    transfers = int((log.tasks.work > 0).sum())
    at_least = ceil_div(work * least.denominator, least.numerator)
    upper = longest + _gaps(log) + compute + at_least + transfers if applies else None
    return Bounds(critical_path=longest, compute=compute, memory=memory, upper=upper)


def _gaps(log: EventLog) -> int:
    """The longest time that a loop, between its steps, had nothing to do, for nobody was there."""
    order = np.lexsort((log.steps.token, log.steps.sequence))
    sequence, released, end = (column[order] for column in (log.steps.sequence, log.steps.released, log.steps.end))
    gaps = np.where(sequence[1:] == sequence[:-1], np.maximum(released[1:] - end[:-1], 0), 0)
    total = np.zeros(int(sequence.max(initial=0)) + 1, dtype=np.int64)
    np.add.at(total, sequence[1:], gaps)
    return int(total.max())


def _shortest_times(log: EventLog, rules: Rules) -> Times:
    """The least time from start to end of each row: alone on the machine."""
    num, den = rules.fastest.as_integer_ratio()
    work, compute = -(-log.tasks.work // rules.stripes), log.tasks.compute
    transfer = np.where(work > 0, -(-work * den // num) + rules.latency, 0)
    return np.maximum(transfer, compute) if rules.execution == "stream" else transfer + compute


def _longest_path(log: EventLog, rules: Rules) -> int:
    shortest = _shortest_times(log, rules)
    sequences = len(rules.arrivals)
    reached = np.array(rules.arrivals, dtype=np.int64)  # per sequence: the earliest end of what came before
    if rules.dependency == "sampled":
        for number, graph in enumerate(log.graphs):
            steps = np.flatnonzero(log.steps.graph == number)
            durations = np.ascontiguousarray(grid(log, number, shortest).T)
            alone = _finish(graph, durations, np.zeros(len(steps), dtype=np.int64), {}).max(axis=0, initial=0)
            np.add.at(reached, log.steps.sequence[steps], alone)
        return int(reached.max(initial=0))
    stored: dict[int, Times] = {}  # layer -> per sequence, the earliest end of all stores so far
    end = reached.copy()
    for token in range(int(log.steps.token.max(initial=-1)) + 1):
        for number, graph in enumerate(log.graphs):
            here = (log.steps.token == token) & (log.steps.graph == number)
            if not here.any():
                continue
            sequence = log.steps.sequence[here]
            durations = np.ascontiguousarray(shortest[log.steps.first[here][:, None] + np.arange(len(graph))].T)
            finish = _finish(graph, durations, reached[sequence], {k: v[sequence] for k, v in stored.items()})
            end[sequence] = np.maximum(end[sequence], finish.max(axis=0))
            for layer, tasks in graph.kv_stores.items():
                column = stored.setdefault(layer, np.zeros(sequences, dtype=np.int64))
                column[sequence] = np.maximum(column[sequence], finish[list(tasks)].max(axis=0))
    return int(end.max(initial=0))


def _finish(graph: TaskGraph, durations: Times, released: Times, stored: dict[int, Times]) -> Times:
    """Earliest finish [task, lane] without contention; loads of a layer wait for `stored[layer]`."""
    after = {task: stored[layer] for layer, tasks in graph.kv_loads.items() if layer in stored for task in tasks}
    start, inputs = graph.input_start.tolist(), graph.inputs
    finish = np.empty_like(durations)
    for task in range(len(graph)):
        ready = released
        if start[task] < start[task + 1]:
            ready = np.maximum(ready, finish[inputs[start[task] : start[task + 1]]].max(axis=0))
        if task in after:
            ready = np.maximum(ready, after[task])
        np.add(ready, durations[task], out=finish[task])
    return finish
