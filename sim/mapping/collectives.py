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

from typing import Literal, NamedTuple

from models.rewrites.sharding import ALL_REDUCE

Algorithm = Literal["ring", "two_shot", "one_shot", "tree"]


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


def rounds(kind: str, algorithm: Algorithm, devices: int) -> Rounds:
    """The rounds of a collective of this kind."""
    others = devices - 1
    if kind != ALL_REDUCE:
        return Rounds(others, 1, devices) if algorithm == "ring" else Rounds(1, others, devices)
    if algorithm == "ring":
        return Rounds(2 * others, 1, devices)
    if algorithm == "two_shot":
        return Rounds(2, others, devices)
    if algorithm == "one_shot":
        return Rounds(1, others, 1)
    return Rounds(2 * others.bit_length(), 1, 1)
