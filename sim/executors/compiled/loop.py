"""The event loop: from instant to instant, each in five phases, as `sim.executors.reference` defines them.

1. completions: tasks end on engines, transfers end at channels or arrive there, requests come;
2. steps: loops whose step has ended, or that begin, go on in order of their numbers;
3. SRAM: prefetched operands are admitted in order of their requests;
4. dispatch: ready tasks go to free engines;
5. plan: channels divide their bandwidth anew.

`advance` returns when it needs somebody: a batching policy for the next step of a loop, costs of further steps, room for rows;
and after so many instants, so that Ctrl-C and progress work. All state is in the arrays, so the next call goes on from there.
"""

from __future__ import annotations

from sim.base.kernel import kernel
from sim.executors.compiled.channels import plan, timer_due
from sim.executors.compiled.engines import dispatch
from sim.executors.compiled.heaps import pop
from sim.executors.compiled.state import (
    AGE, AGE_TIME, C_COMPUTE, C_READY, C_WORK, CELL_FIELDS, CHAIN, CHAINED, CHANNELS, COMPLETE, COST_COMPUTE, COST_ROW, COST_WORK,
    DONE, GRANTS, HELD, HOME, IN_ORDER, INPUTS, K_PENDING, K_TIMER, KNOWN, L_BASE, L_BATCHED, L_COST, L_COST_FIRST, L_COST_LANES,
    L_COST_STRIDE, L_FETCH, L_FETCH_SLOT, L_FORM, L_KEY, L_ROW, L_SLOT, L_STEP, L_TASKS, L_TOKEN, L_TOKENS, LAYERS,
    LONGEST_PATH, NEVER, NONE, NOW, OLDEST, OUT, OUT_END, PAUSED, PHASE, PREFETCH, RANKING, RECORDED, REST, RING_HEAD, RING_TAIL,
    RUNNING, S_AGE, S_BASE, S_COST, S_FORM, S_KEY, S_LEFT, S_LOOP, S_OWNER, S_QUEUE, S_ROW, S_STEP, S_TASKS, S_TOKEN, SHORTEST, SLOT,
    SRAM, SRAM_FREE, SRAM_HEAD, SRAM_TAIL, STEPS, T_RELEASED, TURN, TURNS, WAITING, WAKES, WANTS_COSTS, WANTS_GRANTS, WANTS_STEP,
    State,
)  # fmt: skip
from sim.executors.compiled.tasks import arrive, finish, issue_dma, make_ready, sram_need
from sim.scheduling import remaining_paths


@kernel
def advance(run: State, instants: int) -> int:
    """Go on for so many instants; returns why it stopped."""
    for _ in range(instants):
        if run.m[PHASE] == COMPLETE:
            now = next_instant(run)
            if now == NEVER:
                return DONE
            if run.m[RECORDED] and not has_room(run):
                return WANTS_GRANTS
            run.m[NOW] = now
            complete(run)
            sort_turns(run)
            run.m[PHASE] = STEPS
        if run.m[PHASE] == STEPS:
            while run.m[TURN] < run.m[TURNS]:
                loop = run.turns[run.m[TURN]]
                if run.loop[L_BATCHED, loop]:
                    return WANTS_STEP
                if not go_on(run, loop):
                    return WANTS_COSTS
                run.m[TURN] += 1
            run.m[TURN] = run.m[TURNS] = 0
        admit_operands(run)
        dispatch(run)
        for channel in range(run.m[CHANNELS]):
            plan(run, channel)
        run.m[PHASE] = COMPLETE
    return PAUSED


@kernel
def next_instant(run: State) -> int:
    """The next time at which anything happens."""
    now = NEVER
    if run.m[RUNNING] > 0:
        now = run.running[0, 0]
    for channel in range(run.m[CHANNELS]):
        now = min(now, run.channel[K_TIMER, channel])
    if run.m[RING_HEAD] < run.m[RING_TAIL]:
        now = min(now, run.ring[0, run.m[RING_HEAD] % run.ring.shape[1]])
    if run.m[WAKES] > 0:
        now = min(now, run.wakes[0, 0])
    return now


@kernel
def has_room(run: State) -> bool:
    """Whether an interval of service of every transfer that is pending can be recorded: channels deliver once an instant."""
    rows = run.m[GRANTS]
    for channel in range(run.m[CHANNELS]):
        rows += run.channel[K_PENDING, channel]
    return rows <= run.grant.shape[1]


