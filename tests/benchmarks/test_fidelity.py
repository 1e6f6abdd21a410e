"""The contention of two streams on the fidelity page: measured from rounds, simulated through a profile."""

from __future__ import annotations

import pytest

from benchmarks.fidelity.contention import arbiters, pairs, section, simulated
from sim.cost.profile import DeviceProfile, Provenance, Samples, fit

GB = 10**9
CHUNK = 2**24

#: Bytes per second of each stream alone; of two readers together 12 GB/s.
SOLO = {"read": 10 * GB, "write": 5 * GB, "copy": 8 * GB, "add": 8 * GB, "gemv": 4 * GB}


def streams(*runs: tuple[str, int, str, float]) -> Samples:
    """One row for each (kind, streams, beside, rate) in each of two rounds, the second of which has half of all rates."""
    rows = [
        {"kind": kind, "streams": count, "beside": beside, "bytes_read": CHUNK, "duration": round(CHUNK / rate * 1e12) * slower,
         "round": slower - 1}
        for kind, count, beside, rate in runs
        for slower in (1, 2)
    ]  # fmt: skip
    return Samples({name: [row[name] for row in rows] for name in rows[0]})


ALONE = [(kind, 1, "", float(rate)) for kind, rate in SOLO.items()]
TWO = [
    ("read", 2, "", 6 * GB), ("read", 2, "", 6 * GB), ("read", 2, "gemv", 8 * GB), ("gemv", 2, "read", 3.2 * GB),
]  # fmt: skip


@pytest.fixture(scope="module")
def device() -> tuple[DeviceProfile, Samples]:
    found = streams(*ALONE, *TWO)
    op = Samples({"kind": ["norm"], "bytes_read": [1000], "duration": [10**6]})
    profile = fit(Samples.concatenate([found, op]), Provenance(device="x", source="y", date="2026-01-01"), engines=2)
    return profile, found


def test_slow_downs_are_against_solo_runs_of_the_same_round(device):
    """Everything is twice as slow in the second round, which changes nothing: 10 / 6; 10 / 8 and 4 / 3.2."""
    like, unlike = pairs(device[1])
    assert (like.kinds, like.alike, like.noise) == (("read", "read"), True, pytest.approx(0, abs=1e-6))
    assert like.slowdown == pytest.approx((10 / 6, 10 / 6), rel=1e-6)
    assert (unlike.kinds, unlike.alike) == (("read", "gemv"), False)
    assert unlike.slowdown == pytest.approx((10 / 8, 4 / 3.2), rel=1e-6)


def test_two_like_streams_slow_down_in_the_simulation_as_they_were_measured(device):
    """Medians over rounds: a reader has 7.5 GB/s, two have 9: 2 x 7.5 / 9. Products of 3 GB/s load for 40 % of the time."""
    profile, samples = device
    ours = arbiters(profile, samples)["processor sharing, efficiency by number of streams (`from_profile`)"]
    assert simulated(profile, samples, ("read", "read"), ours) == pytest.approx((5 / 3, 5 / 3), rel=1e-3)
    expected = 0.4 * 5 / 3 + 0.6
    assert simulated(profile, samples, ("gemv", "gemv"), ours) == pytest.approx((expected, expected), rel=1e-3)


def test_the_section_has_every_arbiter(device):
    text = "\n".join(section(*device))
    assert "| read + read | 1.67 (1.67) | 1.67 (1.67) | 0.0 |" in text
    for name in arbiters(*device):
        assert f"| {name} |" in text
    assert not list(section(device[0], device[1].take(device[1].streams == 1)))
