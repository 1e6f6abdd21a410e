"""Changes that would help, and the commands that explain a run."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from rich.console import Console

from sim.analysis.bounds import few_tiles
from sim.analysis.parts import PARTS
from sim.base.units import format_number
from sim.cli import cli
from sim.render import terminal
from sim.runs.result import Result
from sim.runs.run import known_names, read, run
from sim.runs.what_if import bottleneck, what_if
from sim.scenario import from_dict
from sim.scenario.shipped import find_scenario


def help_for(name: str, *overrides: str):
    result = run(read(find_scenario(name), list(overrides)))
    found = what_if(result)
    return {change.name: change.speedup(found.as_it_is) for change in found.changes}, found.bottleneck, result, found


def call(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def shown(result: Result) -> str:
    """The summary, in one line."""
    console = Console(width=200)
    with console.capture() as found:
        console.print(terminal.render(result))
    return " ".join(found.get().split())


def test_lockstep():
    """Closed loop, N = 4, Z = 3, D = 1: fifo 4 a round against 7 under sharing; without the channel 3."""
    speedups, sentence, _, _ = help_for("lockstep_processor_sharing")
    assert speedups["infinite bandwidth"] == pytest.approx(7 / 3)
    assert speedups["bandwidth x2"] == pytest.approx(7 / 5)
    assert speedups["no sharing losses"] == pytest.approx(7 / 4, rel=0.01)
    assert sentence.startswith("The memory channel is the bottleneck")
    assert "fifo" in sentence


def test_a_scheduler_that_leaves_engines_idle():
    speedups, sentence, _, _ = help_for("no_parallelism")
    assert speedups["earliest"] > 2
    assert sentence.startswith("The scheduler is the bottleneck: serial")


def test_a_chain_of_dependencies():
    speedups, sentence, _, _ = help_for("parallel")
    assert speedups.pop("tiles: engines") > 1.1  # shorter tasks make a shorter chain
    assert max(speedups.values()) == pytest.approx(1.0)
    assert sentence.startswith("The dependencies between tasks are the bottleneck")


def test_measured_kernels_take_less_time_by_what_their_bytes_take_less():
    speedups, sentence, result, _ = help_for("h100_llama_8b", "model.layers=2", "workload.sequences.0.tokens=1")
    moved = result.metrics.channel_busy
    assert 0.6 < moved / result.makespan < 0.8
    assert result.makespan / speedups["bandwidth x2"] == pytest.approx(result.makespan - moved / 2, rel=1e-4)
    assert result.makespan / speedups["infinite bandwidth"] == pytest.approx(result.makespan - moved, rel=1e-4)
    assert sentence.startswith("The memory channel is the bottleneck")


def test_launches():
    """A chain of a hundred products of 1 us, and a launch of 3 us before each of them."""
    graph = [{"name": f"p{i}", "flops": 10**6, "weight": "1 B", "inputs": [f"p{i - 1}"][:i]} for i in range(100)]
    written = {
        "model": {"graph": graph},
        "hardware": {"engines": {"count": 1, "flops": "1 TFLOP/s"}, "memory": {"bandwidth": "1 TB/s"}},
        "cost": {"model": "kernel", "t0": "3 us", "peak_share": 1}, "mapping": {"execution": "stream"},
    }  # fmt: skip
    found = what_if(run(from_dict(written, known=known_names())))
    speedups = {change.name: change.speedup(found.as_it_is) for change in found.changes}
    assert speedups["no launches"] == pytest.approx(4)
    assert found.bottleneck.startswith("Launches of kernels are the bottleneck: kernels without them would speed this up 4.00x")


def test_engines():
    speedups, sentence, result, found = help_for("multi_head", "hardware.engines.count=1")
    assert speedups["infinite engines"] >= speedups["engines x2"] > 1
    assert sentence.startswith("The engines are the bottleneck")
    assert bottleneck(result, found.as_it_is, found.changes, None) == found.bottleneck


def test_tiles_for_all_engines():
    """One engine streams the LM head through a port that the others leave idle."""
    speedups, sentence, result, _ = help_for("lm_head_on_one_engine")
    better = run(read(find_scenario("lm_head_on_one_engine"), ["mapping.tiles=engines"]))
    assert speedups["tiles: engines"] == result.makespan / better.makespan > 1.5
    assert sentence.endswith("(mapping.tiles: engines) would speed this up 1.64x.")
    assert few_tiles(result.log, result.bounds) == 1
    assert few_tiles(better.log, better.bounds) is None


def test_more_tiles_are_no_advice_where_the_channel_is_the_limit():
    speedups, _, result, _ = help_for("llama_1b_context_256")
    assert few_tiles(result.log, result.bounds) is None
    assert "tiles: engines" not in speedups


def test_no_machine_gains_time_before_the_last_arrival():
    requests = "workload.sequences=[{context: 4}, {context: 4, arrival: 1 s}]"
    _, sentence, _, _ = help_for("multi_head", requests)
    assert sentence.endswith("; the last request arrives at 1.000 s, and no machine can finish before that.")


def test_an_impossible_change_has_a_reason():
    """Weights for the loads of an op, of which there are none with prefetch."""
    arbiter = "hardware.memory.arbiter={name: weighted, weights: {q_proj: 3}}"
    _, _, _, found = help_for("two_sequences_fifo", "model.layers=1", "model.scope=block", arbiter)
    (change,) = [change for change in found.changes if change.name == "prefetch"]
    assert change.makespan is None
    assert "unknown kind of transfer 'q_proj'" in change.note


def test_explain_in_json_is_run_in_json_and_more():
    data = json.loads(call("explain", "two_tokens_4_engines", "--json"))
    ran = json.loads(call("run", "two_tokens_4_engines", "--json", "--no-trace"))
    for key in ("makespan_ps", "tokens", "breakdown_ps", "blame", "bounds", "checks"):
        assert data[key] == ran[key]
    for token in ran["tokens"]:
        assert sum(token["breakdown_ps"].values()) == token["end_ps"] - token["start_ps"]
    links = data["critical_path"]["links"]
    assert (links[0]["begin_ps"], links[-1]["end_ps"]) == (0, data["makespan_ps"])
    assert {key: data["critical_path"][key] for key in ran["critical_path"]} == ran["critical_path"]
    assert data["what_if"]["bottleneck"]
    assert data["optimal"] is None
    total = data["breakdown_ps"]["total"]
    for group in ("by_kind", "by_layer", "by_token", "by_sequence"):
        assert {part: sum(row[part] for row in data["breakdown_ps"][group]) for part in total} == total
    for resource in ("engine", "channel"):
        for table in data["blame"][resource].values():
            waits = sum(map(sum, table["wait_ps"])) + sum(table["alone_ps"])
            assert waits == total[f"wait_{resource}"]


def test_explain_as_a_page():
    page = call("explain", "two_tokens_4_engines", "--no-what-if")
    for title in (
        "Where the time of each token went",
        "Causes of waits for an engine",
        "Critical path of the run",
        "Bounds",
    ):
        assert title in page
    assert "What would help" not in page


def test_steps_of_a_batch_are_called_steps():
    page = call("explain", "batch_8", "--no-what-if", "--set", "model.layers=1")
    assert "Where the time of each step went" in page
    assert "\nstep " in page
    assert "token" not in page


def test_compare():
    data = json.loads(call("compare", "lockstep_fifo", "lockstep_processor_sharing", "--json"))
    assert data["keys"] == {"hardware.memory.arbiter": ["fifo", "processor_sharing"]}
    numbers = {row["name"]: row for row in data["numbers"]}
    assert numbers["makespan"]["ratios"] == [pytest.approx(7 / 4, rel=0.01)]
    assert {row["part"] for row in data["sources"]} == {"wait_engine", "wait_channel"}
    page = call("compare", "lockstep_fifo", "lockstep_processor_sharing")
    assert "Where the difference comes from" in page
    utilization = re.search(r"^channel utilization +(.*?)%  +(.*?)%  +(.*?) pp *$", page, flags=re.MULTILINE)
    before, after, difference = map(float, utilization.groups())
    assert (difference, after) == (pytest.approx(after - before, abs=0.11), pytest.approx(before * 4 / 7, rel=0.02))


def test_sides_of_one_scenario_differ_by_what_is_set_for_each():
    """Three sides: as it is, half of the bandwidth, twice: so transfers take as long, twice, half."""
    rate = "hardware.memory.bandwidth={} GB/s"
    words = ["batch_1", "--set", "hardware.memory.bandwidth=100 GB/s", "--set-b", rate.format(50), "--set-c", rate.format(200)]
    data = json.loads(call("compare", *words, "--json"))
    assert data["scenarios"] == ["batch-1", "batch-1, bandwidth=50 GB/s", "batch-1, bandwidth=200 GB/s"]
    assert data["keys"] == {"hardware.memory.bandwidth": ["100 GB/s", "50 GB/s", "200 GB/s"]}
    transfer = next(row for row in data["numbers"] if row["name"] == "transfer, tasks of a token")
    assert transfer["ratios"] == [pytest.approx(2, rel=0.01), pytest.approx(0.5, rel=0.01)]


def test_times_of_tasks_are_those_of_a_token():
    data = json.loads(call("compare", "batch_1", "batch_1", "--set-b", "workload.sequences.0.tokens=8", "--json"))
    numbers = {row["name"]: row for row in data["numbers"]}
    assert numbers["tokens"]["ratios"] == [2]
    assert numbers["bytes read"]["ratios"] == [pytest.approx(2, rel=0.01)]
    assert (
        numbers["bytes per token"]["ratios"] == numbers["transfer, tasks of a token"]["ratios"] == [pytest.approx(1, rel=0.01)]
    )


def test_bytes_and_tasks_are_those_of_all_devices_also_where_one_stands_for_them():
    words = ["h100_llama_8b_tensor_parallel_2", "--set", "model.layers=1", "--set-b", "mapping.parallel.fold=false", "--json"]
    numbers = {row["name"]: row for row in json.loads(call("compare", *words))["numbers"]}
    for name in ("bytes read", "bytes written", "bytes per token", "compute, tasks of a token", "transfer, tasks of a token"):
        one, both = numbers[name]["values"]
        assert one == both > 0


@pytest.mark.parametrize(
    ("value", "text"), [(0.53841, "0.5384"), (785.24, "785.2"), (9999.4, "9,999"), (9999.6, "10,000"), (-27405.4, "-27,405")]
)
def test_numbers_are_shown_without_exponents(value: float, text: str):
    assert format_number(value) == text


def test_compare_with_itself():
    data = json.loads(call("compare", "multi_head", "multi_head", "--json"))
    assert (data["identical"], data["keys"], data["sources"]) == (True, {}, [])
    assert {tuple(row["differences"]) for row in data["numbers"]} == {(0,)}
    assert call("compare", "multi_head", "multi_head") == (
        "multi-head (a) and multi-head (b) are identical: the same settings, and the same results.\n"
    )
    page = call("compare", "multi_head", "--set-b", "seed=7")
    assert "The results are identical." in page


#: An open loop: 24 requests, four at a time, arrive at 200/s.
SERVING = {
    "workload": {
        "generate": {
            "count": 24,
            "prompt": {"distribution": "constant", "value": 128},
            "tokens": {"distribution": "constant", "value": 8},
            "arrivals": {"process": "constant", "rate": "200/s"},
        },
        "batching": {"policy": "continuous", "max_batch": 4},
    }
}


def serving(**arrivals: object):
    workload = json.loads(json.dumps(SERVING["workload"]))
    workload["generate"]["arrivals"] = arrivals or workload["generate"]["arrivals"]
    return ["model.layers=1", f"workload={json.dumps(workload)}"]


def test_in_an_open_loop_the_rate_counts():
    """24 requests at 200/s take 115 ms and more on any machine; what a machine sustains is 24 over the time of all at once."""
    speedups, sentence, _, found = help_for("batching_continuous", *serving())
    assert found.arrivals == pytest.approx(200)
    times = {change.name: change for change in found.changes}
    for name, override in (
        ("bandwidth x2", "hardware.memory.bandwidth=4078 GB/s"),
        ("batch x2", "workload.batching.max_batch=8"),
    ):
        burst = run(read(find_scenario("batching_continuous"), [*serving(process="all_at_once"), override]))
        assert times[name].service.rate == pytest.approx(24 / (burst.makespan / 1e12), rel=1e-3)
        late = run(read(find_scenario("batching_continuous"), [*serving(), override]))
        assert times[name].service.ttft == pytest.approx(late.requests.times()["ttft"].p50, rel=1e-3)
        assert times[name].service.tpot == pytest.approx(late.requests.times()["tpot"].p50, rel=1e-3)
        assert speedups[name] == times[name].service.rate / found.as_it_is.service.rate
    assert times["bandwidth x2"].makespan == pytest.approx(found.as_it_is.makespan, rel=0.02)
    assert speedups["infinite bandwidth"] > 1.5
    assert found.load == pytest.approx(200 / found.as_it_is.service.rate)
    assert "would sustain" in sentence
    assert f"requests arrive at 200/s, {found.load:.0%} of" in sentence


def test_without_requests_there_is_no_service():
    _, _, _, found = help_for("no_parallelism")
    assert {change.service for change in (found.as_it_is, *found.changes)} == {None}
    assert found.load is None


def test_the_fewest_engines_that_are_as_fast():
    """On four engines a channel at 100 GB/s streams the weights of Llama-3.2-1B no faster than on one or two."""
    _, _, result, found = help_for("llama_1b_context_256")
    (fewer,) = [change for change in found.changes if change.name == "fewer engines"]
    count = int(fewer.note.split()[0])
    assert fewer.note == f"{count} of 4 are as fast"
    for engines in range(1, 4):
        changed = run(read(find_scenario("llama_1b_context_256"), [f"hardware.engines.count={engines}"])).makespan
        assert (changed <= 1.01 * result.makespan) == (engines >= count)


def test_weights_at_half_the_bits():
    """int8 halves the bytes of weights, which are nearly all that a token moves at context 256."""
    speedups, *_ = help_for("llama_1b_context_256")
    assert speedups["weights in int8"] == pytest.approx(2, rel=0.05)
    assert "weights in int8" not in help_for("multi_head")[0], "a table of durations knows no bytes"


# One story: the headline, the changes, the breakdown and the critical path

SRAM = ("mapping.tiles=126", "model.layers=2")
SLOW = "hardware.engines={count: 4, flops: 10 GFLOP/s, vector_flops: 100 GFLOP/s}"
STORIES = [
    ("llama_1b_context_256", ("hardware.sram=8 MiB", *SRAM), "memory channel"),
    ("llama_1b_context_256", ("hardware.sram=64 MiB", *SRAM), "memory channel"),
    ("llama_1b_context_256", (), "memory channel"),
    (
        "llama_1b_context_256",
        ("hardware.memory.arbiter=processor_sharing", "hardware.sram=16 MiB", *SRAM),
        "memory channel",
    ),
    ("weights_half_on_chip", (), "memory channel"),
    ("two_sequences_processor_sharing", ("model.layers=2",), "memory channel"),
    # One tile at a time, whose load has 100 us of latency: the channel rests while a tile waits for space.
    ("llama_1b_context_256", ("hardware.sram=5 MiB", "hardware.memory.latency=100 us", *SRAM), "SRAM"),
    # Four slow engines: two tiles at a time keep two of them idle, eight tiles keep all of them busy.
    ("llama_1b_context_256", ("hardware.sram=8 MiB", *SRAM, SLOW), "SRAM"),
    ("llama_1b_context_256", ("hardware.sram=32 MiB", *SRAM, SLOW), "engines"),
    ("llama_1b_context_256", (*SRAM, SLOW), "engines"),
    ("no_parallelism", (), "scheduler"),
    ("multi_head", ("hardware.engines.count=1",), "engines"),
]
#: Places of stories that others tell as well, with other figures.
MORE_STORIES = (1, 3, 4, 5, 7, 9)
SIDES = {
    "memory channel": ("transfer", "wait_channel"), "SRAM": ("wait_sram",), "scheduler": ("wait_policy", "compute"),
    "engines": ("compute", "wait_engine"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "overrides", "limit"),
    [pytest.param(*story, marks=[pytest.mark.slow] if place in MORE_STORIES else []) for place, story in enumerate(STORIES)],
)
def test_one_story(name: str, overrides: tuple[str, ...], limit: str):
    """The headline names the largest part of the time of tokens, and that resource, doubled, helps more than any other."""
    speedups, sentence, result, _ = help_for(name, *overrides)
    assert f"{limit} " in sentence.split(" the bottleneck")[0]
    sums = dict(zip(PARTS, result.breakdown.tokens.sum(axis=0).tolist(), strict=True))
    share = {side: sum(sums[part] for part in parts) for side, parts in SIDES.items()}
    assert max(share, key=lambda side: share[side]) == limit
    doubled = {"memory channel": "bandwidth x2", "SRAM": "SRAM x2", "engines": "engines x2", "scheduler": "earliest"}
    resources = {side: speedups[change] for side, change in doubled.items() if change in speedups}
    assert max(resources, key=lambda side: resources[side]) == limit
    if limit == "memory channel":
        other = ("infinite engines", "SRAM x2", "unbounded SRAM", "fewer engines", "earliest")
        assert all(speedups["infinite bandwidth"] > speedups.get(change, 1.0) for change in other)
        assert result.bounds.gap(result.makespan) < speedups["infinite bandwidth"]


def test_more_sram_does_not_cure_what_the_channel_causes():
    """With 8 MiB the loads of a token wait for the channel all along; SRAM has only the instants in which it rests."""
    speedups, _, result, _ = help_for("llama_1b_context_256", "hardware.sram=8 MiB", *SRAM)
    assert speedups["unbounded SRAM"] == pytest.approx(1, abs=0.01)
    assert result.breakdown.tokens[:, PARTS.index("wait_sram")].sum() < 0.01 * result.makespan


def test_one_port_at_a_time():
    """Multiprocessors of an H100 draw a 40th of the bandwidth each: in turn that is all they get, 40 at once get all of it."""
    base = {
        "model": {"config": "llama-3.1-8b", "layers": 1, "scope": "block"}, "mapping": {"tiles": "engines"}, "cost": "roofline",
        "hardware": {"preset": "h100-sxm", "engines": {"count": 40}},
    }  # fmt: skip
    found = run(from_dict(base))
    help_ = what_if(found)
    speedups = {change.name: change.speedup(help_.as_it_is) for change in help_.changes}
    assert speedups["processor_sharing"] == pytest.approx(40, rel=0.05)
    assert help_.bottleneck.startswith(
        "The arbiter is the bottleneck: fifo serves one transfer at a time, at the pace of one port"
    )
    assert "arbiter: processor_sharing" in shown(found)

    def at_once(engines: int) -> int:
        memory = {"arbiter": "processor_sharing"}
        hardware = {"preset": "h100-sxm", "engines": {"count": engines}, "memory": memory}
        return run(from_dict({**base, "hardware": hardware})).makespan

    assert at_once(20) == pytest.approx(2 * at_once(40), rel=0.02)
    assert at_once(80) == pytest.approx(at_once(40), rel=0.02)
    assert "advice" not in shown(run(from_dict({**base, "hardware": {"preset": "h100-sxm"}})))
