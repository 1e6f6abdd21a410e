"""A preset: the model of its file, and the `hardware` section that it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sim.base.documents import read
from sim.base.problems import validated
from sim.base.quantities import BANDWIDTH, FLOP_RATE, SIZE, Bandwidth, FlopRate, Size, show
from sim.base.section import Section, Text, Whole
from sim.machine.settings import Efficiency

#: Keys of figures, in the order of lists.
FIGURES = ("engines", "peak", "vector", "bandwidth", "achievable", "port_bandwidth", "capacity", "on_chip")

#: Largest number of engines that a scenario may have.
MOST_ENGINES = 4096


class Figure(Section):
    """One figure in base units, its source, and notes. A file names the source by a key of its `sources`."""

    value: Any
    source: str
    derived: Text = ""
    unsure: Text = ""
    _text: str = PrivateAttr()

    @field_validator("source")
    @classmethod
    def _spelled_out(cls, name: str, info: ValidationInfo) -> str:
        sources = (info.context or {}).get("sources")
        sources = sources if isinstance(sources, Mapping) else {}  # of another type it is an error of its own
        if name not in sources:
            raise ValueError(f"expected one of {', '.join(sources)}, found {show(name)}")
        return str(sources[name])

    @model_validator(mode="wrap")
    @classmethod
    def _as_written(cls, written: Any, handler: ModelWrapValidatorHandler[Figure]) -> Figure:
        figure = handler(written)
        value = written.get("value", "")
        figure._text = "/".join(str(share) for share in value.values()) if isinstance(value, Mapping) else str(value)
        return figure

    @property
    def text(self) -> str:
        """The value as written."""
        return self._text

    def __str__(self) -> str:
        notes = [word for word in ("derived", "unsure") if getattr(self, word)]
        return f"{self.text} ({', '.join(notes)})" if notes else self.text


class Count(Figure):
    """A number of engines."""

    value: Whole = Field(ge=1, le=MOST_ENGINES)


class Rate(Figure):
    """A compute rate."""

    value: FlopRate


class Bytes(Figure):
    """A size."""

    value: Size


class BytesRate(Figure):
    """A bandwidth."""

    value: Bandwidth


class Shares(Figure):
    """Shares of the bandwidth by number of readers, or one share for any number."""

    value: Annotated[Efficiency, BeforeValidator(lambda value: value if isinstance(value, Mapping) else {"1": value})]


class Peak(Figure):
    """The peak bandwidth, or the reason why it is not published."""

    value: Bandwidth | None = None
    source: str = ""
    unpublished: Text = ""

    @model_validator(mode="after")
    def _one_of_two(self) -> Peak:
        if (self.value is None) != bool(self.unpublished) or bool(self.source) == bool(self.unpublished):
            raise ValueError("expected the keys 'value' and 'source', or the key 'unpublished' alone")
        return self


class Preset(Section):
    """A device, in figures of the whole of it: FLOP/s, elements/s, bytes/s and bytes."""

    title: Text
    sources: dict[str, Text] = Field(default_factory=dict)
    engines: Count
    peak: dict[str, Rate]
    vector: Rate
    bandwidth: Peak
    achievable: Shares | None = None
    port_bandwidth: BytesRate | None = None
    capacity: Bytes | None = None
    on_chip: dict[str, Bytes] = Field(default_factory=dict)
    _name: str = PrivateAttr()

    @property
    def name(self) -> str:
        """The name that scenarios use."""
        return self._name

    @property
    def unpublished(self) -> str:
        """The reason why the bandwidth is not known; empty if it is."""
        return self.bandwidth.unpublished

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """All figures with their keys, such as `peak.bfloat16`."""
        for key in FIGURES:
            found = getattr(self, key)
            if isinstance(found, Mapping):
                yield from ((f"{key}.{name}", figure) for name, figure in found.items())
            elif found is not None and found.value is not None:
                yield key, found

    def hardware(self, *, achievable: bool = False) -> dict[str, Any]:
        """The `hardware` section of a scenario that it stands for, as plain data.

        An engine has its share of the device, rounded down to whole FLOP/s: all of them together never beat the device.
        achievable: with the measured share of the bandwidth as `memory.efficiency`, if there is one.
        """
        count = self.engines.value
        rates = {dtype: FLOP_RATE.format(figure.value // count) for dtype, figure in self.peak.items()}
        memory: dict[str, Any] = {}
        for key, figure, dimension in (
            ("bandwidth", self.bandwidth, BANDWIDTH),
            ("port_bandwidth", self.port_bandwidth, BANDWIDTH),
            ("capacity", self.capacity, SIZE),
        ):
            if figure is not None and figure.value is not None:
                memory[key] = dimension.format(figure.value)
        if achievable and self.achievable is not None:
            memory["efficiency"] = self.achievable.value
        return {
            "engines": {
                "count": count,
                "flops": rates.get("any", rates),
                "vector_flops": FLOP_RATE.format(self.vector.value // count),
            },
            "memory": memory,
        }


def read_preset(path: str | Path, name: str) -> Preset:
    """Read the file of a preset. Raises InputError, with file, line and column, for whatever is wrong with it."""
    document = read(path)
    sources = document.root.child("sources")
    preset = validated(document, Preset, context={"sources": sources.plain() if sources is not None else {}})
    preset._name = name
    return preset
