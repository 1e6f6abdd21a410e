"""Definition of the last input of a task: the task whose end let it begin, one step backward in time.

Inputs are those of the task graph and, where tokens of a sequence overlap, the order of the KV cache: a task that reads the
cache of a layer waits for the stores of that layer by all earlier tokens of its sequence. Among inputs that ended together,
the first in program order counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sim.base.kernel import kernel, launch
from sim.log.columns import NONE, Forms, FormTable, Ints, Steps, in_order, steps_of, tasks_of, viewed

if TYPE_CHECKING:  # the log offers what is derived from it
    from sim.log.tables import EventLog

Rows = npt.NDArray[np.int64]


@kernel
def last_input(form: int, first: int, step: int, end: Ints, f: Forms, stored: Ints) -> int:
    """Row of the input of a task that ended last, -1 if it has none.

    first: row of the first task of its step. stored: [step, layer] of `last_stores`; [0, 0] where steps are barriers.
    """
    inputs = f.inputs
    source, ended = NONE, NONE
    for i in range(f.input_start[form], f.input_start[form + 1]):
        candidate = first + inputs[i]
        if end[candidate] > ended:
            source, ended = candidate, end[candidate]
    if len(stored) > 0 and f.loads[form] >= 0:
        store = stored[step, f.loads[form]]
        if store >= 0 and end[store] >= ended:  # of an earlier token, so it comes first in program order and wins a tie
            source = store
    return int(source)


@kernel
def last_of_step(end: Ints, first: int, after: int) -> int:
    """Row of [first, after) that ended last, the first in program order of several; -1 if there is none."""
    if first == after:
        return NONE
    last = first
    for row in range(first + 1, after):
        if end[row] > end[last]:
            last = row
    return last


@kernel
def mark_chains(s: Steps, f: Forms, end: Ints, stored: Ints, on_chain: Ints, awaited: Ints) -> None:
    """Follow last inputs back from the last task of each step, as long as they are of the same step.

    Fills on_chain: [row], 1 for the tasks met. awaited: [step], the row of another step where the walk ended, -1 if the chain
    begins with its step.
    """
    for step in range(len(s.first)):
        first, form = s.first[step], f.first[s.graph[step]]
        after = first + f.first[s.graph[step] + 1] - form
        row = last_of_step(end, first, after)
        while first <= row < after:
            on_chain[row] = 1
            row = last_input(form + row - first, first, step, end, f, stored)
        awaited[step] = row


@kernel
def last_stores(order: Ints, s: Steps, f: Forms, end: Ints, latest: Ints, stored: Ints) -> None:
    """Fill `stored` [step, layer]: row of the last store of the layer by an earlier token of the sequence, or -1.

    order: steps by sequence and token. latest: [layer], to work with.
    """
    layers = len(latest)
    sequence = NONE
    for position in range(len(order)):
        step = order[position]
        if s.sequence[step] != sequence:
            sequence = s.sequence[step]
            for layer in range(layers):
                latest[layer] = NONE
        for layer in range(layers):
            stored[step, layer] = latest[layer]
        graph = s.graph[step]
        for i in range(f.kv_first[graph], f.kv_first[graph + 1]):
            row, layer = s.first[step] + f.kv_task[i], f.kv_layer[i]
            if f.kv_stores[i] == 1 and (latest[layer] == NONE or end[row] > end[latest[layer]]):
                latest[layer] = row


def tokens_overlap(log: EventLog) -> bool:
    """Whether some step was released before the one before it in its sequence had ended: those of known tokens are."""
    if "tokens_overlap" not in log.made:  # kept with the log
        order = in_order(log)
        sequence, released, end = (column[order] for column in (log.steps.sequence, log.steps.released, log.steps.end))
        log.made["tokens_overlap"] = bool(((sequence[1:] == sequence[:-1]) & (released[1:] < end[:-1])).any())
    found: bool = log.made["tokens_overlap"]
    return found


def stores_before(log: EventLog, table: FormTable, *, compiled: bool) -> Rows:
    """[step, layer] of `last_stores`; [0, 0] where tokens do not overlap: all that a load needs was stored before its step."""
    if not table.layers or not tokens_overlap(log):
        return np.zeros((0, 0), dtype=np.int64)
    stored = np.empty((len(log.steps), len(table.layers)), dtype=np.int64)
    launch(last_stores, compiled=compiled)(
        in_order(log), viewed(steps_of(log), compiled=compiled), viewed(table.columns, compiled=compiled),
        tasks_of(log).end, np.empty(len(table.layers), dtype=np.int64), stored,
    )  # fmt: skip
    return stored


@kernel
def last_inputs(s: Steps, f: Forms, end: Ints, stored: Ints, source: Ints) -> None:
    """Fill `source` [row] with the `last_input` of every task."""
    for step in range(len(s.first)):
        first, form = s.first[step], f.first[s.graph[step]]
        for row in range(first, first + f.first[s.graph[step] + 1] - form):
            source[row] = last_input(form + row - first, first, step, end, f, stored)
