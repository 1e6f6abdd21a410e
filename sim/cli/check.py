"""`sim check`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from sim.base.units import format_bytes
from sim.cli.options import scenario_arguments
from sim.executors.setup import Setup
from sim.executors.size import tasks_in_all
from sim.mapping.collectives import Fastest
from sim.mapping.steps import fastest_of
from sim.render import breakdown
from sim.runs.apart import together
from sim.runs.extrapolations import extrapolations
from sim.runs.holdings import exchanges, holdings
from sim.runs.machine import connection_of, link_rates
from sim.runs.model import models_of
from sim.runs.plan import plan
from sim.runs.run import read
from sim.scenario import Scenario
from sim.scenario.origins import origins
from sim.scenario.shipped import find_scenario

WIDEST = 40  # columns of values; a longer one moves what follows it


@click.command("check")
@scenario_arguments
@click.option("--resolved/--not-resolved", default=None,
              help="Show every value and its origin: file, preset, default.  [default: of a single scenario]")  # fmt: skip
def command(names: tuple[str, ...], overrides: tuple[str, ...], resolved: bool | None) -> None:
    """Check scenarios without running them: syntax, names, values, and that the model can be lowered to tasks with costs."""
    resolved = len(names) == 1 if resolved is None else resolved
    for name in names:
        path = find_scenario(name)
        scenario = read(path, list(overrides))
        planned = plan(scenario)
        setup = planned.setup
        step = f"{len(planned.ops):,} ops, {len(setup.graph):,} tasks per step"
        click.echo(f"{path}: ok: {planned.model}, {step}, {_in_all(*tasks_in_all(setup))}")
        if scenario.from_preset:
            click.echo(f"  from preset: {', '.join(scenario.from_preset)}")
        for memory in dict.fromkeys(memory for memory, _, _ in planned.held):
            parts = [f"{what} {format_bytes(size)}" for each, what, size in planned.held if each == memory]
            click.echo(f"  {memory}: {', '.join(parts)}")
        for note in planned.notes:
            click.echo(f"  model: {note}")
        if planned.ignored:
            click.echo(f"  trace: not used: {', '.join(map(repr, planned.ignored))}")
        for extrapolation in breakdown.extrapolations(extrapolations(setup)):
            click.echo(f"  extrapolated: {extrapolation}")
        for line in _devices(scenario, setup):
            click.echo(f"  {line}")
        if resolved:
            _show(scenario)


def _devices(scenario: Scenario, setup: Setup) -> Iterator[str]:
    """A line for each simulated device of several: its layers, what it keeps, and what it sends in a step of one token."""
    parallel = scenario.mapping.parallel
    if scenario.hardware.devices.count == 1:
        return
    of_run = models_of(scenario)
    for each in of_run:
        fastest = fastest_of(each.variants, scenario.mapping, link_rates(scenario), connection_of(scenario))
        if fastest is not None:
            yield f"all-reduces of {each.model.name}: {_algorithms(fastest)}"
        for exchange in exchanges(each):
            size, others = format_bytes(exchange.bytes), parallel.tensor - 1
            there = f"a token goes to the devices of its experts in {exchange.layers} layers, {size} to each and back"
            average = f"{float(exchange.devices):.3g} of the {others} other devices on average"
            yield f"experts of {each.model.name}: {there}; evenly chosen ones are on {average}"
    if parallel.token_chunks > 1:
        least = max(parallel.token_chunks, parallel.token_chunks_from)
        chunks = f"{parallel.token_chunks} chunks of tokens, each of which reads the weights"
        yield f"steps of {least:,} new tokens or more are in {chunks}"
    like = scenario.hardware.devices.count // parallel.simulated
    if parallel.data > 1:
        why = together(setup)
        yield f"replicas are simulated {f'together: {why}' if why else 'side by side where that pays (sim run -j)'}"
        yield f"{parallel.data} replicas behind the router {scenario.workload.router.name}, each of these devices:"
    if parallel.homes:
        router = f"workload.router: {scenario.workload.router.name}"
        yield f"{parallel.homes} devices, each with sequences of its own ({router}) and all weights but those of experts:"
    for number, held in enumerate(holdings(of_run)):
        name = f"device {number}" if like == 1 else f"devices {number * like} to {(number + 1) * like - 1}, each"
        layers = _layers(held.layers)
        state = f", {format_bytes(held.sequence)} a sequence" if held.sequence else ""
        kept = f"{format_bytes(held.weights)} of weights, {format_bytes(held.kv)} of KV cache per token{state}"
        sent = ", ".join(f"{many} {kind} ({format_bytes(size)} in all)" for kind, (many, size) in held.sends.items())
        nothing = "nothing but tokens to experts" if parallel.exchange else "nothing"
        yield f"{name}: {layers}, {kept}; sends {sent or nothing} in a step of one token"


def _layers(ends: tuple[int, int] | None) -> str:
    """The layers of a device, from the first to the last."""
    if ends is None:
        return "no layers"
    first, last = ends
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def _algorithms(fastest: Fastest) -> str:
    """The algorithms that are fastest alone, by tokens of a step."""
    *larger, (_, smallest) = fastest.changes()
    beyond = [
        f"{name} from {tokens:,} tokens per step ({format_bytes(tokens * fastest.bytes)})" for tokens, name in larger[::-1]
    ]
    return ", ".join([smallest, *beyond])


def _show(scenario: Scenario) -> None:
    """Print each value of a scenario, and where it is from."""
    rows = [(origin.key, _text(origin.value), origin.source) for origin in origins(scenario)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for key, value, source in rows:
        click.echo(f"  {key:{widths[0]}}  {value:{min(widths[1], WIDEST)}}  {source}")


def _text(value: object) -> str:
    """A value as YAML has it, on one line."""
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)


def _in_all(fewest: int, most: int) -> str:
    """Task count of a run, in words; a range where it depends on how many sequences share a step."""
    if fewest == most:
        return f"{most:,} in all"
    low, high = (f"{int(float(f'{count:.1e}')):,}" for count in (fewest, most))
    return f"about {low if low == high else f'{low} to {high}'} in all"
