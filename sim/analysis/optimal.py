"""The best schedule there is, or how good it could at most be: constraint programming with OR-tools CP-SAT.

Every task is an interval. Engines are a cumulative resource: an engine is held from the start of its task to the end, while
operands load included, which begins after the launch. The channel serves one transfer at a time without interruption, in any
order, each as fast as its port allows, after its latency. Inputs, the order of the KV cache, arrivals and the barriers
between sampled steps hold as
in the simulator; no scheduler decides. So under `fifo` the simulated schedule is one of those compared, and the solver
starts from it. A channel that shares or pre-empts, several channels, and bounded SRAM are outside of the model.

The solver runs on one thread with a fixed seed: what is proved does not depend on the machine, while how far it gets within
a time limit does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd

import numpy as np
from ortools.sat.python import cp_model

from sim.analysis.rules import Rules
from sim.base.units import ceil_div, format_time
from sim.log.tables import EventLog

LARGEST = 5_000  # tasks: beyond that the solver would not get anywhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimum:
    """best: ps of the best schedule found. bound: ps that no schedule can beat. Both are None if `unsupported` says why not."""

    best: int | None = None
    bound: int | None = None
    unsupported: str = ""

    @property
    def proved(self) -> bool:
        """The best schedule found is the best there is."""
        return self.best is not None and self.best == self.bound

    def sentence(self, makespan: int) -> str:
        """Sentence about a schedule of this makespan."""
        if self.best is None or self.bound is None:
            return f"no optimum: {self.unsupported}"
        if self.proved:
            if makespan == self.best:
                return f"this schedule is optimal: no other takes less than {format_time(self.best)}"
            return f"this schedule is {makespan / self.best - 1:.1%} above the optimum of {format_time(self.best)}"
        return (
            f"this schedule is at most {makespan / self.bound - 1:.1%} above the optimum: none takes less than "
            f"{format_time(self.bound)}, the best one found takes {format_time(self.best)}; "
            "a longer --time-limit may narrow this"
        )


def optimum(log: EventLog, rules: Rules, arbiter: str, *, time_limit: float) -> Optimum:
    """Look for the best schedule of what a log ran, for up to `time_limit` seconds."""
    unsupported = _unsupported(log, rules, arbiter)
    if unsupported:
        return Optimum(unsupported=unsupported)
    problem = _Problem(log, rules)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_time_in_seconds = time_limit
    status = solver.solve(problem.model)
    bound = max(0, round(solver.best_objective_bound)) * problem.unit
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Optimum(best=round(solver.objective_value) * problem.unit, bound=bound)
    return Optimum(best=log.makespan, bound=bound)  # not even the hint was read in time


def _unsupported(log: EventLog, rules: Rules, arbiter: str) -> str:
    """Why not, in one line; empty if it can be done."""
    if not len(log.tasks):
        return "nothing ran"
    if len(log.tasks) > LARGEST:
        return f"{len(log.tasks):,} tasks are too many (at most {LARGEST:,}); try --set model.layers=1"
    if arbiter != "fifo":
        return f"the optimum is for a channel that serves one transfer at a time; {arbiter} does not (see fifo)"
    if log.channels > 1:
        return f"the optimum is for one channel, not {log.channels}"
    if min(rules.efficiency) < 1:
        return "the optimum is for a channel whose efficiency is 1"
    if rules.sram is not None:
        return "the optimum is for unbounded SRAM"
    return ""


@dataclass(slots=True)
class _Problem:
    """The constraint model of a log. Times in it are multiples of `unit` ps, the largest that divides all of them."""

    log: EventLog
    rules: Rules
    model: cp_model.CpModel = field(default_factory=cp_model.CpModel)
    unit: int = 1

    def __post_init__(self) -> None:
        log, t = self.log, self.log.tasks
        num, den = self.rules.cap
        moving = [ceil_div(work * den, num) for work in t.work.tolist()]
        self.unit = gcd(*t.compute.tolist(), *moving, self.rules.latency, *t.launched.tolist(), *self.rules.arrivals)
        horizon = log.makespan // self.unit
        start, end = [], []
        engines, channel = [], []
        for row, (compute, work) in enumerate(zip(t.compute.tolist(), moving, strict=True)):
            held = t.engine[row] >= 0
            begin, until = self._time(row, int(t.start[row]), horizon), self._time(row, int(t.end[row]), horizon)
            start.append(begin)
            end.append(until)
            if work:
                arrived = int(t.loaded[row] if held else t.end[row])
                first = self._time(row, arrived - work, horizon)
                size = work // self.unit
                channel.append(self.model.new_fixed_size_interval_var(first, size, f"move {row}"))
                launch = int(t.launched[row])
                self.model.add(first >= begin + (launch + self.rules.latency) // self.unit)
                after = 0 if self.rules.execution == "stream" else (compute - launch) // self.unit
                self.model.add(until >= first + size + after)
            if compute:
                self.model.add(until >= begin + compute // self.unit)
            if held:
                length = self.model.new_int_var(0, horizon, f"held {row}")
                engines.append(self.model.new_interval_var(begin, length, until, f"engine {row}"))
        if log.engines > 1:
            self.model.add_cumulative(engines, [1] * len(engines), log.engines)
        else:
            self.model.add_no_overlap(engines)
        self.model.add_no_overlap(channel)
        self._order(start, end)
        makespan = self.model.new_int_var(0, horizon, "makespan")
        self.model.add_max_equality(makespan, end)
        self.model.minimize(makespan)

    def _time(self, row: int, hint: int, horizon: int) -> cp_model.IntVar:
        variable = self.model.new_int_var(0, horizon, f"{row}")
        self.model.add_hint(variable, hint // self.unit)
        return variable

    def _order(self, start: list[cp_model.IntVar], end: list[cp_model.IntVar]) -> None:
        """Inputs, arrivals, and what the tokens of a sequence wait for."""
        log, known = self.log, self.rules.dependency == "known"
        earlier: dict[int, list[int]] = {}  # sequence -> its steps so far
        for step in np.lexsort((log.steps.token, log.steps.sequence)).tolist():
            graph, first = log.graphs[log.steps.graph[step]], int(log.steps.first[step])
            sequence = int(log.steps.sequence[step])
            before = earlier.setdefault(sequence, [])
            arrival = self.rules.arrivals[sequence] // self.unit
            for task in range(len(graph)):
                for source in graph.inputs[graph.input_start[task] : graph.input_start[task + 1]].tolist():
                    self.model.add(start[first + task] >= end[first + source])
                if arrival:
                    self.model.add(start[first + task] >= arrival)
            if known:
                for layer, loads in graph.kv_loads.items():
                    for other in before:
                        for store in log.graphs[log.steps.graph[other]].kv_stores.get(layer, ()):
                            for load in loads:
                                self.model.add(start[first + load] >= end[int(log.steps.first[other]) + store])
            elif before:
                rows = log.rows(before[-1])
                done = self.model.new_int_var(0, log.makespan // self.unit, f"step {before[-1]}")
                self.model.add_max_equality(done, end[rows])
                for task in range(len(graph)):
                    self.model.add(start[first + task] >= done)
            before.append(step)
