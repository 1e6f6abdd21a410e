"""Where every picosecond went: the time of tasks and of tokens, split exactly into seven parts.

A task's time is [ready, end]:

| execution          | [ready, start]               | [start, loaded]                     | [loaded, end] |
| ------------------ | ---------------------------- | ----------------------------------- | ------------- |
| blocking           | wait_engine or wait_policy   | transfer, the excess wait_channel   | compute       |
| transfer by a DMA  | wait_sram                    | transfer, the excess wait_channel   |               |

Under `stream` load and compute overlap in [start, end]: the larger of compute and transfer keeps its name (compute, if they
are equal), the rest is wait_channel. `transfer` is latency plus the time at the full speed of the channel, as if nobody
else were there and no port in the way; so what a port slows down counts as wait_channel. While a task waits for an engine
and all engines are busy, that is wait_engine; while one is idle that the scheduler declines to use, wait_policy.

A token's time is [released, end] of its step. Walk back from the task that ended last to the input that ended last, and so
on: the times of the tasks on this chain follow one another without a gap. Time on a task of another token, which only the
order of the KV cache can bring in, is wait_input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.analysis.context import Rules
from sim.analysis.inputs import NONE, Inputs
from sim.errors import SimulationError
from sim.eventlog import EventLog

Times = npt.NDArray[np.int64]

PARTS = ("compute", "transfer", "wait_engine", "wait_channel", "wait_input", "wait_sram", "wait_policy")
COMPUTE, TRANSFER, WAIT_ENGINE, WAIT_CHANNEL, WAIT_INPUT, WAIT_SRAM, WAIT_POLICY = range(len(PARTS))

#: What this module asserts, as `checks` names it.
INVARIANT = "time of tasks and tokens splits exactly"

_BLOCK = 1 << 18  # rows split at once: their columns stay in cache, and 3 million rows need no gigabyte


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Picoseconds, with one column per entry of `PARTS`.

    tokens: [step, part], along the critical chain of each token; rows as in the step table, sums are the tokens' times.
    by_step, by_sequence, by_kind, by_layer: [.., part], totals over all tasks; `sequences`, `kinds`, `layers` name their rows
    (layer -1: outside of layers).
    """

    tokens: Times
    by_step: Times
    sequences: tuple[int, ...]
    by_sequence: Times
    kinds: tuple[str, ...]
    by_kind: Times
    layers: tuple[int, ...]
    by_layer: Times

    @property
    def total(self) -> Times:
        """[part]: over all tasks of the run."""
        return np.asarray(self.by_step.sum(axis=0))


def breakdown(log: EventLog, rules: Rules) -> Breakdown:
    """Account for a run. Raises SimulationError if a part is negative or the parts do not sum to the whole."""
    split = Split(log, rules)
    kinds = tuple(sorted({kind for graph in log.graphs for kind in graph.kinds}))
    layers = tuple(sorted({int(layer) for graph in log.graphs for layer in np.unique(graph.layer)}))
    by_step = np.zeros((len(log.steps), len(PARTS)), dtype=np.int64)
    by_kind = np.zeros((len(kinds), len(PARTS)), dtype=np.int64)
    by_layer = np.zeros((len(layers), len(PARTS)), dtype=np.int64)
    for number, graph in enumerate(log.graphs):
        by_task = np.zeros((len(graph), len(PARTS)), dtype=np.int64)
        for steps in _blocks(log, number):
            rows = (log.steps.first[steps][:, None] + np.arange(len(graph))).ravel()
            for part, column in enumerate(split(rows)):
                of_tasks = column.reshape(len(steps), len(graph))
                by_step[steps, part] += of_tasks.sum(axis=1)
                by_task[:, part] += of_tasks.sum(axis=0)
        kind = np.array([kinds.index(name) for name in graph.kinds], dtype=np.int64)[graph.kind]
        np.add.at(by_kind, kind, by_task)
        np.add.at(by_layer, np.searchsorted(layers, graph.layer), by_task)
    sequences, of_sequence = np.unique(log.steps.sequence, return_inverse=True)
    by_sequence = np.zeros((len(sequences), len(PARTS)), dtype=np.int64)
    np.add.at(by_sequence, of_sequence, by_step)
    result = Breakdown(
        tokens=_tokens(log, rules, split), by_step=by_step, kinds=kinds, by_kind=by_kind, layers=layers, by_layer=by_layer,
        sequences=tuple(int(s) for s in sequences), by_sequence=by_sequence,
    )  # fmt: skip
    _verify(log, result)
    return result


