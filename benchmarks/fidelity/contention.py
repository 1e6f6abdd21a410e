"""Two streams at once: how much each slows down on the device, and how much in the simulation, by arbiter.

Two engines of a machine that follows from the profile run one chain of ops each, costed by how long they took alone.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.base.quantities import BANDWIDTH, SIZE
from sim.base.units import PS_PER_S
from sim.cost.profile import STREAMS, DeviceProfile, Residual, RowFit, Samples, Timing, write_profile
from sim.runs.run import run
from sim.scenario import parse

Floats = npt.NDArray[np.float64]

#: Bytes of one op, and ops of the longer chain.
OP, OPS = 16 * 2**20, 100


@dataclass(frozen=True, slots=True)
class Pair:
    """Two streams: what they do, by how much each slowed down, and how far half of the rounds is from the other half."""

    kinds: tuple[str, str]
    slowdown: tuple[float, float]
    noise: float

    @property
    def alike(self) -> bool:
        return self.kinds[0] == self.kinds[1]


def pairs(samples: Samples) -> Iterator[Pair]:
    """Measured slow-downs relative to the solo runs of the same round."""
    solo = {kind: _rates(samples, kind, 1, "") for kind in STREAMS}
    for i, one in enumerate(STREAMS):
        for other in STREAMS[i:]:
            found = [
                {number: solo[kind][number] / rate for number, rate in _rates(samples, kind, 2, beside).items()}
                for kind, beside in ((one, other), (other, one))
                for beside in [beside if one != other else ""]
            ]
            if found[0]:
                medians = [float(np.median([*by_round.values()])) for by_round in found]
                yield Pair((one, other), (medians[0], medians[1]), max(_halves(by_round) for by_round in found))


def _rates(samples: Samples, kind: str, streams: int, beside: str) -> dict[int, float]:
    """Bytes per picosecond of one stream, by round."""
    chosen = samples.take((samples.kind == kind) & (samples.streams == streams) & (samples.beside == beside))
    rates = (chosen.bytes_read + chosen.bytes_written) / chosen.duration
    return {number: float(rates[chosen.round == number].mean()) for number in np.unique(chosen.round).tolist()}


def _halves(by_round: Mapping[int, float]) -> float:
    even, odd = (np.median([value for number, value in by_round.items() if number % 2 == half]) for half in (0, 1))
    return abs(float(even / odd) - 1)


def section(profile: DeviceProfile, samples: Samples) -> Iterator[str]:
    """A table of what slowed down, and the errors of each arbiter; nothing if no two streams were measured."""
    measured = list(pairs(samples)) if profile.engines > 1 else []
    if not measured:
        return
    yield "Two streams at once, on cores of their own: how much each slows down, measured (simulated by `from_profile`):\n"
    yield "| streams | first | second | noise |\n| --- | ---: | ---: | ---: |"
    tried = arbiters(profile, samples)
    found = {name: [simulated(profile, samples, pair.kinds, memory) for pair in measured] for name, memory in tried.items()}
    for pair, ours in zip(measured, next(iter(found.values())), strict=True):
        both = (f"{was:.2f} ({is_:.2f})" for was, is_ in zip(pair.slowdown, ours, strict=True))
        yield f"| {' + '.join(pair.kinds)} | {' | '.join(both)} | {100 * pair.noise:.1f} |"
    yield "\nErrors of the slow-downs in per cent, of two like streams (aim: 5) and of two unlike ones (aim: 10):\n"
    yield "| model | like median | like worst | unlike median | unlike worst |\n| --- | ---: | ---: | ---: | ---: |"
    for name, slowdowns in {"no contention": [(1.0, 1.0)] * len(measured), **found}.items():
        cells = []
        for alike in (True, False):
            errors = [
                abs(is_ / was - 1)
                for pair, ours in zip(measured, slowdowns, strict=True)
                if pair.alike == alike
                for was, is_ in zip(pair.slowdown, ours, strict=True)
            ]
            cells += [f"{100 * np.median(errors):.1f}", f"{100 * max(errors):.1f}"]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""


# Simulated ------------------------------------------------------------------------------------------------------------------


def arbiters(profile: DeviceProfile, samples: Samples) -> dict[str, dict[str, Any]]:
    """Arbiters to compare: keys of `hardware.memory` that differ from those of `from_profile`, by title."""
    whole = BANDWIDTH.format(profile.read[2])
    solo = {kind: BANDWIDTH.format(round(PS_PER_S * _solo(samples, kind))) for kind in STREAMS}
    return {
        "processor sharing, efficiency by number of streams (`from_profile`)": {},
        "processor sharing of what two readers get": {"bandwidth": whole, "efficiency": None},
        "proportional to what is outstanding": {"bandwidth": whole, "efficiency": None, "arbiter": "proportional"},
        "proportional to what each draws alone": {
            "bandwidth": whole, "efficiency": None, "arbiter": {"name": "proportional", "demand": solo},
        },
    }  # fmt: skip


def _solo(samples: Samples, kind: str) -> float:
    return float(np.median([*_rates(samples, kind, 1, "").values()]))


def simulated(
    profile: DeviceProfile, samples: Samples, kinds: tuple[str, str], memory: Mapping[str, Any]
) -> tuple[float, float]:
    """Slow-downs of two chains of such ops while both run."""
    alone = {kind: OP / _solo(samples, kind) for kind in STREAMS}
    counts = [max(2, round(OPS * min(alone[k] for k in kinds) / alone[kind])) for kind in kinds]
    timings = tuple(_timing(kind, _solo(samples, kind)) for kind in STREAMS)
    with tempfile.TemporaryDirectory() as folder:
        device = Path(folder) / "device.yaml"
        write_profile(replace(profile, timings=timings, step=type(profile.step)(), engines=2), device)
        graph = [
            {"name": f"{'ab'[chain]}{i}", "kind": kind, "weight": SIZE.format(OP), "vector_ops": 1,
             "inputs": [f"{'ab'[chain]}{i - 1}"] if i else []}
            for chain, kind in enumerate(kinds)
            for i in range(counts[chain])
        ]  # fmt: skip
        scenario = {
            "model": {"graph": graph}, "workload": {"sequences": [{"tokens": 1}]},
            "hardware": {"from_profile": str(device), "memory": {k: v for k, v in memory.items() if v is not None}},
            "mapping": {"execution": "blocking"}, "cost": {"model": "profiled", "profile": str(device)},
        }  # fmt: skip
        result = run(parse(json.dumps(scenario), str(Path(folder) / "pair.yaml")))
    ends: tuple[list[int], list[int]] = ([], [])
    for row, end in enumerate(result.log.tasks.end.tolist()):
        ends["ab".index(result.log.name(row).split()[-1][0])].append(end)
    both = min(max(ends[0]), max(ends[1]))
    first, second = (
        max(end for end in mine if end <= both) / (sum(end <= both for end in mine) * alone[kind])
        for mine, kind in zip(ends, kinds, strict=True)
    )
    return first, second


def _timing(kind: str, rate: float) -> Timing:
    fit = RowFit(coefficients={"bandwidth": round(rate * PS_PER_S)}, residual=Residual(samples=1, median=0, p90=0))
    return Timing(kind=kind, dtype="bfloat16", form="sum", unit="outputs", ranges={}, rows={1: fit})
