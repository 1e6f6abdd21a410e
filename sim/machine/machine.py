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
    """A path that transfers share: to the memory of a device, or a link between devices. device: the number of its device."""

    name: str
    kind: Literal["memory", "link"]
    device: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """devices: by number. channels: by number, of all devices."""

    devices: tuple[Device, ...]
    channels: tuple[Channel, ...]

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


def one_device(*, engines: int, channels: int = 1) -> Machine:
    """A machine that is one device, all of whose engines share all of its memory channels."""
    return Machine(
        devices=(Device(name="device", engines=range(engines)),),
        channels=tuple(Channel(name=f"channel {number}", kind="memory", device=0) for number in range(channels)),
    )
