"""A real run against its simulation: sums, errors, and the trace that shows both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from model_families import small

from sim.base.errors import InputError
from sim.cli.validate import _pair, _warnings, command
from sim.cost.profile import DeviceProfile, Provenance, fit, write_profile
from sim.measure.measured import MeasuredStep
from sim.measure.place import place
from sim.measure.real import Decoding, RealModel
from sim.measure.rounds import collect, roofs
from sim.measure.step import samples
from sim.render.trace.double import write_double
from sim.runs.validation import Comparison, lower_bound, predict
from tests.tools.trace_processor import TraceProcessor

WHERE = Provenance(device="this one", source="a test", date="2026-01-01")


@pytest.fixture(scope="module")
def point() -> Decoding:
    return RealModel(small("llama"), place("cpu", 1), dtype="float32").at(1, 40)


@pytest.fixture(scope="module")
def steps(point: Decoding) -> list[MeasuredStep]:
    return collect([point], 4, lambda *_: None)[0]


@pytest.fixture(scope="module")
def profile(steps: list[MeasuredStep]) -> DeviceProfile:
    """A profile fitted to the steps that it will predict."""
    return fit(samples(steps, range(len(steps))), WHERE, bandwidth=10**10)


def test_a_step_is_its_ops_and_what_the_profile_adds_to_them(point: Decoding, profile: DeviceProfile) -> None:
    plain = replace(profile, step=replace(profile.step, scale=1.0, per_op=0, per_step=0))
    predicted = predict(point.ops, 40, plain)
    assert predicted.step == predicted.ops.sum() == predicted.pieces[2].sum()
    np.testing.assert_array_equal(np.bincount(predicted.pieces[0], predicted.pieces[2]), predicted.ops)
    more = predict(point.ops, 40, replace(plain, step=replace(plain.step, per_op=1000, per_step=77)))
    assert more.step == predicted.step + 1000 * np.count_nonzero(predicted.ops) + 77
    np.testing.assert_array_equal(more.ops, predicted.ops)


def test_a_profile_of_a_step_predicts_the_ops_of_that_step(point: Decoding, steps: Any, profile: DeviceProfile) -> None:
    """Kinds of one shape are fitted exactly, to the median over the rounds and layers."""
    predicted = predict(point.ops, 40, profile)
    for kind in ("attention", "act"):
        mine = [i for i, op in enumerate(point.ops.ops) if op.kind == kind]
        median = np.median([step.duration[mine] for step in steps])
        np.testing.assert_allclose(predicted.ops[mine], median, rtol=1e-3)


def test_a_kind_that_the_profile_lacks_is_named(point: Decoding, profile: DeviceProfile) -> None:
    poor = replace(profile, timings=tuple(t for t in profile.timings if t.kind not in ("attention", "multi_head_attention")))
    with pytest.raises(InputError, match=r"this one: no timing of 'attention' in float32; it has .*--attention three_pass has"):
        predict(point.ops, 40, poor)


def test_the_lower_bound_is_bytes_over_bandwidth_where_arithmetic_is_free(point: Decoding) -> None:
    """LM head: 97 x 32 weights of 4 bytes at 1 GB/s, 1,000 ps per byte."""
    bound = lower_bound(point.ops, 40, bandwidth=10**9, flops=10**18, vector_flops=10**18)
    head = next(i for i, op in enumerate(point.ops.ops) if op.kind == "lm_head")
    assert bound.ops[head] == 97 * 32 * 4 * 1000
    attends = next(i for i, op in enumerate(point.ops.ops) if op.kind == "attention")
    assert bound.ops[attends] == 40 * 2 * 2 * 8 * 4 * 1000  # tokens x (keys and values) x KV heads x head dim x bytes
    assert bound.step <= bound.ops.sum()


def made(point: Decoding, plain: list[int], predicted: int) -> Comparison:
    steps = [
        MeasuredStep(
            model="m", dtype="float32", point=(1, 1, 40), ops=point.ops, start=np.zeros(1), duration=np.zeros(1, np.int64),
            pieces=np.zeros((3, 0), np.int64), wall=100, plain=each, others=0,
        )
        for each in plain
    ]  # fmt: skip
    bound = lower_bound(point.ops, 40, 10**9, 10**18, 10**18)
    return Comparison(steps=tuple(steps), prediction=replace(bound, step=predicted))


def test_error_spread_and_noise_by_hand(point: Decoding) -> None:
    row = made(point, [100, 100, 110, 110], 126).step
    assert (row.measured, row.predicted) == (105, 126)
    assert row.error == pytest.approx(0.2)
    assert row.spread == pytest.approx(10 / 105)
    assert row.noise == pytest.approx(1 - 100 / 110)


def test_noise_larger_than_the_band_excuses_errors_up_to_it(point: Decoding) -> None:
    assert not made(point, [100] * 4, 106).within(0.05)
    assert made(point, [100] * 4, 104).within(0.05)
    assert made(point, [100, 100, 110, 110], 113).within(0.05)  # 7.6 % off, at 9.1 % of noise
    assert not made(point, [100, 100, 110, 110], 117).within(0.05)


def test_roofs_are_rates_of_this_machine() -> None:
    assert all(rate > 10**6 for rate in roofs(place("cpu", 1), "float32"))


# The trace


@pytest.fixture(scope="module")
def trace(steps: Any, profile: DeviceProfile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Comparison]]:
    comparison = Comparison(steps=tuple(steps), prediction=predict(steps[0].ops, 40, profile))
    path = tmp_path_factory.mktemp("trace") / "double.pftrace"
    write_double(path, "small-llama", [_pair(comparison)] * 2, metadata={"device": "this one"})
    try:
        with TraceProcessor(path) as processor:
            yield processor, comparison
    except LookupError as missing:
        pytest.skip(str(missing))


def rows(processor: TraceProcessor, line: str, depth: str = "category = 'op'") -> list[dict[str, Any]]:
    return processor.query(
        "SELECT ts, dur, slice.name, category, extract_arg(slice.arg_set_id, 'correlation_id') AS colour, "
        "extract_arg(slice.arg_set_id, 'debug.measured_ps') AS measured, "
        "extract_arg(slice.arg_set_id, 'debug.predicted_ps') AS predicted FROM slice JOIN track ON slice.track_id = track.id "
        f"WHERE track.name = '{line}' AND {depth} ORDER BY ts"
    )


def test_both_lines_have_the_same_ops_with_the_same_colours(trace: Any) -> None:
    processor, comparison = trace
    assert processor.problems() == []
    lines = {line: rows(processor, line) for line in ("measured", "simulated")}
    named = {line: {(row["name"], row["colour"]) for row in found} for line, found in lines.items()}
    assert named["measured"] == named["simulated"]
    kinds = {op.kind for op in comparison.ops.ops} - {"kv_load"}
    assert {name.split()[0] for name, _ in named["measured"]} == kinds
    assert len({colour for _, colour in named["measured"]}) == len(kinds)


def test_the_lines_show_what_was_measured_and_what_was_simulated(trace: Any) -> None:
    """Twice, and both lines begin at the same instant. A nanosecond is the grain of a trace."""
    processor, comparison = trace
    shown, simulated = comparison.typical, comparison.prediction
    for line, pieces, length in (("measured", shown.pieces, shown.wall), ("simulated", simulated.pieces, simulated.step)):
        found = rows(processor, line)
        assert len(found) == 2 * pieces.shape[1]
        order = np.argsort(pieces[1], kind="stable")
        for row, start, duration in zip(found, *pieces[1:, order].tolist(), strict=False):
            assert abs(row["ts"] - start / 1000) <= 1
            assert abs(row["dur"] - duration / 1000) <= 1
        whole = rows(processor, line, "category = 'step'")
        assert [row["name"] for row in whole] == ["step: batch 1, context 40"] * 2
        assert abs(whole[0]["dur"] - length / 1000) <= 1
        layers = rows(processor, line, "category = 'layer'")
        assert [row["name"] for row in layers] == ["layer 0", "layer 1"] * 2
    begins = {line: [r["ts"] for r in rows(processor, line, "category = 'step'")] for line in ("measured", "simulated")}
    assert begins["measured"] == begins["simulated"]


def test_the_counter_shows_by_how_much_the_simulation_is_ahead(trace: Any) -> None:
    """At the end of the LM head, the last op, and 0 where a step begins."""
    processor, comparison = trace
    found = processor.query(
        "SELECT ts, value FROM counter JOIN track ON counter.track_id = track.id "
        "WHERE track.name = 'simulated is ahead by' ORDER BY ts"
    )
    half = found[: len(found) // 2]
    op, start, duration = comparison.typical.pieces
    last = int(np.argmax(start))
    assert comparison.ops.ops[op[last]].kind == "lm_head"
    assert (half[0]["ts"], half[0]["value"]) == (0, 0)
    assert abs(half[-1]["ts"] - (start + duration)[last] / 1000) <= 1
    ahead = (start + duration)[last] - comparison.prediction.step
    largest = max(abs(row["value"]) for row in half)
    unit = 1e9 if half[-1]["value"] == pytest.approx(ahead / 1e9) else 1e6  # ms, or us where none is 1 ms
    assert half[-1]["value"] == pytest.approx(ahead / unit)
    assert (largest >= 1) if unit == 1e9 else (largest < 1000)
    assert [row["value"] for row in found] == [row["value"] for row in half] * 2


# The command


def validate(*arguments: str | Path) -> Any:
    return CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(dict(small("llama").data)))
    return path


def test_the_command_compares_and_its_status_is_the_verdict(config: Path, profile: DeviceProfile, tmp_path: Path) -> None:
    """The same profile, with steps a thousand times as long, is outside of any band."""
    write_profile(profile, tmp_path / "device.yaml")
    write_profile(replace(profile, step=replace(profile.step, scale=1000.0)), tmp_path / "slow.yaml")
    common = (config, "--threads", 1, "--dtype", "float32", "--context", 40, "--rounds", 2)
    good = validate(
        *common, "--profile", tmp_path / "device.yaml", "--band", 100000, "--json", "--trace", tmp_path / "t.pftrace"
    )
    assert good.exception is None, good.output
    data = json.loads(good.output)
    (found,) = data["points"]
    assert data["within"] is True
    (warning,) = data["warnings"]
    assert warning.startswith("measured on this one, but this is ")
    assert (found["batch"], found["context"], found["rounds"]) == (1, 40, 2)
    assert found["ops"]["predicted_ps"] == sum(kind["predicted_ps"] for kind in found["kinds"].values())
    assert set(found["kinds"]) > {"norm", "attention", "lm_head"}
    assert (tmp_path / "t.pftrace").stat().st_size > 1000
    bad = validate(*common, "--profile", tmp_path / "slow.yaml", "--json")
    assert bad.return_value == 1 or getattr(bad.exception, "exit_code", None) == 1
    assert json.loads(bad.output)["within"] is False


def test_a_profile_of_other_threads_or_of_a_busy_machine_gives_warnings(profile: DeviceProfile) -> None:
    busy = WHERE.model_copy(update={"settings": {"threads": "2"}, "warnings": ("the machine was busy",)})
    of_two = replace(profile, provenance=busy)
    assert _warnings(of_two, "this one", 2) == ["the machine was busy"]
    assert _warnings(of_two, "this one", 1) == ["measured with 2 threads, but this ran with 1", "the machine was busy"]
    assert _warnings(of_two, "this one", None) == ["the machine was busy"]


def test_without_a_profile_there_is_a_lower_bound_and_no_verdict(config: Path) -> None:
    done = validate(config, "--threads", 1, "--dtype", "float32", "--rounds", 2)
    assert done.exception is None
    assert "no profile: predicted is the roofline" in done.output
    assert "times the lower bound" in done.output
    assert "within" not in done.output
