"""Headline of a run: the numbers that say most, as rows, and as HTML for notebooks."""

from __future__ import annotations

from html import escape

from sim.analysis.parts import PARTS
from sim.base.units import format_bytes, format_energy, format_number, format_time
from sim.render.page import finding
from sim.render.requests import worth_showing
from sim.render.terminal import above
from sim.runs.result import Result

#: A color for each part of time, told apart on light and dark ground.
COLORS = ("#2a78c2", "#56b4e9", "#d55e00", "#e69f00", "#cc79a7", "#999999", "#f0e442", "#009e73", "#8f3b76")


def rows(result: Result) -> list[tuple[str, str]]:
    """Names and values: makespan, tokens, latencies where requests are served, use of the machine, distance from the bound."""
    m, r = result.metrics, result.requests
    memories = result.log.machine.memories
    channels = sum(m.delivered[:memories]) / (result.makespan * memories or 1)
    engines = sum(m.engine_busy) / (result.makespan * result.log.engines or 1)
    found = [
        ("makespan", format_time(result.makespan)),
        ("tokens", f"{int(r.tokens.sum()):,}, {format_number(r.tokens_per_second)} per second"),
    ]
    if worth_showing(result):
        times = r.times()
        for name, title in (("ttft", "TTFT"), ("tpot", "TPOT")):
            if (of := times[name]) is not None:
                found.append((title, f"median {format_time(of.p50)}, p99 {format_time(of.p99)}"))
    found += [
        ("channel", f"{channels:.0%} of its bandwidth; {format_bytes(m.bytes_read + m.bytes_written)} moved"),
        ("engines", f"held {engines:.0%} of the time"),
        ("bound", f"at least {format_time(result.bounds.lower)}; this run is {above(result.bounds.gap(result.makespan))}"),
    ]
    if result.energy is not None:
        found.append(("energy", f"{format_energy(result.energy.per_token)} per token, {format_number(result.energy.watts)} W"))
    return found


def _words(part: str) -> str:
    return part.replace("_", " ")


def html(result: Result) -> str:
    """The headline as HTML without scripts, with a bar of where the time of tokens went."""
    cells = "".join(
        f'<tr><th style="text-align: left">{escape(name)}</th><td style="text-align: left">{escape(value)}</td></tr>'
        for name, value in rows(result)
    )
    parts = result.breakdown.tokens.sum(axis=0).tolist()
    whole = sum(parts) or 1
    shown = [(name, ps / whole, color) for name, ps, color in zip(PARTS, parts, COLORS, strict=True) if ps]
    bar = "".join(f'<span style="display: inline-block; height: 14px; width: {share:.2%}; background: {color}"></span>'
                  for _, share, color in shown)  # fmt: skip
    legend = " ".join(
        f'<span style="margin-right: 1em"><span style="color: {color}">&#9632;</span> {_words(name)} {share:.1%}</span>'
        for name, share, color in shown
    )
    return (
        f"<div><b>{escape(result.scenario.name)}</b><br>{escape(finding(result, None))}<table>{cells}</table>"
        f'<div style="width: 100%; max-width: 40em; white-space: nowrap; font-size: 0">{bar}</div><div>{legend}</div></div>'
    )
