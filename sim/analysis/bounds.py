"""Bounds on the makespan, from the tasks alone: no schedule, no code of the simulator.

    lower = max(T, W / m, C / n / most, R)       upper = T + W / m + C / least + transfers

T: the longest path through the data, with arrivals, time of the host, latencies and transfers at the most that one can get; W:
work on m engines; C: work of n channels, of which a busy one delivers from `least` to `most` of its bandwidth (1, unless its
efficiency depends on concurrency); the work of a link is a bound, too. The upper bound is Graham's (1966), with the channel as
a second resource: at each instant the longest path advances, or all engines are busy, or the channel is. It holds where no
engine is held while it waits, SRAM is unbounded, there is one channel, scheduler and channel conserve work; time in which a
batched loop had no request to serve comes on top. `least` is no more than one port can draw (the queue of a DMA is served in
order, so it may be alone at the channel); one picosecond a transfer is for times that round up.

R: where requests come at times of their own (an open loop), no step begins before all of its members have arrived. So of the
steps with a member that arrives at a or later, the longest path of each loop through them, their work on m engines, and that of
n channels, come after a: R is the latest of these ends, over all a.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from sim.analysis.rules import Rules
from sim.analysis.tally import Tally
from sim.analysis.tally_kernels import COMPUTED, MOVED, TRANSFERS
from sim.base.units import ceil_div
from sim.log.columns import in_order
from sim.log.tables import EventLog
from sim.mapping.lowering import weight_matmuls


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Picoseconds. link: 0 where there is none. arrivals: 0 where none is known in advance.

    upper is None where the theorem does not apply.
    """

    critical_path: int
    compute: int
    memory: int
    link: int = 0
    arrivals: int = 0
    upper: int | None

    @property
    def lower(self) -> int:
        """The largest of the lower bounds."""
        return max(self.critical_path, self.compute, self.memory, self.link, self.arrivals)

    def gap(self, makespan: int) -> float:
        """Relative distance of a makespan above the lower bound: 0.07 is 7 %."""
        return makespan / self.lower - 1 if self.lower else 0.0


def few_tiles(log: EventLog, limits: Bounds) -> int | None:
    """Fewest tiles of a weight matmul that leaves engines idle; None where more tiles could hardly help.

    They could where the longest path is most of the run, though the engines together have time for twice the work, and a
    matmul on that path is cut for fewer engines than there are.
    """
    if 2 * limits.critical_path <= log.makespan or 2 * limits.compute >= limits.critical_path:
        return None
    fewest = min(
        int(graph.parts[graph.computes & np.array(weight_matmuls(graph.ops))[graph.op]].min(initial=log.machine.engines_each))
        for graph in log.graphs
    )
    return fewest if fewest < log.machine.engines_each else None


def bounds(log: EventLog, rules: Rules, tally: Tally | None = None) -> Bounds:
    """Compute all bounds. tally: sums over the log, if they have been made; then the log needs no rows."""
    tally = Tally.of(log, rules) if tally is None else tally
    longest = int(
        (tally.reached + log.step_overhead * np.bincount(log.steps.sequence, minlength=len(tally.reached))).max(initial=0)
    )
    totals = tally.totals
    computed, moved, transfers = (int(totals[:, column].sum()) for column in (COMPUTED, MOVED, TRANSFERS))
    compute = ceil_div(computed, log.engines)
    # Which channel a transfer goes to is the machine's: no schedule changes it, so the fullest channel counts.
    fullest = int(tally.delivered[: log.machine.memories].max(initial=0))
    link = int(tally.delivered[log.machine.memories :].max(initial=0))
    most, least = rules.efficiency[1], rules.slowest
    memory = ceil_div(fullest * most.denominator, most.numerator)
    applies = (
        rules.execution == "prefetch"
        and rules.sram is None
        and rules.work_conserving_channel
        and rules.work_conserving_scheduler
        and log.channels == 1
    )
    at_least = ceil_div(moved * least.denominator, least.numerator)
    upper = longest + _gaps(log) + compute + at_least + transfers if applies else None
    return Bounds(
        critical_path=longest,
        compute=compute,
        memory=memory,
        link=link,
        arrivals=_after_arrivals(log, rules, tally),
        upper=upper,
    )


def _after_arrivals(log: EventLog, rules: Rules, tally: Tally) -> int:
    """The bound by release times, ps; 0 where all requests come at 0, or when others have ended.

    Steps are sorted by the latest arrival of their members: what is left from there on must still be done then.
    """
    members, steps = log.members, log.steps
    if not rules.open_loop or not log.arrival.any():
        return 0
    arrival = np.zeros(len(steps), dtype=np.int64)  # of the last member
    np.maximum.at(arrival, members.step, log.arrival[members.sequence])
    order = np.argsort(-arrival, kind="stable")
    most = Fraction(1) if log.machine.links else rules.efficiency[1]  # a link delivers all of its bandwidth
    computed, moved = (np.cumsum(column[order].astype(object)) for column in tally.work_of_steps.T)
    latest = 0
    for at, on_engines, on_channels in zip(arrival[order].tolist(), computed, moved, strict=True):
        served = ceil_div(ceil_div(on_channels, log.channels) * most.denominator, most.numerator)
        latest = max(latest, at + max(ceil_div(on_engines, log.engines), served))
    if rules.dependency == "known":  # all steps of a sequence at its arrival, from which the longest path begins
        return latest
    in_loops = in_order(log)
    paths, sequence = tally.paths[in_loops], steps.sequence[in_loops]
    upto = np.cumsum(paths)  # it may wrap over many loops; differences within one do not
    last = np.flatnonzero(np.append(sequence[1:] != sequence[:-1], True))
    loop = np.searchsorted(last, np.arange(len(upto)))
    left = upto[last][loop] - upto + paths  # with this step
    return max(latest, int((arrival[in_loops] + left).max()))


def _gaps(log: EventLog) -> int:
    """Longest time, summed over its steps, in which a loop had no request to serve; ps."""
    order = in_order(log)
    sequence, released, end = (column[order] for column in (log.steps.sequence, log.steps.released, log.steps.end))
    gaps = np.where(sequence[1:] == sequence[:-1], np.maximum(released[1:] - end[:-1], 0), 0)
    total = np.zeros(int(sequence.max(initial=0)) + 1, dtype=np.int64)
    np.add.at(total, sequence[1:], gaps)
    return int(total.max())
