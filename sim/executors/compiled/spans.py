"""Simulate the steps of a single loop in parallel, where each begins on an idle machine and depends on no other but in time.

That holds for a single sequence, and for batches whose members are known in advance because all requests arrive at the
beginning. The steps are cut into spans, one for each core. Each span runs from time 0 in a thread of its own (compiled code
releases the interpreter's lock); then its times are moved to where the span before it ended. The log does not depend on
their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from sim.base.cores import cores
from sim.executors.compiled.batches import Batches, Part
from sim.executors.compiled.driver import Run, Sequences, Span
from sim.executors.compiled.rules import Disciplines
from sim.executors.compiled.state import LOG_FIELDS, SERVICES
from sim.executors.setup import Progress, Setup
from sim.executors.size import tasks_in_all
from sim.log.tables import EventLog
from sim.serving.batch import Batch
from sim.serving.batcher import Batcher
from sim.serving.loops import loops, stretches

WORTH = 1 << 16  # tasks of a span, at least: some 20 ms, against 1 ms to lay out another machine and start a thread


def spans_of(setup: Setup, disciplines: Disciplines, threads: int | None = None) -> int:
    """How many spans a run is cut into; 1 if its steps do not begin on an idle machine, are not known, or are few."""
    if (
        setup.dependency == "known"
        or setup.step_overhead
        or (len(setup.sequences) != 1 if setup.batching is None else not _is_closed(setup))
    ):
        return 1
    if any(each.kind not in {"exclusive", "classes"} for each in disciplines):  # the others remember whose turn it was
        return 1
    steps = sum(request.prompt + request.tokens for request in setup.sequences)
    return max(1, min(cores() if threads is None else threads, steps, tasks_in_all(setup)[0] // WORTH))


def _is_closed(setup: Setup) -> bool:
    """Whether the members of each step do not depend on times: a single loop, and all requests arrive at once."""
    batching, arrivals = setup.batching, {request.arrival for request in setup.sequences}
    return batching is not None and batching.loops_of(2) == 1 and setup.concurrency is None and len(arrivals) == 1


def simulate(setup: Setup, disciplines: Disciplines, count: int, progress: Progress | None = None) -> EventLog:
    """Run a single loop in so many spans. Raises as `Run.execute` does."""
    runs = (_sequence if setup.batching is None else _batches)(setup, disciplines, count)
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda run: run.execute(), runs))
        *begins, end = accumulate((run.last() for run in runs), initial=setup.sequences[0].arrival)
        list(pool.map(lambda run, by: run.move(by), runs, begins))
    whole: Any = runs[0]
    for run in runs[1:]:
        whole.append(run)
    whole.service = np.concatenate([run.service[:, : int(run.m[SERVICES])] for run in runs], axis=1)
    whole.m[SERVICES] = whole.service.shape[1]
    if progress is not None:
        progress(sum(request.tokens for request in setup.sequences), end)
    log: EventLog = whole.event_log()
    return log


def _sequence(setup: Setup, disciplines: Disciplines, count: int) -> Sequence[Run]:
    """Spans of equally many tokens."""
    (request,) = setup.sequences
    log = np.empty((LOG_FIELDS, request.tokens * len(setup.graph)), dtype=np.int64)
    cuts = [request.tokens * i // count for i in range(count + 1)]
    return [Sequences(setup, disciplines, None, None, Span(range(first, after), log)) for first, after in pairwise(cuts)]


@dataclass(slots=True, eq=False)
class Known(Batcher):
    """A batcher whose steps are known in advance. steps: each with the number of those after it that follow by decoding on.

    of: the batcher that made them up, with the KV cache at the end of the run, and a queue whose stamps are numbers of steps.
    """

    steps: Sequence[tuple[Batch, int]] = ()
    begun: int = 0
    of: Batcher = field(kw_only=True)

    @property
    def parts(self) -> Sequence[Batcher]:
        return self.of.parts

    def next(self, now: int) -> Batch | None:
        return self.steps[self.begun][0] if self.begun < len(self.steps) else None

    def steps_ahead(self) -> int:
        return min(self.steps[self.begun][1], len(self.steps) - 1 - self.begun)

    def ended(self, batch: Batch, now: int, steps: int = 1) -> None:
        self.begun += steps


def _batches(setup: Setup, disciplines: Disciplines, count: int) -> Sequence[Run]:
    """Spans of about as many tasks each, of whole steps."""
    assert setup.batching is not None
    assert setup.graphs is not None
    (batcher,) = loops(setup.batching, setup.sequences)
    steps = list(_all_steps(batcher, setup.sequences[0].arrival))
    # All graphs are made here: threads must share them, because a log distinguishes graphs by identity.
    first = np.cumsum([0, *(len(setup.graphs(step.shape)) for step, _ in steps)])
    log = np.empty((LOG_FIELDS, first[-1]), dtype=np.int64)
    for part in batcher.parts:
        part.queue.first = setup.sequences[0].arrival
    cuts = np.unique([0, *np.searchsorted(first, first[-1] * np.arange(1, count) // count), len(steps)]).tolist()
    each = [Known(setup.batching, batcher.arrivals, steps=steps[i:j], of=batcher) for i, j in pairwise(cuts)]
    parts = [
        Part(known, begin, int(first[begin]), int(first[after] - first[begin]), log)
        for known, (begin, after) in zip(each, pairwise(cuts), strict=True)
    ]
    return [Batches(setup, disciplines, None, None, part) for part in parts]


def _all_steps(batcher: Batcher, now: int) -> Iterator[tuple[Batch, int]]:
    """The steps of a loop whose requests have all come, each with the number of those after it that follow by decoding on."""
    for batch, many in stretches(batcher, now):
        yield batch, many - 1
        yield from ((batch.decoded_on(step), many - 1 - step) for step in range(1, many))
