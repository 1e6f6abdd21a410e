"""The arrays that a compiled run consists of.

A *slot* is a step in progress, a *cell* one of its tasks while the step is in progress: the cells of a step follow one another
from its BASE on. A *form* is a task graph; the tasks of all forms stand in one pool. A *row* is one of the task table.

Every table is [field, index]; the constants name the fields. So a function takes one argument, and a field added later is one
line here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

NEVER = 2**62  # a time that does not come
NONE = -1

# run.m, registers: where the run is
(
    NOW, PHASE, AGE, AGE_TIME, READY, BOUND, IDLE, RUNNING, RING_HEAD, RING_TAIL, WAKES, TURNS, TURN, SRAM_FREE, SRAM_HEAD,
    SRAM_TAIL, GRANTS, BUSY,
) = range(18)  # fmt: skip
# and what does not change
(
    ENGINES, LIMIT, OVERLAP, LATENCY, CHANNELS, ROUTE, SRAM, RANKING, CHAINED, KNOWN, DISCIPLINE, URGENCY, PREEMPTIVE, SHARE,
    DENOMINATOR, BURST, QUANTUM_UP, QUANTUM_DOWN, CLASSES, CAP, CAP_OF, FIXED_RATES, WHOLE, DERATED, RECORDED, LAYERS, LOOPS,
    INFORMED,
) = range(18, 46)  # fmt: skip
REGISTERS = 46

# The phases of an instant: completions, then steps, then all else
COMPLETE, STEPS, REST = range(3)

# Why `advance` returned
DONE, PAUSED, WANTS_STEP, WANTS_COSTS, WANTS_GRANTS = range(5)

# Disciplines of a channel, and the urgency of a transfer
EXCLUSIVE, TURN_BY_TURN, BY_CLASS, GENERAL = range(4)
BY_KIND, BY_AGE, BY_SEQUENCE = range(3)

# Ranks of ready tasks
IN_ORDER, OLDEST, SHORTEST, LONGEST_PATH = range(4)

# run.form, int32 per task of the pool; outputs are relative to the first task of the form
HELD, PREFETCH, INPUTS, OUT, OUT_END, COST_ROW, LEVEL, MOVES, MEMBER, CHAIN, STORES, OPERAND = range(12)
FORM_FIELDS = 12

# run.cell, int32 per cell
WAITING, SLOT, REQUESTER, PARTS, HOME, LEFT, RIGHT = range(7)
CELL_FIELDS = 7

# run.at, int32 [channel, link, cell]: the transfer behind it in its queue, and its neighbors in order of arrival
BEHIND, EARLIER, LATER = range(3)

# run.slot, int64 per step in progress
S_LOOP, S_KEY, S_FORM, S_TASKS, S_BASE, S_ROW, S_LEFT, S_AGE, S_COST, S_STEP, S_QUEUE, S_OWNER, S_MEMBERS, S_TOKEN = range(14)
SLOT_FIELDS = 14

# run.loop, int64 per decode loop
(
    L_BATCHED, L_TOKENS, L_TOKEN, L_FORM, L_TASKS, L_BASE, L_SLOT, L_ROW, L_STEP, L_COST, L_COST_STRIDE, L_COST_FIRST, L_COST_LANES,
    L_KEY, L_FETCH_SLOT, L_FETCH,
) = range(16)  # fmt: skip
LOOP_FIELDS = 16

# run.log, int64 per row; run.step, int64 per step; run.grant, int64 per interval of service
C_READY, C_START, C_LOADED, C_END, C_COMPUTE, C_WORK = range(6)
LOG_FIELDS = 6
T_RELEASED, T_END = range(2)
G_TASK, G_CHANNEL, G_START, G_END, G_WORK = range(5)
GRANT_FIELDS = 5

# run.channel, int64 per channel
(
    K_TIMER, K_PENDING, K_HEAP, K_LATER, K_SERVED, K_SINCE, K_ORDER, K_ARRIVED, K_HEADS, K_FIRED, K_TURN, K_FROM, K_UNTIL, K_LAST_PORT,
    K_FIRST, K_LAST, K_WHOLE,
) = range(17)  # fmt: skip
CHANNEL_FIELDS = 17

# run.classes, int64 [channel, field, class]
W_WEIGHT, W_MANY, W_SHARE, W_GOT, W_HEAP = range(5)
CLASS_FIELDS = 5

# run.cost, int64 [quantity, row of a lane]
COST_COMPUTE, COST_WORK, COST_BYTES = range(3)


class State(NamedTuple):
    """All arrays of a run; see the constants of this module for the fields of each table.

    m: registers. form, outputs: the pool of task graphs. cell, remaining [channel, cell], rank [cell], order [channel, cell]:
    tasks in progress; `remaining` is ps at full speed, or what the class of the transfer will have got when it ends. at: lists of
    transfers. queue [channel, head and tail, requester]. slot, loop, channel, classes: tables. members: the sequences of the
    members of steps in progress. cost: durations. log, engine, step, grant: what is recorded. ready: a heap of (rank, key of the
    step, cell). bound [engine]: the root of a heap of tasks that must run there. running, idle, wakes: heaps of ends of tasks on
    engines, of idle engines, of loops to wake. ring [time, cell and channel]: transfers that latency delays. turns: loops that go
    on at this instant. pending, later [channel, 3, requester]: heaps of transfers at a channel. arrived, heads [channel, cell]:
    of this instant. class_heap [channel, class, 3, requester]. sequence_class: the class of each sequence. efficiency [2, n].
    kv: offsets of layers, then the tasks that load each. missing [step, layer]: stores still to end, of known tokens. frontier
    [loop, layer]. sram_queue: loops that wait for room.
    """

    m: Any
    form: Any
    outputs: Any
    cell: Any
    remaining: Any
    rank: Any
    order: Any
    at: Any
    queue: Any
    slot: Any
    loop: Any
    channel: Any
    classes: Any
    members: Any
    cost: Any
    log: Any
    engine: Any
    step: Any
    grant: Any
    ready: Any
    bound: Any
    running: Any
    idle: Any
    wakes: Any
    ring: Any
    turns: Any
    pending: Any
    later: Any
    arrived: Any
    heads: Any
    class_heap: Any
    sequence_class: Any
    efficiency: Any
    kv: Any
    missing: Any
    frontier: Any
    sram_queue: Any
