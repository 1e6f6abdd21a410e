"""Phases 2 and 3 of an instant: steps are released, and operands are admitted to SRAM."""

from __future__ import annotations

from sim.base.kernel import kernel
from sim.executors.compiled.state import (
    AGE, AGE_TIME, CELL, CHAINED, COMPUTE, COST, COST_ROW, FORM, HOME, INPUTS, IN_ORDER, KNOWN, KV, LAYERS, LONGEST_PATH,
    L_ADMITTED, L_ASKED, L_BASE, L_BEHIND, L_CELLS_OF, L_COST, L_COST_FIRST, L_COST_LANES, L_COST_ROWS, L_FETCH, L_FETCH_SLOT,
    L_FIRST, L_FIRST_END, L_FORM, L_KEY, L_NEED, L_NODES, L_NUMBER, L_OPERANDS, L_OPERANDS_END, L_ROW, L_SLOT, L_STEP, L_TASKS,
    L_TOKEN, L_TOKENS, NONE, NOW, OLDEST, OUT, RANK, RANKING, RELEASED, SLOT, SLOT_WORDS, SRAM, SRAM_ASKED, SRAM_CHANGED,
    SRAM_FIRST, SRAM_FREE, SRAM_LAST, S_AGE, S_AHEAD, S_BASE, S_COST, S_FIRST, S_FIRST_END, S_FORM, S_KEY, S_LEFT, S_LOOP,
    S_NEXT, S_NODES, S_OPERANDS, S_OPERANDS_END, S_OWNER, S_QUEUE, S_ROW, S_STEP, S_TASKS, S_TOKEN, S_UNTIL, TASK, TIMES,
    USERS, USES, WAITING, WORK, Forms, Log, Memory,
)  # fmt: skip
from sim.executors.compiled.tasks import begin, make_ready, sram_need
from sim.machine.schedulers import remaining_paths


@kernel
def go_on(m: Memory, f: Forms, log: Log, loop: int) -> bool:
    """Release the next step of a sequence, or all of one whose tokens are known; False if their costs are not there."""
    token, tokens = m[loop + L_TOKEN], m[loop + L_TOKENS]
    if token == tokens:
        return True
    last = tokens if m[KNOWN] else token + 1
    if last > m[loop + L_COST_FIRST] + m[loop + L_COST_LANES]:
        return False
    for each in range(token, last):
        slot = m[loop + L_SLOT] + (each * SLOT_WORDS if m[KNOWN] else 0)
        fill_slot(m, loop, slot, each)
        release(m, f, log, slot)
    m[loop + L_TOKEN] = last
    ask_for_operands(m, f, loop)
    return True


@kernel
def fill_slot(m: Memory, loop: int, slot: int, token: int) -> None:
    """The step of a token of a sequence."""
    size, nodes = m[loop + L_TASKS], m[loop + L_NODES]
    m[slot + S_LOOP] = loop
    m[slot + S_TOKEN] = token
    m[slot + S_KEY] = m[loop + L_KEY] + token
    m[slot + S_FORM] = m[loop + L_FORM]
    m[slot + S_TASKS] = size
    m[slot + S_NODES] = nodes
    m[slot + S_BASE] = m[loop + L_BASE] + (token * nodes * m[CELL] if m[KNOWN] else 0)
    m[slot + S_ROW] = m[loop + L_ROW] + token * size
    m[slot + S_STEP] = m[loop + L_STEP] + TIMES * token
    m[slot + S_COST] = m[loop + L_COST] + (token - m[loop + L_COST_FIRST]) * m[loop + L_COST_ROWS] * COST
    m[slot + S_FIRST] = m[loop + L_FIRST]
    m[slot + S_FIRST_END] = m[loop + L_FIRST_END]
    m[slot + S_OPERANDS] = m[loop + L_OPERANDS]
    m[slot + S_OPERANDS_END] = m[loop + L_OPERANDS_END]
    m[slot + S_QUEUE] = m[loop + L_NUMBER]
    m[slot + S_OWNER] = m[loop + L_NUMBER]


