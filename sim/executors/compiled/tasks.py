"""What happens to a task: it becomes ready, is issued, taken by an engine, loaded, finished."""

from __future__ import annotations

from sim.base.kernel import kernel
from sim.executors.compiled.heaps import push
from sim.executors.compiled.skew import meld
from sim.executors.compiled.state import (
    BOUND, C_COMPUTE, C_END, C_LOADED, C_READY, C_START, C_WORK, CHAIN, CHAINED, CHANNELS, COST_BYTES, COST_ROW, ENGINES, OPERAND,
    HELD, HOME, IDLE, K_ARRIVED, KNOWN, L_FORM, L_SLOT, L_TOKENS, LATENCY, LAYERS, MEMBER, NONE, NOW, OUT, OUT_END, OVERLAP,
    MOVES, PARTS, READY, REQUESTER, RING_TAIL, ROUTE, RUNNING, S_BASE, S_COST, S_FORM, S_KEY, S_LEFT, S_LOOP, S_MEMBERS, S_OWNER,
    S_QUEUE, S_ROW, S_STEP, S_TOKEN, SLOT, SRAM, SRAM_FREE, STORES, T_END, TURNS, WAITING, State,
)  # fmt: skip
from sim.hardware.routes import ALL_CHANNELS, channel_of, stripe


@kernel
def make_ready(run: State, slot: int, task: int) -> None:
    """All inputs of a task have ended: an engine may take it, or its DMA issues it at once."""
    cell, form = run.slot[S_BASE, slot] + task, run.slot[S_FORM, slot] + task
    run.log[C_READY, run.slot[S_ROW, slot] + task] = run.m[NOW]
    if not run.form[HELD, form]:
        issue_dma(run, slot, task, 1)
        return
    if run.m[CHAINED]:
        home = run.cell[HOME, run.slot[S_BASE, slot] + run.form[CHAIN, form]]
        if home >= 0:
            run.bound[home] = meld(run, run.bound[home], cell)
            run.m[BOUND] += 1
            return
    run.m[READY] = push(run.ready, run.m[READY], run.rank[cell], run.slot[S_KEY, slot], cell)


@kernel
def issue_dma(run: State, slot: int, task: int, queue: int) -> None:
    """A DMA issues a transfer. queue: 0 for operands that are prefetched, 1 for all else."""
    run.log[C_START, run.slot[S_ROW, slot] + task] = run.m[NOW]
    member = run.form[MEMBER, run.slot[S_FORM, slot] + task]
    owner = run.slot[S_QUEUE, slot] if member < 0 else run.members[run.slot[S_MEMBERS, slot] + member]
    issue(run, slot, task, run.m[ENGINES] + 2 * owner + queue)


@kernel
def owner_of(run: State, slot: int, task: int) -> int:
    """The sequence of a task, as arbiters see it; what serves several has a number of its own."""
    member = run.form[MEMBER, run.slot[S_FORM, slot] + task]
    return run.slot[S_OWNER, slot] if member < 0 else run.members[run.slot[S_MEMBERS, slot] + member]


@kernel
def issue(run: State, slot: int, task: int, requester: int) -> None:
    """Send the bytes of a task to the channel that they belong to, or in equal parts to all."""
    cell, work = run.slot[S_BASE, slot] + task, run.log[C_WORK, run.slot[S_ROW, slot] + task]
    channels = run.m[CHANNELS]
    run.cell[REQUESTER, cell] = requester
    run.cell[PARTS, cell] = 1
    if channels == 1:
        run.remaining[0, cell] = work
        send(run, cell, 0)
        return
    moves = run.form[MOVES, run.slot[S_FORM, slot] + task]
    number = channel_of(run.m[ROUTE], owner_of(run, slot, task), moves, channels)
    if number != ALL_CHANNELS:
        run.remaining[number, cell] = work
        send(run, cell, number)
    else:
        run.cell[PARTS, cell] = min(work, channels)
        for number in range(channels):
            part = stripe(work, channels, number)
            if part > 0:
                run.remaining[number, cell] = part
                send(run, cell, number)


@kernel
def send(run: State, cell: int, channel: int) -> None:
    """A part of a transfer goes to a channel, where it arrives after the latency."""
    if run.m[LATENCY] > 0:
        size = run.ring.shape[1]
        place = run.m[RING_TAIL] % size
        run.ring[0, place] = run.m[NOW] + run.m[LATENCY]
        run.ring[1, place] = cell
        run.ring[2, place] = channel
        run.m[RING_TAIL] += 1
    else:
        arrive(run, cell, channel)


