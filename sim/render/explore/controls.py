"""Controls of the live page: the values of a scenario that sliders and choices change, in the units that scenarios write.

Each control stands for one key, or for keys that go together, and writes assignments as `--set` takes them. Its stops are round
values around that of the scenario, which is one of them. A key that the scenario's costs do not depend on has no control.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from models.formats import Formats, WeightFormat
from sim.base.documents import key_path
from sim.base.quantities import BANDWIDTH, DURATION, FLOP_RATE, REQUEST_RATE, SIZE, Dimension
from sim.machine.arbiters import ARBITERS
from sim.machine.schedulers import SCHEDULERS
from sim.runs.plan import Plan
from sim.scenario import Scenario, SequenceGroup

MACHINE, WORKLOAD, MAPPING = "Machine", "Workload", "Mapping"
GROUPS = 3  # most groups of sequences that have controls
NONE = "null"

#: Cost models whose durations are those of a table or of a measured device, whatever the rates of the machine.
TIMED = ("fixed", "profiled")

#: Round numbers of two decades, in hundredths.
MANTISSAS = (100, 125, 150, 200, 250, 300, 400, 500, 600, 800)

#: Round counts, and round numbers of tokens.
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
TOKENS = (0, 16, 32, 64, *(n << shift for shift in range(6, 20) for n in (2, 3)))

KIB = 2**10
WORTH = {"KiB": KIB, "MiB": KIB**2, "GiB": KIB**3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A value that can be changed.

    Attributes:
        key: Name of the control: the key that it changes.
        title: Label.
        group: Heading that it stands under.
        given: The scenario's own value, one of `stops`.
        stops: Values as they are written: of a slider in ascending order, of a choice in the order of the list.
        slider: Whether values between the stops make sense, so that it is a slider beside a field.
        assignments: What a value is assigned to, with `{value}` in place of the value.
        labels: What values are called, where not by their text.
        units: Worth of units, to place a typed value among the stops.
    """

    key: str
    title: str
    group: str
    given: str
    stops: tuple[str, ...]
    slider: bool = True
    assignments: tuple[str, ...] = ()
    labels: Mapping[str, str] | None = None
    units: Mapping[str, int] | None = None

    def data(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "key": self.key, "title": self.title, "group": self.group, "given": self.given, "stops": list(self.stops),
            "slider": self.slider, "assignments": list(self.assignments or (f"{self.key}={{value}}",)),
            "labels": dict(self.labels or {}), "units": dict(self.units or {}),
        }  # fmt: skip


def controls(scenario: Scenario, plan: Plan) -> list[Control]:
    """The controls that apply to a scenario, in the order of the page. One whose value cannot vary is left out."""
    found = [*_machine(scenario, plan), *_workload(scenario, plan), *_mapping(scenario)]
    return [control for control in found if len(control.stops) > 1]


def _machine(scenario: Scenario, plan: Plan) -> Iterator[Control]:
    hardware, memory = scenario.hardware, scenario.hardware.memory
    priced = scenario.cost.model not in TIMED
    if priced:
        each = ", of each channel" if memory.channels.count > 1 else ""
        yield _quantity("hardware.memory.bandwidth", f"memory bandwidth{each}", MACHINE, memory.bandwidth, BANDWIDTH)
        if memory.channels.count > 1:
            yield _count("hardware.memory.channels.count", "memory channels", MACHINE, memory.channels.count)
        if memory.latency:
            yield _quantity("hardware.memory.latency", "memory latency", MACHINE, memory.latency, DURATION)
    if "hardware.engines.count: 1" not in scenario.from_preset:  # there one engine stands for the device, whatever its units
        yield _count("hardware.engines.count", "engines", MACHINE, hardware.engines.count)
    if priced and isinstance(hardware.engines.flops, int):
        yield _quantity("hardware.engines.flops", "peak of an engine", MACHINE, hardware.engines.flops, FLOP_RATE)
    yield _sram(hardware.sram)
    yield _named("hardware.memory.arbiter", "arbiter", MACHINE, memory.arbiter, _plain(ARBITERS))
    yield _named("scheduler", "scheduler", MACHINE, scenario.scheduler, _plain(SCHEDULERS))
    devices, link, parallel = hardware.devices, hardware.devices.link, scenario.mapping.parallel
    if link is not None and parallel.tensor == devices.count and parallel.expert in (1, parallel.tensor):
        dealt = ("mapping.parallel.expert={value}",) if parallel.expert > 1 else ()
        least = (
            1 if parallel.sequence or max(parallel.overlap_chunks, parallel.token_chunks) > 1 else 0
        )  # which one device cannot do
        yield Control(
            key="hardware.devices.count", title="devices (tensor parallelism)", group=MACHINE, given=str(devices.count),
            stops=_texts({2**i for i in range(least, 5)} | {devices.count}),
            assignments=("hardware.devices.count={value}", "mapping.parallel.tensor={value}", *dealt), units={"": 1},
        )  # fmt: skip
    if link is not None and devices.count > 1:
        yield _quantity("hardware.devices.link.bandwidth", "link bandwidth", MACHINE, link.bandwidth, BANDWIDTH)
    if hardware.host is not None and "host" in plan.setup.machine.tiers:
        yield _quantity("hardware.host.link.bandwidth", "host link", MACHINE, hardware.host.link.bandwidth, BANDWIDTH)
    for number, tier in enumerate(hardware.tiers if plan.setup.machine.tiers else ()):
        key = f"hardware.tiers[{number}].link.bandwidth"
        yield _quantity(key, f"{tier.name} link", MACHINE, tier.link.bandwidth, BANDWIDTH)


