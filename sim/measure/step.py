"""One decode step, timed op by op.

On a CPU an op takes from when it is called to when it returns. On a GPU an op is through when it is issued and what it
launched has run; with a CUDA graph, its time is that of the same kernels in a replay of the graph. Where torch's profiler
does not see the device (mps), each op is waited for, and its time includes that of launching it.
"""

# torch and transformers leave parts of themselves without types.
# mypy: allow-untyped-calls

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sim.base.errors import InputError
from sim.base.units import PS_PER_MS, PS_PER_NS
from sim.cost.kernels import kernels
from sim.cost.profile import Samples
from sim.measure.align import Event, Span, device_spans, issued_spans, launches, match, replayed, spans
from sim.measure.measured import MeasuredStep
from sim.measure.real import Decoding, undisturbed

#: Name of the step among the events of the profiler.
_STEP = "decode step"


__all__ = ["CudaGraph", "MeasuredStep", "assemble", "measure", "profile", "samples", "waiting"]


def measure(decoding: Decoding | CudaGraph, plain: int = 0) -> MeasuredStep:
    """Run and time one step. `plain`: time of a step that was not timed op by op."""
    if isinstance(decoding, CudaGraph):
        return decoding.measure(plain)
    found, wall = waiting(decoding) if decoding.real.place.device == "mps" else _profiled(decoding)
    return assemble(decoding, found, wall, plain)


def assemble(decoding: Decoding, found: Sequence[Span], wall: int, plain: int = 0) -> MeasuredStep:
    """A measured step from the times of all that it dispatched."""
    owner = np.array(decoding.owner, dtype=np.int64)
    start = np.array([span.start for span in found], dtype=np.int64)
    duration = np.array([span.duration for span in found], dtype=np.int64)
    mine = owner >= 0
    count = len(decoding.ops.ops)
    first = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(first, owner[mine], start[mine])
    total = np.zeros(count, dtype=np.int64)
    np.add.at(total, owner[mine], duration[mine])
    return MeasuredStep(
        model=decoding.real.name, dtype=decoding.real.dtype, point=decoding.point, ops=decoding.ops,
        start=np.where(first == np.iinfo(np.int64).max, -1, first), duration=total,
        pieces=np.stack([owner[mine], start[mine], duration[mine]]), wall=wall, plain=plain,
        others=int(duration[~mine].sum()),
    )  # fmt: skip


def samples(steps: Sequence[MeasuredStep], rounds: Sequence[int], first_step: int = 0) -> Samples:
    """One row for each op of each step, and one of kind `step` for the step; their `step` counts from `first_step`.

    A step lasts as long as one that was not timed op by op, where that is known. Ops that take no time have no row.
    """
    rows: list[dict[str, Any]] = []
    shapes: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for number, (step, round_number) in enumerate(zip(steps, rounds, strict=True), first_step):
        batch, query, context = step.point
        key = id(step.ops), context
        if key not in shapes:
            shapes[key] = [kernel.sample() for kernel in kernels(step.ops, np.array([context]))]
        common = {"step": number, "round": round_number, "model": step.model}
        timed = np.flatnonzero(step.duration > 0).tolist()
        rows += [{**shapes[key][op], **common, "duration": int(step.duration[op])} for op in timed]
        whole = {"kind": "step", "dtype": step.dtype, "rows": batch * query, "context": context, "ops": len(timed)}
        rows.append({**whole, **common, "duration": step.plain or step.wall})
    names = dict.fromkeys(name for row in rows for name in row)
    blank: dict[str, Any] = {"kind": "", "dtype": "", "rows": 1, "ops": 1}
    return Samples({name: [row.get(name, blank.get(name, 0)) for row in rows] for name in names})


@torch.no_grad()
def _profiled(decoding: Decoding) -> tuple[list[Span], int]:
    place = decoding.real.place
    host, kernels_run, wall = profile(decoding, lambda options: decoding.real.model(**options))
    found, owner = match(decoding.issued, host)
    if place.device == "cuda":
        return _relative(issued_spans(found, launches(owner, kernels_run), wall.start), wall)
    return _relative(spans(found), wall)


