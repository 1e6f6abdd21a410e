"""Tracks of the sequences: tokens, the chain of each, and all its tasks in lanes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sim.analysis.sram_waits import causes, stretches
from sim.log import derived
from sim.log.columns import is_large
from sim.mapping.lowering import HAND_OVERS, SWAPS
from sim.render.trace.canvas import HOST, WAIT_CHANNEL, WAIT_ENGINE, WAIT_INPUT, WAIT_SRAM, Canvas, Rows
from sim.render.trace.requests import parts_taken
from sim.render.trace.tracks import Role, Slices, lanes


def sequences(canvas: Canvas) -> Iterator[Slices]:
    """Slices of the tokens, one group per sequence (in batches: per decode loop)."""
    steps, batched = canvas.log.steps, canvas.log.batched is not None
    root = canvas.tracks.add("Sequences", description="Where the time of each token went.")
    if batched:
        yield parts_taken(canvas.log, canvas.names, canvas.categories, canvas.tracks, root).within(canvas.window)
        root = canvas.tracks.add("Steps", description="Where the time of each step went.")
    shown = np.flatnonzero(np.bincount(canvas.log.tasks.step[canvas.inside], minlength=len(steps)) > 0)
    for number in np.unique(steps.sequence[shown]):
        mine = shown[steps.sequence[shown] == number]
        if batched:
            parent = canvas.tracks.add(_loop(canvas, int(number), mine), root, "A decode loop, step by step.")
        else:
            parent = canvas.tracks.add(f"sequence {number}", root, "One request, token by token.")
        yield _sequence(canvas, mine, parent).within(canvas.window)


def _loop(canvas: Canvas, number: int, steps: Rows) -> str:
    """Name of a loop: of one that only moves caches it says so, and of which replica it is where there are several."""
    log = canvas.log
    graphs = [log.graphs[graph] for graph in np.unique(log.steps.graph[steps]).tolist()]
    does = "hand-over " if graphs[0].kinds[0] in HAND_OVERS else ""
    does = "moves of caches, " if all(graph.kinds[0] in SWAPS for graph in graphs) else does
    of = f"replica {log.machine.replica_of(graphs[0].first_device)} " if log.machine.replicas > 1 else ""
    return f"{of}{does}loop {number}"


def _sequence(canvas: Canvas, steps: Rows, parent: int) -> Slices:
    """Slices of some steps of one sequence: those that overlap are on different tracks."""
    table = canvas.log.steps
    _, word = canvas.log.owner_words
    lane = lanes(np.zeros_like(steps), table.released[steps], np.maximum(table.end[steps], table.released[steps] + 1))
    track = np.zeros_like(steps)
    pieces: list[Slices] = []
    for n in range(int(lane.max()) + 1):
        mine = steps[lane == n]
        numbers = [str(number) for number in table.token[mine[:2]]]
        title = f"{word} {numbers[0]}" if len(mine) == 1 else f"{word}s {', '.join(numbers)}, ..."
        description = f"The chain of tasks that decided when the {word} ended: {word}, layer, op, and what it waited for."
        track[lane == n] = line = canvas.tracks.add(title, parent, description)
        rows = np.concatenate([np.arange(of.start, of.stop) for of in map(canvas.log.rows, mine.tolist())])
        pieces += _ops(canvas, rows[canvas.inside[rows]], line)
    pieces.append(
        Slices.make(
            track=track, start=table.released[steps], end=table.end[steps], row=steps,
            name=np.array([canvas.names(name) for name in _names(canvas, steps)], dtype=np.int32),
            category=canvas.categories("token"), color=canvas.color_of_steps(steps), role=Role.STEP,
        )
    )  # fmt: skip
    pieces += _chain(canvas, steps, track)
    return Slices.concatenate(pieces)


def _names(canvas: Canvas, steps: Rows) -> list[str]:
    """Names of steps; those of a draft model say so."""
    _, word = canvas.log.owner_words
    numbers, drafts = canvas.log.steps.token[steps].tolist(), derived.drafts(canvas.log)[steps].tolist()
    return [f"{'draft, ' if draft else ''}{word} {number}" for number, draft in zip(numbers, drafts, strict=True)]


def _ops(canvas: Canvas, rows: Rows, parent: int) -> Iterator[Slices]:
    """All tasks given, in lanes: from when each was ready, or for a transfer by a DMA from when it was served."""
    tasks, served = canvas.log.tasks, canvas.service.first
    held = canvas.on_engine[rows]
    begin = np.where(held, tasks.ready[rows], served[rows])
    start = np.where(held, tasks.start[rows], served[rows])
    lane = lanes(np.zeros_like(rows), begin, tasks.end[rows])
    group = canvas.tracks.add("ops", parent, "All tasks of the token, each after its wait for an engine.")
    count = int(lane.max(initial=-1)) + 1
    track = np.array([canvas.tracks.add(f"lane {n}", group) for n in range(count)], dtype=np.int64)[lane]
    yield Slices.make(
        track=track, start=begin, end=start, name=canvas.start_waits(rows), row=rows,
        cause=derived.previous_on_engine(canvas.log)[rows], category=canvas.categories("wait"), role=Role.PHASE,
    )  # fmt: skip
    yield Slices.make(
        track=track, start=start, end=tasks.end[rows], name=canvas.name_of(rows), row=rows,
        category=canvas.categories("op"), role=Role.OP,
    )  # fmt: skip


def _chain(canvas: Canvas, steps: Rows, track: Rows) -> Iterator[Slices]:
    """Chain of each step: layers around ops, with the waits before and inside them. track: of each step."""
    tasks = canvas.log.tasks
    chain = derived.chains(canvas.log).of(steps)
    rows, begin, track = chain.row, chain.begin, track[np.searchsorted(steps, chain.step)]
    yield _layers(canvas, chain, track)
    wait = canvas.categories("wait")
    yield Slices.make(
        track=track, start=begin, end=tasks.ready[rows], row=rows, cause=chain.cause,
        name=canvas.names(HOST if canvas.log.step_overhead else WAIT_INPUT),
        depth=2, category=wait, role=Role.PHASE,
    )  # fmt: skip
    held = canvas.on_engine[rows]
    on_engines = rows[held]
    yield Slices.make(
        track=track[held], start=tasks.ready[on_engines], end=tasks.start[on_engines], row=on_engines, depth=2, category=wait,
        role=Role.PHASE, name=canvas.start_waits(on_engines), cause=derived.previous_on_engine(canvas.log)[on_engines],
    )  # fmt: skip
    yield from _before_issue(canvas, rows[~held], track[~held])
    yield Slices.make(
        track=track, start=tasks.start[rows], end=tasks.end[rows], name=canvas.name_of(rows), row=rows, depth=2,
        category=canvas.categories("op"), role=Role.OP,
    )  # fmt: skip
    yield from canvas.phases(rows, track, depth=3)


def _before_issue(canvas: Canvas, rows: Rows, track: Rows) -> Iterator[Slices]:
    """Waits of transfers before they are issued, for SRAM, split by their causes as in `sim.analysis.breakdown`.

    track: of each row.
    """
    tasks = canvas.log.tasks
    waited = tasks.ready[rows] < tasks.start[rows]
    rows, track = rows[waited], track[waited]
    clocks = causes(canvas.log, bounded_sram=len(rows) > 0, compiled=is_large(canvas.log))
    device = derived.device(canvas.log)[rows] if len(rows) else rows
    for number in np.unique(device).tolist():
        mine = device == number
        serving = stretches(clocks.begin, clocks.before, clocks.first, number)
        queues = stretches(clocks.queue_begin, clocks.queue_before, clocks.queue_first, number)
        yield _split(canvas, rows[mine], track[mine], serving, queues)


def _split(canvas: Canvas, rows: Rows, track: Rows, serving: tuple[Rows, Rows], queues: tuple[Rows, Rows]) -> Slices:
    """Waits of transfers of a device before they are issued, by their causes.

    track: of each row. serving, queues: begin and end of the stretches in which channels served, and engines were the cause.
    """
    tasks = canvas.log.tasks
    begin, end = (np.concatenate(edges) for edges in zip(serving, queues, strict=True))
    of_channel, of_engine, of_sram = (canvas.names(name) for name in (WAIT_CHANNEL, WAIT_ENGINE, WAIT_SRAM))
    name = np.repeat([of_channel, of_engine], [len(serving[0]), len(queues[0])])
    edges, place = np.unique(np.concatenate([begin, end]), return_inverse=True)
    after = np.full(len(edges) + 1, of_sram)  # the cause from each edge on; [0]: before the first
    after[place[: len(begin)] + 1] = name  # where one ends and none begins it is SRAM
    first = np.searchsorted(edges, tasks.ready[rows], side="right")
    count = np.searchsorted(edges, tasks.start[rows], side="left") - first + 1  # parts, of which edges are between
    which = np.repeat(np.arange(len(rows)), count)
    part = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    edge, bounded = first[which] + part, np.append(edges, 0)  # the edge that ends a part, if it is not the last
    return Slices.make(
        track=track[which], start=np.where(part == 0, tasks.ready[rows[which]], bounded[edge - 1]),
        end=np.where(part == count[which] - 1, tasks.start[rows[which]], bounded[edge]),
        row=rows[which], depth=2, category=canvas.categories("wait"), role=Role.PHASE, name=after[edge],
    )  # fmt: skip


def _layers(canvas: Canvas, chain: derived.Chains, track: Rows) -> Slices:
    """Stretches of a chain within one layer. track: of each of its tasks."""
    layer = derived.layer(canvas.log)[chain.row]
    changes = (layer[1:] != layer[:-1]) | (chain.step[1:] != chain.step[:-1])
    head = np.flatnonzero(np.append(True, changes)[: len(layer)])  # places in the chain where a stretch begins
    tail = np.append(head[1:], len(layer))[: len(head)] - 1
    inside = layer[head] >= 0
    head, tail = head[inside], tail[inside]
    return Slices.make(
        track=track[head], start=chain.begin[head], end=canvas.log.tasks.end[chain.row[tail]], depth=1,
        name=np.array([canvas.names(f"layer {n}") for n in layer[head]], dtype=np.int32),
        category=canvas.categories("layer"), role=Role.LAYER,
    )  # fmt: skip
