"""The memory of a compiled run: one int64 array `m`, in which records are known by their addresses.

`m[slot + S_BASE]` is the field S_BASE of the record at `slot`, as in C; the constants below name the fields of each kind of
record. So a function takes one argument for all state, and to add a field is to add one name here. m[0] to m[REGISTERS - 1] are
registers, single words by the names below.

| record  | one for each                                   |
| ------- | ---------------------------------------------- |
| slot    | step in progress                               |
| cell    | task or join of a step in progress             |
| part    | channel of a memory that a transfer of a cell may go to, the first also for any link; it lies within its cell |
| loop    | decode loop: a sequence, or a loop of batched steps |
| fetch   | device of a loop, whose SRAM its steps request in turn |
| queue   | device: its SRAM, and the fetches that wait for it |
| channel | memory channel, or links that are divided together |
| class   | class of transfers at a channel                |

Beside it are `f`, int64, the pool of task graphs (a record of FORM words for each task, then the outputs); `log` [field, row],
the columns of the task table; and `service` [field, row], the columns of the table of service intervals.
"""

from __future__ import annotations

from typing import Any

Memory = Any  # int64 [address]
Forms = Any  # int64 [address]
Log = Any  # int64 [field, row]

NEVER = 2**62  # a time that does not come
NONE = -1  # no cell, engine or row

# Registers, at addresses from 0: the progress of the run (ROWS_WANTED: most service intervals that may end at one time),
(
    NOW,
    PHASE,
    AGE,
    AGE_TIME,
    BOUND,
    TURNS,
    TURN,
    SERVICES,
    TOO_LARGE,
    ROWS_WANTED,
    TO_PLAN,
    TO_DISPATCH,
    TO_ADMIT,
) = range(13)
# constants of the run (REPLICA_DEVICES: devices of each replica; SRAM: whether it is bounded),
(
    ENGINES, LIMIT, OVERLAP, CHANNELS, MEMORY_CHANNELS, ROUTE, SRAM, RANKING, CHAINED, KNOWN, LAYERS, CELL, DEVICES,
    DEVICE_ENGINES, READY_WORDS, IDLE_WORDS, BESIDE, CLOCK_LEAVES, REPLICA_DEVICES,
) = range(13, 32)  # fmt: skip
# and addresses: of heaps, lists and tables. READY and IDLES: heaps of the first device; those of the others stand behind them,
# READY_WORDS and IDLE_WORDS apart. CLOCK: see `sim.executors.compiled.clock`. PLAN_LIST: of TO_PLAN units that are to be
# divided anew. DISPATCH_LIST: of TO_DISPATCH devices that may have tasks to dispatch, each with a mark in DEVICE_MARKS.
# ADMIT_LIST: of TO_ADMIT queues of SRAM that may have a request to admit. ADMITTED: of fetches that were, in one round
(
    READY, RUNNING, IDLES, WAKES, TURN_LIST, CHANNEL_TABLE, LOOP_TABLE, BOUND_TABLE, KV, CLOCK, PLAN_LIST, DISPATCH_LIST,
    DEVICE_MARKS, QUEUE_TABLE, FETCH_TABLE, ADMIT_LIST, ADMITTED,
) = range(32, 49)  # fmt: skip
REGISTERS = 49

# The phases of an instant: completions, then steps and all else
COMPLETE, STEPS = range(2)

# Reasons for which `advance` returns
DONE, PAUSED, WANTS_STEP, WANTS_COSTS, WANTS_GRANTS, OUT_OF_RANGE = range(6)

# Disciplines of a channel, and the property of a transfer that its urgency or class follows from
EXCLUSIVE, TURN_BY_TURN, BY_CLASS, BY_REST, BY_RULE, BY_PATH = range(6)
BY_KIND, BY_AGE, BY_SEQUENCE = range(3)

# Ranks of ready tasks
IN_ORDER, OLDEST, SHORTEST, LONGEST_PATH = range(4)

# A node in the pool of graphs: a task or, after all tasks, a join, which has inputs and outputs alone. Outputs are numbers.
# USERS: how many tasks use the operands that it loads into SRAM, 0 if it loads none. USED, USED_END: addresses of the list of
# the tasks that load what it uses. LAUNCH: ps on an engine before it loads operands. PATH: of the links
# that a transfer crosses at once, NONE if it goes to one channel
(
    HELD, PREFETCH, INPUTS, OUT, OUT_END, COST_ROW, LEVEL, MOVES, MEMBER, CHAIN, STORES, USERS, USED, USED_END, LAUNCH, DEVICE,
    PATH,
) = range(17)  # fmt: skip
FORM = 17

# A cell, and its parts. USES: of a task whose operands are in SRAM, tasks that have yet to use them.
# P_SERVED and P_WORK share their words with links of other disciplines
WAITING, SLOT, TASK, REQUESTER, PARTS, RANK, HOME, LEFT, RIGHT, USES = range(10)
FIRST_PART = 10
P_LEFT, P_ORDER, P_BEHIND, P_EARLIER, P_LATER = range(5)
P_SERVED, P_WORK = P_EARLIER, P_LATER
PART = 5

