"""Bounds of a run that are known before it, most of them where its steps are (`sim.study.steps`).

    makespan >= max(W / m, C / n / most, L, arrival + sum over the steps of a loop of [host + max(w / m, c / n / most, l)])
    energy = FLOPs x fJ of each + bytes x fJ of each + power x makespan >= ... + power x the bound of the makespan

W: time for which tasks hold engines, alone on the machine, on m engines; C: channel time of all transfers of memories, over
their n channels of which each delivers at most `most` of its bandwidth; L: the work of the fullest link, which delivers all of
its own; w, c, l: those of one step, which begins when the one before has ended. FLOPs and bytes are those of the ops of each
step, so the bytes of the memory are not bounded but known. No schedule changes these sums. The steps between the first and the
last token of each request bound its TPOT, too. Where steps are not known, no run ends before its last request comes.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from models.graph import IntArray
from sim.analysis.energy import energy_of, hops_of
from sim.analysis.moved import Moved, add_moved
from sim.analysis.rules import Rules
from sim.base.integers import LARGEST
from sim.base.units import PS_PER_S, ceil_div
from sim.cost.amounts import AmountTable
from sim.executors.setup import Setup
from sim.machine.energy import EnergyRates
from sim.mapping.tasks import HOST_BIT, LINK_BIT, NETWORK_BIT, TIER_BITS, TaskGraph, path_of
from sim.study.batches import Job
from sim.study.metrics import devices
from sim.study.steps import Loop, Stretch, known_steps

#: Columns that have a bound before a run, and the sense in which it is one: `min` cannot be smaller, `max` not larger.
BOUNDED = {
    "makespan_ps": "min", "time_per_token_ps": "min", "tpot_mean_ps": "min", "tokens_per_s": "max",
    "tokens_per_s_per_user": "max", "tokens_per_s_per_device": "max",
    "energy_fj": "min", "energy_per_token_fj": "min",
}  # fmt: skip

#: Columns that are known before a run.
EXACT = ("tokens", "bytes_read", "bytes_written", "bytes_moved")

KEPT = 256  # runs whose amounts are kept


@dataclass(frozen=True, slots=True)
class Amounts:
    """Amounts of a run that no machine changes; None where they are not known.

    read, written: bytes of the memory. energy: fJ of arithmetic and transfers.
    """

    read: int | None
    written: int | None
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
        if job.warmup_time or job.warmup_requests:  # rates would be of the time after the warm-up
            return None
        loops, tokens = known_steps(setup), sum(request.tokens for request in setup.sequences)
        bounds = Bounds.after_arrivals(setup) if loops is None else Bounds.of(setup, rules, loops)
        if bounds is None:
            return None
        low, rate = bounds.makespan, tokens * PS_PER_S / bounds.makespan
        found: dict[str, float | int | None] = {
            "tokens": tokens, "makespan_ps": low, "time_per_token_ps": low / tokens, "tokens_per_s": rate,
            "tokens_per_s_per_device": rate / devices(job), "tpot_mean_ps": bounds.tpot or None,
            "tokens_per_s_per_user": 1e12 / bounds.tpot if bounds.tpot else None,
        }  # fmt: skip
        if bounds.tpot is None and len(setup.sequences) == 1:
            found["tokens_per_s_per_user"] = rate
        amounts = Amounts(None, None, None)
        if loops is not None and (self._bytes or self._energy):
            amounts = self._amounts(setup, loops, rules.energy if self._energy else None)
        if self._bytes and amounts.read is not None and amounts.written is not None:
            found |= {"bytes_read": amounts.read, "bytes_written": amounts.written,
                      "bytes_moved": amounts.read + amounts.written}  # fmt: skip
        if self._energy and rules.energy is not None:
            energy = float((amounts.energy or 0) + rules.energy.power(setup.engines) * low)
            found |= {"energy_fj": energy, "energy_per_token_fj": energy / tokens}
        return found

    def _amounts(self, setup: Setup, loops: Sequence[Loop], rates: EnergyRates | None) -> Amounts:
        if setup.batching is not None:
            return self._sums(setup, loops, rates)
        graph = setup.graph
        requests = tuple((request.context, request.tokens) for request in setup.sequences)
        flop = None if rates is None else (repr(rates.flop), rates.of_byte)
        key = (id(graph), requests, flop, None if rates is None else (rates.hops, setup.machine.network))
        if key not in self._found:
            # The entry keeps the graph alive, so that no other has its id.
            self._found[key] = (graph, self._sums(setup, loops, rates))
            while len(self._found) > KEPT:
                self._found.popitem(last=False)
        return self._found[key][1]

    def _sums(self, setup: Setup, loops: Sequence[Loop], rates: EnergyRates | None) -> Amounts:
        sums, energy, tables = dict[str, Moved](), 0, dict[int, AmountTable]()
        for steps in (steps for loop in loops for steps in loop.steps):
            graph = steps.graph
            if self._bytes:
                add_moved(graph, steps.lanes, sums)
            if rates is not None:
                if id(graph) not in tables:  # which the table keeps alive
                    tables[id(graph)] = AmountTable(graph, hops_of(graph, setup.machine, rates))
                energy += energy_of(tables[id(graph)], rates, steps.lanes)
        read, written = (sum(getattr(each, way) for each in sums.values()) for way in ("read", "written"))
        return Amounts(read, written, None if rates is None else energy)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Lower bounds, ps. tpot: of the mean over requests; None if none has several tokens, 0 if nothing is known of it."""

    makespan: int
    tpot: int | None

    @classmethod
    def after_arrivals(cls, setup: Setup) -> Bounds | None:
        """The bounds where steps depend on times: no request ends before it comes. None if they come when others end."""
        if setup.concurrency is not None:
            return None
        return cls(max(request.arrival for request in setup.sequences) + 1, 0)

    @classmethod
    def of(cls, setup: Setup, rules: Rules, loops: Sequence[Loop]) -> Bounds:
        """The bounds of a run with these steps."""
        work, latest, spans = Work(setup, rules), 0, dict[int, int]()
        for number, loop in enumerate(loops):
            until = list(accumulate((time for steps in loop.steps for time in work.add(steps)), initial=0))
            if setup.batching is not None or setup.dependency == "sampled":
                latest = max(latest, loop.arrival + until[-1])
                spans |= _between_tokens(loop, until) if loop.requests is not None else {number: until[-1] - until[1]}
        return cls(max(latest, work.least()), _mean_tpot(setup, spans))