def _workload(scenario: Scenario, plan: Plan) -> Iterator[Control]:
    workload, batching = scenario.workload, scenario.workload.batching
    groups = workload.sequences or ()
    first = () if _is_written(scenario, "workload.sequences") else ("workload.sequences=[{}]",)
    for number, group in enumerate(groups[:GROUPS]):
        named = f", group {number + 1}" if len(groups) > 1 else ""
        for control in _sequences(group, plan, batched=not batching.alone):
            key = f"workload.sequences.{number}.{control.key}"
            yield _with(control, key=key, title=control.title + named, assignments=(*first, f"{key}={{value}}"))
    if workload.generate is not None:
        yield _count("workload.generate.count", "requests", WORKLOAD, workload.generate.count)
        if (rate := workload.generate.arrivals.rate) is not None:
            yield _quantity("workload.generate.arrivals.rate", "arrivals", WORKLOAD, rate, REQUEST_RATE)
    if workload.concurrency is not None:
        yield _short(scenario, "workload.concurrency", "users", "requests at a time", workload.concurrency.users)
    if not batching.alone:
        yield _limit(scenario, "max_batch", "largest batch", batching.max_batch)
    if any(group.prompt for group in groups) or workload.generate is not None or workload.trace is not None:
        chunk = NONE if workload.prefill.chunk is None else str(workload.prefill.chunk)
        stops = _texts({n for n in TOKENS if 32 <= n <= 8192} | ({int(chunk)} if chunk != NONE else set()))
        yield Control(
            key="workload.prefill.chunk", title="prompt tokens in a step", group=WORKLOAD, given=chunk, stops=(*stops, NONE),
            labels={NONE: "whole"}, units={"": 1},
        )  # fmt: skip
    if workload.speculative is not None:
        yield _count("workload.speculative.draft", "drafts in a step", WORKLOAD, workload.speculative.draft)


def _sequences(group: SequenceGroup, plan: Plan, *, batched: bool) -> Iterator[Control]:
    """Controls of a group of equal sequences; their keys are those inside of the group."""
    rest = group.prompt + group.tokens
    fitting = [n for n in TOKENS if not plan.model.too_long(n + rest)]
    yield _count("count", "sequences in a batch" if batched else "sequences", WORKLOAD, group.count)
    yield Control(
        key="context", title="context, tokens", group=WORKLOAD, given=str(group.context),
        stops=_texts({*fitting, group.context}), units={"": 1},
    )  # fmt: skip
    if group.prompt:
        prompts = {n for n in fitting if 16 <= n <= max(8192, group.prompt)} | {group.prompt}
        yield Control(
            key="prompt", title="prompt, tokens", group=WORKLOAD, given=str(group.prompt), stops=_texts(prompts), units={"": 1}
        )
    yield _count("tokens", "tokens to decode", WORKLOAD, group.tokens)


def _mapping(scenario: Scenario) -> Iterator[Control]:
    mapping = scenario.mapping
    yield _choice("mapping.execution", "execution", mapping.execution, ("blocking", "stream", "prefetch"))
    if scenario.model.config is None:
        return
    yield _choice("mapping.softmax", "softmax", mapping.softmax, ("three_pass", "fused", "online"))
    yield _choice("mapping.heads", "attention heads", mapping.heads, ("split", "fused"))
    if not isinstance(mapping.tiles, dict):
        given = str(mapping.tiles)
        yield _choice("mapping.tiles", "tiles of a matmul", given, _unique((*map(str, COUNTS[:8]), "engines", given)))
    if scenario.cost.model != "fixed":
        yield _format(mapping.formats)
        yield _choice(
            "mapping.formats.kv", "format of the KV cache", mapping.formats.kv or NONE, (NONE, "bf16", "fp8", "int8"),
            {NONE: "as captured"},
        )  # fmt: skip
    given = mapping.weights if isinstance(mapping.weights, str) else json.dumps({"resident": mapping.weights.resident})
    if mapping.offload is None:  # weights of the host are streamed
        yield _choice("mapping.weights", "weights", given, _unique(("streamed", "resident", given)))


