"""Schedulers: which ready task a free engine takes. `contract` says what one must answer.

| name            | takes first                                                               |
| --------------- | ------------------------------------------------------------------------- |
| `serial`        | tasks in program order, one at a time over all engines                    |
| `earliest`      | tasks in program order                                                    |
| `sticky`        | tasks in program order, on the engine that has their data                 |
| `critical_path` | the task with the longest path to the end of its step                     |
| `oldest_token`  | tasks of the step that was released first                                 |
| `shortest`      | the shortest task                                                         |

To add one: one file with a class as in `contract`, and one entry in `SCHEDULERS`; from a package of your own, an entry point
in the group `decode_sim.schedulers` (`docs/guides/own_arbiter.md` does it step by step).
"""

from __future__ import annotations

from sim.base.registry import Registry
from sim.machine.schedulers.contract import Scheduler, StepView
from sim.machine.schedulers.program_order import Earliest, Serial, Sticky
from sim.machine.schedulers.ranked import CriticalPath, OldestToken, Shortest, remaining_paths

SCHEDULERS: Registry[type[Scheduler]] = Registry(
    "scheduler",
    {
        "serial": Serial, "earliest": Earliest, "sticky": Sticky, "critical_path": CriticalPath,
        "oldest_token": OldestToken, "shortest": Shortest,
    },
)  # fmt: skip

__all__ = [
    "SCHEDULERS", "CriticalPath", "Earliest", "OldestToken", "Scheduler", "Serial", "Shortest", "StepView", "Sticky",
    "remaining_paths",
]  # fmt: skip
