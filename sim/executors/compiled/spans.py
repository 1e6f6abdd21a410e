"""Steps of a single sequence side by side: each begins on an idle machine, so that only its time depends on those before it.

The tokens are cut into spans, one for each core. Each span runs from time 0 in a thread of its own (compiled code releases the
interpreter's lock); then its times are moved to where the span before it ended. The log is the same however many there are.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from sim.base.cores import cores
from sim.log.tables import EventLog
from sim.executors.compiled.driver import Sequences, Span
from sim.executors.compiled.state import C_END, C_LOADED, C_READY, C_START, G_END, G_START, GRANTS, LOG_FIELDS
from sim.executors.setup import Progress, Setup
from sim.machine.arbiters.disciplines import Discipline

WORTH = 1 << 19  # tasks of a span, at least: a thread takes longer to start than fewer of them take to simulate


def spans_of(setup: Setup, discipline: Discipline, threads: int | None = None) -> int:
    """How many spans a run is cut into; 1 if its steps do not begin on an idle machine, or are few."""
    if setup.batching is not None or setup.dependency == "known" or len(setup.sequences) != 1:
        return 1
    if discipline.kind not in {"exclusive", "classes"}:  # others remember whose turn it was
        return 1
    tokens = setup.sequences[0].tokens
    return max(1, min(cores() if threads is None else threads, tokens, tokens * len(setup.graph) // WORTH))


def simulate(setup: Setup, discipline: Discipline, count: int, progress: Progress | None = None) -> EventLog:
    """Run a single sequence in so many spans. Raises as `Run.execute` does."""
    (request,) = setup.sequences
    log = np.empty((LOG_FIELDS, request.tokens * len(setup.graph)), dtype=np.int64)
    cuts = [request.tokens * i // count for i in range(count + 1)]
    runs = [Sequences(setup, discipline, None, None, Span(range(first, after), log)) for first, after in pairwise(cuts)]
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(Sequences.execute, runs))
    whole, size, now = runs[0], len(setup.graph), request.arrival
    begins = []
    for run, (first, after) in zip(runs, pairwise(cuts), strict=True):
        begins.append(now)
        ended = run.ends()[:, first:after].copy()  # the first run is the whole
        whole.ends()[:, first:after] = ended + now
        now += int(ended[1, -1])
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda i: _move(runs[i], cuts[i] * size, cuts[i + 1] * size, begins[i]), range(count)))
    if progress is not None:
        progress(request.tokens, now)
    whole.span = None
    whole.grant = np.concatenate([run.grant[:, : int(run.m[GRANTS])] for run in runs], axis=1)
    whole.m[GRANTS] = whole.grant.shape[1]
    return whole.event_log()


def _move(run: Sequences, first: int, after: int, by: int) -> None:
    """Let a span begin at another time."""
    for column in (C_READY, C_START, C_LOADED, C_END):
        run.log[column, first:after] += by
    run.grant[G_START : G_END + 1, : int(run.m[GRANTS])] += by
