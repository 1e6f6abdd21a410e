"""The machine as data: its devices, engines and channels, by the numbers that tasks and service intervals have in a log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from sim.machine.network import Kind, Network, Port

Path = Literal["memory", "link", "host", "network", "tier 1", "tier 2", "tier 3"]

#: Kinds of channels; their indices are those of latencies and other facts about a path.
PATHS: tuple[Path, ...] = get_args(Path)

#: Kinds of links to memories beside that of the device, nearest first: `host` is that to the first tier, whatever its name.
TIER_PATHS: tuple[Path, ...] = ("host", *PATHS[PATHS.index("tier 1") :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Engines and a memory together. engines: their numbers."""

    name: str
    engines: range


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A path that transfers share: to the memory of a device, a link between devices, one to a tier, or to a network.

    device: the number of its device. bandwidth: of a link, bytes/s; 0 for a memory, whose bandwidth the log has.
    """

    name: str
    kind: Path
    device: int
    bandwidth: int = 0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """devices: by number. channels: by number, memories of all devices, then links between them, links to the network between
    islands of them, and links to each tier.

    like: devices that each of these stands for. replicas: groups of equally many devices, in order, that share nothing.
    network: which links transfers between devices cross; None if each crosses that of its own device. tiers: names of the
    memories beside that of the device that it has links to, such as that of the host.
    """

    devices: tuple[Device, ...]
    channels: tuple[Channel, ...]
    like: int = 1
    replicas: int = 1
    network: Network | None = None
    tiers: tuple[str, ...] = ()

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the channels that transfers between devices cross, as `Network.paths`; empty if each crosses one."""
        if self.network is None:
            return ()
        return tuple(tuple(self.memories + port for port in path) for path in self.network.paths)

    @cached_property
    def ways(self) -> npt.NDArray[np.int64]:
        """[path, place]: `paths` as a table, -1 behind the end of each."""
        found = np.full((len(self.paths), max(map(len, self.paths), default=0)), -1, dtype=np.int64)
        for number, path in enumerate(self.paths):
            found[number, : len(path)] = path
        return found

    def crossed(self, device: int, to: int) -> tuple[int, ...]:
        """The channels that a transfer of a device to another crosses; empty where that is one, which its kind says."""
        return self.paths[device * self.network.count + to] if self.network is not None and to >= 0 else ()

    @property
    def engines(self) -> int:
        """Number of engines of all devices."""
        return sum(len(device.engines) for device in self.devices)

    @property
    def engines_each(self) -> int:
        """Number of engines of a device."""
        return len(self.devices[0].engines)

    def engine_name(self, number: int) -> str:
        """Name of an engine, with that of its device where there are several."""
        if len(self.devices) == 1:
            return f"engine {number}"
        device = self.devices[self.device_of(number)]
        return f"{device.name} engine {number - device.engines.start}"

    def device_of(self, engine: int) -> int:
        """The number of the device of an engine."""
        return next(number for number, device in enumerate(self.devices) if engine in device.engines)

    def replica_of(self, device: int) -> int:
        """The number of the replica that a device belongs to."""
        return device * self.replicas // len(self.devices)

    @property
    def engine_names(self) -> list[str]:
        """Names of all engines, by number."""
        return [self.engine_name(number) for device in self.devices for number in device.engines]

    @property
    def links(self) -> tuple[int, ...]:
        """Numbers of the channels that are links, to other devices and to tiers."""
        return tuple(number for number, channel in enumerate(self.channels) if channel.kind != "memory")

    def link(self, kind: Path) -> int | None:
        """Number of the first link of a kind; None if there is none."""
        return next((number for number in self.links if self.channels[number].kind == kind), None)

    @property
    def path_names(self) -> tuple[str, ...]:
        """Names of what transfers go through, in the order of `PATHS`."""
        names = {"memory": "channel", "link": "link", "network": "network link", "host": "host link"}
        names |= {path: f"{name} link" for path, name in zip(TIER_PATHS, self.tiers, strict=False)}
        return tuple(names.get(path, f"{path} link") for path in PATHS)

    @property
    def memories(self) -> int:
        """Number of channels of memories, which have the first numbers."""
        return len(self.channels) - len(self.links)


def one_device(*, engines: int, channels: int = 1, like: int = 1, link: int = 0) -> Machine:
    """A machine that is one device, all of whose engines share all of its memory channels; see `alike_devices`."""
    return alike_devices(1, engines=engines, channels=channels, like=like, link=link)


def alike_devices(
    count: int, *, engines: int, channels: int = 1, like: int = 1, link: int = 0, tiers: Mapping[str, int] | None = None,
    between: int = 0, replicas: int = 1, linked: bool = False, network: Network | None = None,
) -> Machine:  # fmt: skip
    """A machine of some devices of the same kind. engines, channels: of each device, its memory channels.

    like: devices that do the same, each of which one stands for. link: bytes/s of the link of a device to the others, if there
    are any. tiers: bytes/s of the link of a device to each tier, by its name, nearest first. between: bytes/s of the link
    of a device to the network between islands, 0 if there is none. replicas: groups that these devices make up. linked: also
    replicas of one device have links. network: which links there are, None if one of each kind for each device.
    """
    names = _names(count, replicas)
    memory = [
        Channel(name=f"{name}channel {number}", kind="memory", device=device)
        for device, name in enumerate(names)
        for number in range(channels)
    ]
    if network is None:
        there: dict[Kind, bool] = {"link": linked or like * count > replicas, "network": between > 0}
        ports = [Port(kind, device, kind) for kind in there if there[kind] for device in range(count)]
    else:
        ports = list(network.ports)
    links = [
        Channel(
            name=f"{names[port.device]}{port.name}", kind=port.kind, device=port.device,
            bandwidth=link if port.kind == "link" else between,
        )
        for port in ports
    ]  # fmt: skip
    tiers = tiers or {}
    beside = [
        Channel(name=f"{name}{tier} link", kind=kind, device=device, bandwidth=bandwidth)
        for kind, (tier, bandwidth) in zip(TIER_PATHS, tiers.items(), strict=False)
        for device, name in enumerate(names)
    ]
    devices = tuple(
        Device(name=name.strip() or "device", engines=range(number * engines, (number + 1) * engines))
        for number, name in enumerate(names)
    )
    return Machine(
        devices=devices, channels=(*memory, *links, *beside), like=like, replicas=replicas, network=network, tiers=tuple(tiers)
    )  # fmt: skip


def _names(count: int, replicas: int) -> list[str]:
    """Beginnings of the names of engines and channels of each device."""
    each = count // replicas
    if replicas == 1:
        return [f"device {number} " if count > 1 else "" for number in range(count)]
    own = [f"device {number} " if each > 1 else "" for number in range(each)]
    return [f"replica {replica} {name}" for replica in range(replicas) for name in own]