class Work:
    """Work of steps: sums over all, and the least time of each."""

    def __init__(self, setup: Setup, rules: Rules) -> None:
        self._setup, self._rules, self._most = setup, rules, rules.efficiency[1]
        self._replicas = setup.machine.replicas
        self._links: dict[int, tuple[TaskGraph, npt.NDArray[np.intp], list[tuple[object, npt.NDArray[np.intp]]]]] = {}
        self._taken = self._moved = 0
        self._through = defaultdict[object, int](int)

    def add(self, steps: Stretch) -> list[int]:
        """Add steps; returns the least time of each, ps: with the host, on the engines and channels of its replica."""
        setup, graph = self._setup, steps.graph
        on_engine, on_channel = setup.costs.durations(graph, steps.lanes)
        if id(graph) not in self._links:  # the entry keeps the graph alive
            self._links[id(graph)] = (graph, *_tasks_of_links(setup, graph))
        _, on_links, tasks_of_link = self._links[id(graph)]
        held, moved, linked = (
            _by_step(self._held(graph, on_engine, on_channel)),
            _by_step(on_channel),
            _by_step(on_channel[on_links]),
        )
        self._taken += sum(held)
        self._moved += sum(moved) - sum(linked)
        fullest = [0] * len(steps)
        for link, tasks in tasks_of_link:
            through = _by_step(on_channel[tasks])
            self._through[link] += sum(through)
            fullest = list(map(max, fullest, through))
        engines, channels = setup.engines // self._replicas, setup.memory_channels // self._replicas
        host = setup.step_overhead
        return [
            host + max(ceil_div(work, engines), self._of_memory(all_of - links, channels), link)
            for work, all_of, links, link in zip(held, moved, linked, fullest, strict=True)
        ]

    def _held(self, graph: TaskGraph, on_engine: IntArray, on_channel: IntArray) -> IntArray:
        """The least time for which each task holds an engine [task, step], ps, as on the longest path of `sim.analysis`."""
        rules, mine = self._rules, np.flatnonzero(graph.engine)
        path, work, compute = path_of(graph.moves[mine])[:, None], on_channel[mine], on_engine[mine]
        transfer = np.where(path == 0, -(-work // rules.stripes), work)
        numerator, denominator = rules.fastest.as_integer_ratio()
        if numerator != denominator:
            wide = int(transfer.max(initial=0)) * denominator >= LARGEST
            slower = -(-(transfer.astype(object) if wide else transfer) * denominator // numerator)
            transfer = np.where(path == 0, slower, transfer)
        transfer = np.where(work > 0, transfer + np.array(rules.latencies)[path], 0)
        held: IntArray = transfer + compute
        if rules.execution == "stream":
            launched = np.minimum(self._setup.launches(graph)[mine, None], compute)
            held = np.maximum(np.where(work > 0, launched + transfer, 0), compute)
        return held

    def least(self) -> int:
        """The least time of all steps together, ps."""
        of_memory = self._of_memory(self._moved, self._setup.memory_channels)
        return max(ceil_div(self._taken, self._setup.engines), of_memory, *self._through.values())

    def _of_memory(self, work: int, channels: int) -> int:
        """The least time of so much work of the memory, ps."""
        return ceil_div(ceil_div(work, channels) * self._most.denominator, self._most.numerator)


def _between_tokens(loop: Loop, until: Sequence[int]) -> dict[int, int]:
    """The least time from the first to the last token of each request of a batched loop, ps. until: least end of each step."""
    first, last, step = dict[int, int](), dict[int, int](), 0
    for steps in loop.steps:
        assert steps.batch is not None
        given = [member.sequence for member in steps.batch.members if member.emitted]
        for sequence in (*given, *steps.batch.forks):
            first.setdefault(sequence, step)
            last[sequence] = step + len(steps) - 1
        step += len(steps)
    return {sequence: until[last[sequence] + 1] - until[first[sequence] + 1] for sequence in first}


def _mean_tpot(setup: Setup, spans: Mapping[int, int]) -> int | None:
    """A lower bound of the mean TPOT, rounded as that is; 0 where nothing is known. spans: ps between tokens, by request."""
    several = {number: request.tokens - 1 for number, request in enumerate(setup.sequences) if request.tokens > 1}
    if not several:
        return None
    total = sum((2 * spans.get(number, 0) + gaps) // (2 * gaps) for number, gaps in several.items())
    return (2 * total + len(several)) // (2 * len(several))


def _tasks_of_links(setup: Setup, graph: TaskGraph) -> tuple[npt.NDArray[np.intp], list[tuple[object, npt.NDArray[np.intp]]]]:
    """The tasks of a step that move bytes over links, and of these those of each link that is used."""
    found = defaultdict[object, list[int]](list)
    on_links = np.flatnonzero(graph.moves & (LINK_BIT | HOST_BIT))
    bits = (graph.moves[on_links] & (LINK_BIT | HOST_BIT | NETWORK_BIT | TIER_BITS)).tolist()
    for task, kind, device, to in zip(
        on_links.tolist(), bits, graph.device[on_links].tolist(), graph.to[on_links].tolist(), strict=True
    ):
        for link in setup.machine.crossed(device, to) or [(kind, device)]:
            found[link].append(task)
    return on_links, [(link, np.array(tasks)) for link, tasks in found.items()]


def _by_step(times: IntArray) -> list[int]:
    """The sums of times [task, step] over tasks, which may exceed int64."""
    exact = len(times) * int(times.max(initial=0)) < LARGEST
    found: list[int] = times.sum(axis=0, dtype=np.int64 if exact else object).tolist()
    return found
