"""SRAM of devices over time: operands are in use from the issue of their load to the end of the last task that uses them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sim.log.columns import Ints
from sim.log.derived import cost_blocks
from sim.log.tables import EventLog
from sim.mapping.operands import operand_bytes, operands_of
from sim.mapping.tasks import TaskGraph


class Uses(NamedTuple):
    """Operands of a block of steps of one graph.

    task: [operand], which loads it. row: of that task, begin, end: ps, and size: bytes, [operand, step].
    """

    graph: TaskGraph
    task: Ints
    row: Ints
    begin: Ints
    end: Ints
    size: Ints


def uses(log: EventLog) -> Iterator[Uses]:
    """The operands of all steps, block by block."""
    for graph, steps, costs in cost_blocks(log):
        operands = operands_of(graph)
        if not len(operands.task):
            continue
        first = log.steps.first[steps]  # [step]
        row = first + operands.task[:, None]
        begin = log.tasks.start[row]
        user = np.repeat(np.arange(len(graph)), np.diff(operands.used_start))  # [use], as is `load`
        load = operands.number(len(graph))[operands.used]
        end = np.zeros_like(begin)
        np.maximum.at(end, load, log.tasks.end[first + user[:, None]])
        yield Uses(graph, operands.task, row, begin, end, operand_bytes(graph, operands, costs))


class AllUses(NamedTuple):
    """Operands of all steps [use]: the row that loads each, the device, begin and end of its use, ps, and bytes."""

    row: Ints
    device: Ints
    begin: Ints
    end: Ints
    size: Ints


def all_uses(log: EventLog) -> AllUses:
    """The operands of all steps."""
    none = np.zeros(0, dtype=np.int64)
    found = [
        (use.row.ravel(), np.repeat(use.graph.device[use.task], use.row.shape[1]), use.begin.ravel(), use.end.ravel(),
         use.size.ravel())
        for use in uses(log)
    ]  # fmt: skip
    return AllUses(*(np.concatenate(columns) for columns in zip((none,) * len(AllUses._fields), *found, strict=True)))


def most_in_use(log: EventLog) -> tuple[int, ...]:
    """The most bytes of operands that are in use at one time, of each device."""
    every = all_uses(log)
    return tuple(_most(*(column[every.device == device] for column in every[2:])) for device in range(len(log.machine.devices)))


def _most(begin: Ints, end: Ints, size: Ints) -> int:
    change = np.concatenate([size, -size])
    order = np.lexsort((change, np.concatenate([begin, end])))  # what is freed at an instant comes first
    return int(np.cumsum(change[order]).max(initial=0))
