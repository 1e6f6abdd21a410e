"""Transitions of a task: it becomes ready, is issued, taken by an engine, loaded, finished."""

from __future__ import annotations

from sim.base.kernel import kernel, small
from sim.executors.compiled.clock import mark_device, mark_queue, mark_unit, set_clock
from sim.executors.compiled.heaps import push
from sim.executors.compiled.skew import add
from sim.executors.compiled.state import (
    BESIDE, BOUND, BOUND_TABLE, BYTES, CELL, CHAIN, CHAINED, CHANNELS, CHANNEL_TABLE, CHANNEL_WORDS, COMPUTE, COST, COST_ROW,
    C_COMPUTE, C_END, C_ENGINE, C_LAUNCHED, C_LOADED, C_READY, C_START, C_WORK, DEVICE, DEVICES, ENDED, ENGINES, FORM, HELD,
    HOME, IDLES, IDLE_WORDS, INPUTS, KNOWN, KV, K_ARRIVALS, K_ARRIVED, K_LATENCY, K_LINK_COUNT, K_PART, K_PATHS, K_RING,
    K_RING_HEAD, K_RING_SIZE, K_RING_TAIL, LAUNCH, LAYERS, L_FRONTIER, L_MISSING, L_SLOT, L_TOKENS, MEMBER, MEMORY_CHANNELS,
    MOVES, NONE, NOW, OUT, OUT_END, OVERLAP, PARTS, PATH, PREFETCH, P_LEFT, QUEUE_TABLE, QUEUE_WORDS, Q_FIRST, Q_FREE, RANK,
    READY, READY_WORDS, REQUESTER, RING_ENTRY, ROUTE, RUNNING, SLOT, SLOT_WORDS, SRAM, STORES, S_BASE, S_COST, S_FORM, S_KEY,
    S_LEFT, S_LOOP, S_MEMBERS, S_OWNER, S_QUEUE, S_ROW, S_STEP, S_TASKS, S_TOKEN, TASK, TURNS, TURN_LIST, USED, USED_END, USERS,
    USES, WAITING, WORK, Forms, Log, Memory,
)  # fmt: skip
from sim.machine.routes import ALL_CHANNELS, stripe, unit_of


@small
@kernel
def make_ready(m: Memory, f: Forms, log: Log, slot: int, task: int) -> None:
    """All inputs of a task have ended: it begins once its operands, if it loads any, have their SRAM."""
    log[C_READY, m[slot + S_ROW] + task] = m[NOW]
    if not m[SRAM] or f[m[slot + S_FORM] + task * FORM + USERS] == 0 or m[m[slot + S_BASE] + task * m[CELL] + USES] > 0:
        begin(m, f, log, slot, task)


@small
@kernel
def begin(m: Memory, f: Forms, log: Log, slot: int, task: int) -> None:
    """A task may begin: an engine may take it, or its DMA issues it at once."""
    cell, form = m[slot + S_BASE] + task * m[CELL], m[slot + S_FORM] + task * FORM
    if not f[form + HELD]:
        issue_dma(m, f, log, slot, task)
        return
    mark_device(m, f[form + DEVICE])
    if m[CHAINED]:
        home = m[m[slot + S_BASE] + f[form + CHAIN] * m[CELL] + HOME]
        if home >= 0:
            m[m[BOUND_TABLE] + home] = add(m, m[m[BOUND_TABLE] + home], cell)
            m[BOUND] += 1
            return
    push(m, m[READY] + f[form + DEVICE] * m[READY_WORDS], m[cell + RANK], m[slot + S_KEY], cell)


@kernel
def issue_dma(m: Memory, f: Forms, log: Log, slot: int, task: int) -> None:
    """A DMA issues a transfer: that for operands that are prefetched, or that for all else."""
    row, form = m[slot + S_ROW] + task, m[slot + S_FORM] + task * FORM
    log[C_START, row] = m[NOW]
    log[C_ENGINE, row] = NONE
    set_durations(m, f, log, slot, row, form)
    owner = m[slot + S_QUEUE] if f[form + MEMBER] < 0 else m[m[slot + S_MEMBERS] + f[form + MEMBER]]
    issue(m, f, log, slot, task, m[ENGINES] + 2 * owner + 1 - f[form + PREFETCH])


@small
@kernel
def set_durations(m: Memory, f: Forms, log: Log, slot: int, row: int, form: int) -> None:
    """How long a task takes on an engine, of this to launch it, and how long its transfer takes at full speed."""
    line = m[slot + S_COST] + f[form + COST_ROW] * COST
    log[C_COMPUTE, row] = m[line + COMPUTE]
    log[C_WORK, row] = m[line + WORK]
    log[C_LAUNCHED, row] = min(f[form + LAUNCH], m[line + COMPUTE]) if m[line + WORK] > 0 else 0


