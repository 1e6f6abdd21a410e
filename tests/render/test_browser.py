"""The page in real headless Chromium."""

from __future__ import annotations

import base64
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim
from sim.base.units import format_time
from sim.log import derived
from sim.render.page import render
from sim.runs.run import read, run
from sim.scenario.shipped import scenarios
from tests.render.conftest import call, numbers
from tests.tools.perfetto_ui import Browser

Open = Callable[..., Browser]

CTRL = 2

#: Latencies of requests, in the order of tables.
NAMES = ("ttft", "tpot", "e2e")


def view(browser: Browser) -> tuple[float, float]:
    browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return tuple(browser.evaluate("[timeline.from, timeline.to]"))


def middle(browser: Browser) -> dict[str, float]:
    """A point on the canvas, for the mouse."""
    return browser.evaluate(
        "(() => { const c = document.getElementById('canvas'); c.scrollIntoView({block: 'center'});"
        " const r = c.getBoundingClientRect(); return {x: r.x + r.width / 2, y: r.y + 70}; })()"
    )


def press(browser: Browser, key: str) -> tuple[float, float]:
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if len(key) == 1 and kind == "keyDown" else "")
    return view(browser)


def wheel(browser: Browser, at: dict[str, float], *, x: float = 0, y: float = 0, modifiers: int = 0) -> tuple[float, float]:
    browser.call("Input.dispatchMouseEvent", type="mouseWheel", deltaX=x, deltaY=y, modifiers=modifiers, **at)
    time.sleep(0.1)
    return view(browser)


def cells(browser: Browser, table: str) -> list[list[Any]]:
    """The exact values in a table, row by row; text where there is none."""
    return browser.evaluate(
        f"[...document.querySelectorAll('#{table} tbody tr')].map((row) => [...row.children].map("
        "(cell) => cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value)))"
    )


def test_it_renders(page: Path, opened: Open) -> None:
    browser = opened(page)
    charts = browser.evaluate(
        "[...document.querySelectorAll('.chart')].map((chart) => [chart.id, chart.querySelectorAll('svg *').length])"
    )
    print(charts)
    assert {name for name, shapes in charts if shapes > 10} == {"bandwidth", "breakdown-chart", "roofline-chart"}
    blame = "document.getElementById('blame-chart')"
    assert browser.evaluate(f"{blame}.textContent") == "All of it, 428.125 us, is kv_store waiting, caused by kv_load."
    browser.evaluate("(() => { const s = document.getElementById('blame-resource'); s.value = 'engine'; s.onchange(); })()")
    assert browser.evaluate(f"{blame}.querySelectorAll('svg *').length") > 10
    colours = browser.evaluate(
        "(() => { const c = document.getElementById('canvas');"
        " return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size; })()"
    )
    assert colours > 30
    assert "NaN" not in browser.evaluate("document.documentElement.outerHTML.replace(/<script[^]*?<\\/script>/g, '')")


def test_numbers_equal_json(page: Path, opened: Open) -> None:
    browser, data = opened(page), numbers("two_tokens_4_engines")
    assert browser.evaluate("JSON.parse(document.getElementById('summary').textContent)") == data
    assert [row[1] for row in cells(browser, "bounds-table")][:2] == [data["makespan_ps"], data["bounds"]["critical_path_ps"]]
    assert [
        [kind["kind"], kind["tasks"], kind["compute_ps"], kind["transfer_ps"], kind["bytes"]] for kind in data["by_kind"]
    ] == (cells(browser, "kind-table"))
    assert [[e["name"], e["busy_ps"], e["utilization"]] for e in data["engines"]] == cells(browser, "engine-table")
    tokens = cells(browser, "token-table")
    assert [row[2] for row in tokens] == [token["end_ps"] - token["start_ps"] for token in data["tokens"]]
    assert [sum(row[3:]) for row in tokens] == [row[2] for row in tokens]
    assert sum(row[2] for row in cells(browser, "blame-table")) == sum(data["blame"]["channel"]["by_kind"]["alone_ps"]) + sum(
        map(sum, data["blame"]["channel"]["by_kind"]["wait_ps"])
    )