# Phase 1


@kernel
def complete(run: State) -> None:
    """All that ends or arrives now, in any order: nothing depends on it."""
    now = run.m[NOW]
    while run.m[RUNNING] > 0 and run.running[0, 0] == now:
        cell = run.running[2, 0]
        run.m[RUNNING] = pop(run.running, run.m[RUNNING])
        finish(run, cell)
    for channel in range(run.m[CHANNELS]):
        if run.channel[K_TIMER, channel] == now:
            timer_due(run, channel)
    while run.m[RING_HEAD] < run.m[RING_TAIL] and run.ring[0, run.m[RING_HEAD] % run.ring.shape[1]] == now:
        place = run.m[RING_HEAD] % run.ring.shape[1]
        run.m[RING_HEAD] += 1
        arrive(run, run.ring[1, place], run.ring[2, place])
    while run.m[WAKES] > 0 and run.wakes[0, 0] == now:
        run.turns[run.m[TURNS]] = run.wakes[1, 0]
        run.m[TURNS] += 1
        run.m[WAKES] = pop(run.wakes, run.m[WAKES])


@kernel
def sort_turns(run: State) -> None:
    """Loops go on in order of their numbers; those that were woken are in order already."""
    for i in range(1, run.m[TURNS]):
        loop, j = run.turns[i], i - 1
        while j >= 0 and run.turns[j] > loop:
            run.turns[j + 1] = run.turns[j]
            j -= 1
        run.turns[j + 1] = loop


# Phase 2


@kernel
def go_on(run: State, loop: int) -> bool:
    """Release the next step of a sequence, or all of one whose tokens are known; False if their costs are not there."""
    token, tokens = run.loop[L_TOKEN, loop], run.loop[L_TOKENS, loop]
    if token == tokens:
        return True
    last = tokens if run.m[KNOWN] else token + 1
    if last > run.loop[L_COST_FIRST, loop] + run.loop[L_COST_LANES, loop]:
        return False
    for each in range(token, last):
        slot = run.loop[L_SLOT, loop] + (each if run.m[KNOWN] else 0)
        size = run.loop[L_TASKS, loop]
        run.slot[S_LOOP, slot] = loop
        run.slot[S_TOKEN, slot] = each
        run.slot[S_KEY, slot] = run.loop[L_KEY, loop] + each
        run.slot[S_FORM, slot] = run.loop[L_FORM, loop]
        run.slot[S_TASKS, slot] = size
        run.slot[S_BASE, slot] = run.loop[L_BASE, loop] + (each * size if run.m[KNOWN] else 0)
        run.slot[S_ROW, slot] = run.loop[L_ROW, loop] + each * size
        run.slot[S_STEP, slot] = run.loop[L_STEP, loop] + each
        run.slot[S_COST, slot] = run.loop[L_COST, loop] + (each - run.loop[L_COST_FIRST, loop]) * run.loop[L_COST_STRIDE, loop]
        run.slot[S_QUEUE, slot] = run.slot[S_OWNER, slot] = loop
        if run.m[KNOWN] and each > 0:
            wait_for_stores(run, loop, slot)
        release(run, slot)
    run.loop[L_TOKEN, loop] = last
    ask_for_operands(run, loop, run.loop[L_SLOT, loop] + (token if run.m[KNOWN] else 0))
    return True


@kernel
def wait_for_stores(run: State, loop: int, slot: int) -> None:
    """Loads of a known token also wait for the stores of all tokens before it, which count as one input more."""
    for layer in range(run.m[LAYERS]):
        for i in range(run.kv[layer], run.kv[layer + 1]):
            run.cell[WAITING, run.slot[S_BASE, slot] + run.kv[i]] = 1