@kernel
def release_batch(m: Memory, f: Forms, log: Log, slot: int) -> None:
    """Release the step of a batched loop."""
    loop = m[slot + S_LOOP]
    m[loop + L_SLOT] = slot
    release(m, f, log, slot)
    ask_for_operands(m, f, loop)


@kernel
def decode_on(m: Memory, f: Forms, log: Log, slot: int) -> bool:
    """Release the next step of a batch whose members decode one more token; False if that is for the batcher to say."""
    if m[slot + S_AHEAD] == 0 or m[NOW] >= m[slot + S_UNTIL]:
        return False
    m[slot + S_AHEAD] -= 1
    m[slot + S_TOKEN] += 1
    m[slot + S_KEY] += 1
    m[slot + S_ROW] += m[slot + S_TASKS]
    m[slot + S_COST] += m[slot + S_NEXT]
    m[slot + S_STEP] += TIMES
    release_batch(m, f, log, slot)
    return True


@kernel
def release(m: Memory, f: Forms, log: Log, slot: int) -> None:
    """The step may run from now on: what needs no input is ready."""
    if m[AGE_TIME] != m[NOW]:
        m[AGE_TIME] = m[NOW]
        m[AGE] += 1
    m[slot + S_AGE] = m[AGE]
    m[slot + S_LEFT] = m[slot + S_TASKS]
    m[m[slot + S_STEP] + RELEASED] = m[NOW]
    loop = m[slot + S_LOOP]
    if m[KNOWN] or m[CHAINED] or m[loop + L_CELLS_OF] != m[slot + S_FORM]:
        set_up(m, f, slot)
        m[loop + L_CELLS_OF] = m[slot + S_FORM]
    if m[KNOWN] and m[slot + S_TOKEN] > 0:
        wait_for_stores(m, slot)
    if m[RANKING] != IN_ORDER:
        set_ranks(m, f, slot)
    for i in range(m[slot + S_FIRST], m[slot + S_FIRST_END]):
        task = f[i]
        if m[m[slot + S_BASE] + task * m[CELL] + WAITING] == 0:
            make_ready(m, f, log, slot, task)


@kernel
def set_up(m: Memory, f: Forms, slot: int) -> None:
    """The cells of a step of another form than the last one there; as tasks end, they leave them as they were."""
    cell, form = m[slot + S_BASE], m[slot + S_FORM]
    for node in range(m[slot + S_NODES]):
        m[cell + WAITING] = f[form + INPUTS]
        m[cell + SLOT] = slot
        m[cell + TASK] = node
        m[cell + RANK] = 0
        m[cell + HOME] = NONE
        m[cell + USES] = 0
        cell += m[CELL]
        form += FORM


@kernel
def wait_for_stores(m: Memory, slot: int) -> None:
    """Loads of a known token also wait for the stores of all tokens before it, which count as one input more."""
    for layer in range(m[LAYERS]):
        for i in range(m[m[KV] + layer], m[m[KV] + layer + 1]):
            m[m[slot + S_BASE] + m[i] * m[CELL] + WAITING] += 1


@kernel
def set_ranks(m: Memory, f: Forms, slot: int) -> None:
    """Rank the tasks of a step as the scheduler does."""
    rank, form = m[slot + S_BASE] + RANK, m[slot + S_FORM]
    for task in range(m[slot + S_TASKS]):
        if m[RANKING] == OLDEST:
            m[rank + task * m[CELL]] = m[slot + S_AGE]
        else:
            line = m[slot + S_COST] + f[form + task * FORM + COST_ROW] * COST
            m[rank + task * m[CELL]] = m[line + COMPUTE] + m[line + WORK]
    if m[RANKING] == LONGEST_PATH:
        remaining_paths(f, form + OUT, FORM, m, rank, m[CELL], m[slot + S_TASKS], m[slot + S_NODES])