def test_energy_has_a_section_where_figures_are_known(page: Path, opened: Open, tmp_path: Path) -> None:
    assert opened(page).evaluate("document.getElementById('energy').hidden") is True
    (tmp_path / "h100.yaml").write_text("{model: {config: llama-3.1-8b, layers: 1}, hardware: {preset: h100-sxm}}")
    call("report", str(tmp_path / "h100.yaml"), "-o", str(tmp_path / "h100.html"), "--no-what-if")
    browser, data = opened(tmp_path / "h100.html"), numbers(str(tmp_path / "h100.yaml"))["energy"]
    assert browser.evaluate("document.getElementById('energy').hidden") is False
    most = max(data["power"]["watts"])
    top = browser.evaluate("document.getElementById('energy-chart').firstChild.scale('y').domain[1]")
    assert top == pytest.approx(1.04 * most / (1e3 if most >= 1e3 else 1))
    assert sum(row[1] for row in cells(browser, "energy-parts table:first-of-type")) == data["total_fj"]
    assert sum(row[1] + row[2] for row in cells(browser, "energy-kinds")) == data["compute_fj"] + data["memory_fj"]
    assert sum(sum(row[1:]) for row in cells(browser, "energy-machine")) == data["total_fj"]


def test_operands_in_sram_have_a_table_where_it_is_bounded(page: Path, opened: Open, tmp_path: Path) -> None:
    assert opened(page).evaluate("document.getElementById('sram').hidden") is True
    bounded = ("weights_half_on_chip", "--set", "model.layers=2")
    call("report", *bounded, "-o", str(tmp_path / "page.html"), "--no-what-if")
    browser, data = opened(tmp_path / "page.html"), numbers(*bounded)["sram"]
    shown = cells(browser, "sram")
    assert [row[1] for row in shown] == [round(row["byte_ps"] / data["wait_ps"]) for row in data["by_kind"]]


def test_the_timeline_knows_the_tasks(page: Path, opened: Open) -> None:
    browser, data = opened(page), numbers("two_tokens_4_engines")
    busy = browser.evaluate(
        "timeline.rows.filter((row) => row.onEngine).map((row) => row.end.reduce((sum, end, i) => sum + end - row.begin[i], 0))"
    )
    assert busy == [engine["busy_ps"] for engine in data["engines"]]
    delivered = browser.evaluate(f"timeline.run.rate(0, {data['makespan_ps']}) / timeline.run.bandwidth")
    assert delivered == pytest.approx(data["memory"]["utilization"], abs=1e-6)


def test_the_wheel_zooms_and_pans(page: Path, opened: Open) -> None:
    browser = opened(page)
    at, whole = middle(browser), view(browser)
    assert wheel(browser, at, y=-120)[1] == whole[1]  # a page is for scrolling, until the timeline is asked for
    at = middle(browser)
    near = wheel(browser, at, y=-120, modifiers=CTRL)
    assert near[1] - near[0] < 0.9 * (whole[1] - whole[0])
    right = wheel(browser, at, x=100)
    assert right[0] > near[0]
    assert right[1] - right[0] == pytest.approx(near[1] - near[0])
    browser.evaluate("document.getElementById('canvas').focus()")
    nearer = wheel(browser, at, y=-120)
    assert nearer[1] - nearer[0] < right[1] - right[0]


def test_the_keyboard_zooms_and_pans(page: Path, opened: Open) -> None:
    browser = opened(page)
    browser.evaluate("document.getElementById('canvas').focus()")
    whole = view(browser)
    near = press(browser, "+")
    assert near[1] - near[0] == pytest.approx((whole[1] - whole[0]) / 1.5)
    right = press(browser, "ArrowRight")
    assert right[0] > near[0]
    assert press(browser, "ArrowLeft") == pytest.approx(near)
    assert press(browser, "Home")[0] == 0
    assert press(browser, "End")[1] == pytest.approx(whole[1])
    assert press(browser, "-") == pytest.approx(whole, abs=1e-3)  # ps
    assert press(browser, "+") != whole
    assert press(browser, "0") == whole
    assert press(browser, "w") == pytest.approx(near)
    assert press(browser, "d") == pytest.approx(right)
    assert press(browser, "a") == pytest.approx(near)
    assert press(browser, "s") == pytest.approx(whole, abs=1e-3)  # ps
    for _ in range(60):
        press(browser, "+")
    deep = view(browser)
    assert deep[1] - deep[0] == 1000  # a nanosecond is as far as it goes