def profile(decoding: Decoding, run: Callable[[dict[str, Any]], Any]) -> tuple[list[Event], list[Event], Event]:
    """Run a step under torch's profiler: events of the host inside of it, kernels of the device, and the step itself."""
    place = decoding.real.place
    options = decoding.ready()
    decoding.real.evict()
    watch = torch.profiler.profile(activities=place.activities(), acc_events=True)
    with undisturbed(), watch as profiler, torch.profiler.record_function(_STEP):
        run(options)
        place.synchronise()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    # The list that torch makes of these leaves out, before 2.13, what launched a kernel.
    events = profiler.profiler.kineto_results.events()
    step = next(e for e in events if e.name() == _STEP and e.device_type().name == "CPU")
    whole, thread = _event(step), step.start_thread_id()
    on_host = [e for e in events if e.device_type().name == "CPU" and e.start_thread_id() == thread]
    host = [_event(e) for e in on_host if not e.linked_correlation_id()]  # calls of a driver count their ids by themselves
    on_device = [_event(e) for e in events if e.device_type().name != "CPU" and e.name() != _STEP]
    return [e for e in host if e.name != _STEP and whole.start <= e.start < whole.end], on_device, whole


def _event(event: Any) -> Event:
    start, end = event.start_ns() * PS_PER_NS, event.end_ns() * PS_PER_NS
    return Event(event.name(), start, end, event.correlation_id(), event.linked_correlation_id())


def _relative(found: Sequence[Span], whole: Event) -> tuple[list[Span], int]:
    return [Span(span.start - whole.start, span.duration) for span in found], whole.end - whole.start


class _Wait(TorchDispatchMode):
    """Waits for each op."""

    def __init__(self, synchronise: Callable[[], None]) -> None:
        super().__init__()
        self.synchronise, self.events = synchronise, list[Event]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = time.perf_counter_ns()
        out = func(*args, **(kwargs or {}))
        self.synchronise()
        ended = time.perf_counter_ns()
        name = f"aten.{func._overloadpacket.__name__}"
        self.events.append(Event(name, began * PS_PER_NS, ended * PS_PER_NS, len(self.events)))
        return out


@torch.no_grad()
def waiting(decoding: Decoding) -> tuple[list[Span], int]:
    """Run a step and wait for each of its ops: their times, and that of the step."""
    options = decoding.ready()
    decoding.real.evict()
    mode = _Wait(decoding.real.place.synchronise)
    with undisturbed():
        began = time.perf_counter_ns()
        with mode:
            decoding.real.model(**options)
        whole = Event(_STEP, began * PS_PER_NS, time.perf_counter_ns() * PS_PER_NS)
    return _relative(spans(match(decoding.issued, mode.events)[0]), whole)


class CudaGraph:
    """A step as a CUDA graph: the host's part of it is not run again.

    pool: where graphs that never run at the same time have what they make on the way, from `torch.cuda.graph_pool_handle`.
    """

    def __init__(self, decoding: Decoding, pool: Any = None) -> None:
        self.decoding = decoding
        run = decoding.real.model
        for _ in range(decoding.slots):  # nothing may be allocated while it is captured
            decoding.wall()
        with torch.no_grad():
            host, kernels_run, _ = profile(decoding, lambda options: run(**options))
            self._launched = launches(match(decoding.issued, host)[1], kernels_run)
            options = decoding.ready()
            self._graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self._graph, pool=pool):
                    run(**options)
            except RuntimeError as error:  # whatever CUDA, or the model's code, cannot do meanwhile
                why = str(error).partition("\n")[0]
                raise InputError(f"{decoding.real.name}: its steps cannot be CUDA graphs: {why}") from error

    def wall(self) -> int:
        """Replay the step, and nothing beside it; picoseconds by CUDA events.

        It ran just before, and is in the queue when the device comes to it: as in a loop of steps.
        """
        self._graph.replay()
        self.decoding.real.evict(wait=False)
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        self._graph.replay()
        ended.record()
        ended.synchronize()
        milliseconds: float = began.elapsed_time(ended)
        return round(milliseconds * PS_PER_MS)

    def measure(self, plain: int = 0) -> MeasuredStep:
        """Replay and time one step, from its first kernel to its last: launching it under the profiler takes longer."""
        self._graph.replay()
        launched = replayed(self._launched, profile(self.decoding, lambda _: self._graph.replay())[1])
        whole = Event(_STEP, launched[0][1].start, launched[-1][1].end)
        found = device_spans(len(self.decoding.issued), launched)
        return assemble(self.decoding, *_relative(found, whole), plain)
