"""Tables of durations for the `fixed` cost model.

A table gives microseconds for a whole op of a kind; a group of kinds shares one time by FLOPs, layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sim.base.registry import Registry
from sim.base.units import PS_PER_US


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """kinds: picoseconds per op. groups: name -> (kinds that share, picoseconds for all of them in a layer)."""

    kinds: Mapping[str, int]
    groups: Mapping[str, tuple[tuple[str, ...], int]]


#: Rough estimates for one block of a 1B model at D = 2048 on a small engine. Not measured: they show structure, not speed.
BLOCK_ESTIMATES = Table(
    kinds={
        kind: microseconds * PS_PER_US
        for kind, microseconds in {
            "norm": 300,
            "q_proj": 800, "k_proj": 800, "v_proj": 800, "o_proj": 800,
            "rope": 500,
            "scores": 1000, "softmax_max": 300, "softmax_exp": 400, "softmax_norm": 400, "weighted_values": 1000,
            "residual": 300,
            "kv_load": 1200, "kv_store": 1500,
            # Fused kernels take as long as their parts; what fusion saves is waiting.
            "qkv_proj": 2400, "softmax": 1100, "attention": 3100, "combine": 300,
        }.items()
    },
    groups={"mlp": (("gate_proj", "up_proj", "gate_up_proj", "act", "down_proj"), 1000 * PS_PER_US)},
)  # fmt: skip

TABLES: Registry[Table] = Registry("cost table", {"block_estimates": BLOCK_ESTIMATES})
