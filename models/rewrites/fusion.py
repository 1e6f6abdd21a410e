"""Fusion: the ops of a model as the kernels of a machine compute them.

Weights and KV bytes stay exactly as captured, and FLOPs, too, but for pairs of a query and a key that a mask hides: in a step
with several new tokens, `fused` and `online` leave them out (see `models.rewrites.visible`). What else changes:

| fusion         | replaces                            | by               | what changes                                     |
| -------------- | ----------------------------------- | ---------------- | ------------------------------------------------ |
| softmax fused  | the three passes of the softmax     | `softmax`        | activations: scores are read, and written, once  |
| softmax online | scores, softmax and weighted values | `attention`      | activations: no scores; vector ops: rescaling    |
| kv_splits n    | nothing: `attention` is in n parts  | and a `combine`  | partial results, see `models.rewrites.attention` |
| qkv            | q, k and v projections              | `qkv_proj`       | activations: their common input is read once     |
| gate_up        | gate and up projections             | `gate_up_proj`   | the same                                         |
"""

from __future__ import annotations

from typing import Literal

from models.graph import OpGraph
from models.rewrites.attention import fuse_attention
from models.rewrites.projections import fuse_projections
from models.rewrites.softmax import attention_chains, fuse_softmax
from sim.base.errors import ConfigError

Softmax = Literal["three_pass", "fused", "online"]


def fuse(
    ops: OpGraph, *, element: int, softmax: Softmax = "three_pass", kv_splits: int = 1, qkv: bool = False,
    gate_up: bool = False, chunked: bool = False, prefix: bool = False,
) -> OpGraph:  # fmt: skip
    """The op graph after the fusions. element: bytes of a captured number. chunked, prefix: as in `ModelGraph`.

    Ops that are fused already, or absent, stay as they are. Raises ConfigError if there is no softmax in three passes to be
    fused.
    """
    for kind, wanted in (("qkv_proj", qkv), ("gate_up_proj", gate_up)):
        if wanted:
            ops = fuse_projections(ops, kind)
    if softmax == "three_pass":
        return ops
    if next(attention_chains(ops), None) is None:
        if any(op.kind == "state_load" for op in ops.ops):  # the first layers of a hybrid
            return ops
        raise ConfigError("mapping.softmax", "expected three_pass: the model has no softmax in three passes to be fused")
    if softmax == "fused":
        return fuse_softmax(ops, element, chunked=chunked, prefix=prefix)
    return fuse_attention(ops, element, kv_splits, chunked=chunked, prefix=prefix)
