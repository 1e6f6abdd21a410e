"""Heads of the KV cache."""

from __future__ import annotations

from dataclasses import replace

from models.graph import OpGraph


def with_kv_heads(ops: OpGraph, kv_heads: int) -> OpGraph:
    """The op graph whose KV loads know the heads of the cache (1 for a latent one), so that they can be split over them."""
    return replace(ops, ops=tuple(replace(op, heads=kv_heads) if op.kind == "kv_load" else op for op in ops.ops))