def _format(formats: Formats) -> Control:
    """The format of weights; a table by kind is a value of its own, as it is written."""
    given, labels = formats.weights, {NONE: "as captured"}
    if given is None or isinstance(given, str):
        text = given or NONE
    else:
        text = json.dumps(given.model_dump(exclude_none=True))
        labels[text] = "by kind, as written"
    return _choice("mapping.formats.weights", "format of weights", text, _unique((NONE, *get_args(WeightFormat), text)), labels)


def _quantity(key: str, title: str, group: str, value: int, dimension: Dimension, times: int = 16) -> Control:
    """A slider over round values from a `times`-th of a value to `times` of it."""
    low, high = value / times, value * times
    around = {value}
    for power in range(len(str(int(high))) + 1):
        around |= {
            size for m in MANTISSAS if (size := m * 10**power // 100) and low <= size <= high and m * 10**power % 100 == 0
        }
    texts = tuple(dimension.format(each) for each in sorted(around))
    return Control(key=key, title=title, group=group, given=dimension.format(value), stops=texts, units=dimension.units)


def _count(key: str, title: str, group: str, value: int) -> Control:
    """A slider over round counts, up to 16 times a value and at least 16."""
    stops = _texts({n for n in COUNTS if n <= max(16, 16 * value)} | {value})
    return Control(key=key, title=title, group=group, given=str(value), stops=stops, units={"": 1})


def _sram(value: int | None) -> Control:
    """Bounds of SRAM: powers of two, and none."""
    sizes = {2**i * 64 * KIB for i in range(15)} | ({value} if value is not None else set())
    given = NONE if value is None else _size(value)
    return Control(
        key="hardware.sram", title="SRAM", group=MACHINE, given=given, stops=(*map(_size, sorted(sizes)), NONE),
        labels={NONE: "unbounded"}, units=SIZE.units,
    )  # fmt: skip


def _size(value: int) -> str:
    """A size in binary units where it is a whole number of them."""
    unit = next((unit for unit in ("GiB", "MiB", "KiB") if value and value % WORTH[unit] == 0), None)
    return SIZE.format(value) if unit is None else f"{value // WORTH[unit]} {unit}"


def _choice(key: str, title: str, given: str, stops: Sequence[str], labels: Mapping[str, str] | None = None) -> Control:
    return Control(key=key, title=title, group=MAPPING, given=given, stops=tuple(stops), slider=False, labels=labels)


def _named(key: str, title: str, group: str, given: Any, names: Sequence[str]) -> Control:
    """The choice of a policy by name; what is given with options is a value of its own."""
    text = json.dumps({"name": given.name, **given.options}) if given.options else given.name
    labels = {} if text == given.name else {text: f"{given.name}, as written"}
    return Control(
        key=key, title=title, group=group, given=text, stops=_unique((*names, text)), slider=False, labels=labels
    )  # fmt: skip


def _plain(registry: Any) -> list[str]:
    """Names of a registry whose entries need no options, those of third parties that can be loaded included."""
    return [name for name in registry if not _needs_options(registry, name)]


def _needs_options(registry: Any, name: str) -> bool:
    try:
        options = registry.options(name)
    except Exception:  # code of a third party that cannot be loaded offers nothing
        return True
    return any(option.default is option.empty and option.kind is not option.VAR_KEYWORD for option in options)


def _limit(scenario: Scenario, name: str, title: str, value: int | None) -> Control:
    """A limit of a batch, which the short form of `workload.batching` has no place for."""
    given = NONE if value is None else str(value)
    stops = _texts({n for n in COUNTS if n <= max(16, 16 * (value or 16))} | ({value} if value is not None else set()))
    key, assignment = f"workload.batching.{name}", f"workload.batching.{name}={{value}}"
    if not _is_mapping(scenario, "workload.batching"):
        assignment = f"workload.batching={{policy: {scenario.workload.batching.policy}, {name}: {{value}}}}"
    return Control(
        key=key, title=title, group=WORKLOAD, given=given, stops=(*stops, NONE), labels={NONE: "any"}, units={"": 1},
        assignments=(assignment,),
    )  # fmt: skip


def _short(scenario: Scenario, key: str, inner: str, title: str, value: int) -> Control:
    """A count whose section may be written as that count alone."""
    inside = f"{key}.{inner}" if _is_mapping(scenario, key) else key
    return _with(_count(key, title, WORKLOAD, value), assignments=(f"{inside}={{value}}",))


def _with(control: Control, **changes: Any) -> Control:
    return Control(**{name: changes.get(name, getattr(control, name)) for name in Control.__dataclass_fields__})


def _is_written(scenario: Scenario, key: str) -> bool:
    node, reached = scenario._document.find(key_path(key))
    return reached == key_path(key) and node.value is not None


def _is_mapping(scenario: Scenario, key: str) -> bool:
    node, reached = scenario._document.find(key_path(key))
    return reached == key_path(key) and isinstance(node.value, Mapping)


def _texts(numbers: Iterable[int]) -> tuple[str, ...]:
    return tuple(map(str, sorted(numbers)))


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
