"""Searches: brackets against known thresholds, against the exhaustive grid, and after interruptions."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.base.errors import InputError
from sim.base.quantities import REQUEST_RATE
from sim.runs.repeats import student_t
from sim.study.answers import read_answers
from sim.study.points import load
from sim.study.pool import Processes
from sim.study.search import Bracket, Find, bracket_of, found
from sim.study.store import parts, read_part
from tests.study.conftest import BASE, Written, swept
from tests.tools.command import call


def rates(low: int, high: int, *, largest: bool = True, tolerance: float = 0.02) -> Find:
    """A search for a rate between two numbers of requests per second."""
    return Find(key="workload.generate.arrivals.rate", largest=largest, low=Fraction(low * 10**6), high=Fraction(high * 10**6),
                whole=False, dimension=REQUEST_RATE, tolerance=tolerance)  # fmt: skip


def whole(low: int, high: int, *, largest: bool = True) -> Find:
    return Find(key="hardware.engines.count", largest=largest, low=Fraction(low), high=Fraction(high), whole=True,
                dimension=None, tolerance=1e-6)  # fmt: skip


def searched(find: Find, holds: Callable[[Fraction], bool]) -> Bracket:
    """Run a search on a function."""
    known: dict[Fraction, bool] = {}
    while (value := find.next(known)) is not None:
        assert value not in known, "a value was run twice"
        known[value] = holds(value)
        assert len(known) < 60
    return bracket_of(find, known)


@settings(max_examples=60)
@given(st.floats(1.01, 900), st.booleans(), st.sampled_from([0.2, 0.02, 0.002]))
def test_a_bracket_holds_the_threshold_and_is_as_narrow_as_asked(threshold: float, largest: bool, tolerance: float) -> None:
    find = rates(1, 1000, largest=largest, tolerance=tolerance)
    made = searched(find, lambda rate: (rate <= threshold * 10**6) == largest)
    assert made.inner is not None
    assert made.outer is not None
    low, high = sorted((made.inner, made.outer))
    assert low <= threshold * 10**6 <= high
    assert high / low <= 1 + tolerance
    assert made.outcome == "found"
    assert made.ended
    assert not made.beyond
    assert made.runs <= 7 + math.log2(math.log(1000) / math.log1p(tolerance))


@settings(max_examples=40)
@given(st.integers(1, 200), st.integers(1, 200), st.booleans())
def test_whole_numbers_are_found_exactly(threshold: int, start: int, largest: bool) -> None:
    for find in (whole(1, 200, largest=largest), whole(start, start, largest=largest)):
        made = searched(find, lambda n: n <= threshold if largest else n >= threshold)
        assert made.inner == threshold
        end = (threshold == 200 and find.low < find.high) if largest else threshold == 1
        assert made.outer == (None if end else threshold + 1 if largest else threshold - 1)


def test_what_holds_everywhere_or_nowhere_is_said() -> None:
    for find in (rates(1, 64), rates(1, 64, largest=False)):
        all_hold, none = searched(find, lambda _: True), searched(find, lambda _: False)
        assert (all_hold.outcome, none.outcome, none.runs) == ("all hold", "none holds", 1)
        answer = found(find, [all_hold, none])
        assert (answer.low, answer.mean, answer.high) == (None, None, None)
        up, down = ("up to 64 /s", "down to 1 /s") if find.largest else ("down to 1 /s", "up to 64 /s")
        assert answer.notes[0] == f"holds at all values that were run, {up} with 1 of 2 seeds"
        assert answer.notes[1] == f"holds at none that was run, {down} with 1 of 2 seeds"
    around = rates(8, 8)
    assert searched(around, lambda _: True).runs == 21  # doubled 20 times
    assert found(around, [searched(around, lambda _: True)]).notes[0].endswith(f"up to {8 * 2**20} /s")


def test_what_is_not_monotonic_is_said() -> None:
    find = rates(1, 1024)
    gap = searched(find, lambda rate: not 10**7 < rate < 10**8)  # fails between 10 and 100 alone
    assert gap.inner is not None
    assert gap.outer is not None
    assert gap.inner <= 10**7 < gap.outer <= gap.inner * Fraction("1.02")
    assert gap.beyond
    assert "not monotonic: holds again at" in found(find, [gap]).notes[0]
    late = searched(
        find, lambda rate: rate < 10**8 or rate > 10**9
    )  # only the end of the range holds again: it seems that all do
    assert "not monotonic" in found(find, [late]).notes[0]


def test_several_seeds_have_a_confidence_interval() -> None:
    find = rates(1, 64)
    made = [Bracket(inner=Fraction(n), outer=Fraction(n + 1), beyond=(), runs=5, ended=True) for n in (10, 12, 14)]
    answer = found(find, made)
    half = student_t(2) * 2 / math.sqrt(3)  # 10, 12, 14 have a standard deviation of 2
    assert (answer.low, answer.mean, answer.high) == pytest.approx((12 - half, 12.5, 13 + half))
    assert (answer.confidence, answer.runs, answer.notes) == (0.95, 15, ())
    alone = found(find, made[:1])
    assert (alone.low, alone.high, alone.confidence) == (10, 11, None)
    assert "one seed" in alone.notes[0]


STUDY = """\
extends: base.yaml
scenario: {record: steps, mapping: {tiles: 8}, hardware: {engines: {flops: 20 GFLOP/s}}}
axes: {hardware.memory.bandwidth: [60 GB/s, 100 GB/s]}
find: {smallest: hardware.engines.count, from: 1, to: 8}
constraints: [makespan < 5 ms]
"""


def test_it_finds_what_the_whole_grid_has(written: Written, tmp_path: Path) -> None:
    study = load(written(STUDY))
    counts = swept(study, tmp_path / "out")
    grid = load(written(STUDY.replace("axes: {", "axes: {hardware.engines.count: 1..8, ").replace(
        "find: {smallest: hardware.engines.count, from: 1, to: 8}\n", ""), name="grid.yaml"))  # fmt: skip
    swept(grid, tmp_path / "grid")
    rows = [row for part in parts(tmp_path / "grid") for row in read_part(part).to_pylist()]
    answers = read_answers(tmp_path / "out")
    assert len(answers.points) == 2
    for point in answers.points:
        bandwidth = point.values["hardware.memory.bandwidth"]
        good = [r for r in rows if r["hardware.memory.bandwidth"] == bandwidth and r["feasible"]]
        least = min(good, key=lambda row: row["hardware.engines.count"])
        assert 1 < least["hardware.engines.count"] < 8
        assert point.sets == {"hardware.engines.count": str(least["hardware.engines.count"])}
        assert point.means["makespan_ps"] == least["makespan_ps"]  # columns are of the value that was found
        again = json.loads(call([*shlex.split(answers.command(point))[1:], "--no-trace", "--json"]).stdout)
        assert again["makespan_ps"] == least["makespan_ps"]
    assert counts.runs == counts.done < 2 * 8
    shown = " ".join(call(["study", str(tmp_path / "out")]).stdout.split())
    assert "smallest hardware.engines.count at which makespan < 5 ms" in shown


SERVED = """\
model: {config: llama-3.2-1b, layers: 1, scope: block}
workload:
  generate:
    count: 12
    arrivals: {process: poisson, rate: 20/s}
    context: {distribution: uniform, min: 20, max: 200}
    tokens: {distribution: uniform, min: 2, max: 4}
  batching: {policy: continuous, max_batch: 4}
