"""The parts of a run whose costs are extrapolated or not measured."""

from __future__ import annotations

import numpy as np

from models.graph import StepLanes
from sim.cost import Extrapolation
from sim.executors.setup import Setup
from sim.log.tables import EventLog


def extrapolations(setup: Setup, log: EventLog | None = None) -> tuple[Extrapolation, ...]:
    """Extrapolation warnings of a run, from its shortest context to its longest.

    For batches, with a log: warnings of the most frequent form of step, and of the one with the most sequences.
    """
    judge = getattr(setup.costs, "extrapolations", None)
    if judge is None:
        return ()
    if setup.batching is None or log is None:
        contexts = [c for s in setup.sequences for c in (s.context, s.final - 1)]
        ends = np.array(sorted({min(contexts), max(contexts)}), dtype=np.int64)
        return tuple(judge(setup.graph, StepLanes(sequence=np.zeros_like(ends), token=np.zeros_like(ends), context=ends)))
    counts = np.bincount(log.steps.graph, minlength=len(log.graphs))
    largest = max(range(len(log.graphs)), key=lambda number: log.graphs[number].ops.members or 0)
    found: dict[tuple[str, str], Extrapolation] = {}
    for number in dict.fromkeys((int(counts.argmax()), largest)):
        steps = np.flatnonzero(log.steps.graph == number)
        context = log.steps.context[steps]
        ends = steps[np.unique([context.argmin(), context.argmax()])]
        for extrapolation in judge(log.graphs[number], log.lanes(ends)):
            found.setdefault((extrapolation.kind, extrapolation.why), extrapolation)
    return tuple(found.values())
