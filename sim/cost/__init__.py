"""Cost models: how long a task computes on an engine, and how long its bytes take on a free channel.

| name       | costs                                                                     |
| ---------- | ------------------------------------------------------------------------- |
| `roofline` | FLOPs over the peak, bytes over the bandwidth: a lower bound              |
| `kernel`   | launch time, then the later of bytes and FLOPs at rates that are reached  |
| `fixed`    | a table of durations by kind of op                                        |
| `profiled` | kernels as a device was measured to run them                              |

The contract (`CostModel` in `sim.cost.model`): `durations(graph, steps)` returns two int64 arrays [task, lane] of picoseconds,
one lane per step: time on an engine (0 for tasks that do not compute), and time on the channel at full speed (0 for tasks that
move nothing). A task that computes or moves takes at least 1 ps. An op kind that the model does not know is an error that names
it. A model in which many tasks cost the same may also have `distinct(graph, steps)`: durations of tasks that stand for all,
[row, lane], and each task's row.

To add one: one file with a class as in `sim.cost.model`, and one entry in `COST_MODELS`; from a package of your own, an entry
point in the group `decode_sim.cost_models`.
"""

from __future__ import annotations

from models.graph import StepLanes
from sim.base.registry import Registry
from sim.cost.fixed import Fixed
from sim.cost.kernel_costs import KernelCosts
from sim.cost.model import CostModel, Extrapolation, Rates, launches_of
from sim.cost.profiled import Profiled
from sim.cost.roofline import Roofline
from sim.cost.written import WrittenCosts

COST_MODELS: Registry[type[CostModel]] = Registry(
    "cost model",
    {"roofline": Roofline, "kernel": KernelCosts, "fixed": Fixed, "profiled": Profiled},
    given=("machine", "seed"),
)

__all__ = [
    "COST_MODELS", "CostModel", "Extrapolation", "Fixed", "KernelCosts", "Profiled", "Rates", "Roofline", "StepLanes",
    "WrittenCosts", "launches_of",
]  # fmt: skip
