"""Energy of a run: each femtojoule of it in exactly one place, whichever way it is grouped.

Four things take energy. All products are of integers, so nothing is rounded:

| what    | femtojoules                                                                                      |
| ------- | ------------------------------------------------------------------------------------------------ |
| compute | FLOPs of matrix products, times fJ of a FLOP in their arithmetic                                  |
| memory  | bytes through a channel of the memory, times fJ of a byte                                        |
| link    | bytes over each link to other devices, to the host or another tier, times fJ of a byte over it    |
| static  | picoseconds of the run, times milliwatts of the device and of each engine, whether it runs or not |

Static energy belongs to the steps in progress, at each instant in equal parts; while there is none, it is idle. Between two
changes each of k steps gets a k-th of it, rounded down to fJ, and the rest, below k fJ, counts as idle. What a step got is
split along the parts of its time (`sim.analysis.breakdown`), so that what waits for the channel, an engine or SRAM has its
joules. Of a batched step each sequence has a share by the tokens that it fed in.

Totals may pass int64 (13 s at 700 W): then they are Python integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from models.graph import StepLanes
from sim.analysis.blame import Blame, Matrix
from sim.analysis.breakdown import Breakdown
from sim.analysis.metrics import Metrics
from sim.analysis.parts import PART_COUNT, PARTS, WAIT_CHANNEL, WAIT_ENGINE, WAIT_LINK
from sim.analysis.sums import narrow, split, sum_by, sum_of, times
from sim.base.errors import SimulationError
from sim.base.integers import LARGEST
from sim.cost.amounts import AmountTable
from sim.cost.fixed import largest_remainder
from sim.log.tables import EventLog
from sim.machine.energy import EnergyRates
from sim.machine.machine import PATHS, TIER_PATHS, Machine, Path
from sim.machine.routes import stripe
from sim.mapping.tasks import TaskGraph, path_of

Ints = npt.NDArray[np.int64]

#: Name of the invariant that this module asserts.
INVARIANT = "energy of ops, transfers and static power sums exactly to that of the run"

#: Columns of the table of steps (of kinds all but the last), and of engines.
COMPUTE, MEMORY, LINK, STATIC = range(4)
BUSY, IDLE = 1, 2

#: Paths between devices.
BETWEEN: tuple[Path, ...] = ("link", "network")

_AT_ONCE = 1 << 20  # tasks or rows of steps that are looked at together
MW_PER_W = 1000


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Femtojoules. Numbers that int64 cannot hold are Python integers.

    by_step: [step, (compute, memory, link, static)]. by_part: [step, part], the static energy of each, along the parts of its
    time. static_by_part: [part], of all steps. idle: static energy while no step was in progress. by_kind: [kind, (compute,
    memory, link)]. by_sequence: [sequence], all that its steps took. engines: [engine, (compute, static while held, static
    while not)]. channels: [channel], links included. device: static energy of the device. memory_parts: of all bytes of the
    memory, by what takes it. link_parts: of all bytes over links. unknown: links that bytes went over, without figures, and
    counted as none.
    """

    makespan: int
    tokens: int
    by_step: Ints
    by_part: Ints
    static_by_part: tuple[int, ...]
    idle: int
    kinds: tuple[str, ...]
    by_kind: Ints
    sequences: tuple[int, ...]
    by_sequence: Ints
    engines: Ints
    channels: tuple[int, ...]
    device: int
    memory_parts: dict[str, int] = field(default_factory=dict)
    link_parts: dict[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @cached_property
    def compute(self) -> int:
        """Energy of arithmetic."""
        return sum(self.by_kind[:, COMPUTE].tolist())

    @cached_property
    def memory(self) -> int:
        """Energy of bytes of the memory."""
        return sum(self.by_kind[:, MEMORY].tolist())

    @cached_property
    def link(self) -> int:
        """Energy of bytes over links, between devices and to tiers."""
        return sum(self.by_kind[:, LINK].tolist())

    @cached_property
    def static(self) -> int:
        """Static energy of the device and of all engines."""
        return self.device + sum(self.engines[:, BUSY:].ravel().tolist())

    @property
    def total(self) -> int:
        """All energy of the run."""
        return self.compute + self.memory + self.link + self.static

    @property
    def waiting(self) -> int:
        """Static energy while tokens waited."""
        return sum(each for part, each in zip(PARTS, self.static_by_part, strict=True) if part.startswith("wait"))

    @property
    def per_token(self) -> int:
        """Femtojoules an output token, rounded down; 0 if there is none."""
        return self.total // self.tokens if self.tokens else 0

    @property
    def watts(self) -> float:
        """Mean power, watts."""
        return self.total / self.makespan / MW_PER_W if self.makespan else 0.0

    def causes(self, blame: Blame) -> dict[str, dict[str, int]]:
        """Energy of waits for the channel and for an engine, by the kind of task that caused them, in proportion to `blame`."""
        return {
            "channel": _caused(self.static_by_part[WAIT_CHANNEL] + self.static_by_part[WAIT_LINK], blame.channel_by_kind),
            "engine": _caused(self.static_by_part[WAIT_ENGINE], blame.engine_by_kind),
        }

    def without_steps(self) -> Energy:
        """The same with totals alone."""
        none = np.zeros((0, PART_COUNT), dtype=np.int64)
        return replace(self, by_step=none[:, : STATIC + 1], by_part=none)


def _caused(energy: int, matrix: Matrix) -> dict[str, int]:
    """Energy split over the causes of waits, the largest first."""
    waits = [*matrix.wait.astype(object).sum(axis=0).tolist(), sum(matrix.alone.tolist())]
    if not energy or not sum(waits):
        return {}
    found = zip((*matrix.names, "alone"), largest_remainder(waits, energy), strict=True)
    return dict(sorted(((name, each) for name, each in found if each), key=lambda item: -item[1]))


class Ledger:
    """Counts FLOPs by engine and bytes by channel, part of a log by part, and gives the energy of the run."""

    def __init__(self, rates: EnergyRates, *, engines: int, channels: int, stripes: int) -> None:
        self._rates, self._stripes, self._of_byte = rates, stripes, np.array(rates.of_byte, dtype=object)
        self._engines, self._channels = np.zeros(engines, dtype=object), np.zeros(channels, dtype=object)
        self._tables: dict[int, AmountTable] = {}
        self._crossed = dict[Path, int]()  # bytes between devices, once for each link that they cross

    def add(self, log: EventLog) -> None:
        """Take in a whole log, or the next part of one; where there is one engine and one channel, all is theirs."""
        if len(self._engines) == 1 and len(self._channels) == 1:
            return
        channel = np.full(len(log.tasks), -1, dtype=np.int64)
        channel[log.services.task] = log.services.channel
        for graph, steps, flops, moved in self._blocks(log):
            table = self._table(graph, log.machine)
            row = log.steps.first[steps][:, None] + np.arange(len(graph))  # [lane, task]
            engine = log.tasks.engine[row].astype(np.int64)
            for rate, chosen in by_rate(self._rates, table):
                tasks = np.flatnonzero(chosen[table.rows.of])
                mine, held = flops[:, table.rows.of[tasks]], engine[:, tasks]
                keep = held >= 0
                self._engines += sum_by(mine[keep], held[keep], len(self._engines)).astype(object) * rate
            for path, first in enumerate(_first_channels(log)):
                tasks = np.flatnonzero(table.path[table.rows.of] == path)
                size = moved[:, table.rows.of[tasks]]
                if len(tasks) and PATHS[path] in BETWEEN:
                    self._add_crossed(log, graph, tasks, size, first)
                elif len(tasks):
                    device = np.broadcast_to(graph.device[tasks], (len(steps), len(tasks)))
                    self._add_bytes(path, size, channel[row[:, tasks]], device, first)

    @classmethod
    def beside(cls, ledgers: Sequence[Ledger]) -> Ledger:
        """The ledger of a run of several that share no loop, engine or channel."""
        first = ledgers[0]
        made = cls(first._rates, engines=len(first._engines), channels=len(first._channels), stripes=first._stripes)
        for each in ledgers:
            made._engines, made._channels = made._engines + each._engines, made._channels + each._channels
        return made

    def _add_bytes(self, path: int, moved: Ints, channel: Ints, device: Ints, first: int) -> None:
        """Add bytes over a path, [lane, task]. A transfer that no channel served counts for the `first` of its path."""
        sums: npt.NDArray[Any] = np.zeros(len(self._channels), dtype=object)
        if path == 0 and self._stripes > 1:
            part: Any = stripe  # of integers, but it is arithmetic that arrays have, too
            for i in range(self._stripes):
                of = device.ravel() * self._stripes + i
                sums += sum_by(part(moved, self._stripes, i).ravel(), of, len(sums)).astype(object)
        else:
            of = np.where(channel < 0, first, channel).ravel()
            sums += sum_by(moved.ravel(), of, len(sums)).astype(object)
        self._channels += sums * self._of_byte[path]

    def _add_crossed(self, log: EventLog, graph: TaskGraph, tasks: Ints, moved: Ints, first: int) -> None:
        """Add bytes of transfers to other devices, [lane, task], for each link that they cross.

        first: the first channel of their path. One that stands for all links of a way has the bytes of all of them.
        """
        machine, table = log.machine, self._table(graph, log.machine)
        own = machine.network is None
        ways = (first + graph.device[tasks])[:, None] if own else machine.ways[_numbers(graph, machine)[tasks]]
        each = table.hops[tasks] // np.maximum((ways >= 0).sum(axis=1), 1)
        for place in range(ways.shape[1]):
            there = ways[:, place] >= 0
            size = moved[:, there] * each[there]
            of = np.broadcast_to(ways[there, place], size.shape)
            sums = sum_by(size.ravel(), of.ravel(), len(self._channels)).astype(object)
            self._channels += sums * self._of_byte[table.path[table.rows.of[tasks[0]]]]

    def _table(self, graph: TaskGraph, machine: Machine) -> AmountTable:
        if id(graph) not in self._tables:  # which the table keeps alive
            self._tables[id(graph)] = AmountTable(graph, hops_of(graph, machine, self._rates))
        return self._tables[id(graph)]

    def _blocks(self, log: EventLog) -> Iterator[tuple[TaskGraph, npt.NDArray[np.intp], Ints, Ints]]:
        """Blocks of steps of one graph each: the graph, the steps, FLOPs and bytes of a task of each row [lane, row]."""
        for number, graph in enumerate(log.graphs):
            steps = np.flatnonzero(log.steps.graph == number)
            size = max(1, _AT_ONCE // max(1, len(graph)))
            for first in range(0, len(steps), size):
                block = steps[first : first + size]
                yield graph, block, *self._table(graph, log.machine).amounts(log.lanes(block))

    def result(self, log: EventLog, breakdown: Breakdown, metrics: Metrics, tokens: int) -> Energy:
        """The energy of a whole run, whose log needs no rows. Raises SimulationError if sums differ."""
        rates, engines, makespan = self._rates, len(self._engines), log.makespan
        compute, memory, link, kinds = self._of_steps(log)
        if engines == 1 and len(self._channels) == 1:
            self._engines[0], self._channels[0] = sum(compute.tolist()), sum(memory.tolist())
        static, idle = shared(log.steps.released, log.steps.end, rates.power(engines), makespan)
        by_part = split(static, breakdown.tokens)
        by_step = _table(compute, memory, link, static)
        sequences, by_sequence = _by_sequence(log, narrow(by_step.astype(object).sum(axis=1)))
        busy = np.array(metrics.engine_busy, dtype=object)
        host, *others = (*metrics.bytes_tiers, *(0,) * (len(TIER_PATHS) - len(metrics.bytes_tiers)))
        moved = (
            metrics.bytes_read + metrics.bytes_written, self._crossed["link"], host, self._crossed["network"], *others,
        )  # fmt: skip
        names = sorted(kinds)
        parts = [{name: rate * count for name, rate in of.items()} for of, count in zip(rates.paths, moved, strict=True)]
        result = Energy(
            makespan=makespan, tokens=tokens, by_step=by_step, by_part=by_part, idle=idle, kinds=tuple(names),
            by_kind=narrow(np.array([kinds[name] for name in names], dtype=object).reshape(-1, STATIC)), sequences=sequences,
            by_sequence=by_sequence, static_by_part=tuple(int(each) for each in by_part.astype(object).sum(axis=0)),
            engines=_table(self._engines, busy * rates.engine, (makespan - busy) * rates.engine),
            channels=tuple(map(int, self._channels)), device=rates.device * makespan,
            memory_parts=parts[0], link_parts=_links(parts[1:], moved[1:]),
            unknown=tuple(
                name for name, count, of in zip(log.machine.path_names, moved, rates.paths, strict=True) if count and not of
            ),
        )  # fmt: skip
        _verify(result, rates.power(engines))
        return result

    def _of_steps(self, log: EventLog) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, list[int]]]:
        """Energy of arithmetic, of the memory and of links of each step [step], and of these by kind of task."""
        count, kinds = len(log.steps), dict[str, list[int]]()
        of_rate: dict[int, Ints] = {}
        moved = np.zeros((len(PATHS), count), dtype=np.int64)
        for graph, steps, flops, size in self._blocks(log):
            table = self._table(graph, log.machine)
            for path in np.unique(table.path).tolist():
                moved[path, steps] = size @ (table.crossed * (table.path == path))
            whole = np.zeros(len(table.count), dtype=object)  # [row], fJ of arithmetic of a task, in all steps
            for rate, chosen in by_rate(self._rates, table):
                of_rate.setdefault(rate, np.zeros(count, dtype=np.int64))[steps] = flops @ (table.count * chosen)
                whole += sum_of(flops) * chosen * rate
            bytes_of = sum_of(size) * self._of_byte[table.path]
            amounts = whole, np.where(table.path == 0, bytes_of, 0), np.where(table.path == 0, 0, bytes_of)
            for number, name in enumerate(graph.kinds):
                rows = table.rows.of[graph.kind == number]
                sums = kinds.setdefault(name, [0, 0, 0])
                for column, each in enumerate(amounts):
                    many = np.zeros(len(each), dtype=np.int64)
                    np.add.at(many, rows, 1 if column == COMPUTE else table.hops[graph.kind == number])
                    sums[column] += int(sum((each * many).tolist()))
        compute = sum((times(each, rate).astype(object) for rate, each in of_rate.items()), np.zeros(count, dtype=object))
        memory, *links = (times(each, rate) for each, rate in zip(moved, self._rates.of_byte, strict=True))
        self._crossed = {kind: int(sum_of(moved[PATHS.index(kind)])) for kind in BETWEEN}
        of_links = sum((each.astype(object) for each in links), np.zeros(count, dtype=object))
        return narrow(compute), memory, narrow(of_links), kinds