@kernel
def release(run: State, slot: int) -> None:
    """The step may run from now on: what needs no input is ready."""
    if run.m[AGE_TIME] != run.m[NOW]:
        run.m[AGE_TIME] = run.m[NOW]
        run.m[AGE] += 1
    run.slot[S_AGE, slot] = run.m[AGE]
    run.slot[S_LEFT, slot] = run.slot[S_TASKS, slot]
    run.step[T_RELEASED, run.slot[S_STEP, slot]] = run.m[NOW]
    set_up(run, slot)
    if run.m[RANKING] != IN_ORDER:
        set_ranks(run, slot)
    base, form, now = run.slot[S_BASE, slot], run.slot[S_FORM, slot], run.m[NOW]
    for task in range(run.slot[S_TASKS, slot]):
        if run.form[PREFETCH, form + task]:
            run.log[C_READY, run.slot[S_ROW, slot] + task] = now
            if run.m[SRAM] < 0:
                issue_dma(run, slot, task, 0)
        elif run.cell[WAITING, base + task] == 0:
            make_ready(run, slot, task)


@kernel
def set_up(run: State, slot: int) -> None:
    """The cells of a step as it begins: what they wait for and how long they take."""
    base, row, cost = run.slot[S_BASE, slot], run.slot[S_ROW, slot], run.slot[S_COST, slot]
    form, size = run.slot[S_FORM, slot], run.slot[S_TASKS, slot]
    later = run.m[KNOWN] and run.slot[S_TOKEN, slot] > 0  # then loads of the cache have been told to wait
    for task in range(size):
        before = run.cell[WAITING, base + task] if later else 0
        run.cell[WAITING, base + task] = run.form[INPUTS, form + task] + before
        run.cell[SLOT, base + task] = slot
        line = cost + run.form[COST_ROW, form + task]
        run.log[C_COMPUTE, row + task] = run.cost[COST_COMPUTE, line]
        run.log[C_WORK, row + task] = run.cost[COST_WORK, line]
        run.engine[row + task] = NONE
    if run.m[CHAINED]:
        for task in range(size):
            run.cell[HOME, base + task] = NONE


@kernel
def set_ranks(run: State, slot: int) -> None:
    """Rank the tasks of a step as the scheduler does."""
    base, row, size, form = run.slot[S_BASE, slot], run.slot[S_ROW, slot], run.slot[S_TASKS, slot], run.slot[S_FORM, slot]
    for task in range(size):
        if run.m[RANKING] == OLDEST:
            run.rank[base + task] = run.slot[S_AGE, slot]
        else:
            run.rank[base + task] = run.log[C_COMPUTE, row + task] + run.log[C_WORK, row + task]
    if run.m[RANKING] == LONGEST_PATH:
        remaining_paths(run.form[OUT], run.form[OUT_END], run.outputs, form, run.rank, base, size)


# Phase 3


@kernel
def ask_for_operands(run: State, loop: int, slot: int) -> None:
    """The DMA of a loop asks for room in SRAM for its first operand; it has one request at a time."""
    if run.m[SRAM] >= 0:
        run.loop[L_FETCH_SLOT, loop] = slot
        run.loop[L_FETCH, loop] = NONE
        ask_for_next(run, loop)


@kernel
def ask_for_next(run: State, loop: int) -> None:
    """It asks for the next operand in program order, if there is one, at the end of the queue."""
    slot, task = run.loop[L_FETCH_SLOT, loop], run.loop[L_FETCH, loop] + 1
    last = run.loop[L_SLOT, loop] + (run.loop[L_TOKENS, loop] - 1 if run.m[KNOWN] else 0)
    while True:
        while task < run.slot[S_TASKS, slot] and not run.form[PREFETCH, run.slot[S_FORM, slot] + task]:
            task += 1
        if task < run.slot[S_TASKS, slot]:
            break
        if slot == last:
            return
        slot, task = slot + 1, 0
    run.loop[L_FETCH_SLOT, loop] = slot
    run.loop[L_FETCH, loop] = task
    run.sram_queue[run.m[SRAM_TAIL] % run.sram_queue.shape[0]] = loop
    run.m[SRAM_TAIL] += 1


@kernel
def admit_operands(run: State) -> None:
    """Load operands in order of their requests, as long as the first of them fits."""
    while run.m[SRAM_HEAD] < run.m[SRAM_TAIL]:
        loop = run.sram_queue[run.m[SRAM_HEAD] % run.sram_queue.shape[0]]
        slot, task = run.loop[L_FETCH_SLOT, loop], run.loop[L_FETCH, loop]
        need = sram_need(run, slot, task)
        if need > run.m[SRAM_FREE]:
            return
        run.m[SRAM_FREE] -= need
        run.m[SRAM_HEAD] += 1
        issue_dma(run, slot, task, 0)
        ask_for_next(run, loop)
