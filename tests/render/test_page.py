"""Data embedded in the page, without a browser."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim.render.page as page_module
from sim.render.page import DRAWING, finding, render, run_data
from sim.render.page.columns import pack
from sim.render.page.document import LIBRARIES
from sim.render.page.roofline import roofline
from sim.render.page.timeline import _lanes, _over
from sim.render.page.timeline import timeline as timeline_of
from sim.render.rows import as_json
from sim.render.summary import summary, summary_rows
from sim.runs.run import read, run
from sim.scenario import parse
from sim.scenario.shipped import scenarios
from tests.render.conftest import call, numbers


def script(page: str, name: str) -> Any:
    found = re.search(rf'<script type="[^"]+" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found
    return found[1] if name == "columns" else json.loads(found[1])


def unpacked(layout: list[tuple[str, int, int]], text: str) -> dict[str, list[int]]:
    """The inverse of `pack`, the way the page does it."""
    data, at, columns = gzip.decompress(b64decode(text)), 0, {}
    for name, rows, planes in layout:
        values = [0] * rows
        for plane in range(planes):
            for row in range(rows):
                values[row] += data[at + row] << (8 * plane)
            at += rows
        columns[name] = values
    assert at == len(data)
    return columns


def test_columns_come_back() -> None:
    columns = {"small": [0, 1, 255, 256], "none": [], "zeros": [0, 0, 0], "large": [2**63 - 1, 0, 12345678901234]}
    packed = pack({name: np.array(values, dtype=np.int64) for name, values in columns.items()})
    assert unpacked(list(packed.layout), packed.text) == columns
    assert [planes for _, _, planes in packed.layout] == [2, 0, 0, 8]


def test_negative_columns() -> None:
    with pytest.raises(ValueError, match="column x: expected no negative value, found -1"):
        pack({"x": np.array([3, -1])})


def test_the_same_bytes_every_time(page: Path, tmp_path: Path) -> None:
    call("report", "two_tokens_4_engines", "-o", str(tmp_path / "again.html"))
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_embedded_numbers_are_those_of_json(page: Path) -> None:
    text = page.read_text()
    assert script(text, "summary") == numbers("two_tokens_4_engines")
    explained = json.loads(call("explain", "two_tokens_4_engines", "--json"))
    assert script(text, "analyses")["what_if"] == explained["what_if"]
    assert explained["what_if"]["bottleneck"] in text


def test_overrides_are_shown_and_used(tmp_path: Path) -> None:
    change = ("--set", "hardware.engines.count=3")
    call("report", "two_tokens_4_engines", "-o", str(tmp_path / "page.html"), "--no-what-if", *change)
    text = (tmp_path / "page.html").read_text()
    assert "--set hardware.engines.count=3" in text
    assert script(text, "summary") == numbers("two_tokens_4_engines", *change)
    assert script(text, "analyses")["what_if"] is None


@pytest.mark.parametrize("name", ["two_tokens_8_engines", "two_sequences_processor_sharing", "lockstep_fifo"])
def test_the_columns_tell_the_event_log(name: str) -> None:
    result = run(scenarios()[name])
    text = render(result)
    facts = script(text, "timeline-data")
    columns = {key: np.array(values) for key, values in unpacked(facts["layout"], script(text, "columns")).items()}
    log, start = result.log, np.cumsum(columns["start"])
    rows = log.steps.first[columns["step"]] + columns["task"]
    assert sorted(rows) == list(range(len(log.tasks)))
    assert (start == log.tasks.start[rows]).all()
    assert (start - columns["wait"] == log.tasks.ready[rows]).all()
    assert (start + columns["queued"] + columns["moving"] + columns["rest"] == log.tasks.end[rows]).all()
    assert (columns["engine"] - 1 == log.tasks.engine[rows]).all()
    names = [facts["names"][facts["graphs"][0]["name"][task]] for task in columns["task"]]
    assert names == [log.name(int(row)) for row in rows]
    assert columns["rate_work"].sum() == log.services.work.sum()
    assert np.cumsum(columns["rate_idle"] + columns["rate_span"])[-1] == log.services.end.max()
    # No lane shows two transfers at once.
    served = start + columns["queued"]
    assert columns["lane"].max() >= 1
    for lane in range(1, columns["lane"].max() + 1):
        mine = np.flatnonzero(columns["lane"] == lane)
        mine = mine[np.argsort(served[mine], kind="stable")]
        assert (served[mine][1:] >= (served + columns["moving"])[mine][:-1]).all()


def test_lanes_by_hand() -> None:
    group, chosen = np.zeros(5, dtype=np.int64), np.array([True, True, True, True, False])
    start, end = np.array([0, 2, 4, 5, 0]), np.array([4, 6, 9, 7, 9])
    assert _lanes(group, start, end, chosen).tolist() == [0, 1, 0, 2, 0]


def test_what_intervals_give_to_parts_of_the_time_by_hand() -> None:
    edges = np.array([10, 20, 30])
    group, begin, end = np.array([0, 0, 1, 1, 0]), np.array([0, 18, 12, 22, 2]), np.array([15, 30, 13, 22, 10])
    # 15 over [0, 15): 5 after 10. 6 over [18, 30): 1 before 20, 5 after. 4 within a part; an empty one; one that ends at 10.
    given = _over(edges, group, 2, begin, end, np.array([15, 6, 4, 9, 8]))
    assert given == pytest.approx(np.array([[5 + 1, 5], [4, 0]]))


@pytest.mark.parametrize("name", ["two_tokens_4_engines", "two_sequences_processor_sharing", "two_sequences_fifo"])
def test_a_very_long_run_is_seen_whole(name: str) -> None:
    """First tasks one by one, then parts of the time: together they move every byte, and hold engines as long as they were."""
    result = run(scenarios()[name])
    log = result.log
    facts, columns, steps = timeline_of(result, limit=200)
    assert steps.tolist() == sorted(set(log.tasks.step[np.argsort(log.tasks.start, kind="stable")[:50]]))
    assert columns["step"].max() == len(steps) - 1
    horizon, makespan, bins = facts["horizon_ps"], facts["makespan_ps"], facts["bins"]
    assert (facts["tasks"], facts["shown"], len(columns["start"])) == (len(log.tasks), 50, 50)
    assert (horizon, makespan) == (np.sort(log.tasks.start)[50], log.makespan)
    assert columns["rate_work"].sum() == pytest.approx(log.services.work.sum(), abs=bins * log.channels)
    assert (columns["rate_idle"].sum() + columns["rate_span"].sum()) == makespan * log.channels
    share = columns["bin_share"].reshape(log.engines + log.channels, bins)
    width = (makespan - horizon) / bins
    after = np.maximum(log.tasks.end, horizon) - np.maximum(log.tasks.start, horizon)
    for engine in range(log.engines):  # the share is rounded up to 1/255
        held = after[log.tasks.engine == engine].sum()
        assert held <= share[engine].sum() / 255 * width * (1 + 1e-6) <= held + makespan / 255 + bins
    tones = columns["bin_tone"].reshape(share.shape)[share > 0]
    assert {*tones.tolist()} <= {*range(min(len(result.metrics.kinds), 14) + 1)}


@pytest.mark.parametrize("count", [7, 240, 241, 1000])
def test_a_run_of_very_many_steps_is_seen_whole(count: int) -> None:
    """Steps of 1 us, of which 100 are shown: sums and bars are those of all."""
    graph = "{graph: [{name: a, duration: 1 us}]}"
    result = run(parse(f"model: {graph}\nworkload: {{sequences: [{{tokens: {count}}}]}}"))
    facts, columns, steps = timeline_of(result, most=100)
    shown = min(count, 100)
    assert (facts["steps_in_all"], facts["shown"], len(columns["start"])) == (count, shown, shown)
    assert steps.tolist() == list(range(shown))
    assert facts["sums"] == {"compute": count * 10**6}
    assert sum(bar["steps"] for bar in facts["bars"]) == count
    assert len(facts["bars"]) == -(-count // -(-count // 240))
    assert all(bar["means"] == {"compute": 10**6} for bar in facts["bars"])
    before = [bar["ends"][1][1] for bar in facts["bars"]]
    assert [bar["ends"][0][1] for bar in facts["bars"]] == [0, *(end + 1 for end in before[:-1])]
    assert before[-1] == count - 1


def test_a_page_of_very_many_steps_and_requests_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "STEPS", 50)
    monkeypatch.setattr(page_module, "REQUESTS", 8)
    graph = "{graph: [{name: a, duration: 1 us}]}"
    result = run(parse(f"model: {graph}\nworkload: {{sequences: [{{tokens: 10, count: 20}}]}}"))
    data = run_data(result)
    assert len(data["summary"]["tokens"]) == len(data["summary"]["breakdown_ps"]["by_token"]) == 50
    assert [each["sequence"] for each in data["summary"]["requests"]["each"]] == [0, 3, 6, 9, 12, 15, 18]
    assert len(data["summary"]["breakdown_ps"]["by_sequence"]) == 8
    assert data["timeline-data"]["steps_in_all"] == 200
    whole = summary(result, timing=False)
    assert (len(whole["tokens"]), len(whole["requests"]["each"])) == (200, 20)
    assert "".join(as_json(summary_rows(result, timing=False))) == json.dumps(whole)


@pytest.mark.parametrize("name", ["llama_1b_context_256", "two_sequences_processor_sharing", "two_sequences_fifo"])
def test_no_kind_is_above_the_roof(name: str) -> None:
    data = roofline(run(scenarios()[name]))
    assert data["kinds"]
    for kind in data["kinds"]:
        slope = data["bytes_per_s"] * kind["intensity"] if kind["intensity"] else float("inf")
        roof = min(slope, max(data["roofs"].values()))
        print(f"{kind['kind']:16} {kind['flops_per_s']:.4g} FLOP/s under a roof of {roof:.4g}")
        assert kind["flops_per_s"] <= roof * (1 + 1e-12)


def test_intensity_by_hand() -> None:
    """Decode multiplies each bfloat16 weight once: 2 FLOPs for its 2 bytes."""
    kinds = {kind["kind"]: kind for kind in roofline(run(scenarios()["llama_1b_context_256"]))["kinds"]}
    assert kinds["down_proj"]["flops"] == 16 * 2 * 8192 * 2048
    assert kinds["down_proj"]["bytes"] == 16 * 2 * 8192 * 2048
    assert kinds["down_proj"]["intensity"] == 1.0


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)> {{ summary }} &amp;"
    path = tmp_path / "hostile.yaml"
    path.write_text(scenarios()["two_tokens_4_engines"].read_text() + f"# {hostile}\n")
    result = run(read(path, [f"description={json.dumps(hostile)}", 'name="<b>bold"']))

    class Elements(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            found.append(tag)

    found: list[str] = []
    Elements().feed(render(result))
    assert "img" not in found
    assert "b" not in found
    assert found.count("script") == 4 + len(LIBRARIES) + len((*DRAWING, "page.js"))


def test_the_sentence_without_what_if() -> None:
    sentence = finding(run(scenarios()["two_tokens_4_engines"]), None)
    assert re.fullmatch(r"\d+% of the time of the tokens is spent .*; the run is [\d.]+% above its lower bound\.", sentence)
    assert finding(run(scenarios()["two_sequences_fifo"]), None).endswith("; the run is at its lower bound.")
    assert "% of the time of the steps is spent" in finding(run(read(scenarios()["batch_8"], ["model.layers=1"])), None)


def test_the_page_is_small_and_names_its_libraries(page: Path) -> None:
    text = page.read_text()
    print(f"{len(text) / 1e6:.2f} MB for 352 tasks")
    assert len(text) < 1_500_000
    for holder in ("Mike Bostock", "Observable, Inc."):
        assert holder in text
    assert "Permission to use, copy, modify" in text
