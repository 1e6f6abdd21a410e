"""Proofs that a point need not be run: its lower bound alone shows that it is dominated, or that it misses a constraint.

    makespan >= max(W / m, C / n / most, L)

W: time on engines of all tasks, on m engines; C: channel time of all transfers of memories, over their n channels of which each
delivers at most `most` of its bandwidth; L: the work of the fullest link, which delivers all of its own. These sums are exact
before a run where each step is one sequence that decodes one token. A point whose bounds and known columns are no better in any
objective than a point that was run, and worse in one, is not on the front, whatever a run would give. This holds for makespan
and time per token, and as an upper bound for tokens/s; percentiles, rates of requests and goodput have no such bound.

Points are taken in generations, by their numbers alone: the first is a sixteenth of them, evenly spread, and each later one is
compared with those before it. So what is skipped depends neither on time nor on the number of processes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.graph import IntArray, StepLanes
from sim.analysis.rules import Rules
from sim.base.units import PS_PER_S, ceil_div, format_time
from sim.executors.setup import Setup
from sim.mapping.tasks import HOST_BIT, LINK_BIT, NETWORK_BIT
from sim.study.batches import Job
from sim.study.points import Point, Study
from sim.study.store import cell

#: Columns that have a bound before a run, and the sense in which it is one: `min` cannot be smaller, `max` not larger.
BOUNDED = {"makespan_ps": "min", "time_per_token_ps": "min", "tokens_per_s": "max"}

#: Steps between the points of each generation, and where each begins.
GENERATIONS = ((16, 0), (16, 8), (8, 4), (4, 2), (2, 1))

LANES = 256  # steps whose durations are summed at a time


def lower_bound(setup: Setup, rules: Rules) -> int | None:
    """A lower bound of the makespan, ps; None where the steps are not known before a run."""
    if setup.batching is not None:
        return None
    compute, moved = 0, 0
    tasks_of_link = _tasks_of_links(setup)
    through = [0] * len(tasks_of_link)
    for number, request in enumerate(setup.sequences):
        for first in range(0, request.tokens, LANES):
            token = np.arange(first, min(first + LANES, request.tokens), dtype=np.int64)
            lanes = StepLanes(sequence=np.full_like(token, number), token=token, context=request.context + token)
            on_engine, on_channel = setup.costs.durations(setup.graph, lanes)
            compute += _sum(on_engine)
            moved += _sum(on_channel)
            for link, tasks in enumerate(tasks_of_link):
                through[link] += _sum(on_channel[tasks])
    most = rules.efficiency[1]
    of_memory = ceil_div(ceil_div(moved - sum(through), setup.memory_channels) * most.denominator, most.numerator)
    return max(ceil_div(compute, setup.engines), of_memory, *through)


def _tasks_of_links(setup: Setup) -> list[npt.NDArray[np.intp]]:
    """The tasks of a step that move bytes over each link that is used."""
    graph, found = setup.graph, defaultdict[object, list[int]](list)
    on_links = np.flatnonzero(graph.moves & (LINK_BIT | HOST_BIT))
    bits = (graph.moves[on_links] & (LINK_BIT | HOST_BIT | NETWORK_BIT)).tolist()
    for task, kind, device, to in zip(
        on_links.tolist(), bits, graph.device[on_links].tolist(), graph.to[on_links].tolist(), strict=True
    ):
        for link in setup.machine.crossed(device, to) or [(kind, device)]:
            found[link].append(task)
    return [np.array(tasks) for tasks in found.values()]


def _sum(times: IntArray) -> int:
    """The sum of times [task, lane], which may exceed int64 in all."""
    return sum(times.sum(axis=0, dtype=object).tolist())


def generations(study: Study) -> Iterator[list[Point]]:
    """The points of a study in the order in which they are compared."""
    points = list(study.points())
    for step, first in GENERATIONS:
        if chosen := points[first::step]:
            yield chosen


class Proofs:
    """Compares the bounds of points with the results of earlier generations.

    applies: whether objectives are written, all of them are bounded or known before a run, at least one is bounded, and each
    point has one seed.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._known = {*study.keys}
        for name, expression in study.columns.items():
            if expression.columns <= self._known:
                self._known.add(name)
        bounded = [name for name, sense in study.objectives.items() if BOUNDED.get(name) == sense]
        rest = [name for name in study.objectives if name not in bounded]
        numbers = all(_is_number(study, name) for name in rest)
        self.applies = study.asked and study.repeats == 1 and bool(bounded) and numbers and self._known.issuperset(rest)
        self._signs = [1 if sense == "min" else -1 for sense in study.objectives.values()]
        self._numbers: list[int] = []
        self._vectors = np.zeros((0, len(self._signs)))

    def take(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in the results of a generation: those that meet all constraints may dominate later points."""
        good = [row for row in rows if row["feasible"] and all(row.get(name) is not None for name in self._study.objectives)]
        self._numbers += [row["point"] for row in good]
        self._vectors = np.concatenate([self._vectors, *(np.array([self._vector(row)]) for row in good)])

    def refute(self, point: Point, job: Job) -> tuple[str, int] | None:
        """Why a point need not be run, and its lower bound, ps; None if it must be."""
        low = lower_bound(job.setup, job.rules)
        if low is None or job.warmup_time or job.warmup_requests:  # rates would be of the time after the warm-up
            return None
        tokens = sum(request.tokens for request in job.setup.sequences)
        row: dict[str, Any] = {axis.key: cell(axis, value.column, value.text) for axis, value in point.settings}
        row |= {
            "seed": point.seed,
            "makespan_ps": low,
            "time_per_token_ps": low / tokens,
            "tokens_per_s": tokens * PS_PER_S / low,
        }
        for name, expression in self._study.columns.items():
            if name in self._known:
                row[name] = expression(row)
        if missed := self._missed(row):
            return f"infeasible: {missed}; the makespan is at least {format_time(low)}", low
        if any(row.get(name) is None for name in self._study.objectives):
            return None
        mine = np.array(self._vector(row))
        dominated = (self._vectors <= mine).all(axis=1) & (self._vectors < mine).any(axis=1)
        if dominated.any():
            by = min(self._numbers[i] for i in np.flatnonzero(dominated).tolist())
            return f"dominated by point {by}: the makespan is at least {format_time(low)}", low
        return None

    def _missed(self, row: Mapping[str, Any]) -> str:
        """A constraint that cannot be met; empty if there is none."""
        for constraint in self._study.constraints:
            if constraint.columns <= self._known:
                if not constraint(row):
                    return constraint.text
            elif (limit := constraint.limit) is not None and BOUNDED.get(limit.column) == ("min" if limit.below else "max"):
                value, sign = row[limit.column], 1 if limit.below else -1
                if sign * value > sign * limit.bound or (limit.strict and value == limit.bound):
                    return constraint.text
        return ""

    def _vector(self, row: Mapping[str, Any]) -> list[float]:
        return [sign * float(row[name]) for sign, name in zip(self._signs, self._study.objectives, strict=True)]


def _is_number(study: Study, name: str) -> bool:
    """Whether a column that is known before a run holds numbers."""
    values: Sequence[Any] = [value.column for value in study.keys[name].values] if name in study.keys else [0]
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
