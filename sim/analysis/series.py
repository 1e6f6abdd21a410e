"""Batch size, requests in the system, KV cache and bandwidth over time: means over equal parts of a run, exact before rounding.

A run is cut into at most `BINS` parts of equal length, a power of two in ps. A value that holds during [start, end) counts in
each part for as long as it holds there. Sums are integers, so that they do not depend on an order of additions; where they
could overflow, times are first divided by a power of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.analysis.channels import deliver_over_time
from sim.analysis.tally import BINS, Tally, width_of
from sim.base.kernel import launch
from sim.base.units import ceil_div
from sim.log import derived
from sim.log.columns import is_large, services_of, viewed
from sim.log.tables import EventLog
from sim.machine.kv_cache import LayerGroup

Times = npt.NDArray[np.int64]

MEMBERS = 1 << 16  # of sequences at a time, about


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Means over parts of `width` ps each, from 0; the last part may reach beyond the end of the run.

    batch: sequences that the steps in progress take in. in_system: requests that have arrived and not ended. kv_tokens: tokens
    that sequences have brought into the KV cache, those that they share counted once. kv_bytes: of the tokens that it holds,
    without the rest of their pages. bytes_per_s: through all channels of the memory.
    """

    width: int
    batch: npt.NDArray[np.float64]
    in_system: npt.NDArray[np.float64]
    kv_tokens: npt.NDArray[np.float64]
    kv_bytes: npt.NDArray[np.float64]
    bytes_per_s: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Values that count from `start` to `end` (ps), one per row; a level is the sum of those that count."""

    start: Times
    end: Times
    value: Times

    @classmethod
    def joined(cls, parts: Iterable[Levels]) -> Levels:
        """The levels of all parts, of which there may be none: those of a time in which the draft model alone takes steps."""
        none = np.zeros(0, dtype=np.int64)
        columns = zip((none, none, none), *((each.start, each.end, each.value) for each in parts), strict=True)
        start, end, value = map(np.concatenate, columns)
        return cls(start=start, end=end, value=value)


def series(
    log: EventLog, arrival: Times, last: Times, kv_layers: Sequence[LayerGroup] = (), tally: Tally | None = None
) -> Series:  # fmt: skip
    """The series of a run. arrival, last: ps, of each request. tally: sums over the log, if they have been made."""
    width, work = _work(log) if tally is None else (tally.width, tally.bins)
    count = max(1, ceil_div(log.makespan, width))
    batch, most = batches(log), int(2 * log.members.loads.sum() + log.members.query.sum())
    tokens = _means(cached(log), most, width, count)
    held = [
        tokens if group[::2] == (None, 1) else _means(cached(log, group.window, group.rate), most, width, count)
        for group in kv_layers
    ]
    return Series(
        width=width,
        batch=_means([batch], int(batch.value.sum()), width, count),
        in_system=_means([Levels(start=arrival, end=last, value=np.ones_like(arrival))], len(arrival), width, count),
        kv_tokens=tokens,
        kv_bytes=sum((each * group.bytes for each, group in zip(held, kv_layers, strict=True)), np.zeros_like(tokens)),
        bytes_per_s=np.round(work[:count] * (log.bandwidth / width), 3),
    )


def batches(log: EventLog) -> Levels:
    """Sequences that each step takes in."""
    members = log.members
    size = np.bincount(members.step[members.query > 0], minlength=len(log.steps)).astype(np.int64)
    return Levels(start=log.steps.released, end=log.steps.end, value=size)


def cached(log: EventLog, window: int | None = None, rate: int = 1) -> Iterator[Levels]:
    """Tokens in the KV cache: from the release of a step what it found and what it adds, after its end what the next one finds.

    Before its first step and after its last one a sequence holds nothing, nor while its cache is swapped out: that counts until
    it is out, and again from when it moves in. Some sequences at a time, since a long run has millions of members.
    window: of a layer, which finds no more than the tokens that a query sees before its own; None if it sees all; 0 counts
    sequences instead of tokens. rate: tokens of a row, if rows are counted.
    """
    members, steps = log.members, log.steps
    order = np.lexsort((steps.released[members.step], members.sequence))
    left_out = derived.drafts(log) | derived.between_tiers(log)  # the draft model's cache follows that of the model
    order = order[~left_out[members.step[order]]]
    by_sequence = members.sequence[order]
    begin = 0
    while begin < len(order):
        last = by_sequence[min(begin + MEMBERS, len(order)) - 1]
        after = int(np.searchsorted(by_sequence, last, side="right"))
        yield from _cached(log, order[begin:after], window, rate)
        begin = after


def _cached(log: EventLog, rows: npt.NDArray[np.intp], window: int | None, rate: int) -> Iterator[Levels]:
    """The levels of some sequences. rows: of the table of members, by sequence and time; all columns below are [row]."""
    members, steps = log.members, log.steps
    sequence, step = members.sequence[rows], members.step[rows]
    found, fed = members.loads[rows], members.query[rows].astype(np.int64)
    found = found if window is None else np.minimum(found, window - 1) if window else np.ones_like(found)
    released, end = steps.released[step], steps.end[step]
    goes_on = np.append(sequence[1:] == sequence[:-1], False)  # the next row is of the same sequence
    until = np.where(goes_on, np.append(released[1:], 0), end)
    end = np.minimum(end, until)  # steps of known tokens overlap: the last that was released holds all
    in_memory = goes_on & ~_swapped_out(sequence, (fed == 0) & (members.emitted[rows] == 0))
    yield Levels(start=released, end=end, value=found if window == 0 else (found + fed) // rate)
    yield Levels(start=end, end=np.maximum(until, end), value=np.where(in_memory, np.append(found[1:], 0) // rate, 0))


def _swapped_out(sequence: npt.NDArray[np.integer], swaps: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Whether each row is a swap out of the memory: the swaps of a sequence alternate, out and in. Rows are by sequence."""
    so_far = np.cumsum(swaps)
    first = np.searchsorted(sequence, sequence)  # row where the sequence of each row begins
    before: Times = so_far[first] - swaps[first]  # swaps of earlier sequences
    return np.asarray(swaps & ((so_far - before) % 2 == 1))


