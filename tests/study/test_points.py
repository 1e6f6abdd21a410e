"""Files of studies: the points that follow from axes, and errors with their places."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from sim.base.documents import Place
from sim.base.errors import InputError
from sim.runs.run import read, run
from sim.scenario import STUDY_KEYS, Scenario
from sim.study.axes import Axis, parse_axis
from sim.study.points import Study, load, over
from sim.study.sections import StudyFile, json_schema
from sim.study.shipped import studies
from tests.study.conftest import STUDY, Written
from tests.tools.command import call


def texts(key: str, text: str) -> list[str]:
    axis = parse_axis(key, text, Place("here"))
    assert isinstance(axis, Axis)
    return [value.text for value in axis.values]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1..4", ["1", "2", "3", "4"]),
        ("50,100,200GB/s", ["50 GB/s", "100 GB/s", "200 GB/s"]),
        ("1GB/s,2 TB/s", ["1 GB/s", "2 TB/s"]),
        ("10..40 GB/s x4", ["10 GB/s", "20 GB/s", "30 GB/s", "40 GB/s"]),
        ("1..1000 us x4 log", ["1 us", "10 us", "100 us", "1 ms"]),
        ("1..64 x4 log", ["1", "4", "16", "64"]),
        ("0.5..1 x3", ["0.5", "0.75", "1"]),
        ("fifo,processor_sharing", ["fifo", "processor_sharing"]),
        ("true,false", ["true", "false"]),
        ("8MiB,8388608 B", ["8.388608 MB"]),  # one value, written in two ways
    ],
)
def test_axes_as_text(text: str, expected: list[str]) -> None:
    assert texts("key", text) == expected


@pytest.mark.parametrize(
    ("axis", "needs"),
    [
        ("hardware.memory.bandwidth=50,100 GB/s", False),
        ("hardware.preset=h100-sxm,a100-sxm-80gb", False),
        ("hardware.preset=h100-sxm,mine.yaml", True),
        ("model.config=llama-3.2-1b,gpt2", False),
        ("model.config=llama-3.2-1b,mine/config.json", True),
        ("model.dtype=float32,bfloat16", True),  # captured when it is first used
        ("cost.profile=mine.json,yours.json", True),
        ("cost=roofline,kernel", True),  # a section in which a file may be named
        ("workload.trace.limit=1,2", True),
        ("workload.prefill.chunk=1,2", False),
    ],
)
def test_points_that_need_files(axis: str, needs: bool) -> None:
    """Files that ship with the program are there wherever a point is planned."""
    assert over(read("scenarios/llama_1b_context_2048.yaml"), [axis]).needs_files == needs


def test_points_of_a_base_that_names_files_need_them(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(Path("models/configs/llama-3.2-1b.json").read_text())
    for change, needs in (
        (f"model.config={config}", True),
        ("model.config=llama-3.2-1b", False),
        ("model.dtype=float32", True),
    ):
        base = read("scenarios/llama_1b_context_2048.yaml", [change])
        assert over(base, ["hardware.engines.count=1,2"]).needs_files == needs


def test_points_are_all_combinations_and_the_last_axis_changes_fastest(study: Study) -> None:
    points = list(study.points())
    found = [tuple(value.text for _, value in point.settings) for point in points]
    assert found == list(product(["1", "2", "4"], ["50 GB/s", "100 GB/s"]))
    assert [point.number for point in points] == list(range(6))
    scenario = study.scenario(points[3])
    assert (scenario.hardware.engines.count, scenario.hardware.memory.bandwidth) == (2, 100 * 10**9)


def test_the_overrides_of_a_point_make_its_scenario(study: Study) -> None:
    for point in study.points():
        again = read(study.base.source.replace("study.yaml", "base.yaml"), list(point.overrides))
        assert again.to_dict() | {"name": ""} == study.scenario(point).to_dict() | {"name": ""}


def test_zip_cases_and_repeats(written: Written) -> None:
    text = """\
extends: base.yaml
zip: [{hardware.engines.count: [1, 2], hardware.memory.bandwidth: [0.1 TB/s, 100 GB/s]}]
cases:
  - {name: fair, hardware.memory.arbiter: processor_sharing}
  - {hardware.memory.latency: 1 us}
repeats: 3
"""
    study = load(written(text))
    assert (len(study), study.runs) == (4, 12)
    rows = [[(axis.key.rpartition(".")[2], value.text) for axis, value in point.settings] for point in study.points()]
    assert rows[0] == [("count", "1"), ("bandwidth", "100 GB/s"), ("case", "fair"), ("arbiter", "processor_sharing")]
    assert rows[-1] == [("count", "2"), ("bandwidth", "100 GB/s"), ("case", "case 1"), ("latency", "1 us")]
    assert [point.seed for point in study.points()][:4] == [0, 1, 2, 0]


def test_a_range_is_sampled_once_for_each_seed(written: Written) -> None:
    text = """\
