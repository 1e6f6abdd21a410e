"""The machine as data: its devices, engines and channels, by the numbers that tasks and service intervals have in a log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Engines and a memory together. engines: their numbers."""

    name: str
    engines: range


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A path that transfers share: to the memory of a device, or a link between devices.

    device: the number of its device. bandwidth: of a link, bytes/s; 0 for a memory, whose bandwidth the log has.
    """

    name: str
    kind: Literal["memory", "link"]
    device: int
    bandwidth: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """devices: by number. channels: by number, of all devices, links last. like: devices that each of these stands for."""

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
        """Numbers of the channels that are links."""
        return tuple(number for number, channel in enumerate(self.channels) if channel.kind == "link")

    @property
    def memories(self) -> int:
        """Number of channels of memories, which have the first numbers."""
        return len(self.channels) - len(self.links)


def one_device(*, engines: int, channels: int = 1, like: int = 1, link: int = 0) -> Machine:
    """A machine that is one device, all of whose engines share all of its memory channels.

    like: devices that do the same, which this one stands for. link: bytes/s of its link to the others, if there are any.
    """
    memory = [Channel(name=f"channel {number}", kind="memory", device=0) for number in range(channels)]
    links = [Channel(name="link", kind="link", device=0, bandwidth=link)] if like > 1 else []
    return Machine(devices=(Device(name="device", engines=range(engines)),), channels=(*memory, *links), like=like)
