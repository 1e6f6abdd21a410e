"""Which input of a task ended last: its last step backwards in time.

Inputs are those of the task graph and, between known tokens, the order that the KV cache imposes: a load of a layer's cache
waits for the stores of that layer by all earlier tokens of its sequence. Among inputs that ended together the first in
program order counts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sim.analysis.columns import NONE, Forms, FormTable, Ints, Steps, forms_of, in_order, is_large, steps_of, tasks_of, viewed
from sim.analysis.context import Rules
from sim.base.kernel import kernel, launch
from sim.log.tables import EventLog

Rows = npt.NDArray[np.int64]


@kernel
def last_input(form: int, first: int, step: int, end: Ints, f: Forms, stored: Ints) -> int:
    """The row of the input of a task that ended last, -1 if it has none.

    first: row of the first task of its step. stored: see `last_stores`; [0, 0] where steps are barriers.
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
def last_stores(order: Ints, s: Steps, f: Forms, end: Ints, latest: Ints, stored: Ints) -> None:
    """Fill `stored` [step, layer]: the row of the last store of the layer by an earlier token of the sequence, or -1.

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


def stores_before(log: EventLog, rules: Rules, table: FormTable, *, compiled: bool) -> Rows:
    """[step, layer] of `last_stores`; [0, 0] where sampled steps are barriers: what a load needs was stored long before."""
    if rules.dependency == "sampled" or not table.layers:
        return np.zeros((0, 0), dtype=np.int64)
    stored = np.empty((len(log.steps), len(table.layers)), dtype=np.int64)
    launch(last_stores, compiled=compiled)(
        in_order(log), viewed(steps_of(log), compiled=compiled), viewed(table.columns, compiled=compiled),
        tasks_of(log).end, np.empty(len(table.layers), dtype=np.int64), stored,
    )  # fmt: skip
    return stored


@kernel
def last_inputs(rows: Ints, step_of: Ints, s: Steps, f: Forms, end: Ints, stored: Ints, source: Ints, ended: Ints) -> None:
    """Fill `source` and `ended` for each of some rows: `last_input`, and when it ended."""
    for i in range(len(rows)):
        row = rows[i]
        step = step_of[row]
        first = s.first[step]
        form = f.first[s.graph[step]] + row - first
        source[i] = last_input(form, first, step, end, f, stored)
        ended[i] = NONE if source[i] == NONE else end[source[i]]


class Inputs:
    """Looks up last inputs in a log; made once per log, since the stores of earlier tokens are accumulated."""

    def __init__(self, log: EventLog, rules: Rules) -> None:
        self._compiled = is_large(log)
        table = forms_of(log)
        self._step = np.require(log.tasks.step, np.int32, ["C", "W"])
        self._end = tasks_of(log).end
        self._stored = stores_before(log, rules, table, compiled=self._compiled)
        self._steps = viewed(steps_of(log), compiled=self._compiled)
        self._forms = viewed(table.columns, compiled=self._compiled)

    def last(self, rows: Rows) -> tuple[Rows, Rows]:
        """For each row of the task table the row of its input that ended last, and when; `NONE` for both if it has none."""
        source, ended = np.empty((2, len(rows)), dtype=np.int64)
        launch(last_inputs, compiled=self._compiled)(
            rows, self._step, self._steps, self._forms, self._end, self._stored, source, ended
        )
        return source, ended

    def last_of(self, row: int) -> tuple[int, int]:
        """`last` of a single row."""
        source, ended = self.last(np.array([row], dtype=np.int64))
        return int(source[0]), int(ended[0])