extends: base.yaml
axes:
  hardware.engines.count: [1, 2]
  hardware.memory.bandwidth: {from: 50 GB/s, to: 100 GB/s}
  hardware.memory.latency: {from: 1 ns, to: 1 us, scale: log}
sample: {method: random, points: 5, seed: 3}
"""
    study = load(written(text))
    assert len(study) == 10
    found = {key: [axis_value(point, key) for point in study.points()] for key in study.keys}
    assert all(50 * 10**9 <= value <= 100 * 10**9 for value in found["hardware.memory.bandwidth"])
    assert found["hardware.memory.bandwidth"][:5] == found["hardware.memory.bandwidth"][5:]
    again = load(written(text))
    assert [p.settings for p in again.points()] == [p.settings for p in study.points()]
    assert load(written(text.replace("seed: 3", "seed: 4"))).parts["axes"] != study.parts["axes"]


def axis_value(point: object, key: str) -> int:
    return next(value.column for axis, value in point.settings if axis.key == key)  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["latin_hypercube", "sobol"])
def test_samples_are_even(written: Written, method: str) -> None:
    pytest.importorskip("scipy")
    text = (
        "extends: base.yaml\naxes: {hardware.memory.bandwidth: {from: 10 GB/s, to: 90 GB/s}}\nsample: {method: %s, points: 8}\n"
    )
    study = load(written(text % method))
    eighths = sorted((axis_value(p, "hardware.memory.bandwidth") - 10**10) // 10**10 for p in study.points())
    assert eighths == list(range(8))  # one in each eighth of the range


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("axes: {}", r"study\.yaml:1:1: expected the key 'axes', 'zip', 'cases' or 'find'"),
        ("axes: {hardware.engines.count: []}", r"2:32: hardware\.engines\.count: expected at least one value"),
        ("axes: {hardware.engines.count: {from: 1 us, to: 5}}", r"2:32: .*quantities of one kind"),
        ("axes: {hardware.engines.count: {from: 9, to: 5}}", r"from the smaller value to the larger"),
        ("axes: {hardware.engines.count: {from: 1, to: 5, cuont: 3}}", r"2:49: .*unknown key 'cuont'"),
        ("axes: {hardware.memory.bandwidth: {from: 1 GB/s, to: 5 GB/s}}", r"2:35: .*needs a count"),
        ("axes: {seed: 1..2}\nrepeats: 2", "either an axis over 'seed' or repeats"),
        ("axes: {seed: 1..2}\ncolumns: {seed: 2}", r"3:17: columns\.seed: there is a column of this name"),
        ("axes: {seed: 1..2}\ncolumns: {area: 2 * cuont}", r"3:17: columns\.area: no column 'cuont'"),
        ("axes: {seed: 1..2}\nconstraints: [makespan <]", r"3:15: constraints\[0\]: expected an expression"),
        ("axes: {seed: 1..2}\nobjectives: {makespn: min}", r"3:23: objectives\.makespn: no column"),
        ("axes: {seed: 1..2}\nobjectives: {makespan: smal}", r"3:24: objectives\.makespan: expected one of max, min"),
        ("axes: {seed: 1..2}\nzip: [{seed: [3]}]", r"3:8: seed: a second axis of the same key"),
        ("axes: {seed: 1..2000000}", r"2:14: seed: expected a range of at most"),
        ("axes: {seed: 1..2 x999999}", r"2:14: seed: expected a count from 1 to 100,000, found 999999"),
        (f"axes: {{mapping.fit: 1..{'9' * 309} x3}}", r"2:\d+: .*expected numbers"),
        ("axes: {seed: 1..2}\nname: a/b", r"3:7: name: expected a name of at most 100 characters"),
        ("cases: {a: {seed: 1}}", r"2:8: cases: expected a list, found a mapping"),
        ("axis: {seed: 1..2}", r"2:1: unknown key 'axis' \(did you mean 'axes'"),
    ],
)
def test_errors_have_a_place(written: Written, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(written(f"extends: base.yaml\n{line}\n"))


def test_the_base_may_be_written_in_the_study(written: Written) -> None:
    text = STUDY.replace("extends: base.yaml", "extends: base.yaml\nscenario: {hardware: {engines: {count: 1}}, seed: 7}")
    study = load(written(text))
    assert (study.base.hardware.engines.count, study.base.seed) == (1, 7)
    bad = text.replace("count: 1}", "count: 0}")
    with pytest.raises(InputError, match=r"study\.yaml:2:40: hardware\.engines\.count: expected"):
        load(written(bad))


def test_axes_over_a_scenario(written: Written) -> None:
    written()
    base = read(written().with_name("base.yaml"))
    study = over(base, ["hardware.engines.count=1..2", "hardware.memory.bandwidth=50,100GB/s"], repeats=2)
    assert study.runs == 8
    with pytest.raises(
        InputError, match=r"--over hardware\.memory\.bandwidth=1\.\.2 GB/s: .*expected a number of values after"
    ):
        over(base, ["hardware.memory.bandwidth=1..2 GB/s"])
    with pytest.raises(InputError, match=r"expected KEY\.KEY=VALUES"):
        over(base, ["hardware"])


def test_a_plan_of_a_point_runs_as_the_scenario_does(study: Study, tmp_path: Path) -> None:
    from sim.study.batches import Job
    from sim.study.metrics import measure

    point = list(study.points())[5]
    result = run(study.scenario(point))
    row = measure(Job.of(study.plan(point)))
    assert row["makespan_ps"] == result.makespan
    assert row["lower_ps"] == result.bounds.lower
    assert row["bytes_read"] == result.metrics.bytes_read
    assert sum(row[f"{part}_share"] for part in ("compute", "transfer", "wait_engine", "wait_channel", "wait_input",
                                                 "wait_sram", "wait_policy")) == pytest.approx(1)  # fmt: skip


CHANGES = [
    "hardware.engines.count=2", "hardware.engines.count=2.0", "mapping.parallel.tensor=true", "mapping.parallel.tensor=1",
    "cost=roofline", "workload.sequences.0.tokens=3", "hardware.preset=h100-sxm", "mapping.parallel.tensor=0", "seed=7",
]  # fmt: skip


def test_a_scenario_made_like_another_one_is_that_made_alone() -> None:
    from sim.base.documents import assignment
    from sim.runs.run import changed, known_names
    from sim.scenario import assigned

    base = read(Path(__file__).parents[2] / "scenarios" / "two_tokens_4_engines.yaml")
    for before, after in product(CHANGES, CHANGES):
        try:
            like = assigned(assigned(base, []), [assignment(before)], known_names(), like=assigned(base, []))
        except InputError:
            continue
        alone = _made(changed, base, [after])
        assert alone == _made(partial(assigned, like=like), base, [assignment(after)], known_names())


def _made(make: Callable[..., Scenario], *arguments: Any) -> str | tuple[Any, ...]:
    """A scenario and all that it says, or the error about it."""
    try:
        made = make(*arguments)
    except InputError as error:
        return str(error)
    return made, made.to_dict(), made.from_preset


def test_the_schema_accepts_studies_and_refuses_unknown_keys() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    judge = jsonschema.Draft202012Validator(schema)
    texts = [STUDY, *(path.read_text() for path in studies().values())]
    assert [judge.is_valid(YAML(typ="safe").load(text)) for text in texts] == [True] * len(texts)
    whole = {"extends": "base.yaml", "axes": {"model.layers": [1, 2]}}
    for change, valid in [
        ({}, True),
        ({"extends": None, "scenario": None}, True),  # which base there is, a reader checks
        ({"scenario": {"hardware": {"memory": {"arbiter": {"weights": "1 1"}}}}}, True),  # the base has the rest
        ({"find": "largest workload.generate.arrivals.rate"}, True),
        ({"axis": {}}, False),
        ({"scenario": {"hardware": {"engine": {}}}}, False),
        ({"scenario": {"record": "some"}}, False),
        ({"find": "most workload.generate.arrivals.rate"}, False),
        ({"objectives": {"makespan": "low"}}, False),
        ({"optimize": {"sampler": "tpe"}}, False),  # how many trials?
    ]:
        assert judge.is_valid({**whole, **change}) == valid, change
    assert not judge.is_valid({"axes": {"model.layers": [1, 2]}})


def test_a_study_is_no_scenario() -> None:
    """A command about scenarios says in one line that it was given a study, by its file or its name."""
    for name in ("engines_and_bandwidth", str(studies()["highest_rate_and_chunk"])):
        for command in ("check", "run"):
            done = call([command, name])
            assert (done.status, done.stdout) == (2, "")
            assert done.stderr == f"error: {name}: expected a scenario, found a study; `sim sweep {name} --dry-run` checks it\n"
    assert set(STUDY_KEYS) == set(StudyFile.model_fields) - set(Scenario.model_fields) - {"repeats", "columns"}


@pytest.mark.parametrize(("over", "points"), [("2", "1 point"), ("1..2", "2 points")])
def test_a_dry_run_counts_points(over: str, points: str) -> None:
    done = call(["sweep", "parallel", "--over", f"hardware.engines.count={over}", "--dry-run", "-j", "1"])
    assert f": {points} of hardware.engines.count ({points[0]})\n" in done.stdout
