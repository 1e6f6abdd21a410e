"""Measurements in rounds: every point once in a round, in another order each time, so that drift is seen as noise."""

# torch and transformers leave parts of themselves without types.
# mypy: allow-untyped-calls

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import torch

from sim.base.units import PS_PER_S
from sim.measure.measured import MeasuredStep
from sim.measure.place import Place
from sim.measure.real import EVICT, Decoding
from sim.measure.step import CudaGraph, measure

#: Called with the number of the round that begins, from 1, and of how many.
Progress = Callable[[int, int], None]


def collect(points: Sequence[Decoding | CudaGraph], rounds: int, progress: Progress) -> list[list[MeasuredStep]]:
    """By point, one measured step for each round. In a round each point runs one step plain, and one timed op by op.

    A first round, in which code and buffers get warm, does not count.
    """
    order = random.Random(0)
    found: list[list[MeasuredStep]] = [[] for _ in points]
    for number in range(rounds + 1):
        progress(number, rounds)
        for i in order.sample(range(len(points)), len(points)):
            point = points[i]
            plain = point.wall()
            step = measure(point, plain)
            if number:
                found[i].append(step)
    return found


def roofs(place: Place, dtype: str) -> tuple[int, int, int]:
    """The best of a few tries: bytes/s read from memory, FLOP/s of a matrix product, elements/s of an operation in a cache."""
    place.use()
    kind, bytes_read, side, elements = getattr(torch, dtype), EVICT[place.device], 2048, 2**18
    if place.asynchronous:  # large enough to fill a GPU, and for longer than it takes to start an op there
        bytes_read, side, elements = 2**30, 8192, 2**23
    large = torch.zeros(bytes_read // 8, dtype=torch.int64, device=place.device)
    square = torch.ones(side, side, dtype=kind, device=place.device)
    small = torch.ones(elements, dtype=kind, device=place.device)
    with torch.no_grad():
        return (
            _rate(place, large.sum, large.numel() * 8),
            _rate(place, lambda: square @ square, 2 * side**3),
            _rate(place, lambda: small + small, small.numel()),
        )


def _rate(place: Place, run: Callable[[], object], amount: int) -> int:
    times, queued = [], 20 if place.asynchronous else 1  # one after the other, so that only the first is waited for
    for _ in range(6):
        place.synchronise()
        began = time.perf_counter_ns()
        for _ in range(queued):
            run()
        place.synchronise()
        times.append(time.perf_counter_ns() - began)
    return queued * amount * (PS_PER_S // 1000) // max(1, min(times))
