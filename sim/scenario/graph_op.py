"""One op of a graph that is written in the scenario itself."""

from __future__ import annotations

from pydantic import Field, model_validator

from sim.base.quantities import Duration, Size
from sim.base.section import LINE, Section, Whole

MAX_OPS = 100_000

_COUNT = 2**62


#: Kinds of ops that only move a KV cache or a state, and their class of bytes.
_MOVERS = {"kv_load": "kv_read", "kv_store": "kv_write", "state_load": "state_read", "state_store": "state_write"}


class GraphOp(Section):
    """One op of a step: its arithmetic, its bytes and its inputs."""

    name: str = Field(min_length=1, max_length=100, pattern=LINE, description="Its name, by which other ops refer to it.")
    kind: str | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        pattern=LINE,
        description="Kind of op; null: its name. `kv_load` and `kv_store` move the KV cache, "
        "`state_load` and `state_store` a state; they compute nothing.",
    )
    inputs: tuple[str, ...] = Field(
        default=(), strict=False, description="Names of the ops whose results it needs, anywhere in the list."
    )
    layer: Whole = Field(default=0, ge=0, lt=2**15, description="Its layer; the KV cache is ordered layer by layer.")
    heads: Whole = Field(default=0, ge=0, lt=2**15, description="Attention heads that it can be split over; 0: not per head.")
    flops: Whole = Field(default=0, ge=0, lt=_COUNT, description="Floating-point operations of matrix products.")
    vector_ops: Whole = Field(default=0, ge=0, lt=_COUNT, description="Elements that all other arithmetic touches.")
    duration: Duration | None = Field(
        default=None, description="Time on an engine, instead of `flops` and `vector_ops`, whatever the cost model says."
    )
    weight: Size | None = Field(default=None, description="Bytes of weights that it reads.")
    kv_read: Size | None = Field(default=None, description="Bytes of KV cache that it reads; for a `kv_load`.")
    kv_write: Size | None = Field(default=None, description="Bytes of KV cache that it appends; for a `kv_store`.")
    state_read: Size | None = Field(default=None, description="Bytes of a state that it loads; for a `state_load`.")
    state_write: Size | None = Field(default=None, description="Bytes of a state that it stores; for a `state_store`.")
    act_read: Size | None = Field(default=None, description="Bytes of activations that it reads, if they are off chip.")
    act_write: Size | None = Field(default=None, description="Bytes of activations that it writes, if they are off chip.")
    transfer: Duration | None = Field(
        default=None,
        description="Time of its weights (for a `kv_load` or `kv_store`, of its KV cache) on a free channel, instead of bytes.",
    )

    @property
    def moves_kv(self) -> str | None:
        """Its class of bytes if it only moves the KV cache or a state."""
        return _MOVERS.get(self.kind or self.name)

    @model_validator(mode="after")
    def _consistent(self) -> GraphOp:
        computes = self.duration is not None or bool(self.flops or self.vector_ops)
        sizes = [name for name in ("weight", *_MOVERS.values(), "act_read", "act_write") if getattr(self, name) is not None]
        if self.duration is not None and (self.flops or self.vector_ops):
            raise ValueError("expected either a duration or flops and vector_ops, found both")
        if self.transfer is not None and sizes:
            raise ValueError(f"expected either a transfer time or bytes, found transfer and {sizes[0]}")
        if self.moves_kv is None:
            if not computes:
                raise ValueError(f"expected a duration, flops or vector_ops: only {', '.join(_MOVERS)} compute nothing")
            for kind, name in _MOVERS.items():
                if name in sizes:
                    raise ValueError(f"expected {name} only in an op of kind {kind}")
        elif computes:
            raise ValueError(f"expected no duration, flops or vector_ops: a {self.kind or self.name} only moves data")
        elif sizes != [self.moves_kv] and not (self.transfer is not None and not sizes):
            raise ValueError(f"expected {self.moves_kv} or a transfer time, and nothing else")
        return self