def hops_of(graph: TaskGraph, machine: Machine, rates: EnergyRates | None) -> Ints:
    """[task]: links that its transfer crosses; 1 for one to a memory or a tier, and where there are no figures."""
    if rates is None:
        return np.ones(len(graph), dtype=np.int64)
    least: Ints = np.array(rates.least_links, dtype=np.int64)[path_of(graph.moves)]
    if machine.network is None or not len(machine.ways):
        return least
    crossed = (machine.ways[_numbers(graph, machine)] >= 0).sum(axis=1)
    return np.where(graph.to >= 0, np.maximum(crossed, least), least)


def _numbers(graph: TaskGraph, machine: Machine) -> Ints:
    """[task]: the number of the way of its transfer to another device in `Machine.ways`; 0 for all else."""
    assert machine.network is not None
    return np.where(graph.to >= 0, graph.device.astype(np.int64) * machine.network.count + graph.to, 0)


def _first_channels(log: EventLog) -> tuple[int, ...]:
    """The first channel of each of `PATHS`; 0 for one that there is not."""
    return tuple(next((n for n, each in enumerate(log.machine.channels) if each.kind == path), 0) for path in PATHS)


def _links(parts: Sequence[dict[str, int]], moved: Sequence[int]) -> dict[str, int]:
    """Energy of all links by part, of those that bytes went over."""
    made: dict[str, int] = {}
    for of, count in zip(parts, moved, strict=True):
        made |= {name: made.get(name, 0) + energy for name, energy in of.items() if count}
    return made


