"""Bounds of a run that are known before it, where each step is one sequence that decodes one token.

    makespan >= max(W / m, C / n / most, L)
    energy = FLOPs x fJ of each + bytes x fJ of each + power x makespan >= ... + power x the bound of the makespan

W: time on engines of all tasks, on m engines; C: channel time of all transfers of memories, over their n channels of which each
delivers at most `most` of its bandwidth; L: the work of the fullest link, which delivers all of its own. FLOPs and bytes are
those of the ops at each context, so the bytes of the memory are not bounded but known. No schedule changes these sums.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.graph import IntArray, StepLanes
from sim.analysis.energy import energy_of, hops_of
from sim.analysis.moved import Moved, add_moved
from sim.analysis.rules import Rules
from sim.base.units import PS_PER_S, ceil_div
from sim.cost.amounts import AmountTable
from sim.executors.setup import Setup
from sim.machine.energy import EnergyRates
from sim.mapping.tasks import HOST_BIT, LINK_BIT, NETWORK_BIT, TIER_BITS, TaskGraph
from sim.study.batches import Job
from sim.study.metrics import devices

#: Columns that have a bound before a run, and the sense in which it is one: `min` cannot be smaller, `max` not larger.
BOUNDED = {
    "makespan_ps": "min", "time_per_token_ps": "min", "tokens_per_s": "max", "tokens_per_s_per_device": "max",
    "energy_fj": "min", "energy_per_token_fj": "min",
}  # fmt: skip

#: Columns that are known before a run.
EXACT = ("tokens", "bytes_read", "bytes_written", "bytes_moved")

LANES = 256  # steps whose durations are summed at a time

KEPT = 256  # runs whose amounts are kept


@dataclass(frozen=True, slots=True)
class Amounts:
    """Amounts of a run that no machine changes. read, written: bytes of the memory. energy: fJ of arithmetic and transfers."""

    read: int
    written: int
    energy: int | None


class BoundsOf:
    """Finds the columns of `BOUNDED` and `EXACT` of jobs. Points that share a graph and requests share their amounts."""

    def __init__(self, columns: frozenset[str]) -> None:
        self._bytes = any(name.startswith("bytes_") for name in columns)
        self._energy = any(name.startswith("energy_") for name in columns)
        self._found: OrderedDict[Any, tuple[TaskGraph, Amounts]] = OrderedDict()

    def __call__(self, job: Job) -> dict[str, float | int | None] | None:
        """Bounds and known columns of a job, as a row has them; None where they are not known before a run."""
        setup, rules = job.setup, job.rules
        low = lower_bound(setup, rules)
        if low is None or job.warmup_time or job.warmup_requests:  # rates would be of the time after the warm-up
            return None
        tokens = sum(request.tokens for request in setup.sequences)
        found: dict[str, float | int | None] = {
            "tokens": tokens, "makespan_ps": low, "time_per_token_ps": low / tokens, "tokens_per_s": tokens * PS_PER_S / low,
            "tokens_per_s_per_device": tokens * PS_PER_S / low / devices(job),
        }  # fmt: skip
        if not (self._bytes or self._energy):
            return found
        amounts = self._amounts(setup, rules.energy if self._energy else None)
        if self._bytes:
            found |= {"bytes_read": amounts.read, "bytes_written": amounts.written,
                      "bytes_moved": amounts.read + amounts.written}  # fmt: skip
        if amounts.energy is not None and rules.energy is not None:
            energy = float(amounts.energy + rules.energy.power(setup.engines) * low)
            found |= {"energy_fj": energy, "energy_per_token_fj": energy / tokens}
        return found

    def _amounts(self, setup: Setup, rates: EnergyRates | None) -> Amounts:
        graph = setup.graph
        requests = tuple((request.context, request.tokens) for request in setup.sequences)
        flop = None if rates is None else (repr(rates.flop), rates.of_byte)
        key = (id(graph), requests, flop, None if rates is None else (rates.hops, setup.machine.network))
        if key not in self._found:
            self._found[key] = (graph, self._sums(setup, rates))  # the entry keeps the graph alive, so no other has its id
            while len(self._found) > KEPT:
                self._found.popitem(last=False)
        return self._found[key][1]

    def _sums(self, setup: Setup, rates: EnergyRates | None) -> Amounts:
        graph, sums, energy = setup.graph, dict[str, Moved](), 0
        table = None if rates is None else AmountTable(graph, hops_of(graph, setup.machine, rates))
        for lanes in _lanes(setup):
            if self._bytes:
                add_moved(graph, lanes, sums)
            if table is not None and rates is not None:
                energy += energy_of(table, rates, lanes)
        read, written = (sum(getattr(each, way) for each in sums.values()) for way in ("read", "written"))
        return Amounts(read, written, None if rates is None else energy)


def lower_bound(setup: Setup, rules: Rules) -> int | None:
    """A lower bound of the makespan, ps; None where the steps are not known before a run."""
    if setup.batching is not None:
        return None
    compute, moved, linked = 0, 0, 0
    on_links, tasks_of_link = _tasks_of_links(setup)
    through = [0] * len(tasks_of_link)
    for lanes in _lanes(setup):
        on_engine, on_channel = setup.costs.durations(setup.graph, lanes)
        compute += _sum(on_engine)
        moved += _sum(on_channel)
        linked += _sum(on_channel[on_links])
        for link, tasks in enumerate(tasks_of_link):
            through[link] += _sum(on_channel[tasks])
    most = rules.efficiency[1]
    of_memory = ceil_div(ceil_div(moved - linked, setup.memory_channels) * most.denominator, most.numerator)
    return max(ceil_div(compute, setup.engines), of_memory, *through)


def _tasks_of_links(setup: Setup) -> tuple[npt.NDArray[np.intp], list[npt.NDArray[np.intp]]]:
    """The tasks of a step that move bytes over links, and of these those of each link that is used."""
    graph, found = setup.graph, defaultdict[object, list[int]](list)
    on_links = np.flatnonzero(graph.moves & (LINK_BIT | HOST_BIT))
    bits = (graph.moves[on_links] & (LINK_BIT | HOST_BIT | NETWORK_BIT | TIER_BITS)).tolist()
    for task, kind, device, to in zip(
        on_links.tolist(), bits, graph.device[on_links].tolist(), graph.to[on_links].tolist(), strict=True
    ):
        for link in setup.machine.crossed(device, to) or [(kind, device)]:
            found[link].append(task)
    return on_links, [np.array(tasks) for tasks in found.values()]


def _sum(times: IntArray) -> int:
    """The sum of times [task, lane], which may exceed int64 in all."""
    return sum(times.sum(axis=0, dtype=object).tolist())


def _lanes(setup: Setup) -> Iterator[StepLanes]:
    """All steps of a run, some at a time."""
    for number, request in enumerate(setup.sequences):
        for first in range(0, request.tokens, LANES):
            token = np.arange(first, min(first + LANES, request.tokens), dtype=np.int64)
            yield StepLanes(sequence=np.full_like(token, number), token=token, context=request.context + token)
