"""The task graph of a step: the tasks of a lowered template, repeated for each member."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.experts import Routing
from models.graph import IntArray
from sim.mapping.collectives import ALIKE, Connection
from sim.mapping.lowering import lower
from sim.mapping.settings import ModelMapping
from sim.mapping.steps.batch_graph import BatchGraph, Template
from sim.mapping.steps.shape import Shape
from sim.mapping.steps.stitch import Stitched
from sim.mapping.tasks import ByLayer, Links, TaskGraph, with_links
from sim.mapping.template import Blocks, rows

#: Columns of tasks that are those of the template.
_COPIED = ("kind", "part", "parts", "head", "tile", "engine", "computes", "moves", "prefetch", "to")


class TaskTemplate:
    """A template with its lowered tasks.

    one_each: each op is one task. kv: int8 [task], 1 if it loads from the KV cache, 2 if it stores. node: [item], the node of
    the task graph that an item of the blocks is: a task, or a join, which stands behind the tasks that it needs. tiers,
    tier, connection: as in `lower`.
    """

    def __init__(
        self, stitched: Stitched, mapping: ModelMapping, *, tiers: Sequence[str] = (), tier: int = 0,
        connection: Connection = ALIKE,
    ) -> None:  # fmt: skip
        self.tasks = tasks = lower(stitched.ops, mapping, tiers=tiers, tier=tier, connection=connection)
        self.ops = ops = Template(stitched._replace(ops=tasks.ops))
        links, self.node = tasks.links, np.arange(len(tasks))
        op, inputs, start = tasks.op.astype(np.int64), links.inputs.astype(np.int64), links.input_start.astype(np.int64)
        if links.joins:
            last = links.inputs[links.input_start[len(tasks) + 1 :] - 1]  # of the tasks that each join needs
            op = np.append(op, op[last])
            self.node = np.argsort(np.append(np.arange(len(tasks)), last), kind="stable")
            op, inputs, start = op[self.node], *_in_items(inputs, start, self.node)
        self.one_each = np.array_equal(op, np.arange(len(tasks.ops)))
        self.blocks = Blocks(ops.block[op], ops.segment[op], inputs, start, ops.plain, ops.members)
        self.kv = np.zeros(len(tasks), dtype=np.int8)
        for number, by_layer in ((1, tasks.kv_loads), (2, tasks.kv_stores)):
            self.kv[[task for of_layer in by_layer.values() for task in of_layer]] = number

    def __len__(self) -> int:
        """Number of its tasks."""
        return len(self.tasks)

    def graph(self, shape: Shape, routing: Routing | None = None) -> TaskGraph:
        """The task graph of a step."""
        ops, of = BatchGraph(template=self.ops, shape=shape, routing=routing), self.tasks
        items = ops.repeated.of(self.blocks) if self.one_each else self.ops.repeat(self.blocks, shape)
        consumers, sources = items.edges()
        source, member, joins = items.source, items.member, 0
        if of.links.joins:
            source = self.node[source]
            task = source < len(of)
            joins = len(source) - int(task.sum())
            number = np.where(task, np.cumsum(task), len(source) - joins + np.cumsum(~task)) - 1
            consumers, sources, source, member = number[consumers], number[sources], source[task], member[task]
        links = Links(joins, *rows(consumers, sources, len(items)), *rows(sources, consumers, len(items)))
        kv, layer = self.kv[source], of.layer[source]
        loads, stores = (np.flatnonzero(kv == number) for number in (1, 2))
        columns = {
            "ops": ops, "kinds": of.kinds, "layer": layer, "op": ops.repeated.place(of.op[source], member).astype(np.int32),
            "kv_loads": ByLayer(loads, layer[loads]), "kv_stores": ByLayer(stores, layer[stores]),
        }  # fmt: skip
        return with_links(links, columns | {name: getattr(of, name)[source] for name in _COPIED})


def _in_items(inputs: IntArray, start: IntArray, node: IntArray) -> tuple[IntArray, IntArray]:
    """CSR of nodes in another order. node: [item], the node that stands there."""
    item = np.empty_like(node)
    item[node] = np.arange(len(node))
    consumers = np.repeat(item, np.diff(start))
    in_order, item_start = rows(consumers, item[inputs], len(node))
    return in_order.astype(np.int64), item_start.astype(np.int64)
