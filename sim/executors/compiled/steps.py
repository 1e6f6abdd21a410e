"""Phases 2 and 3 of an instant: steps are released, and operands are admitted to SRAM."""

from __future__ import annotations

from sim.base.kernel import kernel, small
from sim.executors.compiled.clock import mark_queue
from sim.executors.compiled.state import (
    ADMITTED, ADMIT_LIST, AGE, AGE_TIME, CELL, CHAINED, COMPUTE, COST, COST_ROW, FETCH_WORDS, FORM, F_ADMITTED, F_ASKED,
    F_BEHIND, F_DEVICE, F_LOOP, F_NEED, F_NUMBER, F_QUEUED, F_SLOT, HOME, INPUTS, IN_ORDER, KNOWN, KV, LAYERS, LONGEST_PATH,
    L_BASE, L_CELLS_OF, L_COST, L_COST_FIRST, L_COST_LANES, L_COST_ROWS, L_FETCHES, L_FIRST, L_FIRST_END, L_FORM, L_KEY,
    L_NODES, L_NUMBER, L_OPERANDS, L_OPERANDS_END, L_ROW, L_SLOT, L_STEP, L_TASKS, L_TOKEN, L_TOKENS, NONE, NOW, OLDEST, OUT,
    Q_ASKED, Q_FIRST, Q_FREE, Q_LAST, Q_MARKED, Q_PASSED, RANK, RANKING, RELEASED, REPLICA_DEVICES, SLOT, SLOT_WORDS, SRAM,
    S_AGE, S_AHEAD, S_BASE, S_COST, S_FIRST, S_FIRST_END, S_FORM, S_KEY, S_LEFT, S_LOOP, S_NEXT, S_NODES, S_OPERANDS,
    S_OPERANDS_END, S_OWNER, S_QUEUE, S_ROW, S_STEP, S_TASKS, S_TOKEN, S_UNTIL, TASK, TIMES, TO_ADMIT, USERS, USES, WAITING,
    WORK, Forms, Log, Memory,
)  # fmt: skip
from sim.executors.compiled.tasks import begin, make_ready, queue_of, sram_need
from sim.machine.schedulers import remaining_paths
from sim.machine.sram import may_be_admitted


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
    """Request SRAM for the first operands of a loop's step on each device; there it has one request at a time."""
    if not m[SRAM]:
        return
    slot, first = m[loop + L_SLOT], m[loop + L_FETCHES]
    after = first + m[REPLICA_DEVICES] * FETCH_WORDS
    for fetch in range(first, after, FETCH_WORDS):
        m[fetch + F_SLOT] = slot
        m[fetch + F_NUMBER] = f[behind_operands(m, slot) + m[fetch + F_DEVICE]]
    for fetch in range(first, after, FETCH_WORDS):
        ask_for_next(m, f, fetch)


@small
@kernel
def behind_operands(m: Memory, slot: int) -> int:
    """The address behind the list of operands and what they are admitted with: of the first operand of each device."""
    return 2 * m[slot + S_OPERANDS_END] - m[slot + S_OPERANDS]


@kernel
def ask_for_next(m: Memory, f: Forms, fetch: int) -> None:
    """Request SRAM for the next operands on a device, at the end of its queue, if there are any that may be requested now."""
    slot, number, loop = m[fetch + F_SLOT], m[fetch + F_NUMBER], m[fetch + F_LOOP]
    last = m[loop + L_SLOT] + ((m[loop + L_TOKENS] - 1) * SLOT_WORDS if m[KNOWN] else 0)
    first = behind_operands(m, slot) + m[fetch + F_DEVICE]  # address, the same for all known tokens
    while number == f[first + 1]:
        if slot == last:
            return
        slot, number = slot + SLOT_WORDS, f[first]
    m[fetch + F_SLOT] = slot
    m[fetch + F_NUMBER] = number
    if m[REPLICA_DEVICES] > 1 and not comes_next(m, f, loop, slot, number):
        return
    m[fetch + F_NEED] = 0
    for i in range(number, f[m[slot + S_OPERANDS_END] + number]):
        m[fetch + F_NEED] += sram_need(m, f, slot, f[m[slot + S_OPERANDS] + i])
    join_queue(m, queue_of(m, f, slot, f[m[slot + S_OPERANDS] + number]), fetch)


@kernel
def comes_next(m: Memory, f: Forms, loop: int, slot: int, number: int) -> bool:
    """Whether all operands that come before one, on other devices, have been admitted there."""
    devices, starts = m[REPLICA_DEVICES], behind_operands(m, slot)
    before = starts + devices + 1 + number * devices
    for device in range(devices):
        needed, other = f[before + device], m[loop + L_FETCHES] + device * FETCH_WORDS
        if needed == NONE or m[other + F_SLOT] > slot:
            continue
        reached = m[other + F_NUMBER]
        if m[other + F_SLOT] < slot:  # of known tokens, all operands of the one before come first
            if m[other + F_SLOT] < slot - SLOT_WORDS or reached < f[starts + device + 1]:
                return False
            reached = f[starts + device]
        if reached < needed:
            return False
    return True


