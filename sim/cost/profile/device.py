"""A device profile: measurements of a device, as coefficients with their ranges and their errors.

`fit` makes it from samples, `files` reads and writes it, `sim.cost.profiled` costs the tasks of a run by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BeforeValidator, Field

from sim.base.section import Section, Text, Whole, real

#: Classes of kernels, for ops whose kind has no timing of its own. `attention`: all of a layer's attention as one kernel;
#: `multi_head_attention`: the same where every head has keys of its own, which some libraries give another kernel;
#: `prefill_attention`: attention of sequences that feed in several tokens each; `mixed_attention`: one launch for such and for
#: sequences that decode.
MATMUL, ATTENTION, MULTI_HEAD, ELEMENTWISE = "matmul", "attention", "multi_head_attention", "elementwise"
PREFILL, MIXED = "prefill_attention", "mixed_attention"


Positive = Annotated[Whole, Field(ge=1)]
Real = Annotated[float, Field(ge=0), BeforeValidator(real)]


class Provenance(Section):
    """Source of a profile.

    source: the command, or the table, that gave the samples. settings: other conditions (threads, mode, CUDA graphs).
    rounds: repetitions of each measurement. spread: median over shapes of (p90 - p10) / median of their repetitions.
    noise: median error of predicting one half of the rounds by the other, below which no model's error can fall.
    warnings: reasons for caution, e.g. that the machine was not idle. samples: name of the file of raw samples
    beside the profile, empty if there is none.
    """

    device: Text
    source: Text
    date: Text
    driver: str = ""
    libraries: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, str] = Field(default_factory=dict)
    rounds: Positive = 1
    spread: Real | None = None
    noise: Real | None = None
    warnings: tuple[Text, ...] = Field(default=(), strict=False)  # YAML has lists, not tuples
    samples: str = ""


class Residual(Section):
    """Relative errors |predicted / measured - 1| of a fit on its own samples."""

    samples: Positive
    median: Real
    p90: Real


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFit:
    """A fit at one number of rows: coefficients of the form, in base units."""

    coefficients: Mapping[str, int]
    residual: Residual


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """Measured times of one shape over times by the form, at ascending contexts."""

    context: tuple[int, ...]
    factor: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Times of ops of one kind (or class of kernels) in one number format.

    form: a name of `sim.cost.profile.forms`; unit: that its rate counts. ranges: smallest and largest of each column of shapes
    that was measured; beyond them a time is an extrapolation. rows: fits by number of rows; between two, linear in rows.
    near: of attention, by (heads, KV heads, size of a head) and by rows, how far the form was off; linear between contexts.
    """

    kind: str
    dtype: str
    form: str
    unit: str
    ranges: Mapping[str, tuple[int, int]]
    rows: Mapping[int, RowFit]
    near: Mapping[tuple[int, int, int], Mapping[int, Factors]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Time of a step beyond its ops: scale * (sum of their times) + per_op * (number of ops) + per_step. Times in ps."""

    scale: float = 1.0
    per_op: int = 0
    per_step: int = 0
    residual: Residual | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """engines: how many ops the device runs at once, each as fast as it was measured alone.

    bandwidth: of the memory channel, bytes/s: the datasheet's, or the best that was measured. read, write: bytes/s of all
    streams together, by their number; may be empty. flops: peak of an engine in FLOP/s, by number format; may be empty.
    capacity: bytes of memory, None if not known.
    """

    title: str
    provenance: Provenance
    engines: int = 1
    bandwidth: int
    read: Mapping[int, int] = field(default_factory=dict)
    write: Mapping[int, int] = field(default_factory=dict)
    flops: Mapping[str, int] = field(default_factory=dict)
    capacity: int | None = None
    step: Step = Step()
    timings: tuple[Timing, ...]
    _index: Mapping[tuple[str, str], Timing] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {(timing.kind, timing.dtype): timing for timing in self.timings})

    def timing(self, kinds: Iterable[str], dtype: str) -> Timing | None:
        """The timing of the first of these kinds that has one; None if none has."""
        return next((self._index[kind, dtype] for kind in kinds if (kind, dtype) in self._index), None)

    def kinds(self) -> Iterator[str]:
        """Name of what was measured: `matmul (bfloat16)`."""
        return (f"{timing.kind} ({timing.dtype})" for timing in self.timings)