@kernel
def arrive(run: State, cell: int, channel: int) -> None:
    """It is at the channel, which learns of it at the end of the instant."""
    run.arrived[channel, run.channel[K_ARRIVED, channel]] = cell
    run.channel[K_ARRIVED, channel] += 1


@kernel
def take(run: State, cell: int, engine: int) -> None:
    """An engine takes a task: it loads its private operands, if there are any, and computes."""
    slot = run.cell[SLOT, cell]
    task = cell - run.slot[S_BASE, slot]
    row = run.slot[S_ROW, slot] + task
    run.engine[row] = engine
    run.log[C_START, row] = run.m[NOW]
    run.log[C_LOADED, row] = run.m[NOW]
    if run.log[C_WORK, row] > 0:
        issue(run, slot, task, engine)
    else:
        run.m[RUNNING] = push(run.running, run.m[RUNNING], run.m[NOW] + run.log[C_COMPUTE, row], engine, cell)


@kernel
def part_arrived(run: State, cell: int) -> None:
    """The last byte of a part of a transfer has arrived; with the last part, the task is loaded."""
    run.cell[PARTS, cell] -= 1
    if run.cell[PARTS, cell] > 0:
        return
    slot = run.cell[SLOT, cell]
    task = cell - run.slot[S_BASE, slot]
    row = run.slot[S_ROW, slot] + task
    run.log[C_LOADED, row] = run.m[NOW]
    if run.form[HELD, run.slot[S_FORM, slot] + task]:
        compute = run.log[C_COMPUTE, row]
        if run.m[OVERLAP]:
            compute = max(0, run.log[C_START, row] + compute - run.m[NOW])
        if compute > 0:
            run.m[RUNNING] = push(run.running, run.m[RUNNING], run.m[NOW] + compute, run.engine[row], cell)
            return
    finish(run, cell)


@kernel
def finish(run: State, cell: int) -> None:
    """A task has ended: its engine is free, its room in SRAM too, and what waited for it may be ready."""
    slot = run.cell[SLOT, cell]
    base, form = run.slot[S_BASE, slot], run.slot[S_FORM, slot]
    task = cell - base
    row = run.slot[S_ROW, slot] + task
    run.log[C_END, row] = run.m[NOW]
    if run.form[HELD, form + task]:
        run.m[IDLE] = push(run.idle, run.m[IDLE], run.engine[row], 0, 0)
    for i in range(run.form[OUT, form + task], run.form[OUT_END, form + task]):
        input_ended(run, slot, run.outputs[i])
    if run.m[KNOWN] and run.form[STORES, form + task] >= 0:
        stored(run, slot, run.form[STORES, form + task])
    if run.m[SRAM] >= 0 and run.form[OPERAND, form + task] >= 0:
        run.m[SRAM_FREE] += sram_need(run, slot, run.form[OPERAND, form + task])
    run.slot[S_LEFT, slot] -= 1
    if run.slot[S_LEFT, slot] == 0:
        run.step[T_END, run.slot[S_STEP, slot]] = run.m[NOW]
        if not run.m[KNOWN]:
            run.turns[run.m[TURNS]] = run.slot[S_LOOP, slot]
            run.m[TURNS] += 1


@kernel
def input_ended(run: State, slot: int, task: int) -> None:
    """One thing less that a task waits for."""
    cell = run.slot[S_BASE, slot] + task
    run.cell[WAITING, cell] -= 1
    if run.cell[WAITING, cell] == 0:
        make_ready(run, slot, task)


@kernel
def sram_need(run: State, slot: int, load: int) -> int:
    """Bytes of SRAM that a prefetched operand takes, at least 1."""
    row = run.form[COST_ROW, run.slot[S_FORM, slot] + load]
    return max(1, run.cost[COST_BYTES, run.slot[S_COST, slot] + row])


@kernel
def stored(run: State, slot: int, layer: int) -> None:
    """A store to the KV cache has ended: the next known token may load the layer once all earlier ones have stored there."""
    loop, token = run.slot[S_LOOP, slot], run.slot[S_TOKEN, slot]
    first, tokens = run.loop[L_SLOT, loop], run.loop[L_TOKENS, loop]
    run.missing[first + token, layer] -= 1
    frontier = run.frontier[loop, layer]
    while frontier < tokens and run.missing[first + frontier, layer] == 0:
        frontier += 1
        if frontier < tokens:
            for i in range(run.kv[layer], run.kv[layer + 1]):
                input_ended(run, first + frontier, run.kv[i])
    run.frontier[loop, layer] = frontier
