"""Which events of torch's profiler are which dispatched ops: by name, in order.

The recorder lists the ops that reach the dispatcher in one step, views apart. Run again under the profiler, the same step
gives an event for each, and more: views, what is around them (`aten::linear` around `aten::mm`) and inside of them
(`aten::copy_` inside of `aten::_to_copy`). What is inside of an event that was matched belongs to it; of the others the next
that has the name is the op.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.errors import SimError


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
    """When an op ran: picoseconds, from its first start; duration counts only the time that it ran."""

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


def device_spans(found: Sequence[Event], owner: dict[int, int], kernels: Sequence[Event]) -> list[Span]:
    """The times of ops by what they launched on a device. One that launched none took no time, where the one before ended."""
    launched = kernels_of(len(found), owner, kernels)
    result: list[Span] = []
    before = min((kernel.start for kernel in kernels), default=0)
    for mine in launched:
        start = min((kernel.start for kernel in mine), default=before)
        result.append(Span(start, sum(kernel.end - kernel.start for kernel in mine)))
        before = max((kernel.end for kernel in mine), default=before)
    return result


def kernels_of(ops: int, owner: dict[int, int], kernels: Sequence[Event]) -> list[list[Event]]:
    """What each op launched, in order of time."""
    launched: list[list[Event]] = [[] for _ in range(ops)]
    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        if kernel.link in owner:
            launched[owner[kernel.link]].append(kernel)
    return launched


def replayed(launched: Sequence[Sequence[Event]], kernels: Sequence[Event]) -> list[Span]:
    """The times of ops in a replayed CUDA graph, which runs the kernels of the step that it was captured from, in their order.

    launched: of each op, what it launched in that step. kernels: of the replay. Raises SimError if they differ.
    """
    names = [kernel.name for mine in launched for kernel in mine]
    order = sorted(kernels, key=lambda kernel: kernel.start)
    if names != [kernel.name for kernel in order]:
        raise SimError(f"a CUDA graph ran {len(order):,} kernels that are not the {len(names):,} of the step it is of")
    result: list[Span] = []
    at, before = 0, order[0].start if order else 0
    for mine in launched:
        part = order[at : at + len(mine)]
        at += len(mine)
        result.append(Span(part[0].start if part else before, sum(kernel.end - kernel.start for kernel in part)))
        before = part[-1].end if part else before
    return result
