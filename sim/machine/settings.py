"""The sections `hardware` and `scheduler` of a scenario."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from models.formats import rate_of
from sim.base.quantities import Bandwidth, Duration, EnergyPerByte, EnergyPerFlop, FlopRate, Power, Size
from sim.base.section import ONE, TABLE, Choice, CountKey, Section, Share, Whole, default, form
from sim.mapping.tasks import MOST_TIERS

DTYPE = "^[a-z][a-z0-9_]*$"
#: Names of memories and links that are no tiers of their own.
TAKEN = ("host", "link", "memory", "network")

TIER_NAME = "^[a-z][a-z0-9_-]{0,31}$"

DtypeName = Annotated[str, Field(pattern=DTYPE)]

#: One rate for all number formats, or a table by torch's name of the format.
FlopTable = Annotated[
    Annotated[FlopRate, Tag(ONE)]
    | Annotated[dict[DtypeName, FlopRate], Field(min_length=1, json_schema_extra={"additionalProperties": False}), Tag(TABLE)],
    Discriminator(form),
]


class Engines(Section):
    """The compute engines, all alike."""

    count: Whole = Field(default=4, ge=1, le=4096, description="Number of engines.")
    flops: FlopTable = default(
        "2 TFLOP/s",
        description="Peak of one engine for matrix products: one rate, or a table by number format.",
        examples=["2 TFLOP/s", {"bfloat16": "2 TFLOP/s"}],
    )
    vector_flops: FlopRate = default(
        "100 GFLOP/s", description="Rate of one engine for all that is no matrix product, in elements per second."
    )
    overhead: Duration = default(
        "0 us", description="Launch: fixed time that every compute task takes on top, before it loads its own operands."
    )

    def peak(self, dtype: str) -> int | None:
        """FLOP/s of one engine for matrix products in `dtype`; None if the table does not have it."""
        return rate_of(self.flops, dtype)


class Arbiter(Choice):
    """Division of bandwidth among outstanding transfers: a name, or a mapping of `name` and its options."""

    examples = ("fifo", "processor_sharing")

    name: str = Field(min_length=1, description="Name of the arbiter.")


class Channels(Section):
    """Several memory channels instead of one."""

    count: Whole = Field(default=1, ge=1, le=1024, description="Number of channels; each has the bandwidth of `memory`.")
    route: Literal["interleaved", "sequence", "class"] = Field(
        default="interleaved",
        description="Where a transfer goes. `interleaved`: in equal parts over all channels, and it ends with its last part; "
        "`sequence`: to the channel of its sequence (number modulo count); `class`: weights to channel 0, KV cache to 1, "
        "activations to 2 (modulo count).",
    )


#: Shares of the bandwidth by number of transfers at once.
Efficiency = Annotated[dict[CountKey, Share], Field(min_length=1, json_schema_extra={"additionalProperties": False})]


class Memory(Section):
    """The memory channels that all engines share."""

    bandwidth: Bandwidth = default("100 GB/s", description="Bandwidth of each channel.")
    latency: Duration = default(
        "0 ns", description="Delay of every transfer. It is pipelined: the channel is not occupied meanwhile."
    )
    arbiter: Arbiter = default("fifo", description="How bandwidth is divided among outstanding transfers.")
    port_bandwidth: Bandwidth | None = Field(
        default=None, description="The most that one requester can draw from a channel; null: all of it."
    )
    channels: Channels = default({}, description="How many channels there are, and which of them a transfer goes to.")
    efficiency: Efficiency | None = Field(
        default=None,
        description="Share of the bandwidth that a channel can deliver, by number of transfers it serves at once; linear "
        "between the numbers, constant beyond them. null: all of it.",
        examples=[{"1": 0.54, "2": 0.78, "4": 0.68}],
    )
    achievable: bool = Field(
        default=False,
        description="Take `efficiency` from the preset: the share of the bandwidth that kernels reach once they run. A preset "
        "sets it with `cost: kernel`; otherwise it gives the peak.",
    )
    capacity: Size | None = Field(
        default=None,
        description="Size of the memory (of all channels together): weights and KV cache of a model config must fit. null: "
        "any size.",
    )


#: One energy for all number formats, or a table by torch's name of the format.
FlopEnergy = Annotated[
    Annotated[EnergyPerFlop, Tag(ONE)]
    | Annotated[
        dict[DtypeName, EnergyPerFlop], Field(min_length=1, json_schema_extra={"additionalProperties": False}), Tag(TABLE)
    ],
    Discriminator(form),
]

#: One energy, or a table by the part that takes it.
ByteEnergy = Annotated[
    Annotated[EnergyPerByte, Tag(ONE)]
    | Annotated[
        dict[DtypeName, EnergyPerByte], Field(min_length=1, json_schema_extra={"additionalProperties": False}), Tag(TABLE)
    ],
    Discriminator(form),
]


class StaticPower(Section):
    """Power that is drawn all along, whatever runs."""

    device: Power = default("0 W", description="Static power of the device, beside its engines.")
    engine: Power = default("0 W", description="Static power of each engine, whether it runs or not.")


class Energy(Section):
    """Energy that ops, transfers and time cost."""

    flop: FlopEnergy = Field(
        description="Energy of a FLOP of a matrix product, with all that goes along with it: one figure, or a table by the "
        "number format of the arithmetic. Vector work has none of its own.",
        examples=["0.76 pJ/FLOP", {"bfloat16": "0.76 pJ/FLOP"}],
    )
    byte: ByteEnergy = Field(
        description="Energy of a byte through any channel of the memory: one figure, or a table of parts that add up, by names "
        "of your own.",
        examples=["82 pJ/B", {"dram": "6 pJ/bit", "path": "34 pJ/B"}],
    )
    link: ByteEnergy | None = Field(
        default=None,
        description="Energy of a byte over each link between devices that it crosses (by way of a switch two), as `byte`; "
        "null: not known, which the output says, and none is counted.",
        examples=["5.5 pJ/bit"],
    )
    host: ByteEnergy | None = Field(
        default=None,
        description="Energy of a byte over the link to the host, as `link`, with the memory of the host where that is known.",
        examples=["6.5 pJ/bit"],
    )
    network: ByteEnergy | None = Field(
        default=None,
        description="Energy of a byte over a link to the network between islands, of which it crosses two, as `link`.",
        examples=["20 pJ/bit"],
    )
    static: StaticPower = default({}, description="Power that is drawn all along.")


class Link(Section):
    """A link of a device: to a switch, to another device, to a network, or to the host."""

    preset: str | None = Field(
        default=None,
        min_length=1,
        description="A kind of link by its name (`sim list links`), which gives bandwidth and latency; what is written holds "
        "instead.",
        examples=["nvlink-4"],
    )
    bandwidth: Bandwidth = Field(description="Bandwidth of the link in each direction.", examples=["450 GB/s"])
    latency: Duration = default(
        "1 us", description="Delay of every transfer, with the software that starts it. It does not occupy the link."
    )
    arbiter: Arbiter = default("fifo", description="How bandwidth is divided among outstanding transfers.")


class Islands(Section):
    """Groups of devices that `devices.link` connects; between them a network does."""

    size: Whole = Field(ge=2, le=1024, description="Devices of an island; it must divide their number.")
    link: Link = Field(
        description="The link of each device to the network, which has no contention of its own.",
        examples=[{"preset": "network-400g"}],
    )


Topology = Literal["switch", "ring", "mesh", "all_to_all"]


class Devices(Section):
    """Devices like the one that `engines` and `memory` describe. One is simulated for all that do the same."""

    count: Whole = Field(default=1, ge=1, le=1024, description="Number of devices; `mapping.parallel` says how they share.")
    topology: Topology = Field(
        default="switch",
        description="What links connect. `switch`: each device with a switch that has no contention of its own; `ring`: each "
        "with the next and the one before; `mesh`: each with its neighbors in rows and columns, as square as their number "
        "allows; `all_to_all`: each pair. Of an island, where there are `islands`.",
    )
    link: Link | None = Field(
        default=None, description="Each link; needed where devices share a model, or hand over KV caches."
    )
    islands: Islands | None = Field(default=None, description="Islands of devices, joined by a network. null: all are one.")

    @model_validator(mode="after")
    def _linked(self) -> Devices:
        if self.link is None and (self.topology != "switch" or self.islands is not None):
            raise ValueError("expected 'topology' and 'islands' only with 'link'")
        if self.islands is not None and self.count % self.islands.size:
            raise ValueError(f"expected islands of a size that divides the {self.count} devices, found {self.islands.size}")
        return self

    @property
    def island(self) -> int:
        """Devices of an island."""
        return self.count if self.islands is None else self.islands.size


class Host(Section):
    """The host of the device, whose memory takes what does not stay in that of the device."""

    memory: Size | None = Field(
        default=None, description="Size of the memory of the host: weights and caches there must fit. null: any."
    )
    link: Link = Field(description="The link to the host, such as PCIe: what is swapped or offloaded moves over it.")


class Tier(Section):
    """A memory beside that of the device: CXL memory, an SSD. What does not stay nearer goes there over a link of its own."""

    name: str = Field(
        pattern=TIER_NAME,
        description="A name of your own; `host`, `link`, `memory` and `network` are those of other parts.",
        examples=["ssd", "cxl"],
    )
    capacity: Size | None = Field(default=None, description="Size of the tier: what is there must fit. null: any.")
    bandwidth: Bandwidth | None = Field(
        default=None, description="Bandwidth of the tier itself, where that is less than its link has; null: that of the link."
    )
    latency: Duration = default("0 us", description="Delay of every transfer by the tier itself, on top of that of its link.")
    link: Link = Field(description="The link of each device to the tier.", examples=[{"preset": "nvme-pcie-4"}])
    energy: ByteEnergy | None = Field(
        default=None,
        description="Energy of a byte over the link, with that of the tier, as `hardware.energy.host`; null: not known.",
    )

    @property
    def rate(self) -> int:
        """Bytes/s of transfers: the least of the tier and of its link."""
        return self.link.bandwidth if self.bandwidth is None else min(self.bandwidth, self.link.bandwidth)


class Hardware(Section):
    """The machine. What is not given is that of the preset, or without one of a small generic NPU."""

    preset: str | None = Field(
        default=None,
        min_length=1,
        description="A machine by its name (`sim list hardware`), or the path of its file, from the folder of the scenario. It "
        "gives engines and memory, and settings of `mapping` and `cost` as software uses the device; what is written holds "
        "instead.",
        examples=["a100-80g-sxm"],
    )
    from_profile: str | None = Field(
        default=None,
        min_length=1,
        description="Instead of a preset: path of a device profile, from the folder of the scenario. It gives the number of "
        "engines, bandwidth, its efficiency by number of transfers, and capacity; what is written here holds instead.",
        examples=["device.yaml"],
    )
    engines: Engines = default({}, description="The compute engines.")
    memory: Memory = default({}, description="The memory channel.")
    devices: Devices = default({}, description="Several such devices, with links between them.")
    host: Host | None = Field(
        default=None,
        description="The host, and the link to it: the first tier. null without `tiers`, or with a cost model that does "
        "not follow bytes: caches that are swapped move at the speed of the memory channel.",
        examples=[{"link": {"bandwidth": "54 GB/s"}}],
    )
    tiers: tuple[Tier, ...] = Field(
        default=(), strict=False, max_length=MOST_TIERS - 1,
        description="Memories after that of the host, nearest first: what has no space in one goes to the next. They take "
        "weights (`mapping.offload`), caches that are swapped (`kv.full: swap`), and blocks of the prefix cache "
        "(`kv.evicted: tiers`).",
        examples=[[{"name": "ssd", "capacity": "4 TB", "link": {"preset": "nvme-pcie-4"}}]],
    )  # fmt: skip
    sram: Size | None = Field(
        default=None,
        description="On-chip memory of each device for operands in use (weights, and the KV cache that a step loads), and "
        "for resident weights; null: unbounded. Loads wait for space. What exceeds it is refused, with the tiles that fit: "
        "operands of a task, and with `mapping.activations: on_chip` also its inputs and results.",
    )

    energy: Energy | None = Field(
        default=None,
        description="What ops, transfers and time cost in energy; null: not known, and there is no energy in the output.",
    )

    @property
    def tier_names(self) -> tuple[str, ...]:
        """Names of the memories beside that of the device, nearest first."""
        return (*(("host",) if self.host is not None else ()), *(tier.name for tier in self.tiers))

    @model_validator(mode="after")
    def _one_source(self) -> Hardware:
        if self.preset is not None and self.from_profile is not None:
            raise ValueError("expected only one of the keys 'preset' and 'from_profile', found both")
        return self

    @model_validator(mode="after")
    def _own_names(self) -> Hardware:
        names = [tier.name for tier in self.tiers]
        for i, name in enumerate(names):
            if name in (*TAKEN, *names[:i]):
                raise ValueError(f"expected names of tiers that differ, and none of {', '.join(TAKEN)}, found {name!r}")
        return self

    @model_validator(mode="after")
    def _reachable(self) -> Hardware:
        if self.memory.achievable and self.memory.efficiency is None:
            whose = f"preset {self.preset!r} has none" if self.preset is not None else "no preset is named"
            raise ValueError(f"expected memory.achievable only where a share is known: {whose}; write memory.efficiency")
        return self


class Scheduler(Choice):
    """Choice of the ready task for a free engine: a name, or a mapping of `name` and its options."""

    examples = ("earliest", "serial", "sticky", "critical_path")

    name: str = Field(min_length=1, description="Name of the scheduler.")
