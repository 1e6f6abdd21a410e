"""`sim profile` on this machine, with a plan of seconds. The times themselves do not matter here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sim.base.errors import InputError
from sim.cli import cli
from sim.cost.profile import STREAMS, Samples, fit, read_profile, read_samples
from sim.measure import calibrate as calibration
from sim.measure.partial import Partial
from sim.measure.place import place
from sim.measure.plan import CALIBRATION, FULL, QUICK, Plan
from sim.measure.streams import LOADS, Streams, counts
from sim.runs.run import run
from sim.scenario import parse
from tests.tools.tiny_profile import TINY, little_memory


@pytest.fixture(autouse=True)
def small(monkeypatch):
    little_memory(monkeypatch)


def measure(out: Path, say=lambda _: None, plan: Plan = TINY):
    return calibration.calibrate(plan, place("cpu", 1), "float32", out, say)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run that was interrupted after its first round, and went on: the profile, its file, and what the first round found."""
    out = tmp_path_factory.mktemp("profile") / "here.yaml"
    lines: list[str] = []

    def stop(text: str) -> None:
        lines.append(text)
        if text.startswith("round 1"):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        little_memory(patch)
        with pytest.raises(KeyboardInterrupt):
            measure(out, stop)
        assert not out.exists()
        first = read_samples(out.with_name("here.partial") / "0000.parquet")
        profile = measure(out)
    return profile, out, first


@pytest.mark.slow
def test_a_second_run_goes_on_where_the_first_stopped(measured):
    profile, out, first = measured
    kept = read_samples(out.with_suffix(".parquet"))
    assert not out.with_name("here.partial").exists()
    assert profile.provenance.rounds == 3
    assert np.unique(kept.round).tolist() == [0, 1, 2]
    before = kept.take(kept.round == 0)
    assert (before.duration == first.duration).all()


def test_the_file_is_the_profile(measured):
    profile, out, _ = measured
    assert read_profile(out) == profile
    assert profile.provenance.samples == "here.parquet"
    assert {timing.kind for timing in profile.timings} >= {
        "matmul",
        "attention",
        "multi_head_attention",
        "norm",
        "elementwise",
    }


def test_every_op_of_every_step_is_measured_and_steps_last_longer(measured):
    """Each of 3 rounds has a step for each model, batch and context, with as many ops as its row counts."""
    kept = read_samples(measured[1].with_suffix(".parquet"))
    steps = kept.take(kept.kind == "step")
    assert len(steps) == 3 * 3 * 2 * 2
    assert np.unique(steps.step).size == len(steps)
    ops = kept.take((kept.kind != "step") & (kept.step >= 0))
    assert (np.bincount(ops.step)[steps.step] == steps.ops).all()
    assert set(ops.model) == {"one", "two", "other"}


def test_the_fit_does_not_use_the_samples_that_judge_it(measured):
    profile, out, _ = measured
    kept = read_samples(out.with_suffix(".parquet"))
    product = profile.timing(["matmul"], "float32")
    assert product is not None
    assert 768 in set(kept.take(kept.model == "other").n.tolist())
    assert product.rows[1].residual.samples == len({*_shapes(kept, "one"), *_shapes(kept, "two")})
    again = calibration.profile_of(kept.take(kept.model != "other"), profile.provenance, place("cpu", 1))
    assert again == profile


def _shapes(kept: Samples, model: str) -> set[tuple[str, int, int]]:
    chosen = kept.take((kept.kind == "matmul") & (kept.rows == 1) & (kept.model == model))
    return {(model, n, k) for n, k in zip(chosen.n.tolist(), chosen.k.tolist(), strict=True)}


def test_a_scenario_runs_by_it(measured, tmp_path):
    text = f"""
model: {{config: {tmp_path}/config.json}}
workload: {{sequences: [{{context: 30, tokens: 2}}]}}
hardware: {{from_profile: {measured[1]}}}
mapping: {{softmax: online, heads: fused, kv: operands, execution: blocking}}
cost: {{model: profiled, profile: {measured[1]}}}
"""
    (tmp_path / "config.json").write_text(json.dumps(TINY.unseen[0].data))
    found = run(parse(text, str(tmp_path / "run.yaml"), ["model.dtype=float32"]))
    assert found.makespan > 0
    assert all("not measured: roofline" not in extrapolation.why for extrapolation in found.extrapolations)


