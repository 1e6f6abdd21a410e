"""Match events of torch's profiler to dispatched ops: by name, in order.

The recorder lists the ops that reach the dispatcher in one step, views apart. Run again under the profiler, the same step
gives an event for each, and more: views, what is around them (`aten::linear` around `aten::mm`) and inside of them
(`aten::copy_` inside of `aten::_to_copy`). What is inside of an event that was matched belongs to it; of the others the next
that has the name is the op.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.base.errors import SimError


@dataclass(frozen=True, slots=True)
class Event:
    """start, end: picoseconds. id: of an event of the host. link: of an event of the device, the `id` of what launched it."""

    name: str
    start: int
    end: int
    id: int = 0
    link: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """Span of an op in picoseconds, from its first start; duration counts only the time that it ran."""

    start: int
    duration: int


def match(issued: Sequence[str], events: Sequence[Event]) -> tuple[list[Event], dict[int, int]]:
    """The event of each op that was issued, and by the id of each event which op it is, or is inside of.

    issued: names as `aten.mm`. events: of the host, in any order.
    Raises SimError if an op has no event.
    """
    found: list[Event] = []
    owner: dict[int, int] = {}
    until = -1
    for event in sorted(events, key=lambda event: (event.start, -event.end)):
        if event.start < until:
            owner[event.id] = len(found) - 1
        elif len(found) < len(issued) and event.name.replace("::", ".") == issued[len(found)]:
            owner[event.id] = len(found)
            found.append(event)
            until = event.end
    if len(found) < len(issued):
        raise SimError(
            f"the profiler saw {len(found):,} of {len(issued):,} ops of a step: none is {issued[len(found)]}, "
            f"after {issued[len(found) - 1] if found else 'the start'}"
        )
    return found, owner


def spans(found: Sequence[Event]) -> list[Span]:
    """The times of ops that run as they are called."""
    return [Span(event.start, event.end - event.start) for event in found]


def launches(owner: dict[int, int], kernels: Sequence[Event]) -> list[tuple[int, Event]]:
    """Events of a device in order of time, each with the op that launched it, -1 if none did."""
    return [(owner.get(kernel.link, -1), kernel) for kernel in sorted(kernels, key=lambda kernel: kernel.start)]


def replayed(launched: Sequence[tuple[int, Event]], kernels: Sequence[Event]) -> list[tuple[int, Event]]:
    """The same of a replayed CUDA graph, which runs what the step that it was captured from launched, in the same order.

    A kernel lasts until the next one begins: between them there is only what the device takes to change from one to the other.
    Raises SimError if it ran something else.
    """
    order = sorted(kernels, key=lambda kernel: kernel.start)
    if [kernel.name for _, kernel in launched] != [kernel.name for kernel in order]:
        raise SimError(f"a CUDA graph ran {len(order):,} kernels that are not the {len(launched):,} of the step it is of")
    ends = [*(kernel.start for kernel in order[1:]), *(kernel.end for kernel in order[-1:])]
    return [(op, replace(kernel, end=end)) for (op, _), kernel, end in zip(launched, order, ends, strict=True)]


def device_spans(ops: int, launched: Sequence[tuple[int, Event]]) -> list[Span]:
    """The times of ops by what they launched. One that launched nothing took no time, where the one before it ended."""
    mine: list[list[Event]] = [[] for _ in range(ops)]
    for op, kernel in launched:
        if op >= 0:
            mine[op].append(kernel)
    result, before = [], launched[0][1].start if launched else 0
    for events in mine:
        result.append(Span(events[0].start if events else before, sum(event.end - event.start for event in events)))
        before = events[-1].end if events else before
    return result


def issued_spans(found: Sequence[Event], launched: Sequence[tuple[int, Event]], began: int) -> list[Span]:
    """The times of ops that a host issues, and a device runs as they come.

    An op is through when the host turns to the next one, or when what it launched has run, whichever is later; it lasts from
    when the op before it was through. So all ops together take what the step takes, whether host or device keeps it waiting.
    """
    ends = [*(event.start for event in found[1:]), *(event.end for event in found[-1:])]
    for op, kernel in launched:
        if op >= 0:
            ends[op] = max(ends[op], kernel.end)
    result, before = [], began
    for end in ends:
        result.append(Span(before, max(0, end - before)))
        before = max(before, end)
    return result
