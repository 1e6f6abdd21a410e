"""The clock of channels: the earliest event of all, and those of an instant in order, against a list of times."""

from __future__ import annotations

import random

from sim.executors.compiled.build import ring_size
from sim.executors.compiled.clock import first_arrival, next_due, set_clock
from sim.executors.compiled.state import (
    CHANNEL_TABLE,
    CHANNEL_WORDS,
    CLOCK,
    CLOCK_LEAVES,
    K_LEAF,
    K_RING,
    K_RING_HEAD,
    K_RING_SIZE,
    K_TIMER,
    NEVER,
    NONE,
    NOW,
    REGISTERS,
    RING_ENTRY,
)  # fmt: skip


def memory(units: int) -> list[int]:
    """The memory of so many units without events."""
    leaves = 1 << (units - 1).bit_length()
    m = [0] * REGISTERS + [NEVER] * (2 * leaves) + [0] * (units * CHANNEL_WORDS)
    m[CLOCK], m[CLOCK_LEAVES], m[CHANNEL_TABLE] = REGISTERS, leaves, REGISTERS + 2 * leaves
    for unit in range(units):
        m[m[CHANNEL_TABLE] + unit * CHANNEL_WORDS + K_LEAF] = leaves + unit
    return m


def set_timer(m: list[int], unit: int, time: int) -> None:
    channel = m[CHANNEL_TABLE] + unit * CHANNEL_WORDS
    m[channel + K_TIMER] = time
    set_clock(m, channel)


def due(m: list[int]) -> list[int]:
    """The units whose event is now, in the order in which they are found."""
    found, channel = [], next_due(m, NONE)
    while channel != NONE:
        found.append((channel - m[CHANNEL_TABLE]) // CHANNEL_WORDS)
        channel = next_due(m, channel)
    return found


def test_the_next_arrival_is_at_the_head_of_a_ring_however_often_it_went_round():
    size = ring_size(3)
    assert size == 4
    m = memory(1) + [0] * RING_ENTRY * size
    channel = m[CHANNEL_TABLE]
    m[channel + K_RING], m[channel + K_RING_SIZE] = len(m) - RING_ENTRY * size, size
    for head in range(9):
        m[channel + K_RING_HEAD] = head
        assert first_arrival(m, channel) == m[channel + K_RING] + RING_ENTRY * (head % 4)
    assert [ring_size(cells) for cells in (1, 2, 4, 5)] == [1, 2, 4, 8]


def test_the_clock_shows_the_earliest_event_and_all_of_one_instant():
    draw = random.Random(7)
    for units in (1, 2, 3, 8, 13):
        m, times = memory(units), [NEVER] * units
        for _ in range(200):
            unit = draw.randrange(units)
            times[unit] = draw.choice((1, 2, 3, 4, NEVER))
            set_timer(m, unit, times[unit] if times[unit] < NEVER else NEVER + draw.randrange(9))
            assert m[m[CLOCK] + 1] == min(times)
            m[NOW] = draw.randrange(1, 5)
            expected = [i for i, time in enumerate(times) if time == m[NOW]]
            assert due(m) == (expected if m[NOW] == min(times) else [])
