"""Memory bandwidth against the number of streams that pull at once, and how two unlike streams slow each other down.

A stream repeats one op over buffers that no cache can hold, on cores of its own (on a GPU: on a CUDA stream of its own). All
that run together start together and end together. Solo runs alternate with the runs they are compared to.
"""

# torch leaves parts of itself without types.
# mypy: allow-untyped-calls

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import torch

from models.formats import ELEMENT
from sim.base.units import PS_PER_MS
from sim.cost.profile import STREAMS, Samples
from sim.measure.place import Place, usable_cores

#: Bytes of a buffer that one op goes over: large against the start of an op, small against the time of a run.
CHUNK = {"cpu": 16 << 20, "cuda": 256 << 20, "mps": 16 << 20}

#: Sides of matrices are multiples of this, so that a buffer is whole numbers of 8 bytes.
SIDE = 16

#: Bytes that a stream goes through before it comes back to a buffer, if the size of the last cache is not known.
LEAST_POOL = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Load:
    """The work of a stream: `op(*buffers)`, over as many buffers of one size as it reads and writes. Matrices are square."""

    reads: int
    writes: int
    op: Callable[..., Any]
    matrix: bool = False


#: By kind of sample. `gemv` is the thin product of a decode step, whose vectors count for nothing.
LOADS = {
    "read": Load(1, 0, lambda source: source.view(torch.int64).sum()),  # additions of integers do not wait for each other
    "write": Load(0, 1, torch.Tensor.zero_),
    "copy": Load(1, 1, lambda source, target: target.copy_(source)),
    "add": Load(2, 1, lambda a, b, target: torch.add(a, b, out=target)),
    "gemv": Load(1, 0, lambda matrix: torch.mv(matrix, matrix[0]), matrix=True),
}
assert tuple(LOADS) == STREAMS


