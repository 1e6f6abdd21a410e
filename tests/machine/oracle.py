"""An oracle: a second simulator of the machine, written from `docs/background/semantics.md` alone.

It knows lowered tasks (their inputs, engines, bytes, and times alone) and nothing of how executors work: shares are
fractions, pending things are lists that are searched, and an instant is five plain passes over everything. It is slow, and
simulates sequences that decode on their own; what it computes, executors have to agree with to the picosecond.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor
from typing import Any

WEIGHTS, KV, ACTIVATIONS = ("weight",), ("kv_read", "kv_write", "state_read", "state_write"), ("act_read", "act_write")


@dataclass(eq=False)
class Task:
    """A task as lowered. inputs, users: numbers of tasks in its step. size: bytes of SRAM of its operand, 0 if it has none.

    users: the tasks that use its operand. moves: names of its byte classes.
    """

    sequence: int
    token: int
    number: int
    kind: str
    layer: int
    on_engine: bool
    prefetched: bool
    compute: int
    work: int
    moves: tuple[str, ...]
    inputs: set[int]
    size: int = 0
    users: set[int] = field(default_factory=set)
    # what happens to it
    age: int = -1
    waits_for: set[Task] = field(default_factory=set)
    has_space: bool = True
    in_pool: bool = False
    engine: int = -1
    ready: int = -1
    start: int = -1
    loaded: int = -1
    end: int = -1
    parts: int = 0  # of its transfer, that have not arrived

    @property
    def place(self) -> tuple[int, int, int]:
        return self.sequence, self.token, self.number


@dataclass(eq=False)
class Transfer:
    """A transfer at a channel, or a part of one."""

    task: Task
    requester: int
    work: int
    left: int
    serving: bool = False


@dataclass(frozen=True)
class Rules:
    """A machine: what the scenario says of it. cap: of a port, as a share of a channel. efficiency: points, None for all."""

    engines: int
    launch: int
    overlap: bool
    known: bool
    scheduler: str
    channels: int
    route: str
    latency: int
    bandwidth: int
    arbiter: dict[str, Any]
    cap: Fraction
    efficiency: dict[int, Fraction] | None
    sram: int | None


def delivered(points: dict[int, Fraction] | None, n: int) -> Fraction:
    """E(n): the share of its bandwidth that a channel delivers to n transfers."""
    if points is None:
        return Fraction(1)
    below = [m for m in sorted(points) if m <= n]
    above = [m for m in sorted(points) if m >= n]
    if not below or not above:
        return points[(below or above)[-1 if below else 0]]
    low, high = below[-1], above[0]
    return points[low] if low == high else points[low] + (points[high] - points[low]) * Fraction(n - low, high - low)


def level_fill(weights: list[int], cap: Fraction, whole: Fraction) -> list[Fraction]:
    """Each gets min(cap, weight x level), and the level is such that all of `whole` is used or every one is at its cap."""
    if len(weights) * cap <= whole:
        return [cap] * len(weights)
    capped: set[int] = set()
    while True:
        rest = [i for i in range(len(weights)) if i not in capped]
        level = (whole - cap * len(capped)) / sum(weights[i] for i in rest)
        more = {i for i in rest if weights[i] * level >= cap}
        if not more:
            return [cap if i in capped else weights[i] * level for i in range(len(weights))]
        capped |= more


class Channel:
    """A channel. Its arbiter is `divide`: shares of pending transfers, and the work after which it is asked again or None."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.coming: list[tuple[int, Transfer]] = []  # times at which they reach the channel
        self.queues: dict[int, list[Transfer]] = {}  # by requester
        self.pending: list[Transfer] = []  # heads of queues, in order of arrival
        self.plan: list[tuple[Transfer, Fraction]] = []
        self.since = 0
        self.due: int | None = None
        self.turn: Transfer | None = None
        self.turn_began = 0
        self.asked = False  # something has changed in this instant
        self.served: list[tuple[Task, int, int, int]] = []

    # what an arbiter says

    def divide(self) -> tuple[list[tuple[Transfer, Fraction]], int | None]:
        name = self.rules.arbiter["name"]
        one = min(self.rules.cap, delivered(self.rules.efficiency, 1))
        if name in ("fifo", "priority"):
            return [(self.urgent(name), one)], None
        if name == "round_robin":
            return self.round_robin(one)
        whole, cap = delivered(self.rules.efficiency, len(self.pending)), self.rules.cap
        if name == "proportional" and self.rules.arbiter.get("demand", "outstanding") != "outstanding":
            wanted = [min(self.demand(transfer.task.kind), cap) for transfer in self.pending]
            factor = min(Fraction(1), 1 / sum(wanted))
            factor = min(factor, whole / sum(wanted))
            return [(t, share * factor) for t, share in zip(self.pending, wanted, strict=True)], None
        weights = [self.weight(name, transfer) for transfer in self.pending]
        return list(zip(self.pending, level_fill(weights, cap, whole), strict=True)), None

    def urgent(self, name: str) -> Transfer:
        """The transfer that has the channel to itself."""
        serving = [transfer for transfer in self.pending if transfer.serving]
        if name == "fifo":
            return (serving or self.pending)[0]
        if serving and not self.rules.arbiter.get("preemptive", False):
            return serving[0]
        classes = self.rules.arbiter.get("classes", "age")

        def urgency(transfer: Transfer) -> int:
            if classes == "age":
                return transfer.task.age
            return classes.index(transfer.task.kind) if transfer.task.kind in classes else len(classes)

        return min(self.pending, key=urgency)

    def round_robin(self, share: Fraction) -> tuple[list[tuple[Transfer, Fraction]], int | None]:
        burst = self.rules.arbiter["ps"]
        had = self.turn
        if had in self.pending:
            assert had is not None
            used = self.turn_began - had.left
            over = used > 0 and used % burst == 0 and len(self.pending) > 1
        if had not in self.pending or over:
            last = had.requester if had is not None else -1
            later = [t for t in self.pending if t.requester > last]
            self.turn = min(later or self.pending, key=lambda t: t.requester)
            self.turn_began = self.turn.left
        assert self.turn is not None
        if len(self.pending) == 1:
            return [(self.turn, share)], None
        used = self.turn_began - self.turn.left
        return [(self.turn, share)], min(burst - used % burst, self.turn.left)

    def demand(self, kind: str) -> Fraction:
        rate = self.rules.arbiter["demand"].get(kind)
        return Fraction(1) if rate is None else Fraction(rate, self.rules.bandwidth)

    def weight(self, name: str, transfer: Transfer) -> int:
        if name == "proportional":
            return transfer.left
        if name == "processor_sharing":
            return 1
        weights = self.rules.arbiter["weights"]
        weights = {str(key): weight for key, weight in (enumerate(weights) if isinstance(weights, list) else weights.items())}
        by_sequence = next(iter(weights)).isdecimal()
        return weights.get(str(transfer.task.sequence) if by_sequence else transfer.task.kind, 1)

    # what the channel does

    def deliver(self, now: int, *, ending: bool) -> None:
        """Advance the work of what is served. ending: the time that the plan has set has come."""
        elapsed, start, self.since = now - self.since, self.since, now
        if not elapsed or not self.plan:
            return
        left = floor(elapsed * sum(share for _, share in self.plan))
        for i, (transfer, share) in enumerate(self.plan):
            part = left if i == len(self.plan) - 1 else floor(elapsed * share)
            part = min(part, transfer.left if ending else transfer.left - 1)
            left -= part
            transfer.left -= part
            self.served.append((transfer.task, start, now, part))

    def completions(self, now: int) -> list[Task]:
        """Tasks whose last byte has been delivered now."""
        if self.due != now:
            return []
        self.deliver(now, ending=True)
        ended = [transfer for transfer, _ in self.plan if not transfer.left]
        for transfer, _ in self.plan:
            transfer.serving = False if not transfer.left else transfer.serving
        for transfer in ended:
            self.pending.remove(transfer)
            self.queues[transfer.requester].pop(0)
        self.asked, self.due = True, None
        self.again = True
        return [transfer.task for transfer in ended]

    again = False  # the plan has come to its end

    def admit(self, now: int) -> None:
        """Transfers that have come join the queues of their requesters; heads of queues come to the channel."""
        here = sorted((transfer for at, transfer in self.coming if at == now), key=lambda transfer: transfer.task.place)
        if here:
            self.asked = True
            self.coming = [each for each in self.coming if each[0] != now]
        for transfer in here:
            self.queues.setdefault(transfer.requester, []).append(transfer)
        heads = [queue[0] for queue in self.queues.values() if queue and queue[0] not in self.pending]
        self.pending += sorted(heads, key=lambda transfer: transfer.task.place)

    def replan(self, now: int) -> None:
        """Divide the channel again if anything came or went."""
        self.admit(now)
        if not self.asked:
            return
        self.asked = False
        reads_work = self.rules.arbiter["name"] == "round_robin" or (
            self.rules.arbiter["name"] == "proportional" and self.rules.arbiter.get("demand", "outstanding") == "outstanding"
        )
        if reads_work:
            self.deliver(now, ending=False)
        plan, work = self.divide() if self.pending else ([], None)
        if plan == self.plan and not self.again and not reads_work:
            return
        self.deliver(now, ending=False)
        self.again = False
        for transfer in self.pending:
            transfer.serving = False
        self.plan, self.due = plan, None
        for transfer, _ in plan:
            transfer.serving = True
        if plan:
            waits = [ceil(transfer.left / share) for transfer, share in plan]
            if work is not None:
                waits.append(ceil(work / plan[0][1]))
            self.due = now + min(waits)


