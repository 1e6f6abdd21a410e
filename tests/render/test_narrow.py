"""Summaries on narrow terminals: no number is parted from its unit, none is cut, and no line ends in blanks."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console, RenderableType

from sim.render import compare, explain, story, terminal
from sim.render.narrow import Fitting, fitted, show, trimmed
from sim.runs.result import Result
from sim.runs.run import run
from sim.scenario.shipped import scenarios
from tests.tools.command import call


@pytest.fixture(scope="module")
def served() -> Result:
    return run(scenarios()["batching_continuous"])


def printed(result: Result, width: int, *, verbose: bool = False) -> list[str]:
    return shown(terminal.render(result, verbose=verbose), width)


def shown(what: RenderableType, width: int) -> list[str]:
    file = io.StringIO()
    show(Console(file=file, width=width, markup=False, emoji=False), what)
    return file.getvalue().splitlines()


@pytest.fixture(scope="module")
def pages(served: Result) -> dict[str, RenderableType]:
    """Printed output of commands, by name."""
    short = run(scenarios()["two_tokens_4_engines"])
    data = compare.compare([short, run(scenarios()["two_tokens_8_engines"])])
    told = story.render_token(story.token(short, 0, 1), short.log.owner_words)
    return {
        "run": terminal.render(served), "explain": explain.render(short), "compare": compare.render(data), "token": told,
        "request": story.render_request(story.request(served, 3)),
    }  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("name", ["run", "explain", "compare", "token", "request"])
def test_numbers_stay_with_their_units(pages: dict[str, RenderableType], name: str, width: int) -> None:
    lines = shown(pages[name], width)
    assert max(map(len, lines)) <= width
    for line in lines:
        assert line == line.rstrip()
        assert "…" not in line
        assert not re.match(r"\s+(?:us|ms|ns|kB|MB|GB|TB/s|tokens/s)\b", line), line
        assert not re.search(r"\b\d+\.\d{3}$", line), line


def test_tables_leave_out_columns(served: Result) -> None:
    wide, narrow = ("\n".join(printed(served, width)) for width in (80, 45))
    assert all(name in wide for name in ("p50", "p90", "p99", "on channel"))
    assert "p50" in narrow
    assert "p99" in narrow
    assert "p90" not in narrow


def test_a_table_by_hand() -> None:
    table = fitted(("op", "a", "b"), [("x", "1.000 ms", "2.000 ms")], drop=("a",))
    found = []
    for width in (22, 14):
        file = io.StringIO()
        show(Console(file=file, width=width), table)
        found.append(file.getvalue())
    assert found == ["op         a         b\nx   1.000 ms  2.000 ms\n", "op         b\nx   2.000 ms\n"]


def test_a_table_leaves_out_the_columns_that_it_is_told_to_and_then_the_last() -> None:
    table = Fitting(drop=("small part",))
    for name in ("", "time", "large", "small part"):
        table.add_column(name, justify="right" if name else "left")
    table.add_column("note")
    table.add_row("norm", "3.000 ms", "2.000 ms", "1.000 ms", "of all layers, before attention")
    assert [shown(table, width) for width in (75, 53, 46, 36)] == [
        ["          time     large  small part  note", "norm  3.000 ms  2.000 ms    1.000 ms  of all layers, before attention"],
        ["                             small", "          time     large      part  note",
         "norm  3.000 ms  2.000 ms  1.000 ms  of all layers,", "                                    before attention"],
        ["          time     large  note", "norm  3.000 ms  2.000 ms  of all layers,",
         "                          before attention"],
        ["          time  note", "norm  3.000 ms  of all layers,", "                before attention"],
    ]  # fmt: skip


def test_blanks_before_the_end_of_a_color_are_blanks_at_the_end_of_a_line() -> None:
    assert trimmed("\x1b[1ma b  \x1b[0m\x1b[2m  \x1b[0m \n  c") == "\x1b[1ma b\x1b[0m\x1b[2m\x1b[0m\n  c"


def test_what_matters_comes_first(served: Result) -> None:
    lines = printed(served, 100, verbose=True)
    at = {name: next(i for i, line in enumerate(lines) if line.startswith(name)) for name in ("TTFT", "makespan", "checks")}
    assert at["TTFT"] < at["makespan"] < at["checks"]
    assert not any(line.startswith(("checks", "executor")) for line in printed(served, 100))


def test_how_far_above_the_bound() -> None:
    assert terminal.above(0.123) == "12.3% above"
    assert terminal.above(88.61) == "90x as long"


@pytest.mark.parametrize("columns", ["60", "80"])
def test_op_graphs_on_a_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sim.cli.capture.output", lambda _: Console(width=int(columns), markup=False, emoji=False))
    lines = call(["capture", "llama-3.2-1b", "--layers", "1"]).stdout.splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert not any("…" in line for line in lines)
    assert re.search(r"^ *4  q_proj .* 8,388,608", "\n".join(lines), re.MULTILINE)
