"""Reference pages generated from the code; `make docs` writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

import click

from sim.base.registry import Registry
from sim.base.section import COUNT, LINE
from sim.base.units import format_time
from sim.cli import COMMANDS, cli
from sim.cost import COST_MODELS
from sim.machine.arbiters import ARBITERS
from sim.machine.schedulers import SCHEDULERS
from sim.machine.settings import DTYPE
from sim.runs.run import read
from sim.scenario import COMPLETED, json_schema
from sim.scenario.shipped import scenarios
from sim.study.metrics import METRICS
from sim.study.sections import StudyFile
from tests.docs import sessions
from tests.reports import stored

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
SESSIONS = ROOT / "docs" / "tutorial" / "sessions.md"

#: Class of a section -> its place in a scenario.
SECTIONS = {
    "Model": "model", "GraphOp": "model.graph[]", "Workload": "workload", "SequenceGroup": "workload.sequences[]",
    "Generate": "workload.generate", "Arrivals": "workload.generate.arrivals", "Lengths": "workload.generate.tokens",
    "RequestTrace": "workload.trace", "Columns": "workload.trace.columns", "Concurrency": "workload.concurrency",
    "Batching": "workload.batching", "Router": "workload.router", "KVPages": "workload.batching.kv",
    "Prefill": "workload.prefill", "Speculative": "workload.speculative", "RoutingFile": "workload.routing",
    "Hardware": "hardware", "Engines": "hardware.engines", "Memory": "hardware.memory", "Arbiter": "hardware.memory.arbiter",
    "Channels": "hardware.memory.channels", "Energy": "hardware.energy", "StaticPower": "hardware.energy.static",
    "ModelMapping": "mapping", "Formats": "mapping.formats",
    "WeightFormats": "mapping.formats.weights",
    "Fuse": "mapping.fuse", "Residency": "mapping.weights",
    "Scheduler": "scheduler", "Cost": "cost", "Trace": "trace", "Window": "trace.window", "Report": "report",
}  # fmt: skip


def scenario_keys() -> str:
    """docs/reference/scenario.md, from the schema."""
    schema = json_schema()
    paths = [*SECTIONS, *(name for name in schema["$defs"] if name not in SECTIONS)]
    lines = [
        "# Scenario keys", "",
        "Generated from the schema by `make docs`. A scenario is YAML 1.2. Every key but `model` has a default; an unknown key "
        + "is an error. Quantities have units: `100 GB/s` is 10^11 bytes per s, `8 MiB` is 8 x 2^20 bytes; `kB`, `MB`, `GB` "
        + "are powers of 1000, `KiB`, `MiB`, `GiB` of 1024. `sim schema` prints the schema itself, for editors.", "",
        "## The scenario", "", *_table(schema, schema),
    ]  # fmt: skip
    for name in paths:
        section = schema["$defs"][name]
        lines += ["", f"## {SECTIONS.get(name, name)}", "", section.get("description", "").replace("\n", " "), ""]
        lines += _table(section, schema)
        lines += _policies(POLICIES[name]) if name in POLICIES else ()
    return "\n".join(lines) + "\n"


def _table(section: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    section = next((each for each in section.get("anyOf", ()) if "properties" in each), section)
    yield "| key | value | default | description |"
    yield "| --- | --- | --- | --- |"
    for key, field in section["properties"].items():
        needed = "required" if key in section.get("required", ()) else ""
        completed = "required, or of a preset" if section.get("title") in COMPLETED else needed
        default = f"`{_plain(field['default'])}`" if "default" in field else completed
        named = schema["$defs"].get(field.get("$ref", "").rpartition("/")[2], {})
        text = field.get("description", named.get("description", "")).replace("\n", " ")
        yield f"| `{key}` | {_value(field)} | {default} | {text} |".replace("  ", " ")


#: Section -> registry of the names it accepts.
POLICIES: dict[str, Registry[Any]] = {"Arbiter": ARBITERS, "Scheduler": SCHEDULERS, "Cost": COST_MODELS}


def _policies(registry: Registry[Any]) -> Iterator[str]:
    """Rows for each policy and its options, from its docstring and its parameters."""
    yield from ("", f"| {registry.what} | option | default | description |", "| --- | --- | --- | --- |")
    for name in registry:
        policy = registry.get(name)
        yield f"| `{name}` | | | {_paragraph(policy, 0)} |"
        for option in registry.options(name):
            default = "required" if option.default is option.empty else f"`{_plain(option.default)}`"
            yield f"| | `{option.name}` | {default} | {_option(policy, option.name)} |"


def _paragraph(policy: Any, number: int) -> str:
    return " ".join(cleandoc(policy.__doc__).split("\n\n")[number].split())


def _option(policy: Any, option: str) -> str:
    """Description of an option in the docstring of a policy, from its name to the next one."""
    found = re.search(rf"^{option}: (.*?)(?=^\w+: |\n\n|\Z)", cleandoc(policy.__doc__), re.DOTALL | re.MULTILINE)
    assert found, f"{policy}: the docstring does not say what {option} is"
    text = " ".join(found[1].split())
    return text[0].upper() + text[1:]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


#: Pattern of keys -> its description.
KEYS = {COUNT: "whole numbers", DTYPE: "number formats"}


def _value(field: dict[str, Any]) -> str:
    """Values that a field accepts, in words."""
    choices = [_value(each) for each in field.get("anyOf", field.get("oneOf", ()))]
    if choices:
        return " or ".join(dict.fromkeys(choices))
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        where = SECTIONS.get(name, name)
        return f"[{where}](#{where.replace('.', '').replace('[]', '').lower()})"
    if "const" in field:
        return f"`{_plain(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{_plain(each)}`" for each in field["enum"])
    if field.get("type") == "array":
        return f"list of {_value(field['items'])}"
    if field.get("type") == "object":
        pattern, rest = next(iter(field.get("patternProperties", {}).items()), ("", field.get("additionalProperties")))
        return f"mapping of {KEYS.get(pattern, 'names')} to {_value(rest)}" if rest and rest is not True else "mapping"
    if field.get("type") in ("integer", "number"):
        low = field.get("minimum", field.get("exclusiveMinimum"))
        high = field.get("maximum", field.get("exclusiveMaximum"))
        above = f" above {low}" if "exclusiveMinimum" in field else f" from {low}" if low is not None else ""
        below = f" to below {high}" if "exclusiveMaximum" in field else f" to {high}" if high is not None else ""
        return {"integer": "whole number", "number": "number"}[field["type"]] + above + below
    if field.get("type") == "string" and field.get("examples") and field.get("pattern", LINE) != LINE:
        return f"quantity, such as `{_plain(field['examples'][0])}`"
    return {"string": "text", "null": "`null`", "boolean": "`true`, `false`"}.get(field.get("type", ""), "anything")


def study_keys() -> str:
    """docs/reference/study.md, from the schema of studies and the table of metrics."""
    schema = StudyFile.model_json_schema(mode="validation")
    keys, sections = "\n".join(_table(schema, schema)), list[str]()
    for key, name in (("sample", "Sampling"), ("find", "Search"), ("optimize", "Optimization")):
        section = schema["$defs"][name]
        keys = keys.replace(f"[{name}](#{name.lower()})", f"[{key}](#{key})")
        sections += [f"## {key}", "", section.get("description", "").replace("\n", " "), "", *_table(section, schema), ""]
    metrics = [f"| `{name}` | {metric.unit or '-'} | {metric.title} |" for name, metric in METRICS.items()]
    lines = [
        "# Study keys", "",
        "Generated from the schema by `make docs`. [The guide](../guides/studies.md) shows how they are used. Keys of "
        + "scenarios are written with dots, `hardware.memory.bandwidth`; items of lists by their number, "
        + "`workload.sequences.0.tokens`.", "",
        keys, "", *sections, "## Columns of rows", "",
        "Each run is a row: `point`, `seed`, a column for each axis (quantities in base units: ps, bytes, bytes/s, FLOP/s), "
        + "derived columns, `feasible`, `status` (`ok`, `failed`), `error`, `plan` (hash of all that the run depends on), "
        + "`version`, and these metrics. Expressions may leave out `_ps` and `_fj`, and write `p99 TPOT` for "
        + "`tpot_p99_ps`.", "",
        "| column | unit | is |", "| --- | --- | --- |", *metrics,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def command_line() -> str:
    """docs/reference/command_line.md, from the commands."""
    lines = [
        "# Command line", "",
        "Generated from the commands by `make docs`. Exit status: 0 success, 1 failure, 2 bad input, 130 interrupted. Errors "
        + "are one line on stderr. In a pipe there are no colors and no progress. A scenario is a file, or the name of a "
        + "shipped scenario.", "",
        'Tab completion: `eval "$(sim completion bash)"` (or `zsh`; for fish `sim completion fish | source`).',
    ]  # fmt: skip
    for path in ["", *COMMANDS]:
        lines += ["", f"## sim {path}".rstrip(), "", "```text", _help(path), "```"]
    return "\n".join(lines) + "\n"


def _help(name: str) -> str:
    # As the command line has it, but for the width: that must depend on no terminal.
    settings: Any = cli.context_settings
    parent = click.Context(cli, info_name="sim", terminal_width=100, max_content_width=100, **settings)
    if not name:
        return cli.get_help(parent)
    command = cli.get_command(parent, name)
    assert command is not None
    return command.get_help(click.Context(command, parent, info_name=name, terminal_width=100, max_content_width=100))


#: Title of each group of scenarios -> prefixes of their names; a name belongs to the first group that fits.
GROUPS = {
    "One block of Llama-3.2-1B, with estimated durations": ("no_parallelism", "parallel", "multi_head", "two_tokens_"),
    "Whole models, one sequence": ("llama_1b_", "lm_head_", "long_context_", "weights_"),
    "Real machines": ("a100_", "h100_", "raspberry_pi_", "xeon_"),
    "Current models": ("hybrid_", "dense_128k", "gpt_oss_", "sparse_attention_"),
    "Several sequences, each in its own loop": ("two_sequences_", "four_sequences_", "eight_loops"),
    "Batches": ("batch_", "batching_", "moe_", "dense_"),
    "Prefill beside decodes": ("prefill_",),
    "Speculation": ("speculation_",),
    "A full KV cache": ("kv_full_",),
    "Arbiters and schedulers": ("arbiter_", "scheduler_", "lockstep_", "engines_"),
    "Others": ("",),
}


def shipped_scenarios() -> str:
    """docs/reference/scenarios.md, from the files and their stored reports."""
    lines = [
        "# Scenarios that ship", "",
        "Generated from the files and their stored reports by `make docs`. `sim run NAME` runs one from any folder; `sim list "
        + "scenarios` lists them. All use Llama-3.2-1B unless they say otherwise.",
    ]  # fmt: skip
    left = dict(scenarios())
    for title, beginnings in GROUPS.items():
        names = sorted((name for name in left if name.startswith(beginnings)), key=_by_number)
        if not names:
            continue
        lines += ["", f"## {title}", "", "| scenario | what it shows | makespan | tokens/s |", "| --- | --- | ---: | ---: |"]
        for name in names:
            report = stored(name)
            text = " ".join(read(left.pop(name)).description.split()).replace("|", "\\|")
            rate = report["requests.tokens_per_s"]
            speed = f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}"
            lines.append(f"| `{name}` | {text} | {format_time(report['makespan_ps'])} | {speed} |")
    return "\n".join(lines) + "\n"


def _by_number(name: str) -> list[tuple[int, str]]:
    """batch_8 before batch_64."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split("_")]


MADE = {
    REFERENCE / "scenario.md": scenario_keys,
    REFERENCE / "scenarios.md": shipped_scenarios,
    REFERENCE / "study.md": study_keys,
    REFERENCE / "command_line.md": command_line,
    SESSIONS: sessions.page,
}
