"""Collectives as transfers: the rounds of an algorithm, on a link that each of n devices has to a switch.

| algorithm  | all-reduce of S bytes, each device sends                       | alone, at B bytes/s and latency a     |
| ---------- | -------------------------------------------------------------- | ------------------------------------- |
| `ring`     | 2 (n - 1) times one n-th, each after the one before            | 2 (n - 1) (a + ceil(S / n) / B)       |
| `two_shot` | twice n - 1 times one n-th at once: reduce-scatter, all-gather | 2 (a + (n - 1) ceil(S / n) / B)       |
| `one_shot` | n - 1 times all, at once                                       | a + (n - 1) S / B                     |
| `tree`     | 2 log2 n times all, each after the one before                  | 2 ceil(log2 n) (a + S / B)            |

An all-gather of S bytes is the second half of the first two: n - 1 times one n-th, one after another in a `ring`, else at once.
Additions are not counted: they take a device far less time than the bytes take on its link. Times are those of devices at a
switch; where each pair has a link of its own, n - 1 transfers at once take the time of one.

Over k islands of g devices, with a network of B' bytes/s and latency a' between them, an all-reduce is a reduce-scatter within
each island, an all-reduce of each g-th of its sums over the devices of all islands that have it, and an all-gather within each:
one round of `two_shot` (or g - 1 of `ring`) with g in place of n, the table with k, S / g, B' and a', and the first once more.
An all-gather is one over the network of the n-ths of k devices, then one of g-ths within each island.

Thakur, Rabenseifner, Gropp: Optimization of Collective Communication Operations in MPICH (2005) has the ring and the tree; one
and two shots are those of custom all-reduce kernels in inference engines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from models.rewrites.sharding import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER
from sim.base.units import PS_PER_S, ceil_div

Algorithm = Literal["ring", "two_shot", "one_shot", "tree"]

#: Instead of an algorithm: for each step the one that is fastest alone.
AUTO: Literal["auto"] = "auto"

#: Algorithms by how many rounds they take: of two that are as fast, the first is chosen.
ALGORITHMS: tuple[Algorithm, ...] = ("one_shot", "two_shot", "tree", "ring")


class Connection(NamedTuple):
    """The connection of devices. island: devices of an island, 0 if all are in one. several: a device has several links."""

    island: int = 0
    several: bool = False

    def crosses(self, source: Any, target: Any) -> Any:
        """Whether devices of these numbers, one each or arrays, are in different islands: what is sent crosses the network."""
        return source // self.island != target // self.island if self.island else False


#: All devices in one island, each with one link.
ALIKE = Connection()


class Rounds(NamedTuple):
    """Sends of a device: `number` rounds, each after the one before, of `sends` transfers at once, each one of `parts`."""

    number: int
    sends: int
    parts: int


def received(of: Rounds, number: int, device: int, devices: int) -> list[tuple[int, int]]:
    """Pairs (device, send) of what a device gets from others in a round, by number.

    Of several sends at once the first goes to the next device, the second to the one after it, and so on. Where there is one,
    it goes to the next device, or in a `tree` to that twice as far in each round.
    """
    if of.sends > 1:
        return [((device - 1 - send) % devices, send) for send in range(of.sends)]
    distance = 1 if of.parts > 1 or of.number < 2 else 1 << number % (of.number // 2)
    return [((device - distance) % devices, 0)]


def sent_to(of: Rounds, number: int, send: int) -> int:
    """By how many places further the device is that a send of a round goes to: see `received`."""
    if of.sends > 1:
        return 1 + send
    return 1 if of.parts > 1 or of.number < 2 else 1 << number % (of.number // 2)


class Phase(NamedTuple):
    """Rounds among `group` devices whose numbers are `apart` from each other: 1, or as many as an island has.

    shares: of the bytes of the collective, each one is a whole for the rounds.
    """

    rounds: Rounds
    group: int
    apart: int = 1
    shares: int = 1

    @property
    def parts(self) -> int:
        """Number of parts of the bytes of the collective, of which each transfer moves one."""
        return self.rounds.parts * self.shares

    def target(self, number: int, send: int, device: int) -> int:
        """The device that a send of a round goes to."""
        return self._further(device, sent_to(self.rounds, number, send))

    def received(self, number: int, device: int) -> list[tuple[int, int]]:
        """Pairs (device, send) of what a device gets from others in a round."""
        place = device // self.apart % self.group
        return [
            (self._further(device, other - place), send) for other, send in received(self.rounds, number, place, self.group)
        ]

    def _further(self, device: int, by: int) -> int:
        place = device // self.apart % self.group
        return device + ((place + by) % self.group - place) * self.apart


def phases(kind: str, algorithm: Algorithm | Literal["auto"], devices: int, island: int = 0) -> tuple[Phase, ...]:
    """A collective of this kind, phase by phase. island: devices of an island, 0 if all are in one.

    An all-reduce must have an algorithm; of others `auto` is all at once.
    """
    if not island or island >= devices:
        return (Phase(rounds(kind, algorithm, devices), devices),)
    islands = devices // island
    inner = Phase(rounds(ALL_GATHER, algorithm, island), island)
    across = Phase(rounds(kind, algorithm, islands), islands, island, island)
    if kind == ALL_REDUCE:
        return inner, across, inner
    return (inner, across) if kind == REDUCE_SCATTER else (across, inner)  # each sends what the other does


def rounds(kind: str, algorithm: Algorithm | Literal["auto"], devices: int) -> Rounds:
    """The rounds of a collective of this kind, as `phases`."""
    others = devices - 1
    if kind != ALL_REDUCE:
        return Rounds(others, 1, devices) if algorithm == "ring" else Rounds(1, others, devices)
    assert algorithm != AUTO
    if algorithm == "ring":
        return Rounds(2 * others, 1, devices)
    if algorithm == "two_shot":
        return Rounds(2, others, devices)
    if algorithm == "one_shot":
        return Rounds(1, others, 1)
    return Rounds(2 * others.bit_length(), 1, 1)


class LinkRates(NamedTuple):
    """Bandwidth and latency of a link, bytes/s and ps."""

    bandwidth: int
    latency: int


def time_alone(of: Phase, size: int, link: LinkRates, *, several: bool = False) -> int:
    """Picoseconds of a phase of a collective of `size` bytes, alone on such links. several: each send has a link of its own."""
    sends = 1 if several else of.rounds.sends
    return of.rounds.number * (link.latency + sends * ceil_div(ceil_div(size, of.parts) * PS_PER_S, link.bandwidth))


@dataclass(frozen=True, slots=True)
class Fastest:
    """The algorithm that is fastest alone, by number of tokens in a step, for all all-reduces of a model.

    devices: that take part, connected by `connection`. bytes: of an all-reduce of one token. links: of each device, and that to
    the network between islands if there are several.
    """

    devices: int
    bytes: int
    links: tuple[LinkRates, ...]
    connection: Connection = ALIKE
    _made: dict[int, Algorithm] = field(default_factory=dict, init=False, repr=False, compare=False)

    def algorithm(self, tokens: int) -> Algorithm:
        """The algorithm of a step with so many new tokens."""
        if tokens not in self._made:
            self._made[tokens] = min(ALGORITHMS, key=lambda each: self._time(each, tokens))
        return self._made[tokens]

    def _time(self, algorithm: Algorithm, tokens: int) -> int:
        time, size = 0, tokens * self.bytes
        for phase in phases(ALL_REDUCE, algorithm, self.devices, self.connection.island):
            inside = phase.apart == 1
            time += time_alone(phase, size, self.links[0 if inside else -1], several=self.connection.several and inside)
        return time

    def least(self, tokens: int) -> int:
        """The fewest tokens of steps that have the algorithm of this one."""
        chosen, low, high = self.algorithm(tokens), 1, tokens
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.algorithm(middle) == chosen else (middle + 1, high)
        return high

    def changes(self, most: int = 2**20) -> list[tuple[int, Algorithm]]:
        """Numbers of tokens, descending to 1, from which on steps have an algorithm, with that."""
        found, tokens = list[tuple[int, Algorithm]](), most
        while tokens:
            least = self.least(tokens)
            found.append((least, self.algorithm(least)))
            tokens = least - 1
        return found
