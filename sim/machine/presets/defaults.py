"""Settings that software of a kind of device uses: a preset names one of these, or writes its own.

A scenario gets them with the figures of the device, and each key that it writes wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from sim.base.section import Section


class Defaults(Section):
    """How software uses a device. mapping, cost: keys of these sections of a scenario.

    engines: `one` for the device as one engine, on which kernels run one after another, `all` for each of its units.
    """

    engines: Literal["one", "all"] = "all"
    mapping: dict[str, Any] = Field(default_factory=dict)
    cost: dict[str, Any] = Field(default_factory=dict)


#: Attention reads the KV cache itself, and is one kernel for all sequences of a step.
_KERNELS = {"heads": "fused", "kv": "operands", "attention": "batch", "execution": "stream"}

#: The additions of residuals are part of the norms that follow them.
_FUSED = {"model": "kernel", "t0": {"residual": "0 us"}}

#: Defaults by the names that presets use.
#:
#: | name  | kernels                                                                                               |
#: | ----- | ----------------------------------------------------------------------------------------------------- |
#: | `gpu` | those of inference engines on GPUs and accelerators: FlashAttention, fused projections and residuals   |
#: | `cpu` | one op after another on all cores, softmax in one pass, projections apart, as in llama.cpp             |
DEFAULTS: Mapping[str, Defaults] = MappingProxyType(
    {
        "gpu": Defaults.model_construct(
            engines="one",
            mapping={"softmax": "online", "fuse": {"qkv": True, "gate_up": True}, **_KERNELS},
            cost=_FUSED,
        ),
        "cpu": Defaults.model_construct(engines="one", mapping={"softmax": "fused", **_KERNELS}, cost={"model": "kernel"}),
    }
)

#: Keys of the mapping that exclude defaults: key, values (None: any but the plain one), and the defaults that go.
_EXCLUDED: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("execution", ("prefetch",), ("kv",)),
    ("kv_loads", ("head",), ("kv",)),
    ("granularity", ("aten",), ("softmax", "fuse", "attention")),
)


def compatible(mapping: Mapping[str, Any], written: Mapping[str, Any], *, captured: bool) -> dict[str, Any]:
    """Defaults of the mapping without those that a written key excludes. captured: ops are of a model, not written ones."""
    gone = {key for name, values, keys in _EXCLUDED if written.get(name) in values for key in keys}
    if not captured:
        gone |= {"softmax", "fuse"}
    return {key: value for key, value in mapping.items() if key not in gone}