@small
@kernel
def owner_of(m: Memory, f: Forms, slot: int, task: int) -> int:
    """The sequence of a task, as arbiters see it; for tasks that serve several members, the number of the loop."""
    member = f[m[slot + S_FORM] + task * FORM + MEMBER]
    return m[slot + S_OWNER] if member < 0 else m[m[slot + S_MEMBERS] + member]


@kernel
def issue(m: Memory, f: Forms, log: Log, slot: int, task: int, requester: int) -> None:
    """Send the bytes of a task to the channel that they belong to, or in equal parts to all."""
    cell, work = m[slot + S_BASE] + task * m[CELL], log[C_WORK, m[slot + S_ROW] + task]
    m[cell + REQUESTER] = requester
    m[cell + PARTS] = 1
    if m[CHANNELS] == 1:
        send(m, cell, m[CHANNEL_TABLE], work)
        return
    moves = f[m[slot + S_FORM] + task * FORM + MOVES]
    device = f[m[slot + S_FORM] + task * FORM + DEVICE]
    owner, path = owner_of(m, f, slot, task), f[m[slot + S_FORM] + task * FORM + PATH]
    number = unit_of(m[ROUTE], owner, moves, m[MEMORY_CHANNELS], device, m[DEVICES], m[BESIDE], path != NONE)
    if path != NONE:  # a requester has one transfer at a time at the first link of a path
        channel = m[CHANNEL_TABLE] + number * CHANNEL_WORDS
        m[cell + REQUESTER] = requester * m[channel + K_LINK_COUNT] + m[m[m[channel + K_PATHS] + 2 * path]]
    if number != ALL_CHANNELS:
        send(m, cell, m[CHANNEL_TABLE] + number * CHANNEL_WORDS, work)
        return
    m[cell + PARTS] = min(work, m[MEMORY_CHANNELS])
    for each in range(m[MEMORY_CHANNELS]):
        part = stripe(work, m[MEMORY_CHANNELS], each)
        if part > 0:
            send(m, cell, m[CHANNEL_TABLE] + (device * m[MEMORY_CHANNELS] + each) * CHANNEL_WORDS, part)


@kernel
def send(m: Memory, cell: int, channel: int, work: int) -> None:
    """A part of a transfer goes to a channel, where it arrives after the latency."""
    m[cell + m[channel + K_PART] + P_LEFT] = work
    if m[channel + K_LATENCY] > 0:
        entry = m[channel + K_RING] + RING_ENTRY * (m[channel + K_RING_TAIL] & (m[channel + K_RING_SIZE] - 1))
        m[entry] = m[NOW] + m[channel + K_LATENCY]
        m[entry + 1] = cell
        m[channel + K_RING_TAIL] += 1
        if m[channel + K_RING_TAIL] == m[channel + K_RING_HEAD] + 1:  # it is the first
            set_clock(m, channel)
    else:
        arrive(m, cell, channel)


@small
@kernel
def arrive(m: Memory, cell: int, channel: int) -> None:
    """It is at the channel, which learns of it at the end of the instant."""
    mark_unit(m, channel)
    m[m[channel + K_ARRIVALS] + m[channel + K_ARRIVED]] = cell
    m[channel + K_ARRIVED] += 1


@small
@kernel
def take(m: Memory, f: Forms, log: Log, cell: int, engine: int) -> None:
    """An engine takes a task: it launches it and loads its private operands, if there are any, and computes."""
    slot = m[cell + SLOT]
    task = m[cell + TASK]
    row = m[slot + S_ROW] + task
    log[C_ENGINE, row] = engine
    log[C_START, row] = m[NOW]
    log[C_LOADED, row] = m[NOW]
    set_durations(m, f, log, slot, row, m[slot + S_FORM] + task * FORM)
    if log[C_WORK, row] == 0:
        push(m, m[RUNNING], m[NOW] + log[C_COMPUTE, row], engine, cell)
        return
    if log[C_LAUNCHED, row] > 0:
        log[C_LOADED, row] = NONE
        push(m, m[RUNNING], m[NOW] + log[C_LAUNCHED, row], engine, cell)
    else:
        issue(m, f, log, slot, task, engine)


@kernel
def go_on_engine(m: Memory, f: Forms, log: Log, cell: int) -> None:
    """A launch is over, and the task loads its operands; or it has computed, and ends."""
    slot = m[cell + SLOT]
    row = m[slot + S_ROW] + m[cell + TASK]
    if log[C_LOADED, row] == NONE:
        log[C_LOADED, row] = m[NOW]
        issue(m, f, log, slot, m[cell + TASK], log[C_ENGINE, row])
    else:
        finish(m, f, log, cell)


@kernel
def part_arrived(m: Memory, f: Forms, log: Log, cell: int) -> None:
    """The last byte of a part of a transfer has arrived; with the last part, the task is loaded."""
    m[cell + PARTS] -= 1
    if m[cell + PARTS] > 0:
        return
    slot = m[cell + SLOT]
    task = m[cell + TASK]
    row = m[slot + S_ROW] + task
    log[C_LOADED, row] = m[NOW]
    if f[m[slot + S_FORM] + task * FORM + HELD]:
        compute = log[C_COMPUTE, row]
        if m[OVERLAP]:
            compute = max(0, log[C_START, row] + compute - m[NOW])
        else:
            compute -= log[C_LAUNCHED, row]
        if compute > 0:
            push(m, m[RUNNING], m[NOW] + compute, log[C_ENGINE, row], cell)
            return
    finish(m, f, log, cell)


