"""Steps on a GPU, where there is one: eager, and as CUDA graphs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from model_families import small

from models.config import resolve
from sim.cli import cli
from sim.measure.calibrate import calibrate
from sim.measure.measured import MeasuredStep
from sim.measure.place import place
from sim.measure.plan import GPU_QUICK
from sim.measure.real import Decoding, RealModel
from sim.measure.rounds import roofs
from sim.measure.step import CudaGraph, measure
from sim.measure.streams import Streams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module", params=["llama", "gpt2", "mixtral"])
def point(request: pytest.FixtureRequest) -> Decoding:
    return RealModel(small(request.param), place("cuda"), dtype="bfloat16").at(2, 9)


def runs(step: MeasuredStep) -> np.ndarray:
    return np.array([op.kind != "kv_load" for op in step.ops.ops])


def test_ops_that_are_issued_add_up_to_the_step(point: Decoding) -> None:
    step = measure(point)
    op, start, duration = step.pieces
    np.testing.assert_array_equal(np.bincount(op, duration, len(step.ops.ops)), step.duration)
    assert (start[1:] >= (start + duration)[:-1]).all()
    assert 0.5 < step.covered + step.unaligned <= 1.0


def test_ops_of_a_graph_follow_each_other_without_a_gap(point: Decoding) -> None:
    step = measure(CudaGraph(point))
    assert (step.duration[runs(step)] > 0).all()
    assert not step.duration[~runs(step)].any()
    order = np.argsort(step.pieces[1], kind="stable")
    ends = (step.pieces[1] + step.pieces[2])[order]
    assert (step.pieces[1][order][1:] >= ends[:-1]).all()
    assert ends[-1] <= step.wall


def test_a_graph_computes_what_the_model_computes(point: Decoding) -> None:
    """On the same cache and tokens: the logits that a replay leaves in its buffers."""
    with torch.no_grad():
        point.ready()
        options = point.ready()
        expected = point.real.model(**options).logits.clone()
        graph = torch.cuda.CUDAGraph()
        again = {**options, "past_key_values": point._cache(0)}
        with torch.cuda.graph(graph):
            logits = point.real.model(**again).logits
        logits.zero_()
        graph.replay()
    torch.testing.assert_close(logits, expected, rtol=2e-2, atol=2e-2)


def test_streams_share_the_memory_and_none_is_above_the_roofline() -> None:
    on = place("cuda")
    bandwidth = roofs(on, "bfloat16")[0]
    streams = Streams(on, "bfloat16")
    for count in (1, 2, 4):
        rates = [moved * 10**12 / duration for moved, duration in streams.run(("read",) * count, 0.01)]
        assert len(rates) == count
        assert sum(rates) < 1.2 * bandwidth


def test_a_profile_predicts_the_model_that_it_is_of(tmp_path: Path) -> None:
    """Within a factor: the fit is to the same model, but kernels of microseconds vary."""
    config, out = tmp_path / "config.json", tmp_path / "gpu.yaml"
    config.write_text(json.dumps(small("llama").data))
    plan = replace(GPU_QUICK, models=(resolve(str(config)),), batches=(1,), contexts=(16, 40), rounds=2, least=2, stream=0.005)
    profile = calibrate(plan, place("cuda"), "bfloat16", out, lambda _: None, graphs=True)
    assert profile.engines == 1
    assert profile.provenance.settings["steps"] == "CUDA graphs"
    asked = ["validate", str(config), "--device", "cuda", "--cuda-graph", "--dtype", "bfloat16", "--context", "16"]
    told = CliRunner().invoke(cli, [*asked, "--profile", str(out), "--band", "50", "--json"], catch_exceptions=False)
    assert told.exit_code == 0
    assert json.loads(told.stdout)["points"][0]["step"]["measured_ps"] > 0