# A slot. S_FIRST, S_FIRST_END: addresses in the pool of graphs, of the list of tasks without inputs. S_OPERANDS,
# S_OPERANDS_END: of the list of tasks that load operands; behind it, for each, the number of the first not admitted with it,
# then the first of each device, and their number; then of each what comes before it on each device (`Operands.before`).
# S_STEP: address of its times. S_AHEAD: steps that may follow in it if they begin before S_UNTIL, costs S_NEXT words apart
(
    S_LOOP, S_KEY, S_FORM, S_TASKS, S_NODES, S_BASE, S_ROW, S_LEFT, S_AGE, S_COST, S_STEP, S_QUEUE, S_OWNER, S_MEMBERS, S_TOKEN,
    S_FIRST, S_FIRST_END, S_OPERANDS, S_OPERANDS_END, S_AHEAD, S_UNTIL, S_NEXT,
) = range(22)  # fmt: skip
SLOT_WORDS = 22

# The times of a step
RELEASED, ENDED = range(2)
TIMES = 2

# A loop. L_CELLS_OF: the form that its cells are set up for. L_MISSING, L_FRONTIER: addresses of [token, layer] and [layer].
# L_FETCHES: address of its fetches, one for each device of its replica
(
    L_NUMBER, L_BATCHED, L_TOKENS, L_TOKEN, L_FORM, L_TASKS, L_NODES, L_BASE, L_SLOT, L_ROW, L_STEP, L_COST, L_COST_ROWS,
    L_COST_FIRST, L_COST_LANES, L_KEY, L_MISSING, L_FRONTIER, L_FIRST, L_FIRST_END, L_CELLS_OF, L_OPERANDS, L_OPERANDS_END,
    L_FETCHES,
) = range(24)  # fmt: skip
LOOP_WORDS = 24

# A fetch. F_DEVICE: of the replica. F_NUMBER: the first operand that has no SRAM yet, in the list of the slot F_SLOT.
# F_QUEUED: it has a request in the queue, of F_NEED bytes. F_ASKED: the age of its request, F_ADMITTED: of the last one that
# was admitted. F_BEHIND: the fetch behind it in the queue
F_LOOP, F_DEVICE, F_SLOT, F_NUMBER, F_QUEUED, F_NEED, F_ASKED, F_ADMITTED, F_BEHIND = range(9)
FETCH_WORDS = 9

# A queue of SRAM. Q_FREE: bytes. Q_ASKED: requests so far. Q_FIRST, Q_LAST: fetches. Q_PASSED: the last fetch that cannot be
# admitted in this instant, nor those before it. Q_MARKED: it is in the list of those that may have a request to admit
Q_FREE, Q_ASKED, Q_FIRST, Q_LAST, Q_PASSED, Q_MARKED = range(6)
QUEUE_WORDS = 6

# A channel. K_PART: offset of its parts in cells. K_PORTS: address of [requester] (head, tail) of queues. K_RING: address of a
# ring of K_RING_SIZE cells that will arrive, each with its time. K_LEAF: its node in the clock
(
    K_NUMBER, K_PART, K_TIMER, K_PENDING, K_SERVED, K_SINCE, K_ORDER, K_ARRIVED, K_HEADS, K_FIRED, K_TURN, K_FROM, K_UNTIL,
    K_LAST_PORT, K_FIRST, K_LAST, K_WHOLE, K_HEAP, K_LATER, K_PORTS, K_ARRIVALS, K_NEW, K_CLASSES, K_RECORDS, K_MEMORY,
    K_RING, K_RING_SIZE, K_RING_HEAD, K_RING_TAIL, K_LEAF,
) = range(30)  # fmt: skip
# and constants: its latency, and how its arbiter divides it. Of links that are divided together K_NUMBER is the first, and
# K_LINK_COUNT how many there are; K_LINKS: address of records of them. K_PATHS: address of where the list of each path begins
# and ends. K_HOPS: links of the longest. K_ONE: one transfer at a time on a link
(
    K_LATENCY, K_DISCIPLINE, K_URGENCY, K_PREEMPTIVE, K_SHARE, K_DENOMINATOR, K_BURST,
    K_CLASS_COUNT, K_CAP, K_CAP_OF, K_FIXED_RATES, K_MOST, K_DERATED, K_RULE, K_MEMORY_WORDS, K_READS, K_SEQUENCE_CLASS,
    K_EFFICIENCY, K_EFFICIENCIES, K_LINK_COUNT, K_LINKS, K_PATHS, K_HOPS, K_ONE, K_CONSERVES,
) = range(30, 55)  # fmt: skip
CHANNEL_WORDS = 55
RING_ENTRY = 2  # the time at which it arrives, and the cell

# A class: the first three fields are those of `sim.machine.arbiters.rules`. W_HEAP: address. W_CAPACITY: entries
W_WEIGHT, W_MANY, W_SHARE, W_GOT, W_HEAP, W_CAPACITY = range(6)
CLASS = 6

# Durations of a row of a step
COMPUTE, WORK, BYTES = range(3)
COST = 3

# Fields of the log, and of service intervals (`service`)
C_ENGINE, C_READY, C_START, C_LOADED, C_END, C_COMPUTE, C_WORK, C_LAUNCHED = range(8)
LOG_FIELDS = 8
I_TASK, I_CHANNEL, I_START, I_END, I_WORK = range(5)
SERVICE_FIELDS = 5