def test_the_mouse_drags_and_points(page: Path, opened: Open) -> None:
    browser = opened(page)
    at = middle(browser)
    browser.evaluate("timeline.zoom(0.25)")
    before = view(browser)
    for kind, x in (("mousePressed", 0), ("mouseMoved", -50), ("mouseMoved", -100), ("mouseReleased", -100)):
        browser.call("Input.dispatchMouseEvent", type=kind, x=at["x"] + x, y=at["y"], button="left", buttons=1, clickCount=1)
    assert view(browser)[0] > before[0]
    browser.evaluate("timeline.reset()")
    place = "timeline.canvas.getBoundingClientRect()"
    point = browser.evaluate(f"({{x: {place}.x + timeline.gutter + 20, y: {place}.y + timeline.rows[1].y + 8}})")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", **point)
    tip = browser.evaluate("document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText")
    print(tip)
    for word in ("token 0.0", "engine 0", "took"):
        assert word in tip


def test_a_wait_names_the_task_that_was_in_the_way(page: Path, opened: Open) -> None:
    """Every task in the order of the page, with the one that its engine ran before, as the log has it."""
    browser, log = opened(page), sim.run("scenarios/two_tokens_4_engines.yaml").log
    order = np.argsort(log.tasks.start, kind="stable")
    place = np.append(np.argsort(order), -1)
    before = place[derived.previous_on_engine(log)[order]]
    assert browser.evaluate("Array.from(timeline.run.before.engine)") == before.tolist()
    waits = log.tasks.start - log.tasks.ready
    item = int(place[waits.argmax()])
    told = browser.evaluate(f"timeline.tell({item})[2]")
    behind = log.name(int(order[before[item]]))
    assert next(value for name, value in told if name == "behind").endswith(behind)
    assert ["waited for an engine", format_time(int(waits.max()))] in told


def test_a_kind_can_be_singled_out(page: Path, opened: Open) -> None:
    browser = opened(page)
    browser.evaluate("document.querySelector('#legend button').click()")
    assert browser.evaluate("[timeline.single, document.querySelector('#legend button').ariaPressed]") == [0, "true"]
    browser.evaluate("document.querySelector('#legend button').click()")
    assert browser.evaluate("timeline.single") == -1


def test_dark_and_light(page: Path, opened: Open) -> None:
    brightness = {}
    for dark in (False, True):
        browser = opened(page, dark=dark)
        brightness[dark] = browser.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
    assert brightness[True] < 60
    assert brightness[False] > 200
    colour = "timeline.colours[0]"
    dark_blue = browser.evaluate(colour)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    view(browser)
    assert browser.evaluate(colour) != dark_blue  # the canvas follows at once


@pytest.mark.parametrize("width", [320, 390, 768])
def test_narrow_screens_do_not_scroll_sideways(page: Path, opened: Open, width: int) -> None:
    browser = opened(page, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    wide = browser.evaluate("[...document.querySelectorAll('.chart svg, #canvas')].map((e) => e.getBoundingClientRect().right)")
    assert max(wide) <= width


def test_paper_is_white(page: Path, opened: Open) -> None:
    browser = opened(page, dark=True)
    browser.evaluate(
        "addEventListener('beforeprint', () => {"
        " globalThis.printed = [document.documentElement.dataset.theme, timeline.surface]; })"
    )
    pdf = base64.b64decode(browser.call("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF")
    assert browser.evaluate("printed") == ["light", "#ffffff"]
    assert browser.evaluate("document.documentElement.dataset.theme") is None


def test_names_for_those_who_do_not_see_it(page: Path, opened: Open) -> None:
    browser = opened(page)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    unnamed = [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in {"button", "combobox", "checkbox", "region", "table", "application", "link"}
        and not node.get("name", {}).get("value")
    ]
    assert unnamed == []
    headings = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "heading"]
    print(headings)
    assert len(headings) >= 9


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["lockstep_processor_sharing", "no_parallelism", "llama_1b_context_256", "four_sequences_fifo"]
)
def test_other_scenarios_render(name: str, tmp_path: Path, opened: Open) -> None:
    path = tmp_path / "page.html"
    call("report", name, "-o", str(path), "--no-what-if")
    browser = opened(path)
    assert "NaN" not in browser.evaluate("document.documentElement.outerHTML.replace(/<script[^]*?<\\/script>/g, '')")


