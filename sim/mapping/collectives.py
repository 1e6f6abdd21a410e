"""Collectives as transfers: the rounds of an algorithm, on a link that each of n devices has to a switch.

| algorithm  | all-reduce of S bytes, each device sends                       | alone, at B bytes/s and latency a     |
| ---------- | -------------------------------------------------------------- | ------------------------------------- |
| `ring`     | 2 (n - 1) times one n-th, each after the one before            | 2 (n - 1) (a + ceil(S / n) / B)       |
| `two_shot` | twice n - 1 times one n-th at once: reduce-scatter, all-gather | 2 (a + (n - 1) ceil(S / n) / B)       |
| `one_shot` | n - 1 times all, at once                                       | a + (n - 1) S / B                     |
| `tree`     | 2 log2 n times all, each after the one before                  | 2 ceil(log2 n) (a + S / B)            |

An all-gather of S bytes is the second half of the first two: n - 1 times one n-th, one after another in a `ring`, else at once.
Additions are not counted: they take a device far less time than the bytes take on its link.

Thakur, Rabenseifner, Gropp: Optimization of Collective Communication Operations in MPICH (2005) has the ring and the tree; one
and two shots are those of custom all-reduce kernels in inference engines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from models.rewrites import ALL_REDUCE
from sim.base.units import PS_PER_S, ceil_div

Algorithm = Literal["ring", "two_shot", "one_shot", "tree"]

#: Instead of an algorithm: for each step the one that is fastest alone.
AUTO: Literal["auto"] = "auto"

#: Algorithms by how many rounds they take: of two that are as fast, the first is chosen.
ALGORITHMS: tuple[Algorithm, ...] = ("one_shot", "two_shot", "tree", "ring")


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


def rounds(kind: str, algorithm: Algorithm | Literal["auto"], devices: int) -> Rounds:
    """The rounds of a collective of this kind. An all-reduce must have an algorithm; of others `auto` is all at once."""
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


def time_alone(of: Rounds, size: int, link: LinkRates) -> int:
    """Picoseconds of the rounds of a collective of `size` bytes, alone on such links."""
    return of.number * (link.latency + of.sends * ceil_div(ceil_div(size, of.parts) * PS_PER_S, link.bandwidth))


@dataclass(frozen=True, slots=True)
class Fastest:
    """The algorithm that is fastest alone, by number of tokens in a step, for all all-reduces of a model.

    devices: that take part. bytes: of an all-reduce of one token. link: of each device.
    """

    devices: int
    bytes: int
    link: LinkRates
    _made: dict[int, Algorithm] = field(default_factory=dict, init=False, repr=False, compare=False)

    def algorithm(self, tokens: int) -> Algorithm:
        """The algorithm of a step with so many new tokens."""
        if tokens not in self._made:
            self._made[tokens] = min(ALGORITHMS, key=lambda each: self._time(each, tokens))
        return self._made[tokens]

    def _time(self, algorithm: Algorithm, tokens: int) -> int:
        return time_alone(rounds(ALL_REDUCE, algorithm, self.devices), tokens * self.bytes, self.link)

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
