"""Tensor parallelism: bytes of each device, the time of collectives by formula, and one device that stands for all."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import models.library
import sim
from models.graph import QUANTITIES, OpGraph
from models.rewrites import shard
from sim.analysis.parts import PARTS
from sim.base.errors import ConfigError
from sim.base.units import ceil_div
from sim.cli import cli
from sim.mapping.collectives import Fastest, LinkRates, phases, rounds, time_alone
from sim.render.page.timeline import timeline
from sim.runs.run import read
from tests.executors import assert_same

LLAMA = "llama-3.1-8b"


def total(ops: OpGraph, quantity: str, context: int = 2048) -> int:
    return int(ops.costs(context)[QUANTITIES.index(quantity)].sum())


def of_kind(ops: OpGraph, kind: str) -> list[int]:
    return [i for i, op in enumerate(ops.ops) if op.kind == kind]


@pytest.fixture(scope="module")
def llama() -> OpGraph:
    return models.library.load(LLAMA).step()


class TestBytesOfADevice:
    @pytest.mark.parametrize(
        ("devices", "weights", "kv"),
        [
            (1, 15_009_857_536, 268_435_456),
            (2, 7_505_199_104, 134_217_728),
            (8, 1_876_705_280, 33_554_432),
            (16, 972_177_408, 33_554_432),  # of 8 KV heads each device has one, so keys and values are computed twice
        ],
    )
    def test_llama_8b(self, llama, devices, weights, kv):
        ops = shard(llama, devices)
        assert total(ops, "weight") == weights
        assert total(ops, "kv_read") == kv

    def test_by_hand(self, llama):
        """Matrices divide; 65 norms of 4,096 numbers and a row of the embedding do not."""
        whole = 65 * 4096 * 2 + 4096 * 2
        for devices in (2, 4, 8):
            expected = (total(llama, "weight") - whole) // devices + whole
            assert total(shard(llama, devices), "weight") == expected

    def test_collectives(self, llama):
        ops = shard(llama, 8)
        assert len(of_kind(ops, "all_reduce")) == 2 * 32
        (gather,) = of_kind(ops, "all_gather")
        assert ops.ops[gather].path == "lm_head"
        sent = ops.costs(2048)[QUANTITIES.index("act_write")]
        assert {int(sent[i]) for i in of_kind(ops, "all_reduce")} == {4096 * 2}
        assert sent[gather] == 128_256 * 2

    def test_one_device_is_the_whole_model(self, llama):
        assert shard(llama, 1) is llama

    def test_what_computes_twice_counts_twice(self, llama):
        """All FLOPs of products but those that are the same on every device."""
        ops = shard(llama, 8)
        assert 8 * total(ops, "flops") == total(llama, "flops")


class TestOtherModels:
    @pytest.mark.parametrize("name", ["gemma-2-2b", "phi-3-mini-4k", "gpt2", "qwen3-0.6b", "mixtral-8x7b", "gpt-oss-20b"])
    def test_two_all_reduces_a_layer(self, name):
        model = models.library.load(name)
        ops = shard(model.step(), 2)
        assert len(of_kind(ops, "all_reduce")) == 2 * model.layers
        assert len(of_kind(ops, "all_gather")) == 1

    def test_latents_are_the_same_on_all_devices(self):
        ops = models.library.load("deepseek-v3").step()
        parts = shard(ops, 8)
        assert total(parts, "kv_read") == total(ops, "kv_read")
        down = [i for i, op in enumerate(ops.ops) if op.path.endswith(("q_a_proj", "kv_a_proj_with_mqa"))]
        weight = {op.path: int(cost) for op, cost in zip(parts.ops, parts.costs(0)[QUANTITIES.index("weight")], strict=True)}
        for i in down:
            assert weight[ops.ops[i].path] == ops.costs(0)[QUANTITIES.index("weight"), i]

    @pytest.mark.parametrize("name", ["deepseek-v3.2", "deepseek-v4-flash"])
    def test_keys_of_an_indexer_leave_all_layers_cut(self, name):
        """Products of a layer end the way back from its cache, so that layers before it are cut as well."""
        model = models.library.load(name)
        ops = model.step()
        parts = shard(ops, 8)
        row = QUANTITIES.index("weight")
        whole, cut = ({(op.kind, op.path): int(w) for op, w in zip(g.ops, g.costs(0)[row], strict=True)} for g in (ops, parts))
        for kind, path in whole:
            if kind in ("gate_up_proj", "down_proj", "o_proj") or (path.endswith("q_b_proj") and kind == "q_proj"):
                assert whole[kind, path] == 8 * cut[kind, path]
        assert len(of_kind(parts, "all_reduce")) == 2 * model.layers
        assert len(of_kind(parts, "all_gather")) == 1

    def test_groups_of_heads_that_do_not_divide(self):
        """The first of two products behind the attention of DeepSeek-V4 is one for each of 8 groups of heads."""
        with pytest.raises(ConfigError, match="a divisor of the 8 groups of heads of o_proj, found 16; 8 would do"):
            shard(models.library.load("deepseek-v4-flash").step(), 16)

    def test_experts_are_cut_not_dealt(self):
        """Each device has an eighth of every expert, so all of them work on each token."""
        ops = models.library.load("mixtral-8x7b").step()
        whole, parts = ([op.experts for op in each.ops if op.experts] for each in (ops, shard(ops, 8)))
        assert [(e.count, e.top_k) for e in whole] == [(e.count, e.top_k) for e in parts]
        assert [e.bytes for e in whole] == [8 * e.bytes for e in parts]

    @pytest.mark.parametrize(("devices", "possible"), [(3, "1, 2, 4, 8, 16, 32"), (64, "1, 2, 4, 8, 16, 32")])
    def test_heads_that_do_not_divide(self, llama, devices, possible):
        with pytest.raises(ConfigError, match=f"possible: {possible}"):
            shard(llama, devices)


def scenario(**changes: object) -> list[str]:
    """Assignments: one layer of Llama 8B on eight devices, a prompt of 512 tokens, links of 450 GB/s and 1 us."""
    given = {
        "model.layers": 1, "model.scope": "block", "hardware.devices.count": 8, "mapping.parallel.tensor": 8,
        "hardware.devices.link": "{bandwidth: 450 GB/s, latency: 1 us}",
        "workload.sequences": "[{prompt: 512, tokens: 1}]", "hardware.preset": "h100-sxm",
    }  # fmt: skip
    return [f"{key}={value}" for key, value in {**given, **changes}.items()]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("tensor") / "base.yaml"
    path.write_text(f"model: {{config: {LLAMA}}}\n")
    return path


def sends(result: sim.Result) -> np.ndarray:
    """Time from the first send of each all-reduce to the end of the last, ps."""
    (graph,), tasks = result.log.graphs, result.log.tasks
    rows = np.flatnonzero(graph.kind == graph.kinds.index("all_reduce_send"))
    op = graph.op[rows]
    return np.array([tasks.end[rows[op == each]].max() - tasks.ready[rows[op == each]].min() for each in np.unique(op)])


class TestTimes:
    """Alone on a link: n = 8, 4 MiB, 450 GB/s, 1 us."""

    @pytest.mark.parametrize(
        ("algorithm", "microseconds"), [("ring", 30.311), ("two_shot", 18.311), ("one_shot", 66.245), ("tree", 61.924)]
    )
    def test_closed_forms(self, base, algorithm, microseconds):
        n, size, latency = 8, 4 * 2**20, 1_000_000
        result = sim.run(read(base, scenario(**{"mapping.parallel.algorithm": algorithm})), executor="simpy")

        def time(amount: int) -> int:
            return ceil_div(amount * 10**12, 450 * 10**9)

        part = ceil_div(size, n)
        expected = {
            "ring": 2 * (n - 1) * (latency + time(part)),
            "two_shot": 2 * (latency + (n - 1) * time(part)),
            "one_shot": latency + (n - 1) * time(size),
            "tree": 2 * 3 * (latency + time(size)),
        }[algorithm]
        assert sends(result).tolist() == [expected, expected]  # after the attention, and after the MLP
        assert round(expected / 1e6, 3) == microseconds

    @pytest.mark.parametrize(
        ("kind", "algorithm", "devices", "expected"),
        [
            ("all_reduce", "ring", 2, (2, 1, 2)), ("all_reduce", "two_shot", 5, (2, 4, 5)),
            ("all_reduce", "one_shot", 5, (1, 4, 1)), ("all_reduce", "tree", 5, (6, 1, 1)),
            ("all_gather", "ring", 4, (3, 1, 4)), ("all_gather", "one_shot", 4, (1, 3, 4)),
        ],
    )  # fmt: skip
    def test_rounds(self, kind, algorithm, devices, expected):
        assert rounds(kind, algorithm, devices) == expected


class TestFastest:
    """Llama 8B on eight devices, 450 GB/s and 1 us: 8,192 bytes per token, one round of 7 messages or two of 7/8."""

    LINK = LinkRates(450 * 10**9, 1_000_000)

    @pytest.mark.parametrize(
        ("algorithm", "microseconds"), [("ring", 30.311), ("two_shot", 18.311), ("one_shot", 66.245), ("tree", 61.924)]
    )
    def test_closed_forms(self, algorithm, microseconds):
        assert round(time_alone(phases("all_reduce", algorithm, 8)[0], 2**22, self.LINK) / 1e6, 3) == microseconds

    def test_one_shot_below_and_two_shot_beyond(self):
        """7 S / B < 1 us + 14 S / 8 B, so S < 450 kB / 5.25: 85,714 bytes, ten tokens of 8,192."""
        fastest = Fastest(8, 8192, (self.LINK,))
        assert [fastest.algorithm(tokens) for tokens in (1, 10, 11, 4096)] == ["one_shot", "one_shot", "two_shot", "two_shot"]
        assert [fastest.least(tokens) for tokens in (1, 10, 11, 4096)] == [1, 1, 11, 11]
        assert fastest.changes() == [(11, "two_shot"), (1, "one_shot")]

    def test_two_devices_take_one_round(self):
        assert Fastest(2, 8192, (self.LINK,)).changes() == [(1, "one_shot")]

    @pytest.mark.parametrize("devices", [2, 3, 5, 8, 64])
    @pytest.mark.parametrize("latency", [0, 1_000, 1_000_000])
    def test_none_is_faster(self, devices, latency):
        fastest = Fastest(devices, 1_000, (LinkRates(64 * 10**9, latency),))
        for tokens in (1, 2, 7, 40, 300, 5_000):
            times = {
                each: time_alone(phases("all_reduce", each, devices)[0], 1_000 * tokens, fastest.links[0])
                for each in ("ring", "two_shot", "one_shot", "tree")
            }
            assert times[fastest.algorithm(tokens)] == min(times.values())
            assert fastest.algorithm(fastest.least(tokens)) == fastest.algorithm(tokens)

    @pytest.mark.parametrize("executor", ["simpy", "compiled"])
    def test_steps_have_the_algorithm_of_their_tokens(self, base, executor):
        """A prompt of 512 tokens as `two_shot`, and the token after it as `one_shot`."""
        two = {"workload.sequences": "[{prompt: 512, tokens: 2}]"}
        ends = {
            algorithm: sim.run(read(base, scenario(**two, **{"mapping.parallel.algorithm": algorithm})), executor=executor)
            for algorithm in ("auto", "one_shot", "two_shot")
        }
        times = {name: np.diff(result.log.steps.end, prepend=0).tolist() for name, result in ends.items()}
        assert times["auto"] == [times["two_shot"][0], times["one_shot"][1]]
        assert times["auto"][0] < times["one_shot"][0]
        assert times["auto"][1] < times["two_shot"][1]

    def test_check_says_which(self, base):
        arguments = [word for each in scenario(**{"mapping.parallel.algorithm": "auto"}) for word in ("--set", each)]
        printed = CliRunner().invoke(cli, ["check", str(base), *arguments, "--not-resolved"]).output
        assert "all-reduces of llama-3.1-8b: one_shot, two_shot from 11 tokens per step (90.112 kB)" in printed
        assert "devices 0 to 7, each: layer 0, " in printed
        assert "sends 2 all_reduce (114.688 kB in all) in a step of one token" in printed

    def test_a_log_keeps_the_algorithms(self, base, tmp_path):
        pytest.importorskip("pyarrow")
        auto = {"mapping.parallel.algorithm": "auto", "workload.sequences": "[{prompt: 512, tokens: 2}]"}
        result = sim.run(read(base, scenario(**auto)), executor="simpy")
        sim.save_log(result.log, result.scenario, tmp_path / "run.parquet")
        assert_same(result.log, sim.load_log(tmp_path / "run.parquet")[0])


class TestRuns:
    def test_one_device_is_no_parallelism_to_the_picosecond(self, base):
        one = {"hardware.devices.count": 1, "mapping.parallel.tensor": 1}
        with_link = sim.run(read(base, scenario(**one)), executor="simpy")
        none = sim.run(read(base, scenario(**one, **{"hardware.devices.link": "null"})), executor="simpy")
        for field in dataclasses.fields(with_link.log.tasks):
            assert np.array_equal(getattr(with_link.log.tasks, field.name), getattr(none.log.tasks, field.name))

    def test_link_time_is_a_part_of_its_own(self, base):
        result = sim.run(read(base, scenario()), executor="simpy")
        along = dict(zip(PARTS, result.breakdown.tokens.sum(axis=0).tolist(), strict=True))
        assert along["link"] == sends(result).sum() - along["wait_link"]
        assert result.bounds.link == result.metrics.delivered[-1]
        assert result.bounds.lower <= result.makespan
        assert result.metrics.bytes_sent == 2 * 2 * 7 * ceil_div(512 * 8192, 8)  # of each all-reduce, 7/8 of its bytes twice

    def test_a_page_has_the_link_beside_channels_that_share_each_transfer(self, base):
        result = sim.run(read(base, scenario(**{"hardware.memory.channels.count": 2})), executor="simpy")
        facts, columns, _ = timeline(result)
        assert facts["channel_names"] == ["channel 0", "channel 1", "link"]
        graph, task = result.log.graphs[0], columns["task"]
        sent = graph.kind[task] == graph.kinds.index("all_reduce_send")
        assert set(columns["channel"][sent].tolist()) == {2}
        assert set(columns["channel"][~sent].tolist()) == {0}

    def test_devices_that_nothing_uses(self, base):
        with pytest.raises(sim.InputError, match=r"mapping.parallel.tensor: expected 8, the number of devices"):
            sim.run(read(base, scenario(**{"mapping.parallel.tensor": 1})))

    def test_times_that_do_not_follow_from_bytes(self, base):
        with pytest.raises(sim.InputError, match=r"cost.model: expected roofline or kernel with several devices"):
            sim.run(read(base, scenario(cost="fixed")))

    def test_a_log_keeps_its_link(self, base, tmp_path):
        pytest.importorskip("pyarrow")
        result = sim.run(read(base, scenario()), executor="simpy")
        sim.save_log(result.log, result.scenario, tmp_path / "run.parquet")
        log, _ = sim.load_log(tmp_path / "run.parquet")
        assert log.machine == result.log.machine
        assert_same(result.log, log)


#: Launch in us, algorithm and link of the tables of the guide: the preset's, and those that fit a library.
PRESET = (1.5, "two_shot", LinkRates(450 * 10**9, 2_000_000))
FITTED = {
    "NCCL": (18.0, "two_shot", LinkRates(225 * 10**9, 1_000_000)),
    "custom kernels": (1.5, "one_shot", LinkRates(225 * 10**9, 4_200_000)),
}


@pytest.mark.parametrize(("library", "sizes", "within"), [("NCCL", 7, 13), ("custom kernels", 6, 17)])
def test_the_tables_of_the_guide(library, sizes, within):
    """All-reduces over eight H100, as t0 + the closed form of the rounds."""
    guide = (Path(__file__).parents[2] / "docs/guides/tensor_parallelism.md").read_text(encoding="utf-8")
    table = guide.partition(f"| all-reduce, 8 H100 | {library} |")[2].partition("\n\n")[0]
    figure = r"([\d.]+) us \| (-?\d+) %"
    rows = re.findall(rf"^\| (\d+) (B|KiB|MiB) \| ([\d.]+) us \| {figure} \| {figure} \|$", table, flags=re.MULTILINE)
    assert len(rows) == sizes
    for size, unit, measured, *printed in rows:
        amount = int(size) * {"B": 1, "KiB": 2**10, "MiB": 2**20}[unit]
        for (t0, algorithm, link), simulated, error in zip((PRESET, FITTED[library]), printed[::2], printed[1::2], strict=True):
            time = t0 + time_alone(phases("all_reduce", algorithm, 8)[0], amount, link) / 1e6
            assert f"{time:.1f}" == simulated
            assert abs(100 * (time / float(measured) - 1) - int(error)) <= 1
        assert abs(int(printed[3])) <= within


@pytest.mark.parametrize(
    ("t0", "expected"), [({"collective": "18 us"}, 18), ({"collective": "18 us", "all_reduce": "7 us"}, 7), ({}, 1.5 + 9.7)]
)
def test_a_launch_of_collectives(base, t0, expected):
    """Each pays it beside its rounds; other kernels keep theirs, and 9.7 us in a prompt."""
    given = scenario(**{"cost.model": "kernel", **{f"cost.t0.{kind}": time for kind, time in t0.items()}})
    result = sim.run(read(base, given), executor="simpy")
    (graph,), tasks = result.log.graphs, result.log.tasks
    of_kind = {kind: tasks.compute[graph.kind == graph.kinds.index(kind)] for kind in ("all_reduce", "norm")}
    assert set(of_kind["all_reduce"].tolist()) == {round(expected * 1e6) + 1}  # and the picosecond that all work lasts at least
    assert 11_200_000 < of_kind["norm"].max() < 16_700_000


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_the_throughput_of_the_guide(devices, tmp_path):
    """Llama 70B on B200s, as the guide has it: what is simulated, and how far that is from what is published."""
    guide = (Path(__file__).parents[2] / "docs/guides/tensor_parallelism.md").read_text(encoding="utf-8")
    (tmp_path / "b70.yaml").write_text(re.search(r"```yaml\n# b70.yaml\n(.*?)```", guide, flags=re.DOTALL)[1])
    row = rf"^\| {devices} \| ([\d,]+) tokens/s \| ([\d,]+) tokens/s \| \+(\d+) % \|$"
    published, simulated, error = (int(word.replace(",", "")) for word in re.search(row, guide, flags=re.MULTILINE).groups())
    result = sim.run(read(tmp_path / "b70.yaml", [f"hardware.devices.count={devices}", f"mapping.parallel.tensor={devices}"]))
    rate = int(result.requests.tokens.sum()) / (result.makespan / 1e12)
    assert round(rate) == simulated
    assert round(100 * (rate / published - 1)) == error


@pytest.mark.parametrize("devices", [1, 8])
def test_the_latency_of_the_guide(devices, tmp_path):
    """Llama 2 7B on H100s, as the guide has it: what is simulated, without and with a host time, and how far from published."""
    guide = (Path(__file__).parents[2] / "docs/guides/tensor_parallelism.md").read_text(encoding="utf-8")
    (tmp_path / "nemo.yaml").write_text(re.search(r"```yaml\n# nemo.yaml\n(.*?)```", guide, flags=re.DOTALL)[1])
    figure = r" ([\d.]+) ms \| (-?\d+) % \|"
    published, *found = re.search(rf"^\| {devices} \| ([\d.]+) ms \|{figure}{figure}$", guide, flags=re.MULTILINE).groups()
    each = [f"hardware.devices.count={devices}", f"mapping.parallel.tensor={devices}"]
    for host, simulated, error in zip(("0 ms", "1.93 ms"), found[::2], found[1::2], strict=True):
        result = sim.run(read(tmp_path / "nemo.yaml", [*each, f"workload.step_overhead={host}", "record=steps"]))
        assert f"{result.makespan / 1e9:.1f}" == simulated
        assert round(100 * (result.makespan / 1e9 / float(published) - 1)) == int(error)
