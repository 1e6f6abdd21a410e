"""Write the page of published figures: those of engines on one device beside the simulation from model and preset alone.

    python -m benchmarks.fidelity.public [--write FILE.md]

The figures are in `public.yaml` beside this file. Rows that a constant of a preset was fitted to are kept apart from those
that judge it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

from pydantic import Field, model_validator

import sim
from benchmarks.pages import put
from sim.base.documents import read
from sim.base.problems import validated
from sim.base.section import Section, Text
from sim.machine.presets import find
from sim.runs.run import known_names
from sim.scenario import Scenario, from_dict

TABLE = Path(__file__).with_name("public.yaml")

#: Units of measures, and whether they are times (or rates).
MEASURES = {
    "decode": ("tokens/s", False),
    "tpot": ("ms", True),
    "ttft": ("ms", True),
    "prefill": ("tokens/s", False),
    "throughput": ("tokens/s", False),
}

#: Measures of a lone prompt; all others decode.
PROMPTS = ("ttft", "prefill")

#: A section `cost` of a scenario, or the name of a model; None for that of the preset.
Cost = str | dict[str, Any] | None

#: Classes of rows, and the median error that each aims at.
LONE_PROMPTS = "TTFT of lone prompts"
AIMS = {"decode on server GPUs": 0.10, "decode on desktop GPUs": 0.10, "decode on edge devices": 0.15, LONE_PROMPTS: 0.15}


class Source(Section):
    """Where a figure was published; date: year, and month where known."""

    title: Text
    url: str = Field(pattern="^https://")
    date: str = Field(pattern=r"^(20\d\d-\d\d|undated)$")


class Row(Section):
    """A published figure. context, prompt, tokens: per sequence. unstated: what the source leaves open."""

    use: Literal["fit", "judge"]
    preset: str
    model: str
    format: str
    engine: Text
    version: Text
    measure: Literal["decode", "tpot", "ttft", "prefill", "throughput"]
    value: float = Field(gt=0)
    batch: int = Field(default=1, ge=1)
    prompt: int = Field(default=0, ge=0)
    tokens: int = Field(default=0, ge=0)
    context: int = Field(default=0, ge=0)
    source: str
    hardware: dict[str, Any] = Field(default_factory=dict)
    unstated: Text = ""

    @model_validator(mode="after")
    def _sized(self) -> Row:
        alone = ("prompt",) if self.measure in PROMPTS else ("context",)
        wanted = ("prompt", "tokens") if self.measure == "throughput" else alone
        if missing := [key for key in wanted if not getattr(self, key)]:
            raise ValueError(f"{self.measure}: expected {' and '.join(missing)}")
        return self


class Step(Section):
    """Times of an engine, and what they were derived from. t0: by kind of op. host: before each step."""

    name: Text
    t0: dict[str, str]
    host: str = "0 s"
    source: str
    derived: Text


class Beside(Section):
    """Times of an engine that a preset lacks: steps to add to its rows, each of them alone."""

    engine: Text
    version: Text
    preset: str
    steps: list[Step]

    def rows(self, found: Table) -> list[Row]:
        """The rows of decoding by the engine."""
        wanted = (self.engine, self.version, self.preset)
        return [r for r in found.rows if (r.engine, r.version, r.preset) == wanted and r.measure not in PROMPTS]


class Table(Section):
    """All published figures. classes: presets by class of device. formats: settings of `mapping.formats` by name."""

    classes: dict[str, list[str]]
    formats: dict[str, dict[str, Any]]
    sources: dict[str, Source]
    beside: list[Beside]
    rows: list[Row]

    def class_of(self, row: Row) -> str:
        """The class that a row counts in: that of its device, or prompts."""
        if row.measure in PROMPTS:
            return LONE_PROMPTS
        return f"decode on {next(name for name, presets in self.classes.items() if row.preset in presets)}"


@dataclass(frozen=True, slots=True)
class Compared:
    """A row and what the simulation takes for it, both in seconds of what was measured."""

    row: Row
    simulated: float
    measured: float

    @property
    def error(self) -> float:
        """Simulated time / measured time - 1."""
        return self.simulated / self.measured - 1


def table(path: Path = TABLE) -> Table:
    """Read the table of figures. Raises InputError with file, line and column."""
    return validated(read(path), Table)


def scenario(found: Table, row: Row, sequences: Mapping[str, int], cost: Cost = None, host: str = "0 s") -> dict[str, Any]:
    """The scenario of one step: model, preset, formats, and a batch of equal sequences.

    cost: in place of the preset's. host: its time before each step.
    """
    formats = found.formats[row.format]
    return {
        "model": {"config": row.model},
        "workload": {
            "sequences": [{**sequences, "count": row.batch}],
            **({"batching": {"policy": "static", "max_batch": row.batch}} if row.batch > 1 else {}),
            "step_overhead": host,
        },
        "hardware": {"preset": row.preset, **row.hardware},
        **({"mapping": {"formats": formats}} if formats else {}),
        **({"cost": cost} if cost else {}),
    }


def seconds(found: Table, row: Row, cost: Cost = None, host: str = "0 s") -> float:
    """Simulated seconds of what a row measures: a step, a prompt, or a batch from its prompts to its last tokens."""
    decode, prompt = {"context": row.context or row.prompt + row.tokens // 2}, {"prompt": row.prompt}
    if row.measure == "throughput":
        return _step(found, row, prompt, cost, host) + (row.tokens - 1) * _step(found, row, decode, cost, host)
    return _step(found, row, prompt if row.measure in PROMPTS else decode, cost, host)


def _step(found: Table, row: Row, sequences: Mapping[str, int], cost: Cost, host: str) -> float:
    return sim.run(from_dict(scenario(found, row, sequences, cost, host), known=known_names())).makespan / 1e12


def measured(row: Row) -> float:
    """Seconds that a row measured, of what `seconds` simulates."""
    if MEASURES[row.measure][1]:
        return row.value / 1e3
    return row.batch * {"prefill": row.prompt, "throughput": row.tokens}.get(row.measure, 1) / row.value


def compare(found: Table) -> list[Compared]:
    """Simulate all rows."""
    return [Compared(row, seconds(found, row), measured(row)) for row in found.rows]


def page(found: Table, compared: Sequence[Compared]) -> Iterator[str]:
    """The lines of the Markdown page."""
    judging, fitted = ([each for each in compared if each.row.use == use] for use in ("judge", "fit"))
    devices = len({each.row.preset for each in compared})
    yield f"""# Fidelity: published figures of engines beside the simulation

