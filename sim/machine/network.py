"""The network of devices: its links, and those that a transfer from one device to another crosses.

| topology     | links, each in one direction                          | a transfer crosses                              |
| ------------ | ------------------------------------------------------ | ----------------------------------------------- |
| `switch`     | of each device one out, and one in                    | that out of the sender, that into the receiver  |
| `all_to_all` | of each device one to each other                       | that one                                        |
| `ring`       | of each device one to the next, one to the one before | all on the shorter way; of equal ones, forward  |
| `mesh`       | of each device one to each neighbor in a rectangle    | all along the row, then along the column        |

Devices are in islands of equal size, each connected like that. Between islands, each device has a link out to a network without
contention of its own, and one in.

A mesh is as square as its number of devices allows. Its devices are numbered along a cycle of neighbors, so that rings have
neighbors alone; where there is no such cycle, because all of its sides are odd or it is a line, row by row.

Where one device stands for all of its stage, its link out carries what each link out of the stage carries, and so does that in.
Where it stands for all devices of a switch, what it receives is what it sends, and the link in is not a resource of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

from sim.machine.settings import Topology

#: Kinds of links: within an island, and to the network between islands.
Kind = Literal["link", "network"]


class Port(NamedTuple):
    """A link in one direction. kind: `link` or `network`. device: number of a simulated device. name: of the link."""

    kind: Kind
    device: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Network:
    """The links of devices.

    count: devices. each: devices of a pipeline stage. island: devices of an island. folded: one device of each stage is
    simulated, the first, and stands for all of it.
    """

    count: int
    each: int
    island: int
    topology: Topology = "switch"
    folded: bool = True

    @property
    def simulated(self) -> range:
        """Numbers of the devices that are simulated."""
        return range(0, self.count, self.each if self.folded else 1)

    @property
    def plain(self) -> bool:
        """Whether each transfer crosses one link, that of the only device that is simulated."""
        return len(self.simulated) == 1 and self.topology != "all_to_all"

    @property
    def most(self) -> int:
        """The most links that there can be."""
        each = {"switch": 2, "ring": 2, "mesh": 4, "all_to_all": self.island - 1}[self.topology]
        return len(self.simulated) * (each + 2 * (self.island < self.count))

    @cached_property
    def ports(self) -> tuple[Port, ...]:
        """All links: those within islands, then those between them, each device by device."""
        found = dict.fromkeys(port for path in self._paths for port in path)
        return tuple(sorted(found, key=lambda port: (port.kind, port.device, len(port.name), port.name)))

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """[simulated device * count + device that it sends to]: the links that are crossed, as indices of `ports`."""
        number = {port: i for i, port in enumerate(self.ports)}
        return tuple(tuple(number[port] for port in path) for path in self._paths)

    @cached_property
    def _paths(self) -> tuple[tuple[Port, ...], ...]:
        return tuple(self._path(source, target) for source in self.simulated for target in range(self.count))

    def _path(self, source: int, target: int) -> tuple[Port, ...]:
        """The links from one device to another; none to itself."""
        if source == target:
            return ()
        if source // self.island != target // self.island:
            return Port("network", self._place(source), "network"), Port("network", self._place(target), "network in")
        if self.topology == "switch":
            return Port("link", self._place(source), "link"), Port("link", self._place(target), "link in")
        if self.topology == "all_to_all":
            return (Port("link", self._place(source), f"link to {target}"),)
        return tuple(Port("link", self._place(a), f"link to {b}") for a, b in pairwise(self._way(source, target)))

    def _place(self, device: int) -> int:
        """The number among simulated devices of the one that stands for a device."""
        return device // self.each if self.folded else device

    def _way(self, source: int, target: int) -> list[int]:
        """The devices along the way from one to another of its island, both included."""
        first = source - source % self.island
        if self.topology == "ring":
            ahead = (target - source) % self.island
            step, hops = (1, ahead) if 2 * ahead <= self.island else (-1, self.island - ahead)
            return [first + (source - first + step * hop) % self.island for hop in range(hops + 1)]
        places = grid(self.island)
        number = {place: first + i for i, place in enumerate(places)}
        (row, column), (to_row, to_column) = places[source - first], places[target - first]
        along = [(row, each) for each in _steps(column, to_column)]
        down = [(each, to_column) for each in _steps(row, to_row)[1:]]
        return [number[place] for place in along + down]


def _steps(start: int, end: int) -> range:
    """The numbers from one to another, both included."""
    return range(start, end + 1) if end >= start else range(start, end - 1, -1)


def has_cycle(devices: int) -> bool:
    """Whether the devices of a mesh are numbered along a cycle of neighbors."""
    rows, columns = _sides(devices)
    return devices == 2 or (rows % 2 == 0 and columns > 1)


def _sides(devices: int) -> tuple[int, int]:
    """Rows and columns of a mesh; rows are even if one of them is."""
    rows = next(each for each in range(int(devices**0.5), 0, -1) if devices % each == 0)
    columns = devices // rows
    return (columns, rows) if rows % 2 and columns % 2 == 0 else (rows, columns)


def grid(devices: int) -> list[tuple[int, int]]:
    """The row and the column of each device of a mesh, by number."""
    rows, columns = _sides(devices)
    if not has_cycle(devices) or devices == 2:
        return [(row, column) for row in range(rows) for column in range(columns)]
    there = [  # to and fro in all columns but the first, which is the way back
        (row, column) for row in range(rows) for column in (range(1, columns) if row % 2 == 0 else range(columns - 1, 0, -1))
    ]
    return [(0, 0), *there, *((row, 0) for row in range(rows - 1, 0, -1))]