def _means(levels: Iterable[Levels], most: int, width: int, count: int) -> npt.NDArray[np.float64]:
    """The mean of the sum of all levels in each part. most: the sum of their values is not larger."""
    shift = max(0, (most * width).bit_length() - 62)
    total = sum((_integrals(each, width, count, shift) for each in levels), start=np.zeros(count, dtype=np.int64))
    return np.round(total / (width >> shift or 1), 6)


def _integrals(levels: Levels, width: int, count: int, shift: int) -> Times:
    """Value times ps (of 2^shift each) in each part."""
    keep = levels.start < levels.end
    start, end, value = levels.start[keep], levels.end[keep], levels.value[keep]
    first, last = start // width, (end - 1) // width
    total = np.zeros(count + 1, dtype=np.int64)
    np.add.at(total, first, value * ((np.minimum(end, (first + 1) * width) - start) >> shift))
    several = first < last
    np.add.at(total, last[several], value[several] * ((end - last * width)[several] >> shift))
    whole = np.zeros(count + 1, dtype=np.int64)  # parts that lie inside
    np.add.at(whole, first[several] + 1, value[several])
    np.add.at(whole, last[several], -value[several])
    return np.asarray((total + np.cumsum(whole) * (width >> shift))[:count])


def _work(log: EventLog) -> tuple[int, Times]:
    """The width of each part in ps, and what all channels of the memory delivered in it, in ps of bandwidth."""
    width = width_of(log.makespan)
    work = np.zeros(BINS + 1, dtype=np.int64)
    compiled = is_large(log)
    launch(deliver_over_time, compiled=compiled)(viewed(services_of(log), compiled=compiled), log.machine.memories, width, work)
    return width, work
