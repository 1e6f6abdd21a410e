"""Arbiters of third parties that are one function on integers: both executors call it, the compiled one compiled.

    rule(pending, count, shares, memory) -> denominator

pending: `count` records of TRANSFER_WORDS words, in order of arrival; word REMAINING of transfer i is
`pending[i * TRANSFER_WORDS + REMAINING]`. shares: `count` zeros, for the numerators; one that stays 0 is not served.
memory: what the arbiter keeps between questions. `memory[QUANTUM]` is 0 at each question: what is written there is the time
in ps after which it is asked again. `memory[PORT]` / `memory[PORT_OF]` is the largest share of one requester's port.
From `memory[OWN]` on are the options that the class gives, and state that follows from the questions.

The function is a kernel (see `sim.base.kernel` for its rules), and must not write to `pending`. The sum of the shares is at
most the denominator; the denominator and the quantum are at most MOST_SHARES.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

from sim.base.errors import InputError
from sim.base.kernel import is_kernel
from sim.machine.arbiters.contract import Arbiter, Plan, Transfer

#: Words of a record, as the fields of `Transfer`. KIND: index in the `kinds` of the arbiter, -1 for others. IN_SERVICE: 0 or 1.
REQUESTER, KIND, SEQUENCE, TOKEN, ORDER, AGE, WORK, REMAINING, IN_SERVICE, MOVES = range(10)
TRANSFER_WORDS = 10

#: Words of the memory; those from OWN on belong to the arbiter.
QUANTUM, PORT, PORT_OF, OWN = range(4)

MOST_SHARES = 2**40


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
        valid = sum(shares) <= denominator <= MOST_SHARES and denominator > 0 and min(shares) >= 0
        if not (valid and 0 <= quantum <= MOST_SHARES):
            raise InputError(
                f"arbiter {type(self).__name__}: expected shares from 0 on that sum to at most the denominator, and "
                f"neither that nor the quantum above 2^40, found {shares.tolist()} of {denominator}, quantum {quantum}"
            )
        return Plan([(t, share) for t, share in zip(pending, shares, strict=True) if share], denominator, quantum or None)