@kernel
def ask_for_operands(m: Memory, f: Forms, loop: int) -> None:
    """Request SRAM for the first operands of a loop's step; it has one request at a time."""
    if m[SRAM] >= 0:
        m[loop + L_FETCH_SLOT] = m[loop + L_SLOT]
        m[loop + L_FETCH] = 0
        ask_for_next(m, f, loop)


@kernel
def ask_for_next(m: Memory, f: Forms, loop: int) -> None:
    """Request SRAM for the next operands that are admitted together, if there are any, at the end of the queue."""
    slot, number = m[loop + L_FETCH_SLOT], m[loop + L_FETCH]
    last = m[loop + L_SLOT] + ((m[loop + L_TOKENS] - 1) * SLOT_WORDS if m[KNOWN] else 0)
    while m[slot + S_OPERANDS] + number == m[slot + S_OPERANDS_END]:
        if slot == last:
            return
        slot, number = slot + SLOT_WORDS, 0
    m[loop + L_FETCH_SLOT] = slot
    m[loop + L_FETCH] = number
    m[loop + L_NEED] = 0
    for i in range(number, f[m[slot + S_OPERANDS_END] + number]):
        m[loop + L_NEED] += sram_need(m, f, slot, f[m[slot + S_OPERANDS] + i])
    m[loop + L_ASKED] = m[SRAM_ASKED]
    m[loop + L_BEHIND] = NONE
    m[SRAM_ASKED] += 1
    if m[SRAM_FIRST] == NONE:
        m[SRAM_FIRST] = loop
    else:
        m[m[SRAM_LAST] + L_BEHIND] = loop
    m[SRAM_LAST] = loop
    m[SRAM_CHANGED] = 1


@kernel
def admit_operands(m: Memory, f: Forms, log: Log) -> None:
    """Give SRAM to the operands that fit, the oldest request first; no loop passes the same request twice.

    One pass will do: requests that cannot be admitted now cannot after later ones have been, and new ones come to the end.
    """
    if m[SRAM_CHANGED] == 0:
        return
    before, loop = NONE, m[SRAM_FIRST]
    while loop != NONE:
        if m[loop + L_NEED] <= m[SRAM_FREE] and m[loop + L_ADMITTED] <= m[m[SRAM_FIRST] + L_ASKED]:
            m[SRAM_FREE] -= m[loop + L_NEED]
            m[loop + L_ADMITTED] = m[loop + L_ASKED]
            leave_queue(m, loop, before)
            admit_group(m, f, log, loop)
            ask_for_next(m, f, loop)
        else:
            before = loop
        loop = m[SRAM_FIRST] if before == NONE else m[before + L_BEHIND]
    m[SRAM_CHANGED] = 0


@kernel
def admit_group(m: Memory, f: Forms, log: Log, loop: int) -> None:
    """Operands of a request have SRAM: loads whose inputs have ended begin."""
    slot, first = m[loop + L_FETCH_SLOT], m[loop + L_FETCH]
    after = f[m[slot + S_OPERANDS_END] + first]
    for i in range(first, after):
        task = f[m[slot + S_OPERANDS] + i]
        cell = m[slot + S_BASE] + task * m[CELL]
        m[cell + USES] = f[m[slot + S_FORM] + task * FORM + USERS]
        if m[cell + WAITING] == 0:
            begin(m, f, log, slot, task)
    m[loop + L_FETCH] = after


@kernel
def leave_queue(m: Memory, loop: int, before: int) -> None:
    """Take a loop out of the queue for SRAM. before: the loop that asked before it, NONE if it is the first."""
    if before == NONE:
        m[SRAM_FIRST] = m[loop + L_BEHIND]
    else:
        m[before + L_BEHIND] = m[loop + L_BEHIND]
    if m[SRAM_LAST] == loop:
        m[SRAM_LAST] = before
