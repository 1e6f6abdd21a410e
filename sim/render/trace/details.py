"""The arguments and flows that slices carry at detail `full`, encoded for Perfetto block by block.

What is the same in every step (path, shape, ...) is encoded once per task of a graph; the rest are columns of integers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sim.log import derived
from sim.log.tables import EventLog
from sim.mapping.tasks import TaskGraph
from sim.render.trace.protobuf import Cells, Mask, Part
from sim.render.trace.track_event import Interned, annotation_table, flow_field, integer_annotation, text_annotation
from sim.render.trace.tracks import Role, Slices

Rows = npt.NDArray[np.int64]


def constant_args(graph: TaskGraph, task: int) -> dict[str, int | str]:
    """The arguments of a task that no step changes. A written op has no path in a model, and may have no shape or format."""
    op = graph.ops.ops[graph.op[task]]
    args: dict[str, int | str] = {"op": op.kind}
    args |= {"path": op.path} if op.path else {}
    args |= {"shape": f"[{', '.join(op.shape)}]"} if op.shape else {}
    args |= {"dtype": op.dtype} if op.dtype else {}
    if graph.layer[task] >= 0:
        args["layer"] = int(graph.layer[task])
    return args


def before_of(log: EventLog) -> tuple[Rows, Rows]:
    """Rows that the engine ran, and that the channel began to serve, before each task; -1 if there is none."""
    return derived.previous_on_engine(log), derived.previous_on_channel(log)


def waited_of(log: EventLog) -> tuple[Rows, Rows]:
    """Picoseconds that each task waited for an engine, and that its transfer took longer than on a channel of its own."""
    tasks = log.tasks
    slowed = derived.service(log).last - derived.issued(log) - tasks.work
    return np.where(tasks.engine >= 0, tasks.start - tasks.ready, 0), np.maximum(slowed, 0)


class Flows:
    """Arrows between slices of the machine: each has an id, which the slices at its two ends carry.

    pairs: for each arrow the row of the task table where it starts, and the one where it ends.
    """

    def __init__(self, log: EventLog, pairs: tuple[Rows, Rows]) -> None:
        producer, consumer = pairs
        rows = len(log.tasks)
        self._by_producer = np.argsort(producer, kind="stable")
        self._by_consumer = np.argsort(consumer, kind="stable")
        self._out, self._in = np.bincount(producer, minlength=rows), np.bincount(consumer, minlength=rows)
        self._out_first, self._in_first = np.cumsum(self._out) - self._out, np.cumsum(self._in) - self._in

    def encode(self, rows: Rows, at: Rows) -> list[Part]:
        """The fields for the slices of these rows, at those places of a block: arrows that leave, then arrows that arrive."""
        leaving = self._by_producer[_ranges(self._out_first[rows], self._out[rows])] + 1
        arriving = self._by_consumer[_ranges(self._in_first[rows], self._in[rows])] + 1
        return [
            Part([flow_field(leaving, terminating=False)], at, self._out[rows]),
            Part([flow_field(arriving, terminating=True)], at, self._in[rows]),
        ]


def dependency_pairs(log: EventLog) -> tuple[Rows, Rows]:
    """All edges of the task graphs, for every step: rows of producers and of consumers."""
    producers, consumers = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for number, graph in enumerate(log.graphs):
        first = log.steps.first[log.steps.graph == number][:, None]
        consumer = np.repeat(np.arange(len(graph)), np.diff(graph.input_start))
        producers.append((first + graph.inputs).ravel())
        consumers.append((first + consumer).ravel())
    return np.concatenate(producers), np.concatenate(consumers)


def arrows(log: EventLog, machine: Slices, flows: str, critical: Rows | None) -> tuple[Rows, Rows]:
    """The pairs of rows to join: dependencies (`all`), or what follows what along the critical path (`critical`).

    Both ends must be shown, and an arrow must point forward in time: viewers drop any other.
    """
    if flows == "critical" and critical is not None:
        producer, consumer = critical[:-1], critical[1:]
    else:
        producer, consumer = dependency_pairs(log)
    ends = machine.take(carries_flow(log, machine))
    start = np.full(len(log.tasks), -1, dtype=np.int64)
    start[ends.row] = ends.start
    keep = (start[producer] >= 0) & (start[consumer] > start[producer])
    return producer[keep], consumer[keep]


def carries_flow(log: EventLog, slices: Slices) -> Mask:
    """The one slice of each task that arrows join: on its engine, or on the channel if a DMA issued it."""
    machine = np.flatnonzero((slices.role == Role.RUN) | (slices.role == Role.MOVE))
    result = np.zeros(len(slices), dtype=np.bool_)
    result[machine] = (slices.role[machine] == Role.RUN) | (log.tasks.engine[slices.row[machine]] < 0)
    return result


def _ranges(first: Rows, count: Rows) -> Rows:
    """first[0], first[0] + 1, ... (count[0] of them), first[1], ..."""
    total = np.cumsum(count)
    return np.asarray(np.arange(total[-1] if len(total) else 0) + np.repeat(first - (total - count), count))


class Details:
    """Encodes the arguments of slices. energy: fJ of each task [row], if that is known and fits."""

    def __init__(self, log: EventLog, interned: Interned, energy: Rows | None = None) -> None:
        self._log, self._annotations = log, interned.annotations
        rows = [constant_args(graph, task) for graph in log.graphs for task in range(len(graph))]
        self._template = annotation_table(interned, rows)
        self._template_text = np.array(
            [interned.strings(graph.name(task)) for graph in log.graphs for task in range(len(graph))], dtype=np.int64
        )
        self._flops, self._bytes, self._owner_words = derived.flops(log), derived.bytes_moved(log), log.owner_words
        self._energy, self._waited = energy, waited_of(log)
        for name in (*_integers(self._owner_words), *(() if energy is None else ("energy_fj",))):
            interned.annotations(name)

    def encode(self, slices: Slices, flows: Flows | None) -> list[Part]:
        """Arguments and flows of a block of slices: what goes into a row comes from the parts in turn."""
        groups = (
            ((slices.role == Role.RUN) | (slices.role == Role.MOVE), self._task),
            (slices.role == Role.OP, self._op),
            (slices.role == Role.PHASE, self._phase),
            (slices.role == Role.STEP, self._step),
            (slices.role == Role.LAYER, self._layer),
        )
        parts: list[Part] = []
        for present, describe in groups:
            at = np.flatnonzero(present)
            if len(at):
                parts += describe(slices.take(at), at)
        if flows is not None:
            at = np.flatnonzero(carries_flow(self._log, slices))
            parts += flows.encode(slices.row[at], at)
        return parts

    def _integer(self, name: str, values: npt.NDArray[np.integer]) -> Cells:
        return integer_annotation(self._annotations(name), values)

    def _where(self, name: str, values: npt.NDArray[np.integer], present: Mask, at: Rows) -> Part:
        return Part([self._integer(name, values[present])], at[present])

    def _times(self, slices: Slices) -> list[Cells]:
        return [self._integer("start_ps", slices.start), self._integer("end_ps", slices.end)]

    def _owner(self, rows: Rows) -> list[Cells]:
        steps = self._log.steps
        step = self._log.tasks.step[rows]
        sequence, token = self._owner_words
        return [self._integer(sequence, steps.sequence[step]), self._integer(token, steps.token[step])]

    def _task(self, slices: Slices, at: Rows) -> list[Part]:
        tasks, rows = self._log.tasks, slices.row
        flops, moved, energy = self._flops[rows], self._bytes[rows], self._energy
        queued, slowed = (waited[rows] for waited in self._waited)
        always = [
            *self._times(slices),
            self._template(derived.form(self._log)[rows]),
            *self._owner(rows),
            self._integer("ready_ps", tasks.ready[rows]),
        ]
        engine, channel = (column[rows] for column in before_of(self._log))
        return [
            Part(always, at),
            self._where("flops", flops, flops > 0, at),
            self._where("bytes", moved, moved > 0, at),
            self._where("wait_engine_ps", queued, queued > 0, at),
            *self._behind("engine_behind", engine, (queued > 0) & (engine >= 0), at),
            self._where("wait_channel_ps", slowed, slowed > 0, at),
            *self._behind("channel_behind", channel, (slowed > 0) & (channel >= 0), at),
            *([] if energy is None else [self._where("energy_fj", energy[rows], energy[rows] > 0, at)]),
        ]

    def _behind(self, name: str, others: Rows, present: Mask, at: Rows) -> list[Part]:
        """The task that was in the way, by its name and its owner."""
        cause, (sequence, token) = others[present], self._owner_words
        step = self._log.tasks.step[cause]
        told = [
            text_annotation(self._annotations(name), self._template_text[derived.form(self._log)[cause]]),
            self._integer(f"{name}_{sequence}", self._log.steps.sequence[step]),
            self._integer(f"{name}_{token}", self._log.steps.token[step]),
        ]
        return [Part(told, at[present])]

    def _op(self, slices: Slices, at: Rows) -> list[Part]:
        engine = self._log.tasks.engine[slices.row]
        always = [*self._times(slices), self._template(derived.form(self._log)[slices.row])]
        return [Part(always, at), self._where("engine", engine, engine >= 0, at)]

    def _phase(self, slices: Slices, at: Rows) -> list[Part]:
        known = slices.cause >= 0
        culprit = slices.cause[known]
        name = self._template_text[derived.form(self._log)[culprit]]
        step = self._log.tasks.step[culprit]
        sequence, token = _waited_for(self._owner_words)
        why = [
            text_annotation(self._annotations("waited_for"), name),
            self._integer(sequence, self._log.steps.sequence[step]),
            self._integer(token, self._log.steps.token[step]),
        ]
        return [Part(self._times(slices), at), Part(why, at[known])]

    def _step(self, slices: Slices, at: Rows) -> list[Part]:
        steps, (sequence, token) = self._log.steps, self._owner_words
        about = [
            *self._times(slices),
            self._integer(sequence, steps.sequence[slices.row]),
            self._integer(token, steps.token[slices.row]),
            self._integer("context", steps.context[slices.row]),
        ]
        return [Part(about, at)]

    def _layer(self, slices: Slices, at: Rows) -> list[Part]:
        return [Part(self._times(slices), at)]


def _integers(words: tuple[str, str]) -> tuple[str, ...]:
    """Names of arguments, in the order in which they are numbered."""
    return (
        "start_ps", "end_ps", "ready_ps", *words, "context", "engine", "flops", "bytes", "wait_engine_ps", "wait_channel_ps",
        "waited_for", *_waited_for(words),
        *(f"{name}_behind{part}" for name in ("engine", "channel") for part in ("", *(f"_{word}" for word in words))),
    )  # fmt: skip


def _waited_for(words: tuple[str, str]) -> tuple[str, str]:
    return f"waited_for_{words[0]}", f"waited_for_{words[1]}"
