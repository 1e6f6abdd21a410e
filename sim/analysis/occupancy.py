"""Occupancy of SRAM: which operands held it while loads waited for space.

A clock counts how long loads wait: one picosecond for each of them. An operand that is in use meanwhile holds its bytes for so
many *byte-picoseconds*, and the wait is split in proportion to these. There are two clocks: one of all waits for space, and one
of the part that is `wait_sram`, in which neither a channel nor the engines were the cause (`sim.analysis.sram_waits`).

A task that loads its own operands waits for space while an engine is idle. Space that a load gets before its inputs have ended
counts from its issue. Resident weights cause no wait: the SRAM of operands is what they leave.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.analysis.breakdown import Breakdown
from sim.analysis.parts import WAIT_SRAM
from sim.analysis.rules import Rules
from sim.analysis.sram import Uses, most_in_use, uses
from sim.analysis.sram_waits import causes, counts_over_time, stretches
from sim.base.errors import SimulationError
from sim.base.integers import LARGEST
from sim.cost.fixed import largest_remainder
from sim.log.columns import Ints, is_large
from sim.log.tables import EventLog
from sim.mapping.tasks import CLASS_BIT

#: Names of operands, by the class of their bytes.
OPERANDS = {CLASS_BIT["weight"]: "weights", CLASS_BIT["kv_read"]: "KV cache", CLASS_BIT["state_read"]: "states"}

Key = tuple[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """SRAM that operands held while loads waited. operand: of `OPERANDS`. of: a kind of op, or a layer (-1: outside of layers).

    byte_ps: bytes times picoseconds, once for each load that waited. wait, wait_sram: ps, shares of those of `Occupancy`.
    """

    operand: str
    of: str | int
    byte_ps: int
    wait: int
    wait_sram: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """capacity: bytes of SRAM for operands. most: bytes in use at once. wait: ps that loads waited for space; wait_sram: the
    part that is `wait_sram` in the breakdown. by_kind, the largest first, and by_layer, in order, split both exactly.
    """

    capacity: int
    most: int
    wait: int
    wait_sram: int
    by_kind: tuple[Held, ...]
    by_layer: tuple[Held, ...]


def occupancy(log: EventLog, rules: Rules, breakdown: Breakdown) -> Occupancy | None:
    """Occupancy of bounded SRAM; None if it is unbounded. Raises SimulationError if waits differ from those of `breakdown`."""
    if rules.sram is None:
        return None
    all_waits, space = clocks = _clocks(log, rules)
    if space.total != (wanted := int(breakdown.total[WAIT_SRAM])):
        raise SimulationError(f"invariant does not hold: loads waited {space.total} ps for SRAM itself, tasks {wanted} ps")
    held: dict[tuple[str, str, int], list[int]] = {}
    for use in uses(log):
        ticks = [_product(use.size, clock.at(use.end) - clock.at(use.begin)) for clock in clocks]
        for operand, task in enumerate(use.task.tolist()):
            sums = held.setdefault(_key(use, task), [0, 0])
            for which in range(len(clocks)):
                sums[which] += int(ticks[which][operand])
    return Occupancy(
        capacity=rules.sram, most=most_in_use(log), wait=all_waits.total, wait_sram=space.total,
        by_kind=tuple(sorted(_given_out(held, clocks, lambda key: key[:2]), key=lambda each: (-each.wait, each.operand))),
        by_layer=tuple(_given_out(held, clocks, lambda key: (key[0], key[2]))),
    )  # fmt: skip


def _key(use: Uses, task: int) -> tuple[str, str, int]:
    """Operand, kind of op and layer of the operand that a task loads."""
    moves = int(use.graph.moves[task])
    operand = next(name for bit, name in OPERANDS.items() if moves & bit)
    return operand, use.graph.ops.ops[int(use.graph.op[task])].kind, int(use.graph.layer[task])


class _Clock(NamedTuple):
    """A clock that runs at `rate` [stretch] from `time` [stretch] on. before: [stretch], ps that it shows then."""

    time: Ints
    rate: Ints
    before: Ints

    @property
    def total(self) -> int:
        """Picoseconds in all."""
        return int(self.before[-1])

    def at(self, time: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Picoseconds that it shows at times."""
        last = np.searchsorted(self.time, time, side="right") - 1
        shown = self.before[last] + self.rate[last] * (time - self.time[last])
        return np.asarray(np.where(last >= 0, shown, 0))


def _clocks(log: EventLog, rules: Rules) -> tuple[_Clock, _Clock]:
    """The clocks of all waits for space, and of waits for space itself. The last rate of both is 0."""
    tasks = log.tasks
    waits = tasks.ready < tasks.start
    by_dma = np.flatnonzero(waits & (tasks.engine < 0))
    by_engine = np.flatnonzero(waits & (tasks.engine >= 0) & (tasks.work > 0) & rules.waits_for_sram)
    held = np.flatnonzero(tasks.engine >= 0) if len(by_engine) else by_engine
    found = causes(log, bounded_sram=True, compiled=is_large(log))
    time, (dma, engine, busy, serving, queue) = counts_over_time(
        (tasks.ready[by_dma], tasks.start[by_dma]),
        (tasks.ready[by_engine], tasks.start[by_engine]),
        (tasks.start[held], tasks.end[held]),
        stretches(found.begin, found.before),
        stretches(found.queue_begin, found.queue_before),
    )
    on_engines = engine * (busy < log.engines)
    return _clock(time, dma + on_engines), _clock(time, dma * ((serving == 0) & (queue == 0)) + on_engines)


def _clock(time: Ints, rate: Ints) -> _Clock:
    """A clock that runs at rates [edge] from times [edge] on; at 0 after the last of them."""
    time, rate = np.append(0, time), np.append(0, rate)
    if int(time[-1]) * int(rate.max()) >= LARGEST:
        rate = rate.astype(object)
    return _Clock(time, rate, np.append(0, np.cumsum(rate[:-1] * np.diff(time))))


def _product(size: Ints, ticks: Ints) -> list[int]:
    """Sums over steps of size [operand, step] times ticks [operand, step], which int64 may not hold."""
    exact = int(size.max(initial=0)) * int(ticks.max(initial=0)) * max(1, size.shape[1]) < LARGEST
    found: list[int] = (size * ticks if exact else size.astype(object) * ticks).sum(axis=1).tolist()
    return found


def _given_out(
    held: dict[tuple[str, str, int], list[int]], clocks: tuple[_Clock, ...], group: Callable[[tuple[str, str, int]], Key]
) -> list[Held]:
    """Split what the clocks show in the end over groups of operands, in proportion to their byte-picoseconds."""
    sums: dict[Key, list[int]] = {}
    for key, mine in held.items():
        of = sums.setdefault(group(key), [0] * len(mine))
        for which, each in enumerate(mine):
            of[which] += each
    kept = {key: mine for key, mine in sums.items() if mine[0]}
    shares = [
        largest_remainder([mine[which] for mine in kept.values()], clock.total) if kept else []
        for which, clock in enumerate(clocks)
    ]
    return [
        Held(operand=key[0], of=key[1], byte_ps=mine[0], wait=wait, wait_sram=space)
        for (key, mine), wait, space in zip(kept.items(), *shares, strict=True)
    ]