@kernel
def finish(m: Memory, f: Forms, log: Log, cell: int) -> None:
    """End a task: its engine is free, and its bytes of SRAM; tasks that waited for it may be ready."""
    slot = m[cell + SLOT]
    task = m[cell + TASK]
    row, form = m[slot + S_ROW] + task, m[slot + S_FORM] + task * FORM
    log[C_END, row] = m[NOW]
    m[cell + WAITING] = f[form + INPUTS]
    if f[form + HELD]:
        mark_device(m, f[form + DEVICE])
        push(m, m[IDLES] + f[form + DEVICE] * m[IDLE_WORDS], log[C_ENGINE, row], row, row)
    for i in range(f[form + OUT], f[form + OUT_END]):
        if f[i] < m[slot + S_TASKS]:
            input_ended(m, f, log, slot, f[i])
        else:
            join_input_ended(m, f, log, slot, f[i])
    if m[KNOWN] and f[form + STORES] >= 0:
        stored(m, f, log, slot, f[form + STORES])
    if m[SRAM]:
        for i in range(f[form + USED], f[form + USED_END]):
            operand_used(m, f, slot, f[i])
    m[slot + S_LEFT] -= 1
    if m[slot + S_LEFT] == 0:
        step_ended(m, slot)


@kernel
def step_ended(m: Memory, slot: int) -> None:
    """All tasks of a step have ended: its loop goes on in the next phase."""
    m[m[slot + S_STEP] + ENDED] = m[NOW]
    if not m[KNOWN]:
        m[m[TURN_LIST] + m[TURNS]] = m[slot + S_LOOP]
        m[TURNS] += 1


@small
@kernel
def input_ended(m: Memory, f: Forms, log: Log, slot: int, task: int) -> None:
    """One thing less that a task waits for."""
    cell = m[slot + S_BASE] + task * m[CELL]
    left = m[cell + WAITING] - 1
    m[cell + WAITING] = left
    if left == 0:
        make_ready(m, f, log, slot, task)


@kernel
def join_input_ended(m: Memory, f: Forms, log: Log, slot: int, join: int) -> None:
    """One task less that a join waits for; with the last, all that wait for the join have an input less."""
    cell, form = m[slot + S_BASE] + join * m[CELL], m[slot + S_FORM] + join * FORM
    m[cell + WAITING] -= 1
    if m[cell + WAITING] == 0:
        m[cell + WAITING] = f[form + INPUTS]
        for i in range(f[form + OUT], f[form + OUT_END]):
            input_ended(m, f, log, slot, f[i])


@kernel
def operand_used(m: Memory, f: Forms, slot: int, load: int) -> None:
    """A task has ended that used an operand: with the last of them its bytes of SRAM are free."""
    cell = m[slot + S_BASE] + load * m[CELL]
    m[cell + USES] -= 1
    if m[cell + USES] == 0:
        queue = queue_of(m, f, slot, load)
        m[queue + Q_FREE] += sram_need(m, f, slot, load)
        if m[queue + Q_FIRST] != NONE:
            mark_queue(m, queue)


@small
@kernel
def queue_of(m: Memory, f: Forms, slot: int, load: int) -> int:
    """The queue for SRAM of the device of an operand. load: the task that loads it."""
    return m[QUEUE_TABLE] + f[m[slot + S_FORM] + load * FORM + DEVICE] * QUEUE_WORDS


@small
@kernel
def sram_need(m: Memory, f: Forms, slot: int, load: int) -> int:
    """Bytes of SRAM that an operand takes, at least 1. load: the task that loads it."""
    return max(1, m[m[slot + S_COST] + f[m[slot + S_FORM] + load * FORM + COST_ROW] * COST + BYTES])


@kernel
def stored(m: Memory, f: Forms, log: Log, slot: int, layer: int) -> None:
    """A store to the KV cache has ended: the next known token may load the layer once all earlier ones have stored there."""
    loop = m[slot + S_LOOP]
    missing, layers, tokens = m[loop + L_MISSING] + layer, m[LAYERS], m[loop + L_TOKENS]
    m[missing + m[slot + S_TOKEN] * layers] -= 1
    frontier = m[m[loop + L_FRONTIER] + layer]
    while frontier < tokens and m[missing + frontier * layers] == 0:
        frontier += 1
        if frontier < tokens:
            for i in range(m[m[KV] + layer], m[m[KV] + layer + 1]):
                input_ended(m, f, log, m[loop + L_SLOT] + frontier * SLOT_WORDS, m[i])
    m[m[loop + L_FRONTIER] + layer] = frontier
