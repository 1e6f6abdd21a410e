"""A preset: the model of its file, and the `hardware` section that it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from models.formats import WeightFormat
from sim.base.documents import read
from sim.base.problems import validated
from sim.base.quantities import (
    BANDWIDTH,
    DURATION,
    ENERGY_PER_BYTE,
    ENERGY_PER_FLOP,
    FLOP_RATE,
    POWER,
    SIZE,
    Bandwidth,
    Duration,
    EnergyPerByte,
    EnergyPerFlop,
    FlopRate,
    Power,
    Size,
    show,
)
from sim.base.section import ONE, TABLE, Section, Share, Text, Whole, form
from sim.machine.presets.defaults import DEFAULTS, Defaults
from sim.machine.settings import Efficiency

#: Keys of figures, in the order of lists.
FIGURES = (
    "engines", "peak", "vector", "bandwidth", "achievable", "port_bandwidth", "capacity", "link", "host", "kernel", "energy",
    "on_chip",
)  # fmt: skip

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


class LaunchTime(Figure):
    """Time of a kernel beside its bytes and FLOPs."""

    value: Duration


class PeakShare(Figure):
    """A share of the peak FLOP/s."""

    value: Share


class Kernel(Section):
    """Constants of the cost model `kernel`.

    t0: by `matmul`, `attention`, `other`, `collective` and kinds of op. peak: by number format, or under `any`. unpack: bytes/s
    of weights that the device unpacks, by format of weights.
    """

    t0: dict[str, LaunchTime]
    peak: dict[str, PeakShare]
    unpack: dict[WeightFormat, BytesRate] = Field(default_factory=dict)

    def options(self, engines: int) -> dict[str, Any]:
        """Options of the cost model for one of so many engines, as plain data."""
        rates = {name: BANDWIDTH.format(figure.value // engines) for name, figure in self.unpack.items()}
        return {
            **({"unpack": rates} if rates else {}),
            "t0": {kind: DURATION.format(figure.value) for kind, figure in self.t0.items()},
            "peak_share": {dtype: figure.value for dtype, figure in self.peak.items()},
        }


class Software(Section):
    """Software whose figures constants of `kernel` and `achievable` were fitted to, in its version.

    constants: their keys, such as `t0` or `peak.int8`.
    """

    name: Text
    version: Text
    constants: list[Text] = Field(min_length=1)

    def __str__(self) -> str:
        return f"{self.name} {self.version}: {', '.join(self.constants)}"


class PresetLink(Section):
    """The link of a device to others like it, or to its host. bandwidth: in one direction. latency: of a transfer, with its
    software.
    """

    bandwidth: BytesRate
    latency: LaunchTime

    def section(self) -> dict[str, Any]:
        """The section `hardware.devices.link`, or `hardware.host.link`, of a scenario, as plain data."""
        return {"bandwidth": BANDWIDTH.format(self.bandwidth.value), "latency": DURATION.format(self.latency.value)}


class FlopCost(Figure):
    """Energy of a FLOP."""

    value: EnergyPerFlop


class ByteCost(Figure):
    """Energy of a byte."""

    value: EnergyPerByte


class Watts(Figure):
    """A power."""

    value: Power


class PresetEnergy(Section):
    """Energy figures: those that are published. flop: by number format, or under `any`. byte: by part. link: of a byte over the
    link to other devices; host: over that to the host. static: the device.
    """

    flop: dict[str, FlopCost] = Field(default_factory=dict)
    byte: dict[str, ByteCost] = Field(default_factory=dict)
    link: ByteCost | None = None
    host: ByteCost | None = None
    static: Watts | None = None

    @property
    def whole(self) -> bool:
        """Whether they are enough for the energy of a run."""
        return bool(self.flop) and bool(self.byte) and self.static is not None

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """All figures with their keys."""
        yield from ((f"flop.{name}", figure) for name, figure in self.flop.items())
        yield from ((f"byte.{name}", figure) for name, figure in self.byte.items())
        yield from ((name, figure) for name in ("link", "host", "static") if (figure := getattr(self, name)) is not None)

    def section(self) -> dict[str, Any]:
        """The section `hardware.energy` of a scenario, or part of one, as plain data."""
        made: dict[str, Any] = {}
        if self.flop:
            energies = {dtype: ENERGY_PER_FLOP.format(figure.value) for dtype, figure in self.flop.items()}
            made["flop"] = energies.get("any", energies)
        if self.byte:
            made["byte"] = {part: ENERGY_PER_BYTE.format(figure.value) for part, figure in self.byte.items()}
        for name, cost in (("link", self.link), ("host", self.host)):
            if cost is not None:
                made[name] = ENERGY_PER_BYTE.format(cost.value)
        if self.static is not None:
            made["static"] = {"device": POWER.format(self.static.value)}
        return made


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


#: The name of shipped defaults, or defaults of its own.
DefaultsKey = Annotated[Annotated[Literal["gpu", "cpu"], Tag(ONE)] | Annotated[Defaults, Tag(TABLE)], Discriminator(form)]


class Preset(Section):
    """A device, in figures of the whole of it: FLOP/s, elements/s, bytes/s and bytes; and how software uses it."""

    title: Text
    sources: dict[str, Text] = Field(default_factory=dict)
    engines: Count
    peak: dict[str, Rate]
    vector: Rate
    bandwidth: Peak
    achievable: Shares | None = None
    port_bandwidth: BytesRate | None = None
    capacity: Bytes | None = None
    link: PresetLink | None = None
    host: PresetLink | None = None
    kernel: Kernel | None = None
    software: list[Software] = Field(default_factory=list)
    energy: PresetEnergy | None = None
    defaults: DefaultsKey = Field(default_factory=Defaults.model_construct)
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
            if isinstance(found, Kernel):
                yield from ((f"{key}.t0.{name}", figure) for name, figure in found.t0.items())
                yield from ((f"{key}.peak.{name}", figure) for name, figure in found.peak.items())
                yield from ((f"{key}.unpack.{name}", figure) for name, figure in found.unpack.items())
            elif isinstance(found, PresetLink):
                yield from ((f"{key}.{name}", getattr(found, name)) for name in ("bandwidth", "latency"))
            elif isinstance(found, PresetEnergy):
                yield from ((f"{key}.{name}", figure) for name, figure in found.figures())
            elif isinstance(found, Mapping):
                yield from ((f"{key}.{name}", figure) for name, figure in found.items())
            elif found is not None and found.value is not None:
                yield key, found

    @property
    def use(self) -> Defaults:
        """How software uses the device."""
        return DEFAULTS[self.defaults] if isinstance(self.defaults, str) else self.defaults

    def hardware(self, *, whole: bool = False, port: bool = True, achievable: bool = False) -> dict[str, Any]:
        """The `hardware` section of a scenario that it stands for, as plain data.

        An engine has its share of the device, rounded down to whole FLOP/s: all of them together never beat the device.
        whole: the device as one engine. port: with the most that one of its units draws. achievable: with the measured share
        of the bandwidth as `memory.efficiency`, if there is one.
        """
        count = 1 if whole else self.engines.value
        rates = {dtype: FLOP_RATE.format(figure.value // count) for dtype, figure in self.peak.items()}
        memory: dict[str, Any] = {}
        for key, figure, dimension in (
            ("bandwidth", self.bandwidth, BANDWIDTH),
            ("port_bandwidth", self.port_bandwidth if port else None, BANDWIDTH),
            ("capacity", self.capacity, SIZE),
        ):
            if figure is not None and figure.value is not None:
                memory[key] = dimension.format(figure.value)
        if achievable and self.achievable is not None:
            shares = self.achievable.value
            memory["efficiency"] = {"1": shares[max(shares, key=int)]} if whole else shares
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
    context = {"sources": sources.plain() if sources is not None else {}}
    preset = validated(document, Preset, context=context, unions=(("defaults",),))
    preset._name = name
    return preset
