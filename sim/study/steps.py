"""Steps of a run that are known before it, whatever they take.

Steps of a sequence are known. So are those of a batched loop whose requests all arrive at one time: it begins each step when
the one before has ended, so that nothing in it depends on a clock. Where requests come one after another, or when others have
ended, or wait for caches that are moved beside steps, times decide which steps there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.graph import StepLanes
from sim.executors.setup import Setup, lanes_of
from sim.mapping.tasks import TaskGraph
from sim.serving.batch import Batch
from sim.serving.batching import Only
from sim.serving.loops import loops, stretches
from sim.serving.routed import routed

LANES = 256  # steps at a time


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive steps of a loop, all of one graph.

    lanes: parameters of their costs. batch: the first one; None where each is one sequence that decodes a token.
    """

    graph: TaskGraph
    lanes: StepLanes
    batch: Batch | None

    def __len__(self) -> int:
        return len(self.lanes.token)


@dataclass(frozen=True, slots=True)
class Loop:
    """All steps of a loop, or of a sequence. arrival: ps, of its requests. requests: their numbers; None of a sequence."""

    arrival: int
    requests: Sequence[int] | None
    steps: tuple[Stretch, ...]


def known_steps(setup: Setup) -> list[Loop] | None:
    """The steps of all loops; None if they depend on times."""
    batching = setup.batching
    if batching is None:
        return [_sequence(setup, number) for number in range(len(setup.sequences))]
    alone: Sequence[Only | None] | None = [None] if batching.replicas == 1 else routed(batching, setup.sequences)
    if setup.concurrency is not None or alone is None or batching.beside:
        return None
    found = list[Loop]()
    for only in alone:
        mine = batching if only is None else replace(batching, only=only)
        for number, batcher in enumerate(loops(mine, setup.sequences), mine.first_loop):
            times = batcher.arrivals.times
            if len(set(times.values())) > 1:
                return None
            if times:
                arrival = next(iter(times.values()))
                steps = _batched(setup, number, stretches(batcher, arrival))
                found.append(Loop(arrival, tuple(times), tuple(steps)))
    return found


def _sequence(setup: Setup, number: int) -> Loop:
    request, steps = setup.sequences[number], list[Stretch]()
    for first in range(0, request.tokens, LANES):
        token = np.arange(first, min(first + LANES, request.tokens), dtype=np.int64)
        lanes = StepLanes(sequence=np.full_like(token, number), token=token, context=request.context + token)
        steps.append(Stretch(setup.graph, lanes, None))
    return Loop(request.arrival, None, tuple(steps))


def _batched(setup: Setup, number: int, steps: Iterator[tuple[Batch, int]]) -> Iterator[Stretch]:
    assert setup.graphs is not None
    token = 0
    for batch, many in steps:
        graph = setup.graphs(batch.shape)
        for first in range(0, many, LANES):
            begins = batch.decoded_on(first) if first else batch
            yield Stretch(graph, lanes_of(number, token + first, begins, min(LANES, many - first)), begins)
        token += many
