"""SRAM over time: operands are in use from the issue of their load to the end of the last task that uses them."""

from __future__ import annotations

import numpy as np

from sim.log.derived import cost_blocks
from sim.log.tables import EventLog
from sim.mapping.operands import operand_bytes, operands_of


def most_in_use(log: EventLog) -> int:
    """The most bytes of operands that are in use at one time."""
    times, sizes = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for graph, steps, costs in cost_blocks(log):
        operands = operands_of(graph)
        if not len(operands.task):
            continue
        first = log.steps.first[steps]  # [step]
        size = operand_bytes(graph, operands, costs)  # [operand, step]
        begin = log.tasks.start[first + operands.task[:, None]]
        user = np.repeat(np.arange(len(graph)), np.diff(operands.used_start))  # [use], as is `load`
        load = operands.number(len(graph))[operands.used]
        end = np.zeros_like(begin)
        np.maximum.at(end, load, log.tasks.end[first + user[:, None]])
        times += [begin.ravel(), end.ravel()]
        sizes += [size.ravel(), -size.ravel()]
    time, change = np.concatenate(times), np.concatenate(sizes)
    order = np.lexsort((change, time))  # what is freed at an instant comes first
    return int(np.cumsum(change[order]).max(initial=0))