@pytest.mark.slow
def test_a_hundred_thousand_tasks(tmp_path: Path, opened: Open) -> None:
    path = tmp_path / "large.html"
    call("report", "four_sequences_fifo", "-o", str(path), "--no-what-if", "--set", "workload.sequences[0].tokens=9")
    began = time.monotonic()
    browser = opened(path)
    took, megabytes = time.monotonic() - began, path.stat().st_size / 1e6
    print(f"\n{browser.evaluate('timeline.run.length'):,} tasks: {megabytes:.2f} MB, ready in {took:.1f} s")
    assert browser.evaluate("timeline.run.length") >= 100_000
    for name, zoom in (("all in view", 1), ("a tenth", 10), ("a thousandth", 1000)):
        browser.evaluate("timeline.reset()")
        browser.evaluate(f"timeline.zoom(1 / {zoom})")
        frames = browser.evaluate(
            "(async () => { const all = []; for (let i = 0; i < 20; i++) { timeline.pan(0.01);"
            " const began = performance.now(); timeline.draw(); all.push([timeline.frame, performance.now() - began]);"
            " await new Promise(requestAnimationFrame); } return all; })()"
        )
        canvas, total = (statistics.median(column) for column in zip(*frames, strict=True))
        print(f"{name}: canvas {canvas:.1f} ms a frame, with the bandwidth chart {total:.1f} ms")


def test_requests(tmp_path: Path, opened: Open) -> None:
    path = tmp_path / "many.html"
    call("report", "four_sequences_fifo", "-o", str(path), "--no-what-if", "--set", "model.layers=1")
    browser = opened(path)
    data = numbers("four_sequences_fifo", "--set", "model.layers=1")["requests"]
    names = ("ttft_ps", "tpot_ps", "itl_ps", "e2e_ps")
    times = [[data[name][of] for of in ("mean", "p50", "p90", "p99", "max")] for name in names]
    assert [row[1:] for row in cells(browser, "requests-times")][:4] == times
    assert [(row[0], row[5]) for row in cells(browser, "requests-table")] == [
        (r["sequence"], r["e2e_ps"]) for r in data["each"]
    ]
    assert browser.evaluate("[...document.querySelectorAll('#requests-charts figure, #requests-charts svg')].length") >= 4
    assert "NaN" not in browser.evaluate("document.getElementById('requests').outerHTML")
    chart = "svg[aria-label='sequences in a step over time']"
    ticks = f"""[...document.querySelectorAll("{chart} [aria-label='y-axis tick label'] text")]"""
    assert browser.evaluate(f"{ticks}.map((tick) => tick.textContent)") == ["0", "1", "2", "3", "4"]  # no half of a sequence


