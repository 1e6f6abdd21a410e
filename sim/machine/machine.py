"""The machine as data: its devices, engines and channels, by the numbers that tasks and service intervals have in a log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Path = Literal["memory", "link", "host"]

#: Kinds of channels; their indices are those of latencies and other facts about a path.
PATHS: tuple[Path, ...] = get_args(Path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Engines and a memory together. engines: their numbers."""

    name: str
    engines: range


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A path that transfers share: to the memory of a device, a link between devices, or one to the host.

    device: the number of its device. bandwidth: of a link, bytes/s; 0 for a memory, whose bandwidth the log has.
    """

    name: str
    kind: Path
    device: int
    bandwidth: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """devices: by number. channels: by number, of all devices, links last, of which that to the host is the last.

    like: devices that each of these stands for.
    """

    devices: tuple[Device, ...]
    channels: tuple[Channel, ...]
    like: int = 1

    @property
    def engines(self) -> int:
        """Number of engines of all devices."""
        return sum(len(device.engines) for device in self.devices)

    def engine_name(self, number: int) -> str:
        """Name of an engine."""
        return f"engine {number}"

    @property
    def engine_names(self) -> list[str]:
        """Names of all engines, by number."""
        return [self.engine_name(number) for device in self.devices for number in device.engines]

    @property
    def links(self) -> tuple[int, ...]:
        """Numbers of the channels that are links, to other devices and to the host."""
        return tuple(number for number, channel in enumerate(self.channels) if channel.kind != "memory")

    def link(self, kind: Path) -> int | None:
        """Number of the link between devices, or to the host; None if there is none."""
        return next((number for number in self.links if self.channels[number].kind == kind), None)

    @property
    def memories(self) -> int:
        """Number of channels of memories, which have the first numbers."""
        return len(self.channels) - len(self.links)


def one_device(*, engines: int, channels: int = 1, like: int = 1, link: int = 0, host: int = 0) -> Machine:
    """A machine that is one device, all of whose engines share all of its memory channels.

    like: devices that do the same, which this one stands for. link: bytes/s of its link to the others, if there are any. host:
    bytes/s of its link to the host, 0 if there is none.
    """
    memory = [Channel(name=f"channel {number}", kind="memory", device=0) for number in range(channels)]
    links = [Channel(name="link", kind="link", device=0, bandwidth=link)] if like > 1 else []
    if host:
        links.append(Channel(name="host link", kind="host", device=0, bandwidth=host))
    return Machine(devices=(Device(name="device", engines=range(engines)),), channels=(*memory, *links), like=like)
