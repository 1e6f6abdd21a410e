"""Batching policies: which waiting request joins the batch next. `contract` says what one must answer.

| name          | admits                                                            |
| ------------- | ----------------------------------------------------------------- |
| `independent` | each request into a loop of its own                               |
| `static`      | the requests that wait when the batch before has ended            |
| `continuous`  | before every step, all that wait, in order of arrival             |

To add one: write such a class in a file of its own and register it as an entry point in the group
`decode_sim.batching_policies`; `docs/guides/own_batching.md` does it step by step.
"""

from __future__ import annotations

from sim.base.registry import Registry
from sim.serving.policies.continuous import Continuous
from sim.serving.policies.contract import BatchingPolicy, Waiting
from sim.serving.policies.independent import Independent
from sim.serving.policies.static import Static

BATCHING_POLICIES: Registry[type[BatchingPolicy]] = Registry(
    "batching policy", {"independent": Independent, "static": Static, "continuous": Continuous}
)

__all__ = ["BATCHING_POLICIES", "BatchingPolicy", "Waiting"]