def test_replicas(tmp_path: Path, opened: Open) -> None:
    """A row for each: the one that prefills gives first tokens alone, so it has no time per token."""
    (tmp_path / "two.yaml").write_text(
        "model: {config: llama-3.2-1b, layers: 1, scope: block}\n"
        "workload: {sequences: [{prompt: 16, tokens: 3, count: 2}], batching: {policy: continuous}}\n"
        "hardware: {devices: {count: 2, link: {bandwidth: 100 GB/s}}}\n"
        "mapping: {heads: fused, parallel: {data: 2, prefill: 1}}\n"
    )
    call("report", str(tmp_path / "two.yaml"), "--no-what-if", "-o", str(tmp_path / "page.html"))
    browser, data = opened(tmp_path / "page.html"), numbers(str(tmp_path / "two.yaml"))["requests"]["replicas"]
    shown = [
        [i, each["requests"], each["tokens"], *(each[f"{name}_ps"]["mean"] if each[f"{name}_ps"] else "-" for name in NAMES)]
        for i, each in enumerate(data)
    ]
    assert [row[:-1] for row in cells(browser, "requests-replicas")] == [[str(row[0]), *row[1:]] for row in shown]
    assert [row[3:5] for row in shown] == [[data[0]["ttft_ps"]["mean"], "-"], ["-", data[1]["tpot_ps"]["mean"]]]


def test_devices_with_sequences_of_their_own(tmp_path: Path, opened: Open) -> None:
    """A row for each, as of replicas: three requests in turn."""
    (tmp_path / "two.yaml").write_text(
        "model: {config: mixtral-8x7b, layers: 1, scope: block}\n"
        "workload: {sequences: [{prompt: 16, tokens: 3, count: 3}], batching: {policy: continuous}}\n"
        "hardware: {devices: {count: 2, link: {bandwidth: 100 GB/s}}}\n"
        "mapping: {heads: fused, parallel: {tensor: 2, expert: 2, attention: data, dispatch: all_to_all}}\n"
    )
    call("report", str(tmp_path / "two.yaml"), "--no-what-if", "-o", str(tmp_path / "page.html"))
    browser = opened(tmp_path / "page.html")
    assert [row[:3] for row in cells(browser, "requests-replicas")] == [["0", 2, 6], ["1", 1, 3]]
    title = browser.evaluate("document.getElementById('requests-replicas').textContent")
    assert title.startswith("By device")


def test_steps_that_feed_in_a_prompt_stand_apart(tmp_path: Path, opened: Open) -> None:
    """A prompt of 4,096 tokens in eight chunks, beside four sequences that decode; and its request view."""
    call("report", "prefill_chunks_of_512", "--no-what-if", "-o", str(tmp_path / "page.html"), "--set", "model.layers=1")
    browser, result = opened(tmp_path / "page.html"), sim.run("prefill_chunks_of_512", ["model.layers=1"])
    members = result.log.members
    prefill = sorted(set(members.step[members.query > 1].tolist()))
    assert len(prefill) == 8
    assert browser.evaluate("timeline.run.steps.prefill.flatMap((is, i) => (is ? [i] : []))") == prefill
    assert browser.evaluate("document.getElementById('legend').hidden") is False
    browser.evaluate("(() => { const s = document.getElementById('palette'); s.value = 'token'; s.onchange(); })()")
    assert browser.evaluate("document.getElementById('legend').hidden") is True
    row = "timeline.rows.find((row) => row.onEngine)"
    steps, colours = (browser.evaluate(f"Array.from({row}.{of})") for of in ("items, (i) => timeline.run.step[i]", "colour"))
    assert {step for step, colour in zip(steps, colours, strict=True) if colour == 1} == set(prefill)
    each = result.summary()["requests"]["each"]
    spans = sum((r["queued_ps"] > 0) + (r["ttft_ps"] > r["queued_ps"]) + (r["e2e_ps"] > r["ttft_ps"]) for r in each)
    assert browser.evaluate("document.querySelectorAll('#requests-gantt g[aria-label=bar] rect').length") == spans
    titles = browser.evaluate("[...document.querySelectorAll('#requests-charts text')].map((t) => t.textContent)")
    assert {"TTFT: requests that are no slower", "TPOT: requests that are no slower"} <= set(titles)


