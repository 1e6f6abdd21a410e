"""Arbiters: how much of the memory channel each transfer gets. `contract` says what one must answer.

| name                | serves                                                        |
| ------------------- | ------------------------------------------------------------- |
| `fifo`              | one at a time, in order of arrival                            |
| `priority`          | one at a time, the most urgent class first                    |
| `round_robin`       | one at a time, a burst for each requester in turn             |
| `processor_sharing` | all at once, equal shares                                     |
| `weighted`          | all at once, shares by weight                                 |
| `proportional`      | all at once, shares by demand                                 |

To add one: one file with a class as in `contract`, and one entry in `ARBITERS`; from a package of your own, an entry point in
the group `decode_sim.arbiters` (`docs/guides/own_arbiter.md` does it step by step). One whose plan is a function on integers
(`written`) is compiled, too.
"""

from __future__ import annotations

from sim.base.registry import Registry
from sim.machine.arbiters.contract import Arbiter, Plan, Transfer
from sim.machine.arbiters.derated import Derated, Efficiency
from sim.machine.arbiters.exclusive import Fifo, Priority, RoundRobin
from sim.machine.arbiters.sharing import ProcessorSharing, Proportional, Weighted, water_fill
from sim.machine.arbiters.written import KernelArbiter

ARBITERS: Registry[type[Arbiter]] = Registry(
    "arbiter",
    {
        "fifo": Fifo, "processor_sharing": ProcessorSharing, "priority": Priority, "round_robin": RoundRobin,
        "weighted": Weighted, "proportional": Proportional,
    },
    given=("cap", "bandwidth"),
)  # fmt: skip


__all__ = [
    "ARBITERS", "Arbiter", "Derated", "Efficiency", "Fifo", "KernelArbiter", "Plan", "Priority",
    "ProcessorSharing", "Proportional", "RoundRobin", "Transfer", "Weighted", "water_fill",
]  # fmt: skip