@kernel
def join_queue(m: Memory, queue: int, fetch: int) -> None:
    """A fetch makes a request, at the end of a queue."""
    m[fetch + F_QUEUED] = 1
    m[fetch + F_ASKED] = m[queue + Q_ASKED]
    m[fetch + F_BEHIND] = NONE
    m[queue + Q_ASKED] += 1
    if m[queue + Q_FIRST] == NONE:
        m[queue + Q_FIRST] = fetch
    else:
        m[m[queue + Q_LAST] + F_BEHIND] = fetch
    m[queue + Q_LAST] = fetch
    mark_queue(m, queue)


@kernel
def admit_operands(m: Memory, f: Forms, log: Log) -> None:
    """Give SRAM to the operands that fit: on each device to the first request that may be admitted, round by round.

    Between rounds loops ask for more, in order of their numbers. A device whose loops have no other needs no rounds.
    """
    alone = m[REPLICA_DEVICES] == 1
    while m[TO_ADMIT] > 0:
        admitted = 0
        for i in range(m[TO_ADMIT]):
            queue = m[m[ADMIT_LIST] + i]
            fetch = first_admitted(m, queue)
            while alone and fetch != NONE:
                admit_group(m, f, log, fetch)
                ask_for_next(m, f, fetch)
                fetch = first_admitted(m, queue)
            if fetch == NONE:
                m[queue + Q_MARKED] = 0
                m[queue + Q_PASSED] = NONE
            else:
                m[m[ADMIT_LIST] + admitted] = queue  # which may have another one in the next round
                add_in_order(m, m[ADMITTED], admitted, fetch)
                admitted += 1
                admit_group(m, f, log, fetch)
        m[TO_ADMIT] = admitted
        loop = NONE
        for i in range(admitted):
            if m[m[m[ADMITTED] + i] + F_LOOP] != loop:
                loop = m[m[m[ADMITTED] + i] + F_LOOP]
                ask_for_more(m, f, loop)


@kernel
def first_admitted(m: Memory, queue: int) -> int:
    """Give SRAM of a device to its first request that may be admitted, and return its fetch; NONE if there is none.

    One pass an instant will do: what cannot be admitted now cannot after later ones have been, and new ones come to the end.
    """
    passed = m[queue + Q_PASSED]
    fetch = m[queue + Q_FIRST] if passed == NONE else m[passed + F_BEHIND]
    while fetch != NONE:
        oldest = m[m[queue + Q_FIRST] + F_ASKED]
        if may_be_admitted(m[fetch + F_NEED], m[queue + Q_FREE], m[fetch + F_ADMITTED], oldest):
            m[queue + Q_FREE] -= m[fetch + F_NEED]
            m[fetch + F_ADMITTED] = m[fetch + F_ASKED]
            leave_queue(m, queue, fetch, passed)
            break
        passed, fetch = fetch, m[fetch + F_BEHIND]
    m[queue + Q_PASSED] = passed
    return fetch


@kernel
def leave_queue(m: Memory, queue: int, fetch: int, before: int) -> None:
    """Take a fetch out of a queue. before: the one before it there, NONE if it is the first."""
    m[fetch + F_QUEUED] = 0
    if before == NONE:
        m[queue + Q_FIRST] = m[fetch + F_BEHIND]
    else:
        m[before + F_BEHIND] = m[fetch + F_BEHIND]
    if m[queue + Q_LAST] == fetch:
        m[queue + Q_LAST] = before


@small
@kernel
def add_in_order(m: Memory, at: int, count: int, fetch: int) -> None:
    """Add a fetch to a list of some, which is in order of loops, as their addresses are."""
    place = at + count
    while place > at and m[place - 1] > fetch:
        m[place] = m[place - 1]
        place -= 1
    m[place] = fetch


@kernel
def admit_group(m: Memory, f: Forms, log: Log, fetch: int) -> None:
    """Operands of a request have SRAM: loads whose inputs have ended begin."""
    slot, first = m[fetch + F_SLOT], m[fetch + F_NUMBER]
    after = f[m[slot + S_OPERANDS_END] + first]
    for i in range(first, after):
        task = f[m[slot + S_OPERANDS] + i]
        cell = m[slot + S_BASE] + task * m[CELL]
        m[cell + USES] = f[m[slot + S_FORM] + task * FORM + USERS]
        if m[cell + WAITING] == 0:
            begin(m, f, log, slot, task)
    m[fetch + F_NUMBER] = after


@kernel
def ask_for_more(m: Memory, f: Forms, loop: int) -> None:
    """Operands of a loop have been admitted: it asks for the next ones, on each device on which it has no request."""
    first = m[loop + L_FETCHES]
    for fetch in range(first, first + m[REPLICA_DEVICES] * FETCH_WORDS, FETCH_WORDS):
        if m[fetch + F_QUEUED] == 0:
            ask_for_next(m, f, fetch)
