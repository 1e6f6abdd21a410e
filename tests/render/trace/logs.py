"""Small event logs made by hand: a toy decoder block, scheduled by a toy machine that is as plain as possible.

They have what a trace must cope with (heads that run at once, transfers that queue or share, tokens that overlap) and need
neither a model nor the simulator.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from itertools import chain, count

import numpy as np

from models.graph import MONOMIALS, QUANTITIES, Op, OpGraph
from sim.log.tables import EventLog, ServiceTable, StepTable, TaskTable
from sim.machine.machine import one_device
from sim.mapping.tasks import CLASS_BIT, TaskGraph

BANDWIDTH = 100_000_000_000


@dataclass
class Builder:
    """Collects tasks, one op each or `parts` shares of one."""

    ops: list[Op] = field(default_factory=list)
    polynomials: list[tuple[int, ...]] = field(default_factory=list)
    tasks: list[dict] = field(default_factory=list)

    def add(
        self, kind: str, *inputs: int, layer: int = 0, heads: int = 0, moves: str = "", engine: bool = True, size: int = 0
    ) -> list[int]:
        costs = []
        for quantity in QUANTITIES:
            value = [0] * len(MONOMIALS)
            if quantity == (moves or "flops"):
                value[0], value[3] = size, 16  # 16 more per token of context
            costs.append(len(self.polynomials))
            self.polynomials.append(tuple(value))
        sources = tuple(sorted({self.tasks[i]["op"] for i in inputs}))
        self.ops.append(
            Op(
                kind=kind, path=f"model.layers.{layer}.{kind}", layer=layer, heads=heads, dtype="bfloat16",
                shape=("B", "Q", str(size or 64)), inputs=sources, costs=tuple(costs),
            )
        )  # fmt: skip
        made = []
        for part in range(max(heads, 1)):
            needs = [i for i in inputs if not heads or self.tasks[i]["head"] in (-1, part)]
            task = {
                "kind": kind, "op": len(self.ops) - 1, "part": part, "parts": max(heads, 1), "head": part if heads else -1,
                "layer": layer, "engine": engine, "computes": not moves or moves == "weight", "inputs": sorted(needs),
                "moves": CLASS_BIT[moves] if moves else 0,
            }  # fmt: skip
            made.append(len(self.tasks))
            self.tasks.append(task)
        return made

    def graph(self) -> TaskGraph:
        def column(name: str, dtype: type) -> np.ndarray:
            return np.array([task[name] for task in self.tasks], dtype=dtype)

        kinds = tuple(dict.fromkeys(task["kind"] for task in self.tasks))
        inputs = [task["inputs"] for task in self.tasks]
        outputs = [[j for j, needs in enumerate(inputs) if i in needs] for i in range(len(inputs))]
        layers = sorted({task["layer"] for task in self.tasks if task["layer"] >= 0})

        def of_kind(kind: str, layer: int) -> tuple[int, ...]:
            return tuple(i for i, task in enumerate(self.tasks) if task["kind"] == kind and task["layer"] == layer)

        return TaskGraph(
            ops=OpGraph(ops=tuple(self.ops), polynomials=tuple((p,) for p in self.polynomials)),
            kinds=kinds,
            kind=np.array([kinds.index(task["kind"]) for task in self.tasks], dtype=np.int16),
            op=column("op", np.int32), part=column("part", np.int32), parts=column("parts", np.int32),
            head=column("head", np.int16), tile=np.full(len(inputs), -1, dtype=np.int16), layer=column("layer", np.int16),
            engine=column("engine", np.bool_), computes=column("computes", np.bool_), moves=column("moves", np.uint8),
            prefetch=~column("engine", np.bool_), to=np.full(len(inputs), -1, dtype=np.int16),
            inputs=np.array(list(chain(*inputs)), dtype=np.int32),
            input_start=np.cumsum([0, *map(len, inputs)]).astype(np.int32),
            outputs=np.array(list(chain(*outputs)), dtype=np.int32),
            output_start=np.cumsum([0, *map(len, outputs)]).astype(np.int32),
            kv_loads={layer: of_kind("kv_load", layer) for layer in layers},
            kv_stores={layer: of_kind("kv_store", layer) for layer in layers},
        )  # fmt: skip


def decoder(layers: int = 2, heads: int = 8, *, dma: bool = False) -> TaskGraph:
    """A decoder in outline. With `dma`, KV transfers need no engine."""
    b = Builder()
    x: list[int] = []
    for layer in range(layers):
        load = b.add("kv_load", layer=layer, moves="kv_read", engine=not dma, size=1 << 15)
        norm = b.add("norm", *x, layer=layer)
        q = b.add("q_proj", *norm, layer=layer, moves="weight", size=1 << 16)
        k = b.add("k_proj", *norm, layer=layer, moves="weight", size=1 << 14)
        b.add("kv_store", *k, layer=layer, moves="kv_write", engine=not dma, size=1 << 10)
        scores = b.add("scores", *load, *q, *k, layer=layer, heads=heads, size=4096)
        soft = b.add("softmax", *scores, layer=layer, heads=heads, size=512)
        values = b.add("weighted_values", *soft, *load, layer=layer, heads=heads, size=4096)
        o = b.add("o_proj", *values, layer=layer, moves="weight", size=1 << 16)
        x = b.add("residual", *o, *x, layer=layer)
    b.add("lm_head", *x, layer=-1, moves="weight", size=1 << 18)
    return b.graph()


def run(  # noqa: C901 -- one loop of events, easier to follow in one piece
    graph: TaskGraph,
    *,
    engines: int = 4,
    tokens: int = 2,
    sequences: int = 1,
    overlap: bool = True,
    sharing: bool = False,
    seed: int = 0,
    scale: int = 1_000_000,
) -> EventLog:
    """Schedule tokens: the first free engine takes the first ready task, is held while operands load, then computes.

    overlap: tokens wait for each other's KV cache only. sharing: the channel alternates between transfers in bursts.
    scale: picoseconds of a typical task, so that small ones round to nothing in nanoseconds.
    """
    random = np.random.default_rng(seed)
    size = len(graph)
    steps = sequences * tokens
    compute = np.where(np.tile(graph.computes, steps), random.integers(1, 2 * scale, size * steps), 0)
    work = np.where(np.tile(graph.moves, steps) > 0, random.integers(1, 2 * scale, size * steps), 0)
    engine_of = np.full(size * steps, -1, dtype=np.int16)
    ready, start, loaded, end = (np.full(size * steps, -1, dtype=np.int64) for _ in range(4))
    missing = np.tile(np.diff(graph.input_start), steps)
    needed_by: list[list[int]] = [[] for _ in range(size * steps)]
    for step in range(steps):
        for task in range(size):
            for i in graph.inputs[graph.input_start[task] : graph.input_start[task + 1]]:
                needed_by[step * size + i].append(step * size + task)
        if step % tokens:  # the cache of a layer is there once the token before stored it, or that token is all done
            for layer, loads in graph.kv_loads.items():
                before = graph.kv_stores[layer] if overlap else range(size)
                targets = loads if overlap else (range(size) if layer == 0 else ())
                for target in targets:
                    missing[step * size + target] += len(before)
                    for store in before:
                        needed_by[(step - 1) * size + store].append(step * size + target)

    now, order = 0, count()
    events: list[tuple[int, int, str, int]] = []
    free = list(range(engines))
    waiting: list[int] = []  # rows that are ready for an engine
    queue: list[int] = []  # rows whose transfer is outstanding, served in turns
    left = work.copy()
    services: list[tuple[int, int, int, int]] = []
    serving = False

    def serve() -> None:
        nonlocal serving
        if serving or not queue:
            return
        row = queue[0]
        burst = int(min(left[row], scale // 3 + 1)) if sharing else int(left[row])
        services.append((row, now, now + burst, burst))
        left[row] -= burst
        serving = True
        heapq.heappush(events, (now + burst, next(order), "served", row))

    def release(row: int) -> None:
        ready[row] = now
        if graph.engine[row % size]:
            heapq.heappush(waiting, row)
        else:
            start[row] = now
            queue.append(row)

    def finish(row: int) -> None:
        end[row] = now
        if engine_of[row] >= 0:
            heapq.heappush(free, int(engine_of[row]))
        for other in needed_by[row]:
            missing[other] -= 1
            if not missing[other]:
                release(other)

    for row in np.flatnonzero(missing == 0):
        release(int(row))
    while True:
        while free and waiting:
            row = heapq.heappop(waiting)
            engine_of[row], start[row] = heapq.heappop(free), now
            if work[row]:
                queue.append(row)
            else:
                loaded[row] = now
                heapq.heappush(events, (now + int(max(compute[row], 1)), next(order), "end", row))
        serve()
        if not events:
            break
        now, _, what, row = heapq.heappop(events)
        if what == "end":
            finish(row)
            continue
        serving = False
        queue.remove(row)
        if left[row]:
            queue.append(row)
        elif engine_of[row] < 0 or not compute[row]:
            loaded[row] = now
            finish(row)
        else:
            loaded[row] = now
            heapq.heappush(events, (now + int(compute[row]), next(order), "end", row))
    assert (end >= 0).all(), "the toy machine is stuck"

    services.sort(key=lambda service: service[2])
    columns = np.array(services, dtype=np.int64).reshape(-1, 4).T
    ends = end.reshape(steps, size)
    released = ready.reshape(steps, size).min(axis=1)
    if overlap:
        released[:] = 0
    return EventLog(
        graphs=(graph,),
        tasks=TaskTable(
            step=np.repeat(np.arange(steps), size).astype(np.int32), task=np.tile(np.arange(size), steps).astype(np.int32),
            engine=engine_of, ready=ready, start=start, loaded=loaded, end=end, compute=compute, work=work,
            launched=np.zeros_like(work),
        ),
        services=ServiceTable(
            task=columns[0], channel=np.zeros(len(services), dtype=np.int16), start=columns[1], end=columns[2], work=columns[3],
        ),
        steps=StepTable(
            sequence=np.repeat(np.arange(sequences), tokens).astype(np.int32),
            token=np.tile(np.arange(tokens), sequences).astype(np.int32),
            context=4 + np.tile(np.arange(tokens), sequences).astype(np.int64), graph=np.zeros(steps, dtype=np.int32),
            first=np.arange(steps) * size, released=released, end=ends.max(axis=1),
        ),
        machine=one_device(engines=engines), bandwidth=BANDWIDTH,
    )  # fmt: skip


def repeat(one: EventLog, times: int) -> EventLog:
    """A log of a single token, so many times one after the other: large logs in no time."""
    size = len(one.tasks)
    shift = np.arange(times, dtype=np.int64) * one.makespan

    def later(column: np.ndarray) -> np.ndarray:
        return (column[None, :] + shift[:, None]).ravel()

    def again(column: np.ndarray) -> np.ndarray:
        return np.tile(column, times)

    number = np.arange(times)
    table, services = one.tasks, one.services
    return replace(
        one,
        tasks=TaskTable(
            step=np.repeat(number, size).astype(np.int32), task=again(table.task), engine=again(table.engine),
            ready=later(table.ready), start=later(table.start), loaded=later(table.loaded), end=later(table.end),
            compute=again(table.compute), work=again(table.work),
            launched=again(table.launched),
        ),
        services=ServiceTable(
            task=(services.task[None, :] + size * number[:, None]).ravel(), channel=again(services.channel),
            start=later(services.start), end=later(services.end), work=again(services.work),
        ),
        steps=StepTable(
            sequence=np.zeros(times, np.int32), token=number.astype(np.int32), context=4 + number.astype(np.int64),
            graph=np.zeros(times, np.int32), first=number * size, released=shift, end=shift + one.makespan,
        ),
    )  # fmt: skip
