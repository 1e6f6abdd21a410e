"""Scenarios: what is accepted and refused, the words of errors, and the JSON Schema."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.base.documents import parse as parse_document
from sim.base.errors import InputError
from sim.machine.presets import PRESETS
from sim.runs.workload import requests
from sim.scenario import Known, Scenario, from_dict, json_schema, load, override, parse

TEXT = """\
name: two-tokens-4-engines
model:     {config: llama-3.2-1b, layers: 1, scope: block, dtype: null}
workload:  {sequences: [{context: 4, tokens: 2, arrival: 0 us}], dependency: known}
hardware:
  engines: {count: 4, flops: {bfloat16: 2 TFLOP/s}, vector_flops: 100 GFLOP/s, overhead: 0 us}
  memory:
    bandwidth: 100 GB/s
    latency: 0 ns
    arbiter: fifo
    port_bandwidth: null
  sram: null
mapping:
  heads: split
  softmax: three_pass
  granularity: op
  weights: resident
  activations: on_chip
  execution: prefetch
  tiles: 1
scheduler: earliest
cost: {model: roofline}
seed: 0
trace: {detail: full}
"""
KNOWN: Known = {
    "arbiter": ["fifo", "processor_sharing"],
    "scheduler": ["serial", "earliest", "sticky"],
    "cost": ["roofline", "fixed"],
}
MINIMAL = "model: {config: llama-3.2-1b}\n"
SHIPPED = sorted(Path(__file__).parents[2].glob("scenarios/*.yaml"))


def message(text: str, *overrides: str, known: Known | None = KNOWN) -> str:
    with pytest.raises(InputError) as caught:
        parse(text, "x.yaml", overrides, known)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def is_one_line(error: InputError) -> None:
    assert len(str(error).splitlines()) == 1


def test_the_example() -> None:
    scenario = parse(TEXT, known=KNOWN)
    assert scenario.name == "two-tokens-4-engines"
    assert (scenario.model.config, scenario.model.layers, scenario.model.scope) == ("llama-3.2-1b", 1, "block")
    (sequence,) = scenario.workload.sequences
    assert (sequence.context, sequence.tokens, sequence.arrival, sequence.count) == (4, 2, 0, 1)
    engines, memory = scenario.hardware.engines, scenario.hardware.memory
    assert (engines.count, engines.peak("bfloat16"), engines.peak("int8")) == (4, 2 * 10**12, None)
    assert engines.vector_flops == 100 * 10**9
    assert (memory.bandwidth, memory.latency, memory.port_bandwidth) == (100 * 10**9, 0, None)
    assert (memory.arbiter.name, scenario.scheduler.name, scenario.cost.model) == ("fifo", "earliest", "roofline")
    assert scenario.text == TEXT


def test_defaults() -> None:
    scenario = parse(MINIMAL, known=KNOWN)
    assert scenario.name == "scenario"
    assert scenario.model.layers is None
    assert [s.tokens for s in scenario.workload.sequences] == [1]
    assert scenario.workload.dependency == "sampled"
    assert scenario.hardware.engines.peak("anything") == 2 * 10**12
    assert scenario.hardware.sram is None
    assert scenario.mapping.weights == "streamed"
    assert scenario.cost.jitter == 0.0
    assert (scenario.trace.detail, scenario.trace.flows, scenario.trace.window) == ("full", "all", None)


def test_the_name_is_that_of_the_file_by_default(tmp_path: Path) -> None:
    path = tmp_path / "four_engines.yaml"
    path.write_text(MINIMAL)
    assert load(path).name == "four_engines"


def test_choices_with_options() -> None:
    scenario = parse(
        MINIMAL + "hardware: {memory: {arbiter: {name: mine, burst: 4 KiB}}}\n"
        "cost: {model: fixed, table: {norm: 300 us, linear: 0}, jitter: 0.05, extra: [1]}\nscheduler: {name: mine}\n"
    )
    assert scenario.hardware.memory.arbiter.options == {"burst": "4 KiB"}
    assert scenario.cost.table == {"norm": 300_000_000, "linear": 0}
    assert (scenario.cost.jitter, scenario.cost.options) == (0.05, {"extra": [1]})
    assert scenario.to_dict()["scheduler"] == "mine"


def test_groups_repeat() -> None:
    scenario = parse(MINIMAL + "workload: {sequences: [{count: 2, context: 5}, {tokens: 1e3}]}")
    assert [(s.context, s.tokens) for s in requests(scenario)] == [(5, 1), (5, 1), (0, 1000)]


# `@` marks the place that the error must name: that of a value, or of the key where the key is wrong.
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # names that are open to third parties
        ("arbiter: fifo", "arbiter: @fifi",
         "hardware.memory.arbiter: expected one of fifo, processor_sharing, found 'fifi' (did you mean 'fifo'?)"),
        ("arbiter: fifo", "arbiter: {name: @fifi}", "hardware.memory.arbiter.name: expected one of fifo, "),
        ("scheduler: earliest", "scheduler: @earlyest",
         "scheduler: expected one of earliest, serial, sticky, found 'earlyest' (did you mean 'earliest'?)"),
        ("roofline", "@rooflin", "cost.model: expected one of fixed, roofline, found 'rooflin' (did you mean 'roofline'?)"),
        ("{model: roofline}", "@rooflin", "cost: expected one of fixed, roofline, found 'rooflin' (did you mean"),
        # keys
        ("latency", "@latenzy",
         "hardware.memory: unknown key 'latenzy' (did you mean 'latency'?); valid: bandwidth, latency, arbiter, "),
        ("seed", "@sead", "unknown key 'sead' (did you mean 'seed'?); valid: name, description, extends, model, "),
        ("tokens: 2", "@token: 2", "workload.sequences[0]: unknown key 'token' (did you mean 'tokens'?)"),
        ("config: llama-3.2-1b", "@conf: x",
         "model: unknown key 'conf' (did you mean 'config'?); valid: config, graph, layers, scope, dtype"),
        ("model:     {config: llama-3.2-1b, ", "model: @{", "model: expected the key 'config' or 'graph'"),
        ("{detail: full}", "{detail: full, @detail: ops}", "duplicate key 'detail', first on line 23"),
        ("bfloat16", "@BF16",
         "hardware.engines.flops.BF16: expected as key torch's name of a number format, such as bfloat16, found 'BF16'"),
        # quantities
        ("100 GB/s", "@100 GBs", "hardware.memory.bandwidth: unknown unit 'GBs' (did you mean 'GB/s'?)"),
        ("100 GB/s", "@100",
         "hardware.memory.bandwidth: expected a bandwidth with its unit, such as '100 GB/s', found the bare number 100"),
        ("arbiter: fifo", "achievable: @5", "hardware.memory.achievable: expected true or false, found 5"),
        ("100 GB/s", "@0 GB/s", "hardware.memory.bandwidth: expected a bandwidth above zero, found '0 GB/s'"),
        ("100 GB/s", "@-1 GB/s", "hardware.memory.bandwidth: expected a bandwidth that is not negative, found '-1 GB/s'"),
        ("100 GB/s", "@.nan", "hardware.memory.bandwidth: expected a bandwidth with its unit"),
        ("100 GB/s", "@1e30 GB/s", "hardware.memory.bandwidth: expected a bandwidth of at most 1000 PB/s"),
        ("2 TFLOP/s", "@2 TFLOPs", "hardware.engines.flops.bfloat16: unknown unit 'TFLOPs' (did you mean 'TFLOP/s'?)"),
        ("{bfloat16: 2 TFLOP/s}", "@{}", "hardware.engines.flops: expected at least one item, found an empty mapping"),
        # numbers
        ("count: 4", "count: @0", "hardware.engines.count: expected a number from 1 to 4096, found 0"),
        ("count: 4", "count: @4097", "hardware.engines.count: expected a number from 1 to 4096, found 4097"),
        ("count: 4", "count: @1.5", "hardware.engines.count: expected a whole number from 1 to 4096, found 1.5"),
        ("count: 4", "count: @.inf", "hardware.engines.count: expected a whole number from 1 to 4096, found .inf"),
        ("count: 4", "count: @true", "hardware.engines.count: expected a whole number from 1 to 4096, found true"),
        ("count: 4", "count: @'4'", "hardware.engines.count: expected a whole number from 1 to 4096, found '4'"),
        ("count: 4", "count: @1_0", "hardware.engines.count: expected a whole number from 1 to 4096, found '1_0'"),
        ("context: 4", "context: @-1", "workload.sequences[0].context: expected a number from 0 to 100000000, found -1"),
        ("tokens: 2", "tokens: @10000001", "workload.sequences[0].tokens: expected a number from 1 to 10000000, found"),
        ("layers: 1", "layers: @0", "model.layers: expected a number from 1 to 10000, found 0"),
        ("tiles: 1", "tiles: @1025", "mapping.tiles: expected a number from 1 to 1024, or engines, found 1025"),
        ("roofline}", "fixed, jitter: @1}", "cost.jitter: expected a number from 0 to below 1, found 1"),
        ("roofline}", "fixed, jitter: @.nan}", "cost.jitter: expected a number from 0 to below 1, found .nan"),
        ("seed: 0", "seed: @-1", "seed: expected a number from 0 to below 9223372036854775808, found -1"),
        # forms
        ("roofline}", "fixed, table: @5}", "cost.table: expected the name of a table, or a mapping of op kinds to durations"),
        ("roofline}", "fixed, table: {norm: @5}}", "cost.table.norm: expected a duration with its unit"),
        ("scheduler: earliest", "scheduler: @[earliest]",
         "scheduler: expected a name, or a mapping with a name and options, found a list"),
        ("scheduler: earliest", "@scheduler:", "scheduler: expected a name, or a mapping with a name and options, found null"),
        ("sequences: [{", "sequences: [@5, {",
         "workload.sequences[0]: expected a mapping (keys: context, prompt, tokens, arrival, count, samples), found 5"),
        ("heads: split", "parallel: {algorithm: @rings}",
         "mapping.parallel.algorithm: expected one of auto, one_shot, ring, tree, two_shot, found 'rings'"),
        ("{detail: full}", "@full", "trace: expected a mapping, such as {detail: full}, found 'full'"),
        ("{detail: full}", "{window: @[5, 6]}", "trace.window: expected a mapping (keys: start, end), found a list"),
        ("sram: null", "host: {link: @25 GB/s}",
         "hardware.host.link: expected a mapping, such as {bandwidth: 25 GB/s}, found '25 GB/s'"),
        ("sram: null", "host: {link: @pcie-5}",
         "hardware.host.link: expected a mapping, such as {preset: pcie-5}, found 'pcie-5'"),
        ("dependency: known", "batching: {policy: static, kv: {evicted: @host}}",
         "workload.batching.kv.evicted: expected lost, or tiers: hardware.host and hardware.tiers, nearest first, found"),
        ("heads: split", "heads: split\n  attention: @data",
         "mapping.attention: expected one of batch, sequence, found 'data' "
         "(did you mean mapping.parallel.attention: data?)"),
        ("heads: split", "heads: @spilt", "mapping.heads: expected one of fused, split, found 'spilt' (did you mean 'split'?)"),
        ("{detail: full}", "{window: @{start: 5 us, end: 5 us}}", "trace.window: expected an end after the start"),
        ("two-tokens-4-engines", "@../x", "name: expected a name of at most 100 characters without slashes"),
    ],
)  # fmt: skip
def test_errors_say_where_what_was_expected_and_what_was_found(old: str, new: str, expected: str) -> None:
    assert old in TEXT
    marked = TEXT.replace(old, new, 1)
    before = marked[: marked.index("@")].split("\n")
    place = f"x.yaml:{len(before)}:{len(before[-1]) + 1}"
    assert message(marked.replace("@", "")).startswith(f"{place}: {expected}")


def test_several_errors_report_the_first_by_position() -> None:
    text = TEXT.replace("seed: 0", "seed: x").replace("tiles: 1", "tiles: 0").replace("arbiter: fifo", "arbiter: fifi")
    assert message(text).startswith("x.yaml:9:14: hardware.memory.arbiter: ")
    assert message(text).endswith(" (and 2 more errors)")


def test_bad_items_are_not_counted_as_missing() -> None:
    assert message(TEXT.replace("tokens: 2", "tokens: 0")).endswith("found 0")


@pytest.mark.parametrize("text", ["5", "[1]", "just text", "null", "~"])
def test_not_a_mapping(text: str) -> None:
    assert message(text).startswith("x.yaml:1:1: expected a mapping, found ")


def test_open_names_are_not_checked_unless_they_are_known() -> None:
    assert parse(TEXT.replace("fifo", "mine"), known={"scheduler": ["earliest"]}).hardware.memory.arbiter.name == "mine"


def test_too_many_sequences() -> None:
    found = message(MINIMAL + "workload: {sequences: [{count: 60000}, {count: 60000}]}")
    assert found == "x.yaml:2:23: workload.sequences: expected at most 100000 sequences, found 120000"


def test_overrides() -> None:
    scenario = parse(TEXT, overrides=["hardware.memory.bandwidth=50 GB/s", "workload.sequences[0].tokens=7", "cost=fixed"])
    assert scenario.hardware.memory.bandwidth == 50 * 10**9
    assert scenario.workload.sequences[0].tokens == 7
    assert scenario.cost.model == "fixed"
    again = override(scenario, ["seed=3"])
    assert (again.seed, again.hardware.memory.bandwidth, scenario.seed) == (3, 50 * 10**9, 0)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("hardware.memory.arbiter=fifi", "--set hardware.memory.arbiter=fifi: hardware.memory.arbiter: expected one of fifo, "),
        ("hardware.memory.bandwith=1 GB/s", "--set hardware.memory.bandwith=1 GB/s: hardware.memory: unknown key 'bandwith'"),
        ("hardware.memory.bandwidth=1 GBs", "--set hardware.memory.bandwidth=1 GBs: hardware.memory.bandwidth: unknown unit"),
        ("seed", "--set seed: expected KEY.KEY=VALUE"),
        ("workload.sequences.5.tokens=1", "--set workload.sequences.5.tokens=1: workload.sequences is a list of 1, "),
    ],
)  # fmt: skip
def test_errors_of_overrides_name_them(assignment: str, expected: str) -> None:
    assert message(TEXT, assignment).startswith(expected)


def test_later_stages_find_the_place() -> None:
    scenario = parse(TEXT, "x.yaml", ["seed=5"])
    assert scenario.locate("model.layers") == "x.yaml:2:43"
    assert scenario.locate("workload.sequences[0].tokens") == "x.yaml:3:46"
    assert scenario.locate("workload.sequences[0].count") == "x.yaml:3:25"  # not written: the section around it
    assert scenario.locate("seed") == "--set seed=5"
    error = scenario.error("model.layers", "expected 1 to 16, found 40")
    assert isinstance(error, InputError)
    assert str(error) == "x.yaml:2:43: model.layers: expected 1 to 16, found 40"


def test_to_dict_reads_back() -> None:
    changes = [
        "hardware.sram=8 MiB",
        "cost={model: fixed, table: {a: 1 ns}, x: 1}",
        "trace.window={end: 1 s}",
        "scheduler={name: a, b: 2}",
    ]
    for scenario in (parse(TEXT), parse(MINIMAL), parse(TEXT, overrides=changes)):
        data = json.loads(json.dumps(scenario.to_dict()))
        assert from_dict(data) == scenario
    assert parse(TEXT) != parse(TEXT, overrides=["seed=1"])


def test_a_scenario_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(TEXT).seed = 3  # type: ignore[misc]


# --- the JSON Schema -------------------------------------------------------------------------------------------------

VALIDATOR = jsonschema.Draft202012Validator(json_schema())

GOOD = [
    "seed=5",
    "seed=1e3",
    "model.layers=null",
    "model.layers=16",
    "hardware.sram=8 MiB",
    "hardware.engines.flops=2 TFLOP/s",
    "hardware.engines.flops={int8: 4 TOP/s}",
    "hardware.engines.overhead=0",
    "hardware.memory.arbiter={name: round_robin, burst: 4 KiB}",
    "hardware.memory.latency=.5us",
    "cost=fixed",
    "cost={model: fixed, table: block_estimates, jitter: 0.05}",
    "cost={model: fixed, table: {norm: 300 us}}",
    "trace.window={start: 1 us, end: 2 us}",
    "trace.flows=critical",
    "description=Text",
    "workload.sequences=[{count: 3}, {arrival: 5 ms}]",
    "name=größe 1",
]
BAD = [
    "seed=-1",
    "seed=1.5",
    "seed=x",
    "sead=1",
    "model=null",
    "model={}",
    "model.config=''",
    "model.layers=0",
    "model.scope=all",
    "model.dtype=bf16",
    "hardware=null",
    "hardware.sram=8",
    "hardware.sram=8 MBit",
    "hardware.engines.count=0",
    "hardware.engines.count=5000",
    "hardware.engines.count=true",
    "hardware.engines.flops={BF16: 2 TFLOP/s}",
    "hardware.engines.flops={}",
    "hardware.engines.overhead=5",
    "hardware.memory.bandwidth=-1 GB/s",
    "hardware.memory.bandwidth=100 GB",
    "hardware.memory.arbiter={nme: x}",
    "hardware.memory.arbiter=5",
    "hardware.memory.arbiter=''",
    "cost={model: fixed, jitter: 1}",
    "cost={model: fixed, table: 7}",
    "cost={table: x}",
    "trace.detail=some",
    "trace.window={from: 1 us}",
    "workload.sequences=[]",
    "workload.sequences={}",
    "workload.sequences=[{tokens: 0}]",
    "mapping.softmax=two_pass",
    "name=a/b",
    "name=.hidden",
    "description=5",
]


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$schema"].endswith("2020-12/schema")


def described(schema: Mapping[str, object]) -> None:
    for key, field in schema.get("properties", {}).items():  # type: ignore[attr-defined]
        assert "description" in field or "$ref" in field, key


def test_every_key_is_described() -> None:
    schema = json_schema()
    described(schema)
    for section in schema["$defs"].values():
        assert section["description"]
        described(section)
        for form in section.get("anyOf", ()):
            described(form)


@pytest.mark.parametrize("assignment", GOOD)
def test_schema_and_check_accept(assignment: str) -> None:
    parse(TEXT, overrides=[assignment])
    VALIDATOR.validate(parse_document(TEXT).override([assignment]).plain())


@pytest.mark.parametrize("assignment", BAD)
def test_schema_and_check_refuse(assignment: str) -> None:
    with pytest.raises(InputError):
        parse(TEXT, overrides=[assignment])
    assert not VALIDATOR.is_valid(parse_document(TEXT).override([assignment]).plain())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenarios_are_valid_in_both(path: Path) -> None:
    scenario = load(path)
    VALIDATOR.validate(parse_document(path.read_text(encoding="utf-8")).plain())
    VALIDATOR.validate(scenario.to_dict())


@pytest.mark.parametrize(
    "written", ["host: {memory: 1 GB}", "devices: {count: 2, link: {arbiter: fifo}}", "energy: {network: 20 pJ/bit}"]
)
def test_what_a_preset_completes_is_valid_in_both(written: str) -> None:
    text = f"{MINIMAL}hardware: {{preset: h100-sxm, {written}}}\n"
    VALIDATOR.validate(parse_document(text).plain())
    VALIDATOR.validate(parse(text).to_dict())


def test_what_to_dict_gives_is_valid_in_the_schema() -> None:
    VALIDATOR.validate(parse(TEXT).to_dict())
    VALIDATOR.validate(parse(MINIMAL).to_dict())


# --- whatever is thrown at it ----------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["5 us", "2 GB/s", "8 MiB", "fifo", "split", "1 TFLOP/s"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["name", "model", "table", "start", "count", "int8", "x"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def every_path(data: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(deeper for key, value in items for deeper in every_path(value, (*path, key)))]


@settings(max_examples=200)
@given(st.data())
def test_any_value_anywhere_gives_a_scenario_or_an_input_error(data: st.DataObject) -> None:
    document = parse(TEXT).to_dict()
    path = data.draw(st.sampled_from(every_path(document)[1:]))
    target = document
    for key in path[:-1]:
        target = target[key]  # type: ignore[index]
    target[path[-1]] = data.draw(VALUES)  # type: ignore[index]
    try:
        scenario = from_dict(document, known=KNOWN)
    except InputError as error:
        is_one_line(error)
    else:
        assert VALIDATOR.is_valid(document)
        assert from_dict(scenario.to_dict()) == scenario


@given(st.integers(0, len(TEXT)), st.integers(0, 12), st.text(st.sampled_from("a0 \n:,-[]{}&*!|>'\"%#?.~"), max_size=6))
def test_any_edit_gives_a_scenario_or_an_input_error(at: int, cut: int, added: str) -> None:
    try:
        assert isinstance(parse(TEXT[:at] + added + TEXT[at + cut :], known=KNOWN), Scenario)
    except InputError as error:
        is_one_line(error)


@given(st.text(max_size=40))
def test_any_override_gives_a_scenario_or_an_input_error(assignment: str) -> None:
    try:
        assert isinstance(parse(TEXT, overrides=[assignment]), Scenario)
    except InputError as error:
        is_one_line(error)


def test_importing_is_light() -> None:
    code = "import sys, sim.scenario; print([m for m in ('torch', 'transformers', 'rich', 'simpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("key", ["<b>", "<<", "<one>", "<table>", "[key]"])
def test_an_unknown_key_that_looks_like_a_tag(key: str) -> None:
    assert f"unknown key '{key}'" in message(f"{MINIMAL}'{key}': 1\n")
    assert f"model: unknown key '{key}'" in message(f"model: {{config: gpt2, '{key}': 1}}\n")
    with pytest.raises(InputError, match="unknown key"):
        from_dict({"model": {"config": "gpt2"}, key: 1})


@pytest.mark.parametrize("key", ["<b>", "<<"])
def test_an_unknown_key_that_looks_like_a_tag_in_an_override(key: str) -> None:
    assert f"unknown key '{key}'" in message(MINIMAL, f"{key}=1")


def test_a_key_like_a_tag_inside_a_table() -> None:
    assert "cost.table.<b>: expected a duration" in message(f"{MINIMAL}cost: {{model: fixed, table: {{<b>: 3}}}}\n")
    assert "cost.table.<one>: expected a duration" in message(f"{MINIMAL}cost: {{model: fixed, table: {{<one>: 3}}}}\n")
    assert "cost.table: expected a duration" not in message(f"{MINIMAL}cost: {{model: fixed, table: {{'[key]': 3}}}}\n")
    assert "as key torch's name" in message(f"{MINIMAL}hardware: {{engines: {{flops: {{<one>: 2 TFLOP/s}}}}}}\n")


@pytest.mark.parametrize("share", ["0", "1.2", "-1", "much"])
def test_the_range_of_an_efficiency(share: str) -> None:
    text = f"{MINIMAL}hardware: {{memory: {{efficiency: {{1: {share}}}}}}}\n"
    assert "hardware.memory.efficiency.1: expected a number above 0 to 1, found" in message(text)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("hardware.memory.efficiency=0.5", 'expected shares by number of transfers, such as {"1": 0.54, "4": 0.68}, found 0.5'),
        ("hardware.memory.efficiency={}", "hardware.memory.efficiency: expected at least one item, found an empty mapping"),
        ("workload.routing=x", "workload.routing: expected uniform, or a mapping with the key 'file', found 'x'"),
        ("workload.routing=[]", "workload.routing: expected uniform, or a mapping with the key 'file', found an empty list"),
        ("workload.routing={file: 3}", "workload.routing.file: expected a text, found 3"),
        ("workload.speculative={draft: 2, acceptance: x}", "speculative.acceptance: expected a number from 0 to 1, found 'x'"),
        ("workload.speculative={draft: 2, acceptance: [1, x]}", "acceptance[1]: expected a whole number from 0, found 'x'"),
        ("cost={model: profiled, profile: none.yaml}", "cost.profile: none.yaml: no such file"),
    ],
)
def test_errors_in_values_of_two_forms_name_both(assignment: str, expected: str) -> None:
    assert expected in message(MINIMAL, assignment, known=None)


def test_a_missing_profile_is_reported_at_its_place() -> None:
    text = f"{MINIMAL}cost:\n  model: profiled\n  profile: none.yaml\n"
    assert message(text, known=None).startswith("x.yaml:4:12: cost.profile: none.yaml: no such file")


@pytest.mark.parametrize("character", [r"\e", r"\0", r"\r", r"\x7f", r"\x9b"])
def test_control_characters_are_refused(character: str) -> None:
    assert "description: expected a text without control" in message(f'{MINIMAL}description: "a{character}b"\n')
    for key in ("name", "kind"):
        written = {"name": "a", key: "PLACE"}
        op = ", ".join(f'{k}: "{v}"' for k, v in written.items()).replace("PLACE", f"a{character}b")
        text = f"model: {{graph: [{{{op}, duration: 1 us}}]}}\n"
        assert f"model.graph[0].{key}: expected a text on one line" in message(text)


def test_a_description_of_several_lines() -> None:
    assert parse(f'{MINIMAL}description: "a\\n\\tb"\n').description == "a\n\tb"
    assert "one line" in message('model: {graph: [{name: "a\\nb", duration: 1 us}]}\n')


def test_validation_opens_no_files() -> None:
    """Files complete a scenario before it is validated; here none does, and none of them exists."""
    hardware = {"preset": "nowhere.yaml"}
    data = {"model": {"config": "llama-3.2-1b"}, "hardware": hardware, "cost": {"model": "profiled", "profile": "nowhere.yaml"}}
    assert Scenario.model_validate(data).hardware.preset == "nowhere.yaml"
    with pytest.raises(InputError, match=r"hardware\.preset: nowhere\.yaml: no such file.* \(and 1 more error\)"):
        from_dict(data)


def test_a_complete_scenario_needs_no_files(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(Path(PRESETS.get("a100-80g-sxm")).read_text())
    data = from_dict(
        {"model": {"config": "llama-3.2-1b"}, "hardware": {"preset": str(path), "memory": {"capacity": None}}}
    ).to_dict()
    path.unlink()
    hardware = from_dict(data, complete=True).hardware
    assert (hardware.engines.count, hardware.memory.capacity) == (1, None)


@pytest.mark.parametrize(
    "key", ["workload.trace.speed", "workload.speculative.acceptance", "cost.jitter", "hardware.memory.efficiency.2"]
)
def test_numbers_that_no_float_holds(key: str) -> None:
    sequences = () if "trace" not in key else ("workload.sequences=null", "workload.trace.file=x.csv")
    draft = ("workload.speculative.draft=2",) if "speculative" in key else ()
    assert "expected a number" in message(MINIMAL, *sequences, *draft, f"{key}={'9' * 309}")