def _blocks(log: EventLog, graph: int) -> Iterator[npt.NDArray[np.int64]]:
    steps = np.flatnonzero(log.steps.graph == graph)
    size = max(1, _BLOCK // max(1, len(log.graphs[graph])))
    for first in range(0, len(steps), size):
        yield steps[first : first + size]


class AllBusy:
    """The intervals in which no engine is idle, and a clock that runs only then: `clock(t)` is their length up to t.

    Among m engines the k-th start (counting from 0 in order of time) leaves none idle exactly until the (k + 1 - m)-th end,
    if that comes later: k + 1 have started, so k + 1 - m must have ended before the next one can start.
    """

    def __init__(self, log: EventLog) -> None:
        held = log.tasks.engine >= 0
        start, end = np.sort(log.tasks.start[held]), np.sort(log.tasks.end[held])
        begin, until = start[log.engines - 1 :], end[: max(0, len(end) - log.engines + 1)]
        some = begin < until
        self._begin, self._until = begin[some], until[some]
        self._before = np.concatenate(([0], np.cumsum(self._until - self._begin)))

    def clock(self, time: Times) -> Times:
        """Picoseconds of [0, time) in which all engines were busy."""
        if not len(self._begin):
            return np.zeros_like(time)
        i = np.searchsorted(self._begin, time, side="right") - 1
        inside = np.minimum(time, self._until[i]) - self._begin[i]
        return np.where(i >= 0, self._before[np.maximum(i, 0)] + inside, 0)


class Split:
    """Splits the time [ready, end] of tasks. `Split(log, rules)(rows)` gives one column per entry of `PARTS`."""

    def __init__(self, log: EventLog, rules: Rules) -> None:
        self._tasks = log.tasks
        self._rules = rules
        self._busy: AllBusy | None = None
        self._log = log

    def __call__(self, rows: npt.NDArray[np.int64]) -> list[Times]:
        t = self._tasks
        ready, start, end, engine = t.ready[rows], t.start[rows], t.end[rows], t.engine[rows]
        compute, work = t.compute[rows], t.work[rows]
        parts = [np.zeros(len(rows), dtype=np.int64) for _ in PARTS]
        held = engine >= 0
        full = np.where(work > 0, -(-work // self._rules.stripes) + self._rules.latency, 0)
        service = end - start
        if self._rules.execution == "stream":
            larger = np.where(held & (compute >= full), compute, 0)
            parts[COMPUTE] = larger
            parts[TRANSFER] = np.where(larger > 0, 0, full)
        else:
            parts[COMPUTE] = np.where(held, end - t.loaded[rows], 0)
            parts[TRANSFER] = full
        parts[WAIT_CHANNEL] = service - parts[COMPUTE] - parts[TRANSFER]
        waited = start - ready
        parts[WAIT_SRAM] = np.where(held, 0, waited)
        queued = np.flatnonzero(held & (waited > 0))
        if len(queued):
            if self._busy is None:
                self._busy = AllBusy(self._log)
            parts[WAIT_ENGINE][queued] = self._busy.clock(start[queued]) - self._busy.clock(ready[queued])
            parts[WAIT_POLICY][queued] = waited[queued] - parts[WAIT_ENGINE][queued]
        if min(int(column.min(initial=0)) for column in parts) < 0:
            bad = next(int(rows[column.argmin()]) for column in parts if column.min(initial=0) < 0)
            raise SimulationError(f"invariant does not hold: {INVARIANT}: {self._log.name(bad)} ran faster than it can")
        return parts


def _tokens(log: EventLog, rules: Rules, split: Split) -> Times:
    """[step, part]: walk back along the chain of every token at once."""
    steps = np.arange(len(log.steps), dtype=np.int64)
    result = np.zeros((len(steps), len(PARTS)), dtype=np.int64)
    row = np.full(len(steps), NONE, dtype=np.int64)
    for number, graph in enumerate(log.graphs):
        if not len(graph):
            continue
        for block in _blocks(log, number):
            ends = log.tasks.end[log.steps.first[block][:, None] + np.arange(len(graph))]
            row[block] = log.steps.first[block] + ends.argmax(axis=1)
    inputs = Inputs(log, rules)
    chain_rows, chain_steps = [], []
    step = steps[row != NONE]
    row = row[row != NONE]
    while len(row):
        chain_rows.append(row)
        chain_steps.append(step)
        source, ended = inputs.last(row)
        own = (source != NONE) & (log.tasks.step[source] == step)
        foreign = (source != NONE) & ~own
        result[step[foreign], WAIT_INPUT] += np.maximum(0, ended[foreign] - log.steps.released[step[foreign]])
        row, step = source[own], step[own]
    if chain_rows:
        rows, of_step = np.concatenate(chain_rows), np.concatenate(chain_steps)
        for part, column in enumerate(split(rows)):
            np.add.at(result[:, part], of_step, column)
    return result


def _verify(log: EventLog, result: Breakdown) -> None:
    """The parts sum to the whole: per token along its chain, and over all tasks however they are grouped."""
    own = log.steps.end - log.steps.released
    bad = np.flatnonzero(result.tokens.sum(axis=1) != own)
    if len(bad):
        token = f"{log.steps.sequence[bad[0]]}.{log.steps.token[bad[0]]}"
        raise SimulationError(
            f"invariant does not hold: {INVARIANT}: token {token} took {own[bad[0]]} ps, "
            f"its parts sum to {result.tokens[bad[0]].sum()} ps"
        )
    whole = int((log.tasks.end - log.tasks.ready).sum())
    for name in ("by_step", "by_sequence", "by_kind", "by_layer"):
        total = int(getattr(result, name).sum())
        if total != whole:
            raise SimulationError(f"invariant does not hold: {INVARIANT}: {name} sums to {total} ps, tasks to {whole} ps")
