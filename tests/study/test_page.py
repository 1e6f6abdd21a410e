"""The page of a study in real headless Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.study.answers import read_answers
from sim.study.page import _groups, render
from sim.study.points import load
from tests.study.conftest import STUDY, Written, swept
from tests.tools.perfetto_ui import Browser


def test_values_are_grouped_where_few_combinations_were_run() -> None:
    grid = [[x for x in range(20) for _ in range(20)], [y for _ in range(20) for y in range(20)]]
    assert _groups(grid) == [None, None]
    assert _groups([axis[:150] for axis in grid]) == [None, None]  # a half of 8 x 20
    found = _groups([[7 * n % 101 for n in range(100)], [3 * n % 89 for n in range(100)], [n % 4 for n in range(100)]])
    assert found[2] is None  # there are few values
    assert [len(set(each)) for each in found[:2] if each is not None] == [6, 6]


CLIPBOARD = "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (text) => { window.copied = text; }}})"
PLACE = "(() => {{ const r = {0}.getBoundingClientRect(); return {{x: r.x + r.width / 2, y: r.y, height: r.height}}; }})()"


def test_charts_follow_a_range_and_points_copy_their_command(written: Written, tmp_path: Path) -> None:
    swept(load(written(STUDY)), tmp_path / "out")
    answers = read_answers(tmp_path / "out")
    (tmp_path / "page.html").write_text(render(answers))
    try:
        browser = Browser(1200, 1000)
    except LookupError as missing:
        pytest.skip(str(missing))
    with browser:
        browser.call("Log.enable")
        browser.call("Page.navigate", url=(tmp_path / "page.html").as_uri())
        browser.wait_for("document.querySelectorAll('#heat-chart rect, #heat-chart image').length > 6")
        assert browser.evaluate("kept.length") == 6
        assert browser.evaluate("document.querySelectorAll('#front-chart svg circle, #front-chart svg path').length") > 6
        assert browser.evaluate("document.querySelector('#heat-chart image').getAttribute('href').slice(0, 10)") == "data:image"
        assert "twice as much" in browser.evaluate("document.getElementById('effects-table').textContent")

        browser.evaluate("document.getElementById('parallel').scrollIntoView()")
        at = browser.evaluate(PLACE.format("document.querySelector('#parallel-chart .brush .overlay')"))
        low, middle = at["y"] + at["height"], at["y"] + at["height"] / 2
        for kind, y in (
            ("mousePressed", middle),
            ("mouseMoved", low - 20),
            ("mouseMoved", low + 9),
            ("mouseReleased", low + 9),
        ):
            browser.call("Input.dispatchMouseEvent", type=kind, x=at["x"], y=y, button="left", clickCount=1)
        wanted = [p.number for p in answers.points if p.values["hardware.engines.count"] in (1, 2)]
        assert browser.evaluate("kept.map((i) => study.points.number[i])") == wanted  # engines below the middle of 1 to 4
        shown = browser.evaluate(
            "[...document.querySelectorAll('#points-table tbody td:nth-child(2)')].map((c) => c.textContent)"
        )
        assert shown
        assert set(shown) <= {"1", "2"}
        assert browser.evaluate("document.getElementById('front-lead').textContent").startswith("4 points")

        values = "[wide([1, 20]), wide([1, 21]), wide([0, 21]), ticks([8, 90], 6), ticks([8, 300], 6), ticks([0.2, 7], 6)]"
        assert browser.evaluate(values) == [False, True, False, 6, [10, 20, 50, 100, 200], [0.2, 0.5, 1, 2, 5]]
        rows = "[['a', 1, 3], ['a', 9, 3], ['b', 9, 3], ['c', 2, 3], ['d', 9, 2]]"
        lasts = f"apart({rows}.map(([name, mean, at]) => ({{name, mean, at, low: 0, high: 13}})), 13)"
        assert browser.evaluate(f"{lasts}.map((r) => [r.name, r.y])") == [["a", 9], ["b", -4], ["d", 9], ["c", -17]]
        browser.evaluate(CLIPBOARD)
        browser.evaluate("document.querySelector('#points-table tbody tr').click()")
        number = int(browser.evaluate("document.querySelector('#points-table tbody td').textContent"))
        (point,) = (each for each in answers.points if each.number == number)
        assert browser.evaluate("window.copied") == answers.command(point)
        browser.evaluate("document.getElementById('all').click()")
        assert browser.evaluate("kept.length") == 6
        assert not browser.errors()
