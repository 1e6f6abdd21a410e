"""Occupancy of SRAM: which operands held it while loads waited for space.

A clock counts how long loads of a device wait: one picosecond for each of them. An operand that is in use there meanwhile holds
its bytes for so many *byte-picoseconds*, and the wait is split in proportion to these. There are two clocks: one of all waits
for space, and one of the part that is `wait_sram`, in which neither a channel nor the engines were the cause
(`sim.analysis.sram_waits`). Of several devices the shares are summed.

A task that loads its own operands waits for space while an engine is idle. Space that a load gets before its inputs have ended
counts from its issue. Resident weights cause no wait: the SRAM of operands is what they leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.analysis.breakdown import Breakdown
from sim.analysis.parts import WAIT_SRAM
from sim.analysis.rules import Rules
from sim.analysis.sram import Uses, most_in_use, uses
from sim.analysis.sram_waits import Causes, causes, counts_over_time, stretches
from sim.base.errors import SimulationError
from sim.base.integers import LARGEST
from sim.cost.fixed import largest_remainder
from sim.log import derived
from sim.log.columns import Ints, is_large
from sim.log.tables import EventLog
from sim.mapping.tasks import CLASS_BIT

#: Names of operands, by the class of their bytes.
OPERANDS = {CLASS_BIT["weight"]: "weights", CLASS_BIT["kv_read"]: "KV cache", CLASS_BIT["state_read"]: "states"}

Operand = tuple[str, str, int]
Key = tuple[str, str | int]

#: Byte-picoseconds of operands of a device, by both clocks.
Sums = dict[Operand, list[int]]


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
class Space:
    """SRAM of a device. capacity: bytes for operands. most: bytes in use at once. wait: ps that loads waited for it; wait_sram:
    the part that is `wait_sram` in the breakdown.
    """

    capacity: int
    most: int
    wait: int
    wait_sram: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """devices: the SRAM of each. by_kind, the largest first, and by_layer, in order, split the waits of all exactly.

    Of several devices those waits are left out in which a device held no operand: its loads waited for space on others, which
    take turns with it.
    """

    devices: tuple[Space, ...]
    by_kind: tuple[Held, ...]
    by_layer: tuple[Held, ...]

    @property
    def fullest(self) -> Space:
        """The SRAM of which the largest share was in use at once."""
        return max(self.devices, key=lambda space: Fraction(space.most, max(1, space.capacity)))

    @property
    def wait(self) -> int:
        """Picoseconds that loads waited for space."""
        return sum(space.wait for space in self.devices)

    @property
    def wait_sram(self) -> int:
        """The part of the wait that is `wait_sram` in the breakdown, ps."""
        return sum(space.wait_sram for space in self.devices)


def occupancy(log: EventLog, rules: Rules, breakdown: Breakdown) -> Occupancy | None:
    """Occupancy of bounded SRAM; None if it is unbounded. Raises SimulationError if waits differ from those of `breakdown`."""
    if rules.sram is None:
        return None
    clocks = _clocks(log, rules)
    devices = tuple(
        Space(capacity=capacity, most=most, wait=all_waits.total, wait_sram=space.total)
        for capacity, most, (all_waits, space) in zip(rules.sram, most_in_use(log), clocks, strict=True)
    )
    waited, wanted = sum(space.wait_sram for space in devices), int(breakdown.total[WAIT_SRAM])
    if waited != wanted:
        raise SimulationError(f"invariant does not hold: loads waited {waited} ps for SRAM itself, tasks {wanted} ps")
    held = _held(log, clocks)
    return Occupancy(
        devices=devices,
        by_kind=tuple(sorted(_given_out(held, clocks, lambda key: key[:2]), key=lambda each: (-each.wait, each.operand))),
        by_layer=tuple(_given_out(held, clocks, lambda key: (key[0], key[2]))),
    )


def _held(log: EventLog, clocks: Sequence[tuple[_Clock, _Clock]]) -> list[Sums]:
    """Byte-picoseconds of operands, of each device. clocks: [device]."""
    held: list[Sums] = [{} for _ in clocks]
    for use in uses(log):
        on = use.graph.device[use.task]  # [operand]
        for device in np.unique(on).tolist():
            mine = np.flatnonzero(on == device)
            size, begin, end = (column[mine] for column in (use.size, use.begin, use.end))
            ticks = [_products(size, clock.at(end) - clock.at(begin)) for clock in clocks[device]]
            for operand, task in enumerate(use.task[mine].tolist()):
                sums = held[device].setdefault(_key(use, task), [0, 0])
                for which in range(len(sums)):
                    sums[which] += ticks[which][operand]
    return held


def _key(use: Uses, task: int) -> Operand:
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


def _clocks(log: EventLog, rules: Rules) -> list[tuple[_Clock, _Clock]]:
    """The clocks of each device: of all waits for space, and of waits for space itself. The last rate of both is 0."""
    found = causes(log, bounded_sram=True, compiled=is_large(log))
    waits, several = np.flatnonzero(log.tasks.ready < log.tasks.start), len(log.machine.devices) > 1
    mine = derived.device(log)[waits] if several else np.zeros(len(waits), dtype=np.int32)
    return [_clocks_of(log, rules, found, waits[mine == device], device) for device in range(len(log.machine.devices))]


def _clocks_of(log: EventLog, rules: Rules, found: Causes, waits: Ints, device: int) -> tuple[_Clock, _Clock]:
    """The clocks of a device. waits: rows of tasks of it that waited before they started."""
    tasks, engines = log.tasks, log.machine.devices[device].engines
    by_dma = waits[tasks.engine[waits] < 0]
    by_engine = waits[(tasks.engine[waits] >= 0) & (tasks.work[waits] > 0) & rules.waits_for_sram]
    held = np.flatnonzero((tasks.engine >= engines.start) & (tasks.engine < engines.stop)) if len(by_engine) else by_engine
    time, (dma, engine, busy, serving, queue) = counts_over_time(
        (tasks.ready[by_dma], tasks.start[by_dma]),
        (tasks.ready[by_engine], tasks.start[by_engine]),
        (tasks.start[held], tasks.end[held]),
        stretches(found.begin, found.before, found.first, device),
        stretches(found.queue_begin, found.queue_before, found.queue_first, device),
    )
    on_engines = engine * (busy < len(engines))
    return _clock(time, dma + on_engines), _clock(time, dma * ((serving == 0) & (queue == 0)) + on_engines)


def _clock(time: Ints, rate: Ints) -> _Clock:
    """A clock that runs at rates [edge] from times [edge] on; at 0 after the last of them."""
    time, rate = np.append(0, time), np.append(0, rate)
    if int(time[-1]) * int(rate.max()) >= LARGEST:
        rate = rate.astype(object)
    return _Clock(time, rate, np.append(0, np.cumsum(rate[:-1] * np.diff(time))))


def _products(size: Ints, ticks: Ints) -> list[int]:
    """Sums over steps of size [operand, step] times ticks [operand, step], which int64 may not hold."""
    exact = int(size.max(initial=0)) * int(ticks.max(initial=0)) * max(1, size.shape[1]) < LARGEST
    found: list[int] = (size * ticks if exact else size.astype(object) * ticks).sum(axis=1).tolist()
    return found


def _given_out(held: Sequence[Sums], clocks: Sequence[tuple[_Clock, _Clock]], group: Callable[[Operand], Key]) -> list[Held]:
    """Split what the clocks of each device show in the end over groups of operands there, in proportion to their
    byte-picoseconds, and sum the shares of all devices. held, clocks: [device].
    """
    found: dict[Key, list[int]] = {}  # byte-picoseconds, wait, wait for space itself
    for of_device, both in zip(held, clocks, strict=True):
        sums: dict[Key, list[int]] = {}
        for key, mine in of_device.items():
            of = sums.setdefault(group(key), [0] * len(mine))
            for which, each in enumerate(mine):
                of[which] += each
        kept = {key: mine for key, mine in sums.items() if mine[0]}
        shares = [
            largest_remainder([mine[which] for mine in kept.values()], clock.total) if kept else []
            for which, clock in enumerate(both)
        ]
        for (key, mine), *parts in zip(kept.items(), *shares, strict=True):
            found[key] = [a + b for a, b in zip(found.get(key, (0, 0, 0)), (mine[0], *parts), strict=True)]
    return [
        Held(operand=operand, of=of, byte_ps=byte_ps, wait=wait, wait_sram=space)
        for (operand, of), (byte_ps, wait, space) in found.items()
    ]