def by_rate(rates: EnergyRates, table: AmountTable) -> list[tuple[int, npt.NDArray[np.bool_]]]:
    """Femtojoules of a FLOP, and [row]: whose FLOPs take so much."""
    known = {dtype: rates.of_flop(dtype) for dtype in np.unique(table.dtype).tolist()}
    return [
        (rate, np.isin(table.dtype, [dtype for dtype, each in known.items() if each == rate]))
        for rate in sorted({each for each in known.values() if each})
    ]


def energy_of(table: AmountTable, rates: EnergyRates, steps: StepLanes) -> int:
    """Femtojoules of arithmetic and of transfers of some steps of a graph, whichever way they are scheduled."""
    flops, moved = table.amounts(steps)
    whole = sum_of(moved) * np.array(rates.of_byte, dtype=object)[table.path] * table.crossed
    for rate, chosen in by_rate(rates, table):
        whole += sum_of(flops) * chosen * rate * table.count
    return int(sum(whole.tolist()))


def _table(*columns: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Columns of non-negative integers of any size side by side: [row, column]."""
    return narrow(np.stack([column.astype(object) for column in columns], axis=1))


def shared(released: Ints, end: Ints, power: int, makespan: int) -> tuple[npt.NDArray[Any], int]:
    """Static energy of each step [step], and what is left: idle. power: mW. makespan: ps.

    At each instant the steps in progress have equal parts of it.
    """
    at = np.unique(np.concatenate([released, end]))
    opened, closed = np.searchsorted(at, released), np.searchsorted(at, end)
    change = np.zeros(len(at), dtype=np.int64)
    np.add.at(change, opened, 1)
    np.add.at(change, closed, -1)
    open_ = np.cumsum(change)[:-1]
    each = times(np.diff(at), power) // np.maximum(open_, 1)
    until: npt.NDArray[Any] = np.zeros(len(at), dtype=np.int64 if makespan * power < LARGEST else object)
    until[1:] = np.cumsum(each.astype(until.dtype))  # also of gaps, which no step spans
    found = until[closed] - until[opened]
    return narrow(found), makespan * power - sum(found.tolist())


def _by_sequence(log: EventLog, energy: npt.NDArray[Any]) -> tuple[tuple[int, ...], npt.NDArray[Any]]:
    """The sequences, and their energy: of each step by the tokens that they fed in, or equal parts if none did."""
    members = log.members
    step, weight = members.step.astype(np.int64), members.query.astype(np.int64)
    fed = np.zeros(len(energy), dtype=np.int64)
    np.add.at(fed, step, weight)
    weight = np.where(fed[step] > 0, weight, 1)
    until = np.cumsum(weight)
    first = np.searchsorted(step, np.arange(len(energy)))  # members are in order of steps
    before = np.append(0, until)[first]  # [step]
    total = np.append(before[1:], until[-1] if len(until) else 0) - before
    end = until - before[step]
    mine = energy[step]
    each, rest = mine // total[step], mine % total[step]
    shares = [each * part + rest * part // total[step] for part in (end, end - weight)]
    names, of = np.unique(members.sequence, return_inverse=True)
    return tuple(names.tolist()), sum_by(narrow(shares[0] - shares[1]), of, len(names))


def _verify(energy: Energy, power: int) -> None:
    """All ways to add up a run give the same."""
    compute, memory, link, static = (
        sum(energy.by_step[:, column].tolist()) for column in (COMPUTE, MEMORY, LINK, STATIC)
    )  # fmt: skip
    for name, found, expected in (
        ("arithmetic of steps and of kinds", compute, energy.compute),
        ("arithmetic of engines and of kinds", sum(energy.engines[:, COMPUTE].tolist()), energy.compute),
        ("transfers of steps and of kinds", memory, energy.memory),
        ("transfers over links of steps and of kinds", link, energy.link),
        ("transfers of channels and of kinds", sum(energy.channels), energy.memory + energy.link),
        ("parts of the memory and transfers", sum(energy.memory_parts.values()), energy.memory),
        ("parts of links and transfers over them", sum(energy.link_parts.values()), energy.link),
        ("static power and its time", energy.static, power * energy.makespan),
        ("static energy of steps and of the run", static + energy.idle, energy.static),
        ("parts of waiting and static energy", sum(energy.static_by_part) + energy.idle, energy.static),
        ("sequences and the run", sum(energy.by_sequence.tolist()) + energy.idle, energy.total),
    ):
        if found != expected:
            raise SimulationError(f"invariant does not hold: {INVARIANT}: {name}: {found} and {expected} fJ")
