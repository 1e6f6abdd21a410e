"""An arbiter of a third party whose plans are checked: what is wrong with one names the arbiter, and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sim.base.errors import InputError
from sim.base.quantities import show
from sim.machine.arbiters.contract import Arbiter, Plan, PlanError, Ratio, Transfer


class Checked(Arbiter):
    """An arbiter whose plans are checked before the channel follows them."""

    def __init__(self, arbiter: Arbiter, name: str) -> None:
        self.arbiter, self.name = arbiter, name
        try:
            numerator, denominator = self.cap = arbiter.cap
            self.work_conserving, self.reads_remaining = bool(arbiter.work_conserving), bool(arbiter.reads_remaining)
            self.kinds, self.numbers = tuple(arbiter.kinds), tuple(arbiter.numbers)
            sound = callable(arbiter.plan) and 0 < numerator <= denominator
        except (AttributeError, TypeError, ValueError) as error:
            raise self._error("expected the attributes of sim.machine.arbiters.Arbiter", error) from None
        if not sound:
            raise self._error("expected a method plan, and a cap above 0, up to 1", show(self.cap))

    def __getattr__(self, name: str) -> Any:
        """Whatever else the arbiter has, such as `burst`."""
        if name.startswith("__") or name in ("arbiter", "name"):
            raise AttributeError(name)
        return getattr(self.arbiter, name)

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        try:
            plan = self.arbiter.plan(pending)
        except InputError:
            raise
        except Exception as error:
            raise self._error("plan failed", error) from error
        return self._checked(plan, pending)

    def divide(self, pending: Sequence[Transfer], delivered: Ratio) -> Plan | None:
        """See `Derated`: the arbiter's own, if its class has one."""
        own = vars(type(self.arbiter)).get("divide")
        found = None if own is None else own(self.arbiter, pending, delivered)
        return None if found is None else self._checked(found, pending)

    def _checked(self, plan: Any, pending: Sequence[Transfer]) -> Plan:
        if not isinstance(plan, Plan):
            raise self._error("plan: expected a Plan", show(plan))
        shares, denominator, quantum = plan
        if not _whole(denominator) or (quantum is not None and not _whole(quantum)):
            found = f"{show(denominator)} and {show(quantum)}"
            raise self._error("plan: expected a denominator and a quantum (or None) that are whole numbers from 1 on", found)
        left = {id(transfer) for transfer in pending}
        for transfer, share in shares:
            if id(transfer) not in left:
                raise self._error("plan: expected shares of pending transfers, each once", repr(transfer))
            if not _whole(share):
                raise self._error("plan: expected shares that are whole numbers from 1 on", show(share))
            left.remove(id(transfer))
        if (whole := sum(share for _, share in shares)) > denominator:
            raise self._error("plan: expected shares that sum to at most 1", f"{whole}/{denominator}")
        num, den = self.cap
        if (most := max((share for _, share in shares), default=0)) * den > num * denominator:
            raise self._error(f"plan: expected shares of at most {num}/{den}, the cap of a port", f"{most}/{denominator}")
        if self.work_conserving and pending and not shares:
            raise self._error("plan: expected that a pending transfer is served, as work_conserving says", "none")
        return plan

    def _error(self, expected: str, found: object) -> PlanError:
        what = f"{type(found).__name__}: {found}" if isinstance(found, Exception) else f"found {found}"
        return PlanError(" ".join(f"arbiter {self.name!r} ({type(self.arbiter).__module__}): {expected}; {what}".split()))


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
