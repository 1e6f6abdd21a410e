"""Arbiters of third parties that are one function on integers: both executors call it, the compiled one compiled.

    rule(pending, count, shares, memory) -> denominator

pending: `count` records of TRANSFER_WORDS words, in order of arrival; word REMAINING of transfer i is
`pending[i * TRANSFER_WORDS + REMAINING]`. shares: `count` zeros, for the numerators; one that stays 0 is not served.
memory: what the arbiter keeps between questions. `memory[QUANTUM]` is 0 at each question: what is written there is the time
in ps after which it is asked again. `memory[PORT]` / `memory[PORT_OF]` is the largest share of one requester's port.
From `memory[OWN]` on are the options that the class gives, and state that follows from the questions.

The function is a kernel (see `sim.base.kernel` for its rules), and must not write to `pending`. The sum of the shares is at
most the denominator, and no share is above that of a port; the denominator and the quantum are at most MOST_SHARES. With
`work_conserving` one of the shares is above 0. Both executors check each plan by `flaw`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

from sim.base.integers import mul_div
from sim.base.kernel import is_kernel, kernel
from sim.machine.arbiters.contract import Arbiter, Plan, PlanError, Transfer

#: Words of a record, as the fields of `Transfer`. KIND: index in the `kinds` of the arbiter, -1 for others. IN_SERVICE: 0 or 1.
REQUESTER, KIND, SEQUENCE, TOKEN, ORDER, AGE, WORK, REMAINING, IN_SERVICE, MOVES = range(10)
TRANSFER_WORDS = 10

#: Words of the memory; those from OWN on belong to the arbiter.
QUANTUM, PORT, PORT_OF, OWN = range(4)

MOST_SHARES = 2**40

#: Rules that a plan may break, and what was expected.
SOUND, NO_DENOMINATOR, NO_QUANTUM, NEGATIVE, ABOVE_WHOLE, ABOVE_PORT, IDLE = range(7)
EXPECTED = {
    NO_DENOMINATOR: "a denominator from 1 to 2^40", NO_QUANTUM: "a quantum from 0 to 2^40", NEGATIVE: "shares from 0 on",
    ABOVE_WHOLE: "shares that sum to at most the denominator", ABOVE_PORT: "no share above the cap of a port",
    IDLE: "a share above 0, as work_conserving says",
}  # fmt: skip


@kernel
def flaw(
    table: Any, at: int, count: int, denominator: int, quantum: int, cap: int, cap_of: int, conserving: int
) -> int:  # fmt: skip
    """Find what is wrong with a plan, SOUND if nothing is. table, at: where its shares are. cap, cap_of: those of a port."""
    if denominator < 1 or denominator > MOST_SHARES:
        return NO_DENOMINATOR
    if quantum < 0 or quantum > MOST_SHARES:
        return NO_QUANTUM
    whole, most, port = 0, 0, mul_div(denominator, cap, cap_of)
    for i in range(count):
        share = table[at + i]
        if share < 0:
            return NEGATIVE
        if share > denominator - whole:
            return ABOVE_WHOLE
        whole += share
        most = max(most, share)
    if most > port:
        return ABOVE_PORT
    return IDLE if conserving and whole == 0 else SOUND


class KernelArbiter(Arbiter):
    """An arbiter whose plan is what its `rule` says.

    own: words of memory of its own, from OWN on; each channel has a copy. kinds: kinds of transfers, for the word KIND.
    """

    rule: ClassVar[Callable[[Any, int, Any, Any], int]]

    def __init__(self, *, cap: tuple[int, int] = (1, 1), own: Sequence[int] = (), kinds: Collection[str] = ()) -> None:
        if not is_kernel(type(self).rule):
            raise TypeError(f"{type(self).__name__}.rule: expected a static method that is marked as a kernel")
        self.cap = cap
        self.kinds = tuple(kinds)
        self.memory = array("q", (0, *cap, *own))

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        index = {kind: i for i, kind in enumerate(self.kinds)}
        records = [
            word
            for t in pending
            for word in (
                t.requester, index.get(t.kind, -1), t.sequence, t.token, t.order, t.age, t.work, t.remaining, t.in_service,
                t.moves,
            )
        ]  # fmt: skip
        shares = array("q", bytes(8 * len(pending)))
        self.memory[QUANTUM] = 0
        denominator = type(self).rule(records, len(pending), shares, self.memory)
        quantum = self.memory[QUANTUM]
        wrong = flaw(shares, 0, len(pending), denominator, quantum, *self.cap, int(self.work_conserving))
        if wrong != SOUND:
            port = f" {self.cap[0]}/{self.cap[1]}" if wrong == ABOVE_PORT else ""
            raise PlanError(
                f"arbiter {type(self).__name__}: expected {EXPECTED[wrong]}{port}, found shares {shares.tolist()} of "
                f"{denominator}, quantum {quantum}"
            )
        return Plan([(t, share) for t, share in zip(pending, shares, strict=True) if share], denominator, quantum or None)
