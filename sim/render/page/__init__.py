"""One self-contained HTML page of a run: no network, no other file. The same result gives the same bytes.

`document.html` is the frame of all pages, `template.html` the body of this one, `page.css` the looks; `data.js` unpacks what is
embedded, `timeline.js` draws the timeline on a canvas, `charts.js` the charts with Observable Plot, `parts.js` tables, figures
and legends, and `page.js` puts it together. Every number that the page shows comes from the JSON objects embedded in it;
`run_data` has those of the run.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sim.analysis.parts import PARTS
from sim.base.units import ceil_div
from sim.render import breakdown
from sim.render.page.columns import pack
from sim.render.page.document import asset, document
from sim.render.page.roofline import roofline
from sim.render.page.timeline import LIMIT, STEPS, timeline
from sim.render.requests import worth_showing
from sim.render.rows import plain
from sim.render.summary import summary_rows
from sim.runs.result import Result

REQUESTS = 5_000  # requests that a page has one by one; of more, evenly spaced ones

#: Scripts that draw a run, wherever: the report page and the live page share them.
DRAWING = ("data.js", "timeline.js", "charts.js", "parts.js")


def render(result: Result, *, what_if: dict[str, Any] | None = None, overrides: Sequence[str] = (), limit: int = LIMIT) -> str:
    """Return the page as text.

    what_if: data of `sim.runs.what_if.to_json`, or None. overrides: assignments given to `--set`, shown with the scenario.
    limit: most tasks on the timeline; everything else on the page always covers the whole run.
    """
    result.rows("a page")
    scenario = result.scenario
    explained = {
        "what_if": what_if,
        "roofline": roofline(result),
        "requests": worth_showing(result),
    }
    return document(
        asset("page", "template.html"),
        {
            "title": html.escape(scenario.name),
            "description": html.escape(scenario.description),
            "finding": html.escape(finding(result, what_if)),
            "extrapolated": _extrapolated(result),
            "scenario": html.escape(_written(result)),
            "overrides": html.escape("\n".join(f"--set {assignment}" for assignment in overrides)),
        },
        data={
            "analyses": explained,
            **run_data(result, limit),
        },
        scripts=[asset("page", name) for name in (*DRAWING, "page.js")],
    )


def run_data(result: Result, limit: int = LIMIT, *, level: int = 9, causes: bool = True) -> dict[str, Any]:
    """Collect what a run is drawn from: `summary`, `timeline-data` and `columns`.

    `summary` is the object that `sim run --json` prints, with the steps that are shown alone and with evenly spaced requests,
    if there are very many. limit: most tasks on the timeline. level: of gzip. causes: as in `summary`.
    """
    facts, columns, steps = timeline(result, limit, STEPS)
    packed = pack(columns, level=level)
    data = summary_rows(result, timing=False, causes=causes)
    every = max(1, ceil_div(len(result.requests), REQUESTS))
    requests, breakdowns, joules = data["requests"], data["breakdown_ps"], data.get("energy", {})
    requests["each"] = requests["each"].only(np.arange(0, len(result.requests), every))
    for table, key in ((data, "tokens"), (breakdowns, "by_token"), (joules, "by_token")):
        if key in table:
            table[key] = table[key].only(steps)
    for table in (breakdowns, joules):
        if (rows := table.get("by_sequence")) is not None:
            table["by_sequence"] = rows.only(np.arange(min(len(rows), REQUESTS)))
    return {"summary": plain(data), "timeline-data": {**facts, "layout": packed.layout}, "columns": packed.text}


def _extrapolated(result: Result) -> str:
    """Extrapolation warnings as an HTML list; empty if there are none."""
    if not result.extrapolations:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in breakdown.extrapolations(result.extrapolations))
    return f'<div class="note" id="extrapolated"><p>Not interpolated between measurements:</p><ul>{items}</ul></div>'


def finding(result: Result, what_if: dict[str, Any] | None) -> str:
    """One sentence: the bottleneck if what-if runs were made, else the largest part of the time of tokens (batched: steps)."""
    if what_if is not None:
        return str(what_if["bottleneck"])
    sums = dict(zip(PARTS, result.breakdown.tokens.sum(axis=0).tolist(), strict=True))
    part = max(PARTS, key=lambda name: sums[name])
    source = "the host" if result.log.step_overhead else "other tokens"
    where = {
        "compute": "is spent computing", "transfer": "is spent on transfers at full speed",
        "wait_engine": "is spent waiting for an engine", "wait_channel": "is spent waiting for the memory channel",
        "wait_input": f"is spent waiting for {source}", "wait_sram": "is spent waiting for space in SRAM",
        "wait_policy": "is spent waiting although an engine is idle",
        "link": f"is spent on {_over_links(result)}", "wait_link": "is spent waiting for the link",
    }[part]  # fmt: skip
    share = sums[part] / (sum(sums.values()) or 1)
    gap = result.bounds.gap(result.makespan)
    distance = "at" if gap < 0.0005 else f"{gap:.1%} above" if gap < 9 else f"{1 + gap:,.0f}x"
    ones = "tokens" if result.log.batched is None else "steps"
    return f"{share:.0%} of the time of the {ones} {where}; the run is {distance} its lower bound."


def _over_links(result: Result) -> str:
    """Name what moves over the links of the machine."""
    machine = result.log.machine
    if not machine.tiers:
        return "collectives between devices"
    links = "the link to" if len(machine.tiers) == 1 else "links to"
    beside = " and ".join(f"the {tier}" for tier in machine.tiers)
    return f"{links} {beside}" if machine.link("link") is None else f"links between devices and to {beside}"


def _written(result: Result) -> str:
    """The YAML source; for a scenario made in Python its JSON, which is YAML too."""
    return result.scenario.text or json.dumps(result.scenario.to_dict(), indent=2)