class Oracle:
    """All sequences on the machine. steps: [sequence][token], their tasks; arrivals: [sequence], ps."""

    def __init__(self, rules: Rules, steps: list[list[list[Task]]], arrivals: list[int]) -> None:
        self.rules = rules
        self.steps = steps
        self.now = 0
        self.channels = [Channel(rules) for _ in range(rules.channels)]
        self.free = set(range(rules.engines))
        self.running: list[Task] = []
        self.computing: list[tuple[int, Task]] = []  # ends
        self.launching: list[tuple[int, Task]] = []  # ends of launches, after which operands are loaded
        self.to_release: list[tuple[int, int]] = [(at, sequence) for sequence, at in enumerate(arrivals)]
        self.next_token = [0] * len(steps)
        self.ages = -1
        self.aged_at = -1
        self.space = rules.sram
        self.asking: dict[int, tuple[int, list[Task]]] = {}  # sequence -> number of its request, and its operands
        self.to_ask: dict[int, list[list[Task]]] = {}  # sequence -> groups that come later
        self.passed: dict[int, int] = {}  # sequence -> number of the request that it was admitted with last
        self.requests = 0

    def run(self) -> None:
        while True:
            times = [at for at, _ in self.computing + self.launching + self.to_release]
            times += [at for channel in self.channels for at, _ in channel.coming]
            times += [channel.due for channel in self.channels if channel.due is not None]
            if not times:
                break
            self.now = min(times)
            self.completions()
            self.release()
            self.admit()
            self.dispatch()
            for channel in self.channels:
                channel.replan(self.now)

    # completions and arrivals

    def completions(self) -> None:
        now = self.now
        computed = [task for at, task in self.computing if at == now]
        self.computing = [each for each in self.computing if each[0] != now]
        launched = [task for at, task in self.launching if at == now]
        self.launching = [each for each in self.launching if each[0] != now]
        for task in launched:
            self.issue(task, task.engine)
        for task in computed:
            self.end(task)
        for channel in self.channels:
            for task in channel.completions(now):
                task.parts -= 1
                if not task.parts:
                    self.arrived(task)

    def arrived(self, task: Task) -> None:
        """The last byte of a task has come."""
        task.loaded = self.now
        if not task.on_engine:
            self.end(task)
            return
        launch = min(self.rules.launch, task.compute)
        end = max(self.now, task.start + task.compute) if self.rules.overlap else self.now + task.compute - launch
        if end == self.now:
            self.end(task)
        else:
            self.computing.append((end, task))

    def end(self, task: Task) -> None:
        task.end = self.now
        if task.on_engine:
            self.free.add(task.engine)
        for step in self.steps[task.sequence]:
            for other in step:
                if task in other.waits_for:
                    other.waits_for.remove(task)
                    if not other.waits_for and other.age >= 0:
                        self.all_inputs(other)
        if self.space is not None:
            for load in self.steps[task.sequence][task.token]:
                if task.number in load.users:
                    load.users.remove(task.number)
                    if not load.users:
                        self.space += load.size
        if not self.rules.known and all(other.end >= 0 for other in self.steps[task.sequence][task.token]):
            self.to_release.append((self.now, task.sequence))

    # steps

    def release(self) -> None:
        for sequence in sorted(sequence for at, sequence in self.to_release if at == self.now):
            tokens = self.steps[sequence][self.next_token[sequence] :]
            if not tokens:
                continue
            chosen = tokens if self.rules.known else tokens[:1]
            self.next_token[sequence] += len(chosen)
            if self.aged_at != self.now:
                self.ages, self.aged_at = self.ages + 1, self.now
            for step in chosen:
                for task in step:
                    task.age = self.ages
                    task.has_space = not task.size
                    task.waits_for = {step[number] for number in task.inputs}
                    if self.rules.known and task.kind == "kv_load" and task.token:
                        before = self.steps[sequence][: task.token]
                        task.waits_for |= {
                            other for step in before for other in step if other.kind == "kv_store" and other.layer == task.layer
                        }
            for step in chosen:
                for task in step:
                    if not task.waits_for:
                        self.all_inputs(task)
            if self.space is not None:
                self.to_ask[sequence] = [group for step in chosen for group in groups(step)]
        self.to_release = [each for each in self.to_release if each[0] != self.now]

    def all_inputs(self, task: Task) -> None:
        task.ready = self.now
        if task.has_space:
            self.may_begin(task)

    def may_begin(self, task: Task) -> None:
        if task.on_engine:
            task.in_pool = True
            return
        task.start = self.now
        queue = 0 if task.prefetched else 1
        self.issue(task, self.rules.engines + 2 * task.sequence + queue)

    # SRAM

    def admit(self) -> None:
        if self.space is None:
            return
        while True:
            for sequence in sorted(self.to_ask):
                if sequence not in self.asking and self.to_ask[sequence]:
                    self.asking[sequence] = (self.requests, self.to_ask[sequence].pop(0))
                    self.requests += 1
            if not self.asking:
                return
            oldest = min(number for number, _ in self.asking.values())
            fits = [
                (number, sequence)
                for sequence, (number, group) in self.asking.items()
                if sum(load.size for load in group) <= self.space and self.passed.get(sequence, -1) <= oldest
            ]
            if not fits:
                return
            number, sequence = min(fits)
            self.passed[sequence] = number
            for load in self.asking.pop(sequence)[1]:
                self.space -= load.size
                load.has_space = True
                if not load.waits_for:
                    self.may_begin(load)

    # engines

    def dispatch(self) -> None:
        pool = [task for sequence in self.steps for step in sequence for task in step if task.in_pool]
        pool.sort(key=lambda task: (self.rank(task), task.place))
        for engine in sorted(self.free):
            busy = self.rules.engines - len(self.free)
            if not pool or (self.rules.scheduler == "serial" and busy):
                return
            task = pool.pop(0)
            task.in_pool = False
            self.free.remove(engine)
            task.engine, task.start = engine, self.now
            if not task.work:
                task.loaded = self.now
                self.computing.append((self.now + task.compute, task))
            elif launch := min(self.rules.launch, task.compute):
                self.launching.append((self.now + launch, task))
            else:
                self.issue(task, engine)

    def rank(self, task: Task) -> int:
        return {"oldest_token": task.age, "shortest": task.compute + task.work}.get(self.rules.scheduler, 0)

    # channels

    def issue(self, task: Task, requester: int) -> None:
        rules, at = self.rules, self.now + self.rules.latency
        if rules.route == "interleaved":
            whole, over = divmod(task.work, rules.channels)
            parts = {i: whole + (i < over) for i in range(rules.channels)}
        else:
            classes = [i for i, names in enumerate((WEIGHTS, KV, ACTIVATIONS)) if set(names) & set(task.moves)]
            parts = {(task.sequence if rules.route == "sequence" else (classes or [0])[0]) % rules.channels: task.work}
        for channel, work in parts.items():
            if work:
                task.parts += 1
                self.channels[channel].coming.append((at, Transfer(task, requester, work, work)))


def groups(step: list[Task]) -> list[list[Task]]:
    """Operands of a step in the order in which tasks need them first, in groups that are requested together.

    To free an operand, all of its users have to end, and all tasks that these need before; so the operands of all of them are
    requested with it, and those that are needed to free these.
    """
    loads = sorted((load for load in step if load.size), key=lambda load: (min(load.users), load.number))

    def needs(number: int) -> set[int]:
        found, todo = set(), [number]
        while todo:
            each = todo.pop()
            if each not in found:
                found.add(each)
                todo += step[each].inputs
        return found

    until = []
    for load in loads:
        needed = set().union(*(needs(user) for user in load.users))
        until.append(max(i for i, other in enumerate(loads) if other is load or other.number in needed or other.users & needed))
    made: list[list[Task]] = []
    i = 0
    while i < len(loads):
        last = i
        j = i
        while j <= last:
            last = max(last, until[j])
            j += 1
        made.append(loads[i : last + 1])
        i = last + 1
    return made
