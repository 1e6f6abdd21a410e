"""Functions of `import sim`: against the command line, and against sums that hold whatever the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import sim
from sim.analysis.parts import PARTS, WAIT_CHANNEL, WAIT_ENGINE, WAIT_POLICY, WAIT_SRAM
from sim.scenario.shipped import SCENARIOS
from tests.tools.command import call

#: One block of a model that ships, as plain data.
PLAIN = {
    "model": {"config": "llama-3.2-1b", "layers": 2},
    "workload": {"sequences": [{"context": 100, "tokens": 3, "count": 2}], "batching": "continuous"},
    "hardware": {"engines": {"count": 2, "flops": "1 TFLOP/s"}, "memory": {"bandwidth": "100 GB/s"}},
    "mapping": {"weights": "streamed", "execution": "stream"},
}


@pytest.fixture(scope="module")
def batched() -> sim.Result:
    return sim.run(PLAIN)


@pytest.fixture
def pyplot(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    plt = pytest.importorskip("matplotlib.pyplot")
    yield plt
    plt.close("all")


def data_of(*arguments: str) -> dict[str, object]:
    return json.loads(call([*arguments, "--json"]).stdout)


def test_a_scenario_is_a_name_a_path_plain_data_or_a_scenario(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    path = SCENARIOS / "multi_head.yaml"
    whole = sim.load(path)
    sources = ["multi_head", path, str(path), whole, whole.to_dict(absolute=True)]
    results = [sim.run(source) for source in sources]
    assert {result.makespan for result in results} == {5_010_470_911}
    changed = [sim.run(source, ["hardware.engines.count=8"]).makespan for source in sources]
    assert set(changed) == {4_419_845_911}
    assert all(isinstance(result, sim.Result) for result in results)
    with pytest.raises(sim.InputError, match="multi_hed: no such file, and no shipped scenario of that name"):
        sim.run("multi_hed")


def test_the_summary_is_what_the_command_prints(batched: sim.Result) -> None:
    expected = data_of("run", "two_tokens_4_engines", "--no-trace")
    del expected["timing"]
    assert sim.run("two_tokens_4_engines").summary() == expected
    assert json.loads(json.dumps(batched.summary()))["tasks"] == len(batched.log.tasks)


def test_results_show_themselves(batched: sim.Result) -> None:
    page = batched._repr_html_()
    for part in ("scenario", "makespan", "TTFT", "tokens", "of its bandwidth", "at its lower bound"):
        assert part in page
    assert "<script" not in page
    shown = sim.compare("multi_head", "multi_head", names=["a", "b"])
    assert str(shown) == "a and b are identical: the same settings, and the same results."
    assert "are identical" in shown._repr_html_()


def test_explanations_are_those_of_the_command() -> None:
    result = sim.run("two_tokens_4_engines")
    assert sim.explain(result).data == {
        key: value for key, value in data_of("explain", "two_tokens_4_engines").items() if key != "optimal"
    }
    told = sim.explain(result, token=(0, 1))
    assert told.data == data_of("explain", "two_tokens_4_engines", "--token", "0.1")["token"]
    assert "waited 3.100 ms for token 0's kv_store" in str(told)
    assert sim.explain(result, request=0).data == data_of("explain", "two_tokens_4_engines", "--request", "0")["request"]
    assert sim.compare(result, "parallel").data == data_of("compare", "two_tokens_4_engines", "parallel")
    with pytest.raises(TypeError, match="expected two scenarios or more, found 1"):
        sim.compare(result)


def test_a_report_is_that_of_the_command(tmp_path: Path) -> None:
    assert sim.report("multi_head", tmp_path / "a.html", what_would_help=False) == tmp_path / "a.html"
    call(["report", "multi_head", "--no-what-if", "-o", str(tmp_path / "b.html")])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize("name", ["two_tokens_4_engines", "lockstep_processor_sharing", "batched"])
def test_tasks_sum_to_the_breakdown(name: str, batched: sim.Result) -> None:
    pytest.importorskip("pandas")
    result = batched if name == "batched" else sim.run(name)
    frame, total, m = result.to_pandas(), result.breakdown.total, result.metrics
    assert frame["bytes"].sum() == m.bytes_read + m.bytes_written
    assert frame["wait_channel"].sum() == total[WAIT_CHANNEL]
    assert frame["wait"].sum() == total[WAIT_ENGINE] + total[WAIT_SRAM] + total[WAIT_POLICY]
    by_kind = frame.groupby("kind")["bytes"].sum().to_dict()
    assert by_kind == {kind.kind: kind.bytes for kind in m.kinds}
    assert [result.log.name(row) for row in range(0, len(frame), 7)] == frame["name"].tolist()[::7]


def test_tokens_and_requests_agree(batched: sim.Result) -> None:
    pytest.importorskip("pandas")
    tokens, requests = batched.to_pandas("tokens"), batched.to_pandas("requests")
    assert tokens.groupby("sequence")["end"].agg(list).map(max).tolist() == batched.requests.last.tolist()
    assert tokens.groupby("sequence")["token"].agg(list).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert (tokens[list(PARTS)].sum(axis=1) == tokens["took"]).all()
    assert (requests["e2e"] == requests["ttft"] + (requests["tokens"] - 1) * requests["tpot"]).all()
    for table in ("tasks", "tokens", "requests"):
        assert batched.to_arrow(table).to_pandas().equals(batched.to_pandas(table))
    with pytest.raises(sim.InputError, match="expected a table of tasks, tokens, requests, found steps"):
        batched.to_pandas("steps")


def test_charts_show_all_of_the_run(pyplot: object, batched: sim.Result) -> None:
    log = batched.log
    bars = int((log.tasks.engine >= 0).sum()) + int((log.tasks.work > 0).sum())
    assert len(batched.plot.timeline().patches) == bars
    (stairs,) = batched.plot.bandwidth().patches
    values, edges, _ = stairs.get_data()
    milliseconds = edges * 1e-3 if batched.makespan >= 1e9 else edges * 1e-6
    moved = batched.metrics.bytes_read + batched.metrics.bytes_written
    assert (values * 1e9 * np.diff(milliseconds)).sum() == pytest.approx(moved, rel=1e-3)
    axes = batched.plot.breakdown()
    heights = sum(bar.get_height() for bar in axes.patches)
    assert heights * 1e9 == pytest.approx(int(batched.breakdown.tokens.sum()))
    rows = batched.plot.requests()
    assert len(rows.patches) == 3 * len(batched.requests)
    assert rows.get_xlabel() == "time (ms)"


def test_a_study_is_what_the_commands_make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    axes = {"hardware.engines.count": [1, 4], "mapping.heads": ["fused", "split"]}
    swept = sim.sweep("parallel", axes, ["hardware.memory.arbiter=fifo"], jobs=1)
    assert not list(tmp_path.iterdir())
    words = [f"{key}={','.join(map(str, values))}" for key, values in axes.items()]
    over = [word for text in words for word in ("--over", text)]
    assert call(["sweep", "parallel", *over, "--set", "hardware.memory.arbiter=fifo", "--out", "rows"]).status == 0
    assert swept.data | {"base": "rows/base.yaml"} == data_of("study", "rows")
    frame = swept.to_pandas().set_index(["hardware.engines.count", "mapping.heads"])
    for count, heads in ((1, "fused"), (4, "split")):
        overrides = [f"hardware.engines.count={count}", f"mapping.heads={heads}", "hardware.memory.arbiter=fifo"]
        assert frame.makespan_ps[count, heads] == sim.run("parallel", overrides).makespan
    assert "sim run" not in str(swept)  # its folder is gone
    assert "sim run rows/base.yaml" in str(sim.sweep("parallel", axes, ["hardware.memory.arbiter=fifo"], folder="rows"))
    assert "best by makespan" in swept._repr_html_()


def test_no_study() -> None:
    with pytest.raises(sim.InputError, match=r"hardware.engines: unknown key 'cont' \(did you mean 'count'\?\)"):
        sim.sweep("parallel", {"hardware.engines.cont": [1, 2]})
    with pytest.raises(sim.InputError, match=r"hardware\.engines\.count: expected numbers or texts without commas"):
        sim.sweep("parallel", {"hardware.engines.count": []})
    with pytest.raises(sim.InputError, match="axes: expected values by key"):
        sim.sweep(PLAIN)
    with pytest.raises(sim.InputError, match="expected only with axes"):
        sim.sweep("engines_and_bandwidth", repeats=2)


def test_names_are_completed() -> None:
    assert dir(sim) == sorted(sim.__all__)
    assert all(getattr(sim, name) is not None for name in dir(sim))


def test_stories_have_plain_blanks() -> None:
    told = sim.explain("two_tokens_4_engines", token=(0, 1))
    assert "waited 3.100 ms for token 0's kv_store" in str(told)
    assert "\ue000" not in str(told) + told._repr_html_()
