"""Routers by name.

| name           | replica of a request                                                          |
| -------------- | ----------------------------------------------------------------------------- |
| `round_robin`  | all in turn                                                                   |
| `least_loaded` | that with the fewest requests                                                 |
| `prefix_hash`  | the same for all prompts that begin alike, and all turns of a conversation |
| `prefix_aware` | that which was given the longest beginning of its prompt before, or the least loaded one |

To add one: write such a class in a file of its own and register it as an entry point in the group `decode_sim.routers`;
`docs/guides/replicas.md` does it step by step.
"""

from __future__ import annotations

from sim.base.registry import Registry
from sim.serving.routers.contract import Load, Router
from sim.serving.routers.least_loaded import LeastLoaded
from sim.serving.routers.prefix_aware import PrefixAware
from sim.serving.routers.prefix_hash import PrefixHash
from sim.serving.routers.round_robin import RoundRobin

ROUTERS: Registry[type[Router]] = Registry(
    "router",
    {"round_robin": RoundRobin, "least_loaded": LeastLoaded, "prefix_hash": PrefixHash, "prefix_aware": PrefixAware},
)

__all__ = ["ROUTERS", "Load", "Router"]