report: {slo: {ttft: 5 ms, percentile: 90}}
"""

FIND = "extends: base.yaml\nfind: largest workload.generate.arrivals.rate\nrepeats: 2\n"


def rows(folder: Path) -> list[dict[str, object]]:
    found_rows = [row for part in parts(folder) for row in read_part(part).to_pylist()]
    return sorted(found_rows, key=lambda row: (row["seed"], row["workload.generate.arrivals.rate"]))


def test_a_rate_within_the_objective_is_found_also_after_an_interruption(written: Written, tmp_path: Path) -> None:
    study = load(written(FIND, SERVED))
    counts = swept(study, tmp_path / "out")
    assert (counts.before, counts.runs) == (0, counts.done)
    whole_rows = rows(tmp_path / "out")
    for row in whole_rows:
        assert row["feasible"] == (row["slo_attained"] == 1) == (row["slo_share"] >= 0.9)  # type: ignore[operator]
    (answer,) = read_answers(tmp_path / "out").points
    assert answer.found is not None
    assert answer.found.confidence == 0.95
    with pytest.raises(KeyboardInterrupt):
        swept(study, tmp_path / "cut", on_progress=_interrupt_after(5))
    kept = rows(tmp_path / "cut")
    assert 5 <= len(kept) < len(whole_rows)
    again = swept(study, tmp_path / "cut")
    assert (again.before, again.done) == (len(kept), len(whole_rows) - len(kept))
    assert rows(tmp_path / "cut") == whole_rows
    assert swept(study, tmp_path / "cut").done == 0


@pytest.mark.slow
def test_searches_do_not_depend_on_processes(written: Written, tmp_path: Path) -> None:
    study = load(written(FIND, SERVED))
    swept(study, tmp_path / "here")
    swept(study, tmp_path / "processes", Processes(2))
    assert rows(tmp_path / "processes") == rows(tmp_path / "here")


def _interrupt_after(runs: int) -> Callable[[object], None]:
    def on_progress(counts: object) -> None:
        if counts.done >= runs:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    return on_progress


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("find: {largest: seed, smallest: seed}", "study.yaml:2:7: find: expected either the key 'largest' or the key"),
        ("find: {largest: a.b, from: 1}", "expected both of the keys 'from' and 'to'"),
        ("find: largest hardware.engines.count", "expected report.slo in the scenario, or constraints"),
        ("find: largest hardware.engines.cuont\nconstraints: [makespan < 1 s]", "writes no number there"),
        ("find: {largest: hardware.engines.count, from: 8, to: 1}\nconstraints: [makespan < 1 s]", "from the smaller value"),
        ("axes: {seed: [1]}\nfind: {largest: seed, from: 1, to: 2}\nconstraints: [makespan < 1 s]", "seed is an axis, too"),
    ],
)
def test_what_is_no_search_is_an_error(written: Written, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        load(written(f"extends: base.yaml\n{text}\n", BASE))