def test_the_channel_is_drawn_as_it_is(page: Path, opened: Open) -> None:
    """First come, first served, on one channel: it is busy or idle, and nothing between, at any place of the page."""
    browser = opened(page)
    shares = browser.evaluate(
        "(() => { const edges = changes(timeline.run, 0, timeline.whole);"
        " return edges.slice(1).map((to, i) => timeline.run.rate(edges[i], to) / timeline.run.bandwidth); })()"
    )
    assert sorted({round(share, 9) for share in shares}) == [0, 1]
    least = 0.05 * sim.run("two_tokens_4_engines").makespan  # of what is narrower, a mean is drawn
    edges = browser.evaluate(f"changes(timeline.run, 0, timeline.whole, {least})")
    assert edges[0] == 0
    assert edges[-1] == browser.evaluate("timeline.whole")
    assert min(np.diff(edges)) >= least
    assert "channel busy, %" in browser.evaluate("document.getElementById('bandwidth').textContent")


def test_a_tap_shows_a_tooltip(page: Path, opened: Open) -> None:
    browser = opened(page)
    place = "timeline.canvas.getBoundingClientRect()"
    browser.evaluate("timeline.canvas.scrollIntoView({block: 'center'})")
    point = browser.evaluate(f"({{x: {place}.x + timeline.gutter + 20, y: {place}.y + timeline.rows[1].y + 8}})")
    browser.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
    browser.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    view(browser)
    tip = browser.evaluate("document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText")
    assert "engine 0" in tip


def test_one_request_has_no_section(page: Path, opened: Open) -> None:
    assert opened(page).evaluate("document.getElementById('requests').hidden")


#: Pairs of names on the roofline that cover each other by more than the space above and below letters.
COVERED = """(() => {
  const names = [...document.querySelectorAll('#roofline-chart svg text')].filter((t) => /[a-z]/i.test(t.textContent));
  const boxes = names.map((t) => [t.textContent, t.getBoundingClientRect()]);
  return boxes.flatMap(([a, x], i) => boxes.slice(i + 1)
    .filter(([, y]) => x.left < y.right && y.left < x.right && x.top + 1 < y.bottom - 1 && y.top + 1 < x.bottom - 1)
    .map(([b]) => [a, b]));
})()"""


def test_names_on_the_roofline_do_not_cover_each_other(opened: Open, tmp_path: Path) -> None:
    scenario = tmp_path / "prompt.yaml"  # attention that moves no bytes is near the name of the vector roof
    scenario.write_text(
        "model: {config: qwen2.5-0.5b, layers: 2}\n"
        "workload: {sequences: [{prompt: 200, tokens: 2, count: 2}], batching: continuous}\n"
        "hardware: {preset: raspberry-pi-5}\n"
        "mapping: {execution: stream, softmax: online, tiles: engines}\n"
    )
    path = tmp_path / "prompt.html"
    call("report", str(scenario), "-o", str(path), "--no-what-if")
    browser = opened(path)
    assert "attention" in browser.evaluate("document.getElementById('roofline-chart').textContent")
    assert browser.evaluate(COVERED) == []


def test_no_task_waited(opened: Open, tmp_path: Path) -> None:
    scenario = tmp_path / "alone.yaml"
    scenario.write_text("model: {graph: [{name: a, flops: 1000}]}\n")
    path = tmp_path / "alone.html"
    call("report", str(scenario), "-o", str(path), "--no-what-if")
    browser = opened(path)
    assert "No task waited" in browser.evaluate("document.getElementById('blame').innerText")
    assert browser.evaluate("document.getElementById('blame-group').offsetParent") is None, "there is nothing to choose"