Made by `python -m benchmarks.fidelity.public` from {len(compared)} figures of {devices} devices in
`benchmarks/fidelity/public.yaml`. Each row is a scenario of model, preset, number formats and batch alone, with the `kernel`
costs that the preset brings. Figures are those of others, of engines on one device, with the conditions that the source states.

*Error* is of time: simulated / measured - 1. Where it is negative the simulation is too fast, also where the figure is a rate.
*Context* is the mean over what was measured. `throughput` is of a batch that is prefilled and then decodes, prompts included.
{len(fitted)} figures were used to choose constants of presets; they stand apart, and do not count here:
"""
    yield from _summary(found, judging)
    yield (
        "\n*Same engine* counts the rows of an engine to which constants of the preset were fitted (`software` in "
        "`sim list hardware NAME`), whatever its version."
    )
    yield from _two_lines(found)
    for name in classes(found):
        rows = [each for each in judging if found.class_of(each.row) == name]
        yield f"\n## {name[0].upper()}{name[1:]}\n"
        yield from _rows(found, rows)
    yield "\n## Figures that constants were fitted to\n"
    yield from _rows(found, fitted)
    for beside in found.beside:
        yield from _beside(found, beside)
    yield "\n## Sources\n\n| source | published |\n| --- | --- |"
    for source in found.sources.values():
        yield f"| [{source.title}]({source.url}) | {source.date} |"


def two_lines(found: Table) -> dict[str, tuple[Row, float]]:
    """By preset: a figure of one sequence that decodes a model as captured, and tokens/s of the scenario of two lines.

    That names the model and the preset alone: it decodes the first token.
    """
    rows: dict[str, Row] = {}
    for row in found.rows:
        if (row.use, row.measure, row.format, row.batch) == ("judge", "decode", "bf16", 1) and not row.hardware:
            rows.setdefault(row.preset, row)
    return {preset: (row, 1e12 / sim.run(_two_lines_of(row)).makespan) for preset, row in rows.items()}


def _two_lines_of(row: Row) -> Scenario:
    return from_dict({"model": {"config": row.model}, "hardware": {"preset": row.preset}}, known=known_names())


def _two_lines(found: Table) -> Iterator[str]:
    yield """
## Two lines

Scenarios that are nothing but `model: {config: MODEL}` and `hardware: {preset: DEVICE}`, beside the first figure of that model
as captured. They decode the first token, with an empty cache; the figures are means over the context that is given, which makes
them slower by its share of the bytes.

