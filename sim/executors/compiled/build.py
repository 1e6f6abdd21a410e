"""Lay out the memory of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.base.pointers import pointer_to
from sim.executors.compiled.heaps import ENTRY
from sim.executors.compiled.state import (
    ADMITTED, ADMIT_LIST, AGE, AGE_TIME, BESIDE, BOUND_TABLE, BY_AGE, BY_CLASS, BY_KIND, BY_PATH, BY_REST, BY_RULE,
    BY_SEQUENCE, CELL, CHAINED, CHANNELS, CHANNEL_TABLE, CHANNEL_WORDS, CLASS, CLOCK, CLOCK_LEAVES, COMPLETE, DEVICES,
    DEVICE_ENGINES, DEVICE_MARKS, DISPATCH_LIST, ENGINES, EXCLUSIVE, FETCH_TABLE, FETCH_WORDS, FIRST_PART, F_DEVICE, F_LOOP,
    IDLES, IDLE_WORDS, IN_ORDER, KNOWN, K_ARRIVALS, K_BURST, K_CAP, K_CAP_OF, K_CLASSES, K_CLASS_COUNT, K_CONSERVES,
    K_DENOMINATOR, K_DERATED, K_DISCIPLINE, K_EFFICIENCIES, K_EFFICIENCY, K_FIRST, K_FIXED_RATES, K_HEADS, K_HEAP, K_HOPS,
    K_LAST, K_LAST_PORT, K_LATENCY, K_LATER, K_LEAF, K_LINKS, K_LINK_COUNT, K_MEMORY, K_MEMORY_WORDS, K_MOST, K_NUMBER, K_ONE,
    K_PART, K_PATHS, K_PORTS, K_PREEMPTIVE, K_READS, K_RECORDS, K_RING, K_RING_SIZE, K_RULE, K_SEQUENCE_CLASS, K_SERVED,
    K_SHARE, K_TIMER, K_TURN, K_UNTIL, K_URGENCY, LIMIT, LONGEST_PATH, LOOP_TABLE, LOOP_WORDS, L_FETCHES, MEMORY_CHANNELS,
    NEVER, NONE, OLDEST, OVERLAP, PART, PHASE, PLAN_LIST, QUEUE_TABLE, QUEUE_WORDS, Q_FIRST, Q_FREE, Q_LAST, Q_PASSED, RANKING,
    READY, READY_WORDS, REGISTERS, REPLICA_DEVICES, RING_ENTRY, ROUTE, RUNNING, SHORTEST, SRAM, TURN_BY_TURN, TURN_LIST, WAKES,
    W_CAPACITY, W_HEAP, W_WEIGHT,
)  # fmt: skip
from sim.executors.setup import Setup, Unit
from sim.machine.arbiters.disciplines import MOST, Discipline
from sim.machine.arbiters.paths import FLOW, LINK
from sim.machine.arbiters.written import TRANSFER_WORDS
from sim.machine.routes import ROUTES
from sim.machine.schedulers import CriticalPath, Earliest, OldestToken, Serial, Shortest, Sticky

Words = npt.NDArray[np.int64]

#: How the shipped schedulers rank tasks.
RANKINGS: dict[type[Any], int] = {
    Earliest: IN_ORDER, Serial: IN_ORDER, Sticky: IN_ORDER, OldestToken: OLDEST, Shortest: SHORTEST, CriticalPath: LONGEST_PATH,
}  # fmt: skip

KINDS = {
    "exclusive": EXCLUSIVE, "turns": TURN_BY_TURN, "classes": BY_CLASS, "outstanding": BY_REST, "rule": BY_RULE,
    "paths": BY_PATH,
}  # fmt: skip
BY = {"kind": BY_KIND, "age": BY_AGE, "sequence": BY_SEQUENCE}


class Layout:
    """Hands out addresses, and then makes the memory."""

    def __init__(self) -> None:
        self.words = 0
        self._values: list[tuple[int, int, Any]] = []

    def take(self, words: int, value: Any = None) -> int:
        """The address of so many words, 0 unless a value (or one for each) is given."""
        at, self.words = self.words, self.words + words
        if value is not None:
            self._values.append((at, words, value))
        return at

    def put(self, at: int, values: Any) -> None:
        """Give words their values."""
        self._values.append((at, len(values), values))

    def heap(self, entries: int) -> int:
        """The address of a heap with a capacity of so many entries."""
        return self.take(1 + 3 * entries)

    def memory(self) -> Words:
        """The array."""
        m = np.zeros(self.words, dtype=np.int64)
        for at, words, value in self._values:
            m[at : at + words] = value
        return m


class MemoryPlan:
    """The memory that every run of a setup needs: registers, channels, heaps. cells: most in progress at one time."""

    def __init__(self, setup: Setup, disciplines: Sequence[Discipline], *, loops: int, cells: int) -> None:
        self.setup, self.loops = setup, loops
        self.layout = layout = Layout()
        self.ports = requesters(setup)
        self.registers = registers(setup)
        layout.take(REGISTERS)
        self.cell = self.registers[CELL] = FIRST_PART + PART * setup.memory_channels_each
        addresses = {
            RUNNING: layout.heap(setup.engines), IDLES: self._idle_heaps(), WAKES: layout.heap(loops),
            TURN_LIST: layout.take(2 * loops),
            BOUND_TABLE: layout.take(setup.engines, NONE),
            LOOP_TABLE: layout.take(loops * LOOP_WORDS), CHANNEL_TABLE: layout.take(len(setup.units) * CHANNEL_WORDS),
            **self._sram(),
        }  # fmt: skip
        self.registers.update(addresses)
        self._clock(len(setup.units))
        self.channels = [
            {**self._channel(number, unit, discipline), **self._policy(discipline), K_LATENCY: unit.latency}
            for number, (unit, discipline) in enumerate(zip(setup.units, disciplines, strict=True))
        ]
        self.lists(cells)

    def lists(self, cells: int) -> None:
        """Lists that may hold all cells at once."""
        layout = self.layout
        self.registers[READY_WORDS] = ready = 1 + ENTRY * cells
        self.registers[READY] = layout.take(self.setup.devices * ready)
        for channel in self.channels:
            size = ring_size(cells) if channel[K_LATENCY] else 1
            channel |= {K_ARRIVALS: layout.take(cells), K_HEADS: layout.take(cells)}
            channel |= {K_RING: layout.take(RING_ENTRY * size), K_RING_SIZE: size}

    def memory(self) -> Words:
        """The memory, with registers and channels filled in; loops, slots and cells are 0."""
        m = self.layout.memory()
        for register, value in self.registers.items():
            m[register] = value
        for number, channel in enumerate(self.channels):
            for word, value in (channel | {K_LEAF: self.registers[CLOCK_LEAVES] + number}).items():
                m[self.registers[CHANNEL_TABLE] + number * CHANNEL_WORDS + word] = value
        for number, device in enumerate(self.setup.machine.devices):
            idle = self.registers[IDLES] + number * self.registers[IDLE_WORDS]
            m[idle] = len(device.engines)
            m[idle + 1 : idle + 1 + ENTRY * len(device.engines) : ENTRY] = device.engines
        if self.setup.sram is not None:
            self._fill_sram(m, self.setup.sram)
        return m

    def _sram(self) -> dict[int, int]:
        """The addresses of queues for SRAM, one for each device, and of what waits in them; none if it is unbounded."""
        devices, layout = self.setup.devices, self.layout
        if self.setup.sram is None:
            return {}
        return {
            QUEUE_TABLE: layout.take(devices * QUEUE_WORDS), ADMIT_LIST: layout.take(devices), ADMITTED: layout.take(devices),
            FETCH_TABLE: layout.take(self.loops * self.registers[REPLICA_DEVICES] * FETCH_WORDS),
        }  # fmt: skip

    def _fill_sram(self, m: Words, sram: Sequence[int]) -> None:
        """Fill in the queues and the fetches, and where those of each loop are. sram: bytes [device]."""
        queues = _records(m, self.registers[QUEUE_TABLE], len(sram), QUEUE_WORDS)
        queues[Q_FREE], queues[[Q_FIRST, Q_LAST, Q_PASSED]] = sram, NONE
        first, each = self.registers[FETCH_TABLE], self.registers[REPLICA_DEVICES]
        loops = _records(m, self.registers[LOOP_TABLE], self.loops, LOOP_WORDS)
        loops[L_FETCHES] = first + np.arange(self.loops) * each * FETCH_WORDS
        fetches = _records(m, first, self.loops * each, FETCH_WORDS)
        fetches[F_LOOP] = self.registers[LOOP_TABLE] + np.repeat(np.arange(self.loops), each) * LOOP_WORDS
        fetches[F_DEVICE] = np.tile(np.arange(each), self.loops)

    def _clock(self, units: int) -> None:
        """The clock of channels, and the lists of what an instant has changed."""
        leaves = 1 << (units - 1).bit_length()
        self.registers |= {
            CLOCK: self.layout.take(2 * leaves, NEVER), CLOCK_LEAVES: leaves, PLAN_LIST: self.layout.take(units),
            DISPATCH_LIST: self.layout.take(self.setup.devices), DEVICE_MARKS: self.layout.take(self.setup.devices),
        }  # fmt: skip

    def _idle_heaps(self) -> int:
        """The address of the heaps of idle engines, one for each device."""
        self.registers[IDLE_WORDS] = words = 1 + ENTRY * 2 * self.setup.engines_each
        return self.layout.take(self.setup.devices * words)

    def _channel(self, number: int, unit: Unit, discipline: Discipline) -> dict[int, int]:
        """Its words at the beginning of a run, and addresses of its lists."""
        layout, kind, setup = self.layout, discipline.kind, self.setup
        ports = self.ports * len(unit.channels)  # where there are several links, those of each
        # A task goes to channels of the memory of its device, or to one link: parts of its cell are for these.
        place = number % setup.memory_channels_each if number < setup.memory_channels else 0
        weights = (0,) * ports if kind in {"outstanding", "rule"} else discipline.weights
        table = layout.take(len(weights) * CLASS)
        for i, weight in enumerate(weights):
            capacity = 2 * ports + 16 if kind == "classes" else 0
            record = {W_WEIGHT: weight, W_HEAP: layout.heap(capacity), W_CAPACITY: capacity}
            layout.put(table + i * CLASS, [record.get(word, 0) for word in range(CLASS)])
        return {
            K_NUMBER: unit.channels.start, K_PART: FIRST_PART + place * PART, K_TIMER: NEVER, K_SERVED: NONE, K_TURN: NONE,
            K_UNTIL: NEVER, K_LAST_PORT: NONE, K_FIRST: NONE, K_LAST: NONE, K_HEAP: layout.heap(ports),
            K_LATER: layout.heap(ports),
            K_PORTS: layout.take(2 * ports, NONE), K_CLASSES: table,
            K_RECORDS: layout.take({"rule": TRANSFER_WORDS, "paths": FLOW}.get(kind, 0) * ports),
            K_MEMORY: layout.take(len(discipline.memory), discipline.memory), **self._paths(unit),
        }  # fmt: skip

    def _paths(self, unit: Unit) -> dict[int, int]:
        """The words of links that are divided together, with the paths that cross them; of a channel, that it is one."""
        if not unit.joint:
            return {K_LINK_COUNT: 1, K_HOPS: 1}
        layout, first, paths = self.layout, unit.channels.start, self.setup.machine.paths
        starts, longest = layout.take(2 * len(paths)), 1
        for number, path in enumerate(paths):
            if path and path[0] in unit.channels:
                at = layout.take(len(path), [link - first for link in path])
                layout.put(starts + 2 * number, [at, at + len(path)])
                longest = max(longest, len(path))
        return {
            K_LINK_COUNT: len(unit.channels), K_LINKS: layout.take(LINK * len(unit.channels)), K_PATHS: starts, K_HOPS: longest,
        }  # fmt: skip

    def _policy(self, discipline: Discipline) -> dict[int, int]:
        """The words that say how its arbiter divides it."""
        kind, alone, (cap, cap_of) = discipline.kind, discipline.alone, discipline.cap
        return {
            K_DISCIPLINE: KINDS[kind], K_URGENCY: BY[discipline.by], K_PREEMPTIVE: int(discipline.preemptive),
            K_SHARE: alone.numerator, K_DENOMINATOR: alone.denominator, K_BURST: discipline.burst,
            K_CLASS_COUNT: len(discipline.weights), K_CAP: cap, K_CAP_OF: cap_of, K_FIXED_RATES: int(discipline.whole > 0),
            K_DERATED: int(bool(discipline.efficiency)), K_ONE: int(discipline.one),
            K_MOST: MOST // discipline.growth if kind == "outstanding" else discipline.whole,
            K_RULE: 0 if discipline.rule is None else pointer_to(discipline.rule, compiled=True),
            K_MEMORY_WORDS: len(discipline.memory), K_READS: int(discipline.reads), K_CONSERVES: int(discipline.conserves),
            K_SEQUENCE_CLASS: self._classes_of_sequences(discipline), K_EFFICIENCY: self._efficiency(discipline),
            K_EFFICIENCIES: max(1, len(discipline.efficiency)),
        }  # fmt: skip

    def _classes_of_sequences(self, discipline: Discipline) -> int:
        """[sequence]: its class, where arbiters weigh by sequence."""
        owners = (self.ports - self.setup.engines) // 2 if discipline.by == "sequence" else 0
        classes = [discipline.levels.get(str(i), discipline.other) for i in range(owners)]
        return self.layout.take(owners, classes)

    def _efficiency(self, discipline: Discipline) -> int:
        """[n]: numerator and denominator of the efficiency of a channel with n transfers in service."""
        shares = discipline.efficiency
        return self.layout.take(2 * len(shares), [n for share in shares for n in share.as_integer_ratio()])


def _records(m: Words, at: int, count: int, words: int) -> Words:
    """Some records at an address [word, record]; a view."""
    return m[at : at + count * words].reshape(count, words).T


def ring_size(cells: int) -> int:
    """Entries of a ring that so many cells fit: a power of two, so that a place in it takes no division."""
    return 1 << (cells - 1).bit_length()


def requesters(setup: Setup) -> int:
    """Ports of engines, and two DMA queues of each sequence and of each loop."""
    owners = len(setup.sequences)
    if setup.batching is not None:
        owners += setup.batching.loops_of(len(setup.sequences))
    return setup.engines + 2 * owners


def registers(setup: Setup) -> dict[int, int]:
    """Registers at the beginning of a run, address -> value: constants, and initial values."""
    scheduler = setup.scheduler
    limit = setup.engines_each if scheduler.engines is None else min(scheduler.engines, setup.engines_each)
    return {
        AGE: -1, AGE_TIME: NONE, PHASE: COMPLETE, ENGINES: setup.engines, LIMIT: limit, OVERLAP: int(setup.overlap),
        CHANNELS: len(setup.units), MEMORY_CHANNELS: setup.memory_channels_each, ROUTE: ROUTES[setup.route],
        SRAM: int(setup.sram is not None), REPLICA_DEVICES: setup.devices // setup.machine.replicas,
        RANKING: RANKINGS[type(scheduler)], CHAINED: int(isinstance(scheduler, Sticky)),
        KNOWN: int(setup.dependency == "known"), DEVICES: setup.devices,
        DEVICE_ENGINES: setup.engines_each, BESIDE: len(setup.units) - setup.devices * len(setup.machine.tiers),
    }  # fmt: skip