def test_a_batch_has_loops_and_steps(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "batch.html"
    call("report", "batch_8", "-o", str(path), "--no-what-if")
    browser = opened(path)
    assert "loop 0" in browser.evaluate("timeline.rows.map((row) => row.label)")
    text = browser.evaluate("document.body.innerText")
    assert "Where the time of each step went" in text
    assert "each token" not in text


def test_a_very_long_run_is_seen_whole(opened: Open, tmp_path: Path) -> None:
    result = run(scenarios()["two_tokens_4_engines"])
    (tmp_path / "long.html").write_text(render(result, limit=200))
    browser = opened(tmp_path / "long.html")
    assert view(browser) == (0, result.makespan)
    assert "352 tasks: the first 50 one by one" in browser.evaluate("document.getElementById('view').textContent")
    delivered = browser.evaluate("timeline.run.rate(0, timeline.run.makespan_ps) / timeline.run.bandwidth")
    assert delivered == pytest.approx(result.metrics.delivered[0] / result.makespan, rel=1e-3)
    drawn = browser.evaluate(  # colors right of the middle of the first engine's row, which only parts of the time fill
        "(() => { const c = document.getElementById('canvas'), row = timeline.rows.find((each) => each.onEngine);"
        " const x = c.width * 0.6, of = c.getContext('2d');"
        " return new Set(of.getImageData(x, row.y + 2, c.width - x, 1).data).size; })()"
    )
    assert drawn > 10


def test_a_section_that_fails_leaves_the_others(page: Path, opened: Open, tmp_path: Path) -> None:
    text, whole = page.read_text(), '"bounds":{"critical_path_ps"'
    assert whole in text
    (tmp_path / "page.html").write_text(text.replace(whole, '"bounds":null,"was":{"critical_path_ps"'))
    browser = opened(tmp_path / "page.html")
    assert "could not be shown" in browser.evaluate("document.getElementById('bounds').textContent")
    assert cells(browser, "kind-table")
    assert browser.evaluate("timeline.rows.length") > 5


def test_a_channel_that_is_shared_is_one_row(opened: Open, tmp_path: Path) -> None:
    """Transfers at the same time are in lanes of the row of their channel, and can be pointed at there."""
    result = run(read(scenarios()["two_sequences_processor_sharing"], ["model.layers=1", "workload.sequences.0.tokens=1"]))
    (tmp_path / "page.html").write_text(render(result))
    browser = opened(tmp_path / "page.html")
    rows = browser.evaluate(
        "timeline.rows.filter((row) => row.type === 'channel')"
        ".map((row) => [row.label, row.height, row.lanes.map((lane) => [lane.top, lane.height, lane.items.length])])"
    )
    assert [label for label, _, _ in rows] == ["channel"]
    _, height, lanes = rows[0]
    assert len(lanes) > 1
    assert sum(items for _, _, items in lanes) == len(np.unique(result.log.services.task))
    assert [top for top, _, _ in lanes] == pytest.approx([height / len(lanes) * n for n in range(len(lanes))])
    browser.evaluate("timeline.scroller.scrollIntoView({block: 'center'})")
    lane = "timeline.rows.find((row) => row.type === 'channel').lanes[1]"
    place = "timeline.canvas.getBoundingClientRect()"
    point = browser.evaluate(
        f"({{x: {place}.x + timeline.gutter + ({lane}.begin[0] + {lane}.end[0]) / 2 * timeline.scale,"
        f" y: {place}.y + timeline.rows.find((row) => row.type === 'channel').y + {lane}.top + 3}})"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", **point)
    assert browser.evaluate(f"document.querySelector('#tip b').textContent === timeline.run.name({lane}.items[0])") is True


def test_tiers_have_their_bytes_and_hits(opened: Open, tmp_path: Path) -> None:
    """In words, and in the table of the memory, as in JSON; a size is an object, which a sentence would not show."""
    assignments = ["model.layers=1", "model.scope=block", "workload.generate.tokens=2", "hardware.host.memory=2 MB"]
    result = run(read(scenarios()["conversations_tiers"], [*assignments, "workload.batching.kv.capacity=16 MB"]))
    path = tmp_path / "tiers.html"
    path.write_text(render(result))
    browser = opened(path)
    host, ssd = sim.summary(result)["requests"]["prefix_cache"]["tiers"]
    assert host["hits"] < ssd["hits"]
    lead = browser.evaluate("document.getElementById('requests-lead').textContent")
    assert f"{ssd['hits']:,} of these tokens were in the ssd, to which" in lead
    assert "object" not in lead
    rows = dict(cells(browser, "memory-table"))
    assert [rows[f"to and from the {tier}"] for tier in ("host", "ssd")] == list(result.metrics.bytes_tiers)