class Streams:
    """Streams on a device, each with as many cores as an op of the profile has, and with buffers of its own.

    The buffers are made once: pages must be there before they are timed.
    """

    def __init__(self, place: Place, dtype: str) -> None:
        self.place, self.dtype = place, dtype
        self.most = most_streams(place)
        side = int((CHUNK[place.device] / ELEMENT[dtype]) ** 0.5) // SIDE * SIDE
        self.bytes = side * side * ELEMENT[dtype]
        free = (place.free_memory() or 0) // 4
        count = max(4, min(max(LEAST_POOL, 2 * last_cache(place)), free // self.most) // self.bytes)
        self.buffers = [
            [torch.ones(side, side, dtype=getattr(torch, dtype), device=place.device) for _ in range(count)]
            for _ in range(self.most)
        ]

    def runs(self) -> list[tuple[str, ...]]:
        """Loads to run together: reads and writes by 1, 2, 4 ... streams, each load alone, and all pairs."""
        runs = [(kind,) * n for kind in ("read", "write") for n in counts(self.most)]
        if self.most > 1:
            runs += [(kind,) for kind in LOADS if (kind,) not in runs]
            runs += [pair for pair in combinations_with_replacement(LOADS, 2) if pair not in runs]
        return runs

    def round(self, number: int, *, seconds: float, seed: int) -> Samples:
        """Run all in random order, each for `seconds`."""
        runs = self.runs()
        random.Random(f"{seed} {number}").shuffle(runs)
        rows: list[dict[str, Any]] = []
        for kinds in runs:
            for kind, (moved, duration) in zip(kinds, self.run(kinds, seconds), strict=True):
                load = LOADS[kind]
                parts = load.reads + load.writes
                other = {*kinds} - {kind}
                rows.append({
                    "kind": kind, "dtype": self.dtype, "streams": len(kinds), "beside": other.pop() if other else "",
                    "bytes_read": moved // parts * load.reads, "bytes_written": moved // parts * load.writes,
                    "duration": duration, "round": number,
                })  # fmt: skip
        return Samples({name: [row[name] for row in rows] for name in rows[0]})

    def run(self, kinds: Sequence[str], seconds: float) -> list[tuple[int, int]]:
        """Bytes and picoseconds of each of these loads, run at once."""
        return self._cuda(kinds, seconds) if self.place.device == "cuda" else self._threads(kinds, seconds)

    def _calls(self, stream: int, kind: str) -> Iterator[tuple[Load, list[torch.Tensor]]]:
        """Endlessly the operands of the next op, from buffer to buffer."""
        load, buffers, at = LOADS[kind], self.buffers[stream], 0
        parts = load.reads + load.writes
        while True:
            taken = [buffers[(at + i) % len(buffers)] for i in range(parts)]
            at += parts
            yield load, taken if load.matrix else [each.view(-1) for each in taken]

    def _threads(self, kinds: Sequence[str], seconds: float) -> list[tuple[int, int]]:
        start, found = Barrier(len(kinds)), [(0, 0)] * len(kinds)
        own = self.place.threads

        def work(stream: int, kind: str) -> None:
            pin(cores()[stream * own : (stream + 1) * own])
            torch.set_num_threads(own)
            calls = self._calls(stream, kind)
            load, operands = next(calls)
            load.op(*operands)  # what the first call of an op does once
            start.wait()
            begin = time.perf_counter_ns()
            until, moved, end = begin + int(seconds * 1e9), 0, begin
            while end < until:
                load, operands = next(calls)
                load.op(*operands)
                moved += len(operands) * self.bytes
                end = time.perf_counter_ns()
            found[stream] = moved, (end - begin) * 1000

        with torch.no_grad():
            workers = [Thread(target=work, args=each) for each in enumerate(kinds)]
            for each in workers:
                each.start()
            for each in workers:
                each.join()
        return found

    def _cuda(self, kinds: Sequence[str], seconds: float) -> list[tuple[int, int]]:
        """Run as many ops on each stream as take so long together, timed by events on the stream itself.

        Only ops that ended before the first stream was through count: after that, the others do not share the device with all.
        """
        streams = [torch.cuda.Stream() for _ in kinds]
        calls = [self._calls(i, kind) for i, kind in enumerate(kinds)]

        def mark(i: int, *, after: bool) -> Any:
            event = torch.cuda.Event(enable_timing=True)
            with torch.cuda.stream(streams[i]):
                if after:
                    load, operands = next(calls[i])
                    load.op(*operands)
                event.record()
            return event

        counts = []
        for i in range(len(kinds)):  # alone, after what the first call of an op does once
            torch.cuda.synchronize()
            _, before, after = (mark(i, after=True) for _ in range(3))
            torch.cuda.synchronize()
            counts.append(max(4, round(seconds * 1e3 / len(kinds) / before.elapsed_time(after))))
        starts = [mark(i, after=False) for i in range(len(kinds))]
        marks: list[list[Any]] = [[] for _ in kinds]
        for number in range(max(counts)):
            for i, count in enumerate(counts):
                if number < count:
                    marks[i].append(mark(i, after=True))
        torch.cuda.synchronize()
        times = [[start.elapsed_time(event) for event in events] for start, events in zip(starts, marks, strict=True)]
        until = min(mine[-1] for mine in times)
        done = [max(1, sum(each <= until for each in mine)) for mine in times]
        moved = [n * (LOADS[kind].reads + LOADS[kind].writes) * self.bytes for n, kind in zip(done, kinds, strict=True)]
        return [(size, max(1, round(mine[n - 1] * PS_PER_MS))) for size, mine, n in zip(moved, times, done, strict=True)]


def cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(os.getpid()))
    return list(range(os.cpu_count() or 1))


def pin(chosen: Sequence[int]) -> None:
    """Keep the calling thread, and those that it starts, on these cores, where the system can do that."""
    if hasattr(os, "sched_setaffinity") and chosen:
        os.sched_setaffinity(0, chosen)


def counts(most: int) -> list[int]:
    """1, 2, 4 ... and the most."""
    return sorted({most, *(2**i for i in range(most.bit_length()))})


def most_streams(place: Place) -> int:
    """Number of streams with cores of their own; on a GPU four, each of which could fill it."""
    return {"cpu": max(1, usable_cores() // place.threads), "cuda": 4}.get(place.device, 1)


def most_ops(place: Place) -> int:
    """Number of ops that run at once as fast as alone: on a CPU each has cores of its own, a GPU is filled by one."""
    return most_streams(place) if place.device == "cpu" else 1


def last_cache(place: Place) -> int:
    """Bytes of the largest cache of a processor, 0 if it does not say."""
    if place.device == "cuda":
        size: int = torch.cuda.get_device_properties(0).L2_cache_size
        return size
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1], 1) if text[:-1].isdecimal() else 0)
    return max(sizes)
