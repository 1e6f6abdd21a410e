"""SRAM over time: operands are in use from the issue of their load to the end of the last task that uses them."""

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


def all_uses(log: EventLog) -> tuple[Ints, Ints, Ints, Ints]:
    """Rows that load operands, begin and end of their use, ps, and bytes [use], of all steps."""
    none = np.zeros(0, dtype=np.int64)
    found = [(use.row.ravel(), use.begin.ravel(), use.end.ravel(), use.size.ravel()) for use in uses(log)]
    row, begin, end, size = (np.concatenate(columns) for columns in zip((none,) * 4, *found, strict=True))
    return row, begin, end, size


def most_in_use(log: EventLog) -> int:
    """The most bytes of operands that are in use at one time."""
    _, begin, end, size = all_uses(log)
    change = np.concatenate([size, -size])
    order = np.lexsort((change, np.concatenate([begin, end])))  # what is freed at an instant comes first
    return int(np.cumsum(change[order]).max(initial=0))
