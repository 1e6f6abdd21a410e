"""The lockstep pair: exact makespans, and the limit of their ratio."""

from __future__ import annotations

from fractions import Fraction

import pytest

from sim.runs.run import read, run
from sim.scenario.shipped import find_scenario

MS = 10**9
ARBITERS = ("fifo", "processor_sharing")


def makespan(arbiter: str, *changes: str) -> int:
    return run(read(find_scenario(f"lockstep_{arbiter}"), list(changes))).makespan


def test_makespans_by_hand():
    """FIFO: the last of 4 engines begins to load at 3 ms, then 200 rounds of 4 ms. Sharing: 200 rounds of 4 + 3 ms."""
    assert makespan("fifo") == (3 + 200 * 4) * MS
    assert makespan("processor_sharing") == 200 * (4 * 1 + 3) * MS


@pytest.mark.parametrize("rounds", [50, 200])
def test_the_ratio_tends_to_7_quarters(rounds):
    fifo, sharing = (makespan(a, f"workload.sequences=[{{tokens: {rounds}, count: 4}}]") for a in ARBITERS)
    assert Fraction(sharing, fifo) == Fraction(7 * rounds, 4 * rounds + 3)
    assert Fraction(7, 4) - Fraction(sharing, fifo) < Fraction(2, rounds)


@pytest.mark.parametrize("arbiter", ARBITERS)
def test_prefetch_removes_it(arbiter):
    assert makespan(arbiter, "mapping.execution=prefetch") == (200 * 4 * 1 + 3) * MS