| device | model | engine | context | published | two lines | error | source |
| --- | --- | --- | ---: | ---: | ---: | ---: | --- |"""
    for preset, (row, rate) in two_lines(found).items():
        source = found.sources[row.source]
        engine = row.engine if row.version == "unstated" else f"{row.engine} {row.version}"
        cells = [
            preset, row.model, engine, f"{row.context:,}", f"{row.value:,g} tokens/s", f"{rate:.4g} tokens/s",
            f"{100 * (row.value / rate - 1):+.0f} %", f"[{source.title}]({source.url})",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def classes(found: Table) -> list[str]:
    """Names of classes in the order of the page."""
    return list(dict.fromkeys(sorted((found.class_of(row) for row in found.rows), key=list(AIMS).index)))


def _summary(found: Table, judging: Sequence[Compared]) -> Iterator[str]:
    yield "| class | figures | devices | median error | 90 % within | bias | aim | same engine: figures | median error |"
    yield "| --- |" + " ---: |" * 8
    for name in classes(found):
        rows = [each for each in judging if found.class_of(each.row) == name]
        same = [each for each in rows if each.row.engine in {software.name for software in find(each.row.preset).software}]
        largest = quantiles((abs(each.error) for each in rows), n=10)[-1]
        bias = f"{100 * median(each.error for each in rows):+.0f} %"
        cells = [
            name, str(len(rows)), str(len({each.row.preset for each in rows})), percent(median_error(rows)), percent(largest),
            bias, percent(AIMS[name]), str(len(same)), percent(median_error(same)),
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _rows(found: Table, rows: Sequence[Compared]) -> Iterator[str]:
    yield "| device | model | weights | engine | what | batch | context or prompt | published | simulated | error | source |"
    yield "| --- | --- | --- | --- | --- |" + " ---: |" * 5 + " --- |"
    for each in rows:
        row = each.row
        unit = MEASURES[row.measure][0]
        length = f"{row.prompt:,} + {row.tokens:,}" if row.tokens else f"{row.prompt or row.context:,}"
        engine = row.engine if row.version == "unstated" else f"{row.engine} {row.version}"
        source = found.sources[row.source]
        left = f"; not stated: {row.unstated}" if row.unstated else ""
        left += "".join(f"; {key}: {value}" for part in row.hardware.values() for key, value in part.items())
        cells = [
            f"`{row.preset}`", row.model, row.format, engine, row.measure, str(row.batch), length, f"{row.value:,g} {unit}",
            f"{shown(each)} {unit}", f"{100 * each.error:+.0f} %", f"[{source.title}]({source.url}){left}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _beside(found: Table, beside: Beside) -> Iterator[str]:
    yield f"""
## {beside.engine} {beside.version} on {beside.preset}, told apart

Decoding with the times of this engine that the preset lacks, as a scenario would write them. They come from figures that
neither judge nor are fitted to:
"""
    for step in beside.steps:
        settings = [*(f"`cost.t0.{kind}: {time}`" for kind, time in step.t0.items())]
        settings += [f"`workload.step_overhead: {step.host}`"] if "host" in step.model_fields_set else []
        source = found.sources[step.source]
        yield f"- *{step.name}*: {', '.join(settings)}. {step.derived} ([{source.title}]({source.url}))."
    names = ["model", "context", "published", "preset alone", *(step.name for step in beside.steps)]
    yield f"\n| {' | '.join(names)} |\n| --- |{' ---: |' * (len(names) - 1)}"
    for row in beside.rows(found):
        took = measured(row)
        each = [seconds(found, row)]
        each += [seconds(found, row, {"model": "kernel", "t0": step.t0}, step.host) for step in beside.steps]
        cells = [row.model, f"{row.context:,}", f"{row.value:g} ms"]
        yield f"| {' | '.join([*cells, *(f'{1e3 * time:.2f} ms, {100 * (time / took - 1):+.0f} %' for time in each)])} |"


def shown(each: Compared) -> str:
    """The simulated value in the unit of the published one, to four digits."""
    ratio = each.simulated / each.measured
    value = each.row.value * ratio if MEASURES[each.row.measure][1] else each.row.value / ratio
    return f"{value:,.{max(0, 3 - int(log10(value)))}f}"


def median_error(rows: Sequence[Compared]) -> float:
    """Median size of the errors."""
    return median(abs(each.error) for each in rows)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="write the page there")
    options = parser.parse_args()
    found = table()
    put("\n".join(page(found, compare(found))), options.write)


if __name__ == "__main__":
    main()
