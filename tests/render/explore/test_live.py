"""The live page in real headless Chromium."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sim.render.explore import Session
from sim.render.explore.server import serving
from sim.render.view import local_ui
from sim.runs.run import read, run
from sim.scenario.shipped import scenarios
from tests.render.conftest import READY
from tests.tools.perfetto_ui import Browser

NAME = "two_tokens_4_engines"
ENGINES = "hardware.engines.count"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(Session(read(scenarios()[NAME]), NAME)) as found:
        yield found


@pytest.fixture
def opened(chromium: Browser, address: str) -> Iterator[Callable[..., Browser]]:
    """Opens the page, afresh; when the test is over, there must have been no error, and no request to anywhere else."""

    def open_page(*, width: int = 1400, dark: bool = False, anchor: str = "") -> Browser:
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        chromium.call("Emulation.setEmulatedMedia", features=scheme)
        chromium.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        chromium.call("Page.navigate", url="about:blank")
        chromium.events.clear()
        chromium.call("Page.navigate", url=address + anchor)
        chromium.wait_for(READY)
        return chromium

    yield open_page
    chromium.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert chromium.errors() == []
    said = [e["params"] for e in chromium.events if e["method"] == "Runtime.consoleAPICalled"]
    assert said == []
    sent = {
        e["params"]["request"]["url"].partition("#")[0] for e in chromium.events if e["method"] == "Network.requestWillBeSent"
    }
    assert all(url.startswith(address) for url in sent)


def settle(browser: Browser) -> None:
    """Wait until nothing is under way."""
    browser.wait_for("!runner.busy")
    browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def press(browser: Browser, key: str, times: int = 1) -> None:
    for _ in range(times):
        for kind in ("keyDown", "keyUp"):
            browser.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode={"ArrowLeft": 37, "ArrowRight": 39}[key],
            )


def makespans(browser: Browser) -> list[int]:
    """Makespans of the pinned run and of the one now, ps."""
    return browser.evaluate("[pinned, now].map(({ run }) => run.makespan_ps)")


def expected(*assignments: str) -> int:
    return run(read(scenarios()[NAME], list(assignments))).makespan


def test_a_slider_simulates_and_redraws_everything(opened: Callable[..., Browser]) -> None:
    browser = opened()
    assert browser.evaluate("[before.root.hidden, current.root.hidden]") == [True, False]  # nothing is changed yet
    browser.evaluate(f"document.getElementById('r-{ENGINES}').focus()")
    press(browser, "ArrowLeft", 2)  # 4, 3, 2
    settle(browser)
    assert makespans(browser) == [expected(), expected(f"{ENGINES}=2")]
    assert browser.evaluate("before.root.hidden") is False
    assert browser.evaluate("current.timeline.rows.filter((row) => row.onEngine).length") == 2
    assert browser.evaluate("before.timeline.rows.filter((row) => row.onEngine).length") == 4
    assert browser.evaluate("[before, current].map(({ timeline }) => timeline.whole)") == [expected(f"{ENGINES}=2")] * 2
    text = browser.evaluate("current.root.innerText")
    for part in ("13.367 ms", "+64 %", "engines 2", "lower bound: the largest", "wait engine"):
        assert part in text
    assert "above its lower bound" in browser.evaluate("document.getElementById('finding').textContent")
    assert browser.evaluate("document.getElementById('latency').textContent").startswith("Redrawn in ")
    shapes = "[...document.querySelectorAll('.side .chart')].map((box) => box.querySelectorAll('svg *').length)"
    assert min(browser.evaluate(shapes)) > 10
    assert "NaN" not in browser.evaluate("document.body.innerText")


def test_the_command_runs_what_is_shown(opened: Callable[..., Browser]) -> None:
    browser = opened()
    browser.evaluate(f"choose('{ENGINES}', '3')")
    settle(browser)
    assert browser.evaluate("document.getElementById('shown').textContent") == f"sim run {NAME} --set {ENGINES}=3"
    assert "engines 3" in browser.evaluate("current.root.innerText")


def test_a_bad_value_is_one_line_and_the_rest_stays(opened: Callable[..., Browser]) -> None:
    browser = opened()
    field = f"document.getElementById('f-{ENGINES}')"
    browser.evaluate(f"{field}.value = 'many', {field}.onchange()")
    settle(browser)
    line = browser.evaluate("document.getElementById('error').textContent")
    assert line == f"--set {ENGINES}=many: {ENGINES}: expected a whole number from 1 to 4096, found 'many'"
    assert browser.evaluate("document.getElementById('error').hidden") is False
    assert browser.evaluate(f"{field}.getAttribute('aria-invalid')") == "true"
    assert makespans(browser)[1] == expected()  # what was drawn last
    assert browser.evaluate("document.getElementById('sides').classList.contains('stale')") is True
    browser.evaluate(f"{field}.value = '5', {field}.onchange()")
    settle(browser)
    assert browser.evaluate("document.getElementById('error').hidden") is True
    assert makespans(browser)[1] == expected(f"{ENGINES}=5")
    assert browser.evaluate(f"{field}.getAttribute('aria-invalid')") is None
    browser.evaluate(
        "(() => { const box = document.getElementById('more'); box.value = 'hardware.engins=2'; box.onchange(); })()"
    )
    settle(browser)
    assert "did you mean" in browser.evaluate("document.getElementById('error').textContent")


def test_of_rapid_moves_the_last_is_shown(opened: Callable[..., Browser]) -> None:
    browser = opened()
    began = browser.evaluate("runner.number")
    browser.evaluate(f"for (let i = 0; i < 60; i++) choose('{ENGINES}', String(1 + i % 16))")  # ends with 12
    settle(browser)
    assert makespans(browser)[1] == expected(f"{ENGINES}=12")
    assert browser.evaluate("runner.number") - began == 2, "the first move, and then the last of those that came meanwhile"


def test_pin_back_and_reset(opened: Callable[..., Browser]) -> None:
    browser = opened()
    browser.evaluate(f"choose('{ENGINES}', '2')")
    settle(browser)
    browser.evaluate("document.getElementById('pin').click()")
    assert browser.evaluate("before.root.hidden") is True, "what is pinned is what is shown"
    browser.evaluate(f"choose('{ENGINES}', '8')")
    settle(browser)
    assert makespans(browser) == [expected(f"{ENGINES}=2"), expected(f"{ENGINES}=8")]
    browser.evaluate("document.getElementById('back').click()")
    settle(browser)
    assert makespans(browser)[1] == expected(f"{ENGINES}=2")
    browser.evaluate("document.getElementById('reset').click()")
    settle(browser)
    assert makespans(browser)[1] == expected()
    assert browser.evaluate("location.hash") == ""


def test_the_address_keeps_what_is_chosen(opened: Callable[..., Browser]) -> None:
    browser = opened()
    browser.evaluate(f"choose('{ENGINES}', '2')")
    settle(browser)
    anchor = browser.evaluate("location.hash")
    browser = opened(anchor=anchor)
    settle(browser)
    assert makespans(browser) == [expected(), expected(f"{ENGINES}=2")]
    assert makespans(opened(anchor="#%7Bnonsense"))[1] == expected()


def test_timelines_move_together(opened: Callable[..., Browser]) -> None:
    browser = opened()
    browser.evaluate(f"choose('{ENGINES}', '2')")
    settle(browser)
    browser.evaluate("current.timeline.zoom(0.25)")
    settle(browser)
    seen = browser.evaluate("sides.map(({ timeline }) => [timeline.from, timeline.to])")
    assert seen[0] == seen[1]
    assert seen[0][1] - seen[0][0] == pytest.approx(expected(f"{ENGINES}=2") / 4)
    browser.evaluate(f"choose('{ENGINES}', '3')")
    settle(browser)
    assert browser.evaluate("[current.timeline.from, current.timeline.to]") == seen[0], "what is in view stays"


@pytest.mark.parametrize(("width", "dark"), [(390, True), (390, False), (768, False), (1400, True)])
def test_narrow_and_dark(opened: Callable[..., Browser], width: int, dark: bool) -> None:
    browser = opened(width=width, dark=dark)
    browser.evaluate(f"choose('{ENGINES}', '2')")
    settle(browser)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    wide = browser.evaluate("[...document.querySelectorAll('.chart svg, canvas')].map((e) => e.getBoundingClientRect().right)")
    assert max(wide) <= width
    brightness = browser.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
    assert (brightness < 60) is dark


def test_names_for_those_who_do_not_see_it(opened: Callable[..., Browser]) -> None:
    nodes = opened().call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "combobox", "checkbox", "region", "table", "application", "link", "slider", "textbox", "form"}
    found = [node for node in nodes if not node.get("ignored") and node["role"]["value"] in roles]
    assert [node for node in found if not node.get("name", {}).get("value")] == []
    assert {"slider", "textbox", "combobox", "button"} <= {node["role"]["value"] for node in found}


def test_yaml_is_copied_or_shown(opened: Callable[..., Browser]) -> None:
    browser = opened()
    browser.evaluate("navigator.clipboard.writeText = async (text) => { globalThis.copied = text; }")
    browser.evaluate(f"choose('{ENGINES}', '7')")
    settle(browser)
    browser.evaluate("document.getElementById('yaml').onclick()")
    assert "count: 7" in browser.evaluate("copied")
    browser.evaluate("navigator.clipboard.writeText = async () => { throw new Error('no'); }")
    browser.evaluate("document.getElementById('command').onclick()")
    dialog = "document.getElementById('copy')"
    assert browser.evaluate(f"[{dialog}.open, {dialog}.querySelector('textarea').value]") == [
        True,
        f"sim run {NAME} --set {ENGINES}=7",
    ]


@pytest.mark.skipif(local_ui() is None, reason="the extra `view` is not installed")
def test_the_trace_opens_in_perfetto(opened: Callable[..., Browser]) -> None:
    browser = opened()
    browser.evaluate("window.open = () => (globalThis.tab = { location: {} })")
    browser.evaluate("document.getElementById('perfetto').onclick()")
    found = browser.evaluate("tab.location.href")
    assert "/#!/?url=http%3A%2F%2F127.0.0.1%3A" in found
    assert "two-tokens-4-engines-1.pftrace" in found


def test_a_server_that_has_ended(chromium: Browser, tmp_path: Path) -> None:
    with serving(Session(read(scenarios()[NAME]), NAME)) as address:
        chromium.call("Page.navigate", url=address)
        chromium.wait_for(READY)
    chromium.evaluate(f"choose('{ENGINES}', '2')")
    settle(chromium)
    assert "does not answer" in chromium.evaluate("document.getElementById('error').textContent")
    chromium.call("Page.navigate", url="about:blank")
    time.sleep(0.1)
    _ = chromium.events.clear()


def test_other_scenarios(chromium: Browser) -> None:
    """One that serves requests: steps of batches, and a limit of the batch in a short form."""
    for name, key, value in (
        ("batch_8", "workload.batching.max_batch", "4"),
        ("prefill_whole", "workload.prefill.chunk", "256"),
    ):
        session: Any = Session(read(scenarios()[name], ["model.layers=1"]), name)
        with serving(session) as address:
            chromium.call("Page.navigate", url=address)
            chromium.wait_for(READY)
            chromium.evaluate(f"choose('{key}', '{value}')")
            settle(chromium)
            assert chromium.evaluate("document.getElementById('error').textContent") == ""
            assert chromium.evaluate("assignments(now.of).length") == 1
            assert chromium.evaluate("pinned.run.makespan_ps !== now.run.makespan_ps")