def test_rounds_of_another_plan_do_not_mix(tmp_path):
    Partial(tmp_path / "a.yaml", {"threads": "1", "dtype": "float32"})
    with pytest.raises(InputError, match=r"a\.partial: rounds of another run: threads was 1, and is 2 now; remove the folder"):
        Partial(tmp_path / "a.yaml", {"threads": "2", "dtype": "float32"})
    (tmp_path / "a.partial" / "plan.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        Partial(tmp_path / "a.yaml", {})


def test_streams_move_the_bytes_that_they_report():
    streams = Streams(place("cpu", 1), "float32")
    found = streams.round(5, seconds=0.002, seed=1)
    assert set(found.round) == {5}
    for kind, load in LOADS.items():
        mine = found.take(found.kind == kind)
        assert (mine.bytes_read * load.writes == mine.bytes_written * load.reads).all()
        assert (mine.bytes_read + mine.bytes_written > 0).all()
        assert ((mine.bytes_read + mine.bytes_written) % streams.bytes == 0).all()
    for n in range(1, streams.most + 1):
        together = found.take(found.streams == n)
        assert len(together) % n == 0
    if streams.most > 1:
        pairs = {tuple(sorted(pair)) for pair in zip(found.kind, found.beside, strict=True) if pair[1]}
        assert len(pairs) == len(STREAMS) * (len(STREAMS) - 1) // 2


def test_streams_take_no_part_in_the_times_of_ops():
    streams = Streams(place("cpu", 1), "float32").round(0, seconds=0.002, seed=1)
    op = Samples({"kind": ["norm"], "bytes_read": [1000], "duration": [10**6]})
    profile = fit(Samples.concatenate([streams, op]), calibration.Provenance(device="x", source="y", date="2026-01-01"))
    assert [timing.kind for timing in profile.timings] == ["norm"]
    assert profile.bandwidth == max([*profile.read.values(), *profile.write.values()])
    assert counts(1) == [1]
    assert counts(6) == [1, 2, 4, 6]


def test_no_model_in_a_calibration_is_a_published_one_and_shapes_are_not_collinear():
    """Products of one batch: bytes, k and n must not be combinations of each other; attention: neither heads and KV heads."""
    ratios = {c.data["num_attention_heads"] // c.data["num_key_value_heads"] for c in CALIBRATION}
    assert len(ratios) >= 4
    assert len({c.data["head_dim"] for c in CALIBRATION}) >= 2
    hidden, inter, vocabulary = (
        np.array([c.data[key] for c in CALIBRATION], float) for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    assert abs(np.corrcoef(hidden, vocabulary)[0, 1]) < 0.5
    assert np.unique(np.round(inter / hidden, 2)).size >= 4
    assert len(QUICK.points()) == 45
    assert {p.batch for p in FULL.points()} == {1, 2, 4, 8}


def test_errors(tmp_path):
    def fails(*arguments: str) -> str:
        with pytest.raises(InputError) as error:
            CliRunner().invoke(cli, ["profile", *arguments], standalone_mode=False, catch_exceptions=False)
        return str(error.value)

    assert fails("-o", "here.txt") == "--out: expected a name that ends in .yaml, found 'here.txt'"
    assert "no such folder" in fails("-o", str(tmp_path / "nowhere" / "here.yaml"))
    assert "did you mean 'gpt2'?" in fails("-o", str(tmp_path / "a.yaml"), "--models", "gtp2")
    assert "found 'tpu'" in fails("-o", str(tmp_path / "a.yaml"), "--device", "tpu")
    assert not list(tmp_path.iterdir())


def test_plans_differ_in_what_they_measure():
    here = place("cpu", 1)
    one, other = (calibration.identity(plan, here, "float32") for plan in (TINY, replace(TINY, contexts=(16, 48))))
    assert {key for key in one if one[key] != other[key]} == {"plan"}
