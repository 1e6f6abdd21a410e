"""The contract of a cost model: the machine that it is made for, and the durations that it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import gcd
from typing import Any, ClassVar, Protocol

import numpy as np

from models.formats import rate_of
from models.graph import IntArray, StepLanes
from sim.base.integers import mul_div_up
from sim.base.kernel import kernel, launch, loaded
from sim.mapping.tasks import TaskGraph

_SAFE = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The rates that costs follow from: FLOP/s of one engine (for all dtypes or by dtype), its vector op/s, ps per task,
    bytes/s of a channel of the memory, and of the links to devices, to a network, and to each tier (the host first), where
    there are any.

    alone: the share of a channel (numerator, denominator) that a transfer gets while no other wants any. overlap: an engine
    computes while the operands of its task load (`stream`), not after (`blocking`). unpack: bytes/s of weights that an engine
    converts for its arithmetic, by their format; those of other formats take no time.
    """

    flops: int | Mapping[str, int]
    vector_flops: int
    overhead: int
    bandwidth: int
    link: int = 1
    network: int = 1
    tiers: tuple[int, ...] = ()
    alone: tuple[int, int] = (1, 1)
    overlap: bool = False
    unpack: Mapping[str, int] = field(default_factory=dict)

    def peak(self, dtype: str) -> int | None:
        """FLOP/s of one engine in `dtype`, None if that is not known."""
        return rate_of(self.flops, dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extrapolation:
    """An extrapolation warning: a kind of op, number of such ops, their share of the time of a step's ops, and the reason."""

    kind: str
    ops: int
    share: float
    why: str


class CostModel(Protocol):
    """Made with the machine, the seed of the run and the options of the scenario; see the package for the contract.

    A model that knows where its costs are extrapolations also has `extrapolations(graph, steps)`, a list of `Extrapolation`.
    One whose times on an engine begin with a launch has `launches(graph)`, ps [task]: an engine loads operands only after it.
    """

    def __init__(self, *, machine: Rates, seed: int) -> None: ...

    def durations(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray]: ...


def launches_of(costs: CostModel, graph: TaskGraph) -> IntArray:
    """Picoseconds of each task on its engine before it loads operands [task]; 0 if the model has none."""
    of: Callable[[TaskGraph], IntArray] | None = getattr(costs, "launches", None)
    return np.zeros(len(graph), dtype=np.int64) if of is None else of(graph)


class Caching(ABC):
    """Base of cost models that keep what they make of a graph by its id: a copy, also one that was pickled, keeps nothing.

    A subclass names the attributes that hold it in `CACHES`, and makes them in `_clear`.
    """

    CACHES: ClassVar[tuple[str, ...]]

    @abstractmethod
    def _clear(self) -> None: ...

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in self.CACHES}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()


def time_at_rate(amount: IntArray, per_second: int) -> IntArray:
    """Picoseconds to process `amount` at an integer rate, rounded up, exactly: ceil(amount * 1e12 / per_second)."""
    common = gcd(10**12, per_second)
    num, den = 10**12 // common, per_second // common
    if int(amount.max(initial=0)) < _SAFE // num - den:
        return np.asarray(-(-amount * num // den), dtype=np.int64)
    exact = amount.ravel().astype(np.int64)  # the product would overflow int64
    launch(scale_up, compiled=loaded())(exact, num, den)
    return exact.reshape(amount.shape)


def ceil_scaled(amount: IntArray, num: int, den: int) -> IntArray:
    """ceil(amount * num / den), without the product that could overflow."""
    return np.asarray(amount // den * num - (-(amount % den) * num // den))


@kernel
def scale_up(amount: Any, num: int, den: int) -> None:
    """Replace each amount by ceil(amount * num / den)."""
    for i in range(amount.shape[0]):
        amount[i] = mul_div_up(amount[i], num, den)
