"""Several simulated devices: all of tensor parallelism as one that stands for them, and a pipeline by its closed form."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

import models.library
import sim
from models.graph import QUANTITIES
from models.rewrites import P2P, shard, staged, unfolded
from models.rewrites.devices import layers_of_stages
from sim.analysis.parts import PARTS
from sim.base.errors import ConfigError
from sim.base.units import ceil_div
from sim.mapping.collectives import received, rounds
from sim.mapping.tasks import LINK_BIT
from sim.render.page.timeline import timeline
from sim.render.trace.canvas import Canvas
from sim.render.trace.machine import machine
from sim.runs.holdings import holdings
from sim.runs.model import models_of
from sim.runs.plan import plan
from sim.runs.run import read
from tests.executors import assert_same, assert_saved

LLAMA = "llama-3.1-8b"
LATENCY, BANDWIDTH = 1_000_000, 450 * 10**9
LINK = "{bandwidth: 450 GB/s, latency: 1 us}"
HIDDEN = 4096 * 2  # bytes of a token between layers


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "base.yaml"
    path.write_text(f"model: {{config: {LLAMA}}}\n")
    return path


def run(base, *, executor: Any = "simpy", **changes: object) -> sim.Result:
    """A run of two layers on H100s; `a_b` of the changes is the key `a.b`."""
    given = {
        "model.layers": 2, "hardware.preset": "h100-sxm", "hardware.devices.link": LINK,
        "workload.sequences": "[{context: 512, tokens: 2}]",
    }  # fmt: skip
    given |= {key.replace("__", "."): value for key, value in changes.items()}
    parallel = {key: int(str(given.get(f"mapping.parallel.{key}", 1))) for key in ("tensor", "pipeline")}
    given["hardware.devices.count"] = parallel["tensor"] * parallel["pipeline"]
    return sim.run(read(base, [f"{key}={value}" for key, value in given.items()]), executor=executor)


def times_of(result: sim.Result, device: int = 0) -> list[list[int]]:
    """Times of all tasks of a device [column][task], in program order."""
    log = result.log
    mine = np.concatenate([graph.device for graph in (log.graphs[number] for number in log.steps.graph)]) == device
    return [getattr(log.tasks, name)[mine].tolist() for name in ("ready", "start", "loaded", "end", "compute", "work")]


class TestUnfolded:
    @pytest.mark.parametrize("devices", [2, 4])
    @pytest.mark.parametrize("algorithm", ["ring", "two_shot", "one_shot", "tree"])
    def test_all_devices_do_what_the_one_that_stands_for_them_does(self, base, algorithm, devices):
        parallel = {"mapping__parallel__tensor": devices, "mapping__parallel__algorithm": algorithm}
        one, all_of_them = run(base, **parallel), run(base, **parallel, mapping__parallel__fold="false")
        assert len(all_of_them.log.tasks) == devices * len(one.log.tasks)
        for device in range(devices):
            assert times_of(all_of_them, device) == times_of(one)

    def test_batches_with_prompts(self, base):
        """The same where prompts arrive while others decode, in the tally of tokens and parts as well."""
        served = {
            "workload__sequences": "[{prompt: 100, tokens: 3}, {prompt: 30, tokens: 2, arrival: 200 us, count: 2}]",
            "workload__batching__policy": "continuous", "mapping__parallel__tensor": 2,
        }  # fmt: skip
        one, both = run(base, **served), run(base, **served, mapping__parallel__fold="false")
        assert both.log.steps.end.tolist() == one.log.steps.end.tolist()
        assert both.breakdown.tokens.tolist() == one.breakdown.tokens.tolist()
        assert both.metrics.bytes_sent == 2 * one.metrics.bytes_sent
        assert both.bounds.lower == one.bounds.lower

    def test_a_machine_of_devices(self, base):
        result = run(base, mapping__parallel__tensor=2, mapping__parallel__fold="false", hardware__memory__channels__count=2)
        names = [channel.name for channel in result.log.machine.channels]
        assert names == [
            "device 0 channel 0", "device 0 channel 1", "device 1 channel 0", "device 1 channel 1", "device 0 link",
            "device 0 link in", "device 1 link", "device 1 link in",
        ]  # fmt: skip
        assert result.log.machine.like == 1
        assert result.metrics.delivered[:2] == result.metrics.delivered[2:4]
        assert min(result.metrics.delivered[4:]) == max(result.metrics.delivered[4:]) > 0

    def test_what_a_device_gets_is_sent_once(self):
        """Each send of a round has one receiver, which is another device."""
        for kind, algorithm in (
            ("all_reduce", "ring"),
            ("all_reduce", "two_shot"),
            ("all_gather", "one_shot"),
            ("all_reduce", "tree"),
        ):
            for devices in (2, 3, 4, 8):
                of = rounds(kind, algorithm, devices)
                for number in range(of.number):
                    got = [each for device in range(devices) for each in received(of, number, device, devices)]
                    assert sorted(got) == [(device, send) for device in range(devices) for send in range(of.sends)]
                    assert all(
                        sender != device for device in range(devices) for sender, _ in received(of, number, device, devices)
                    )

    def test_what_a_device_waits_for_is_its_own(self, base):
        """One engine each: a wait for it is never counted as one that an idle engine of another device could have ended."""
        result = run(base, mapping__parallel__tensor=2, mapping__parallel__fold="false",
                     workload__sequences="[{context: 512, tokens: 2, count: 2}]", hardware__engines__count=1)  # fmt: skip
        folded = run(base, mapping__parallel__tensor=2, workload__sequences="[{context: 512, tokens: 2, count: 2}]",
                     hardware__engines__count=1)  # fmt: skip
        along = dict(zip(PARTS, result.breakdown.tokens.sum(axis=0).tolist(), strict=True))
        assert along == dict(zip(PARTS, folded.breakdown.tokens.sum(axis=0).tolist(), strict=True))
        assert along["wait_engine"] > 0
        assert along["wait_policy"] == 0
        assert result.blame.engine_by_owner.wait.sum() == 2 * folded.blame.engine_by_owner.wait.sum()


class TestStages:
    def test_layers_and_sends(self):
        ops = models.library.load(LLAMA).step()
        parts = staged(ops, 4)
        sends = [op for op in parts.ops if op.kind == P2P]
        assert [(op.device, op.part, op.layer) for op in sends] == [(0, "to 1", 7), (1, "to 2", 15), (2, "to 3", 23)]
        assert {op.layer // 8 for op in parts.ops if op.layer >= 0 and op.device == 2} == {2}
        on = {kind: [op.device for op in parts.ops if op.kind == kind] for kind in ("embedding", "lm_head")}
        assert on == {"embedding": [0], "lm_head": [3]}
        assert [op.device for op in parts.ops if (op.kind, op.part) == ("rope", "table")] == [0, 1, 2, 3]

    def test_nothing_is_lost(self):
        """The ops of all stages are those of the model, with a rope table more for each further stage, and the sends."""
        ops = models.library.load(LLAMA).step()
        parts = staged(ops, 2)
        assert len(parts.ops) == len(ops.ops) + 1 + 1
        for name in ("weight", "kv_read", "kv_write", "flops"):
            number = QUANTITIES.index(name)
            assert parts.costs(100)[number].sum() == ops.costs(100)[number].sum()
        (sent,) = [i for i, op in enumerate(parts.ops) if op.kind == P2P]
        assert parts.costs(100)[QUANTITIES.index("act_write"), sent] == HIDDEN
        several = staged(models.library.load(LLAMA).step(batch=3), 2)
        (sent,) = [i for i, op in enumerate(several.ops) if op.kind == P2P]
        assert several.costs(100)[QUANTITIES.index("act_write"), sent] == 3 * HIDDEN

    def test_one_stage_is_the_whole_model(self):
        ops = models.library.load(LLAMA).step()
        assert staged(ops, 1) is ops
        assert unfolded(ops, 1) is ops

    @pytest.mark.parametrize(
        ("layers", "each"),
        [(3, [2, 1]), (4, [1, 2, 1]), (5, [2, 2, 1]), (61, [15, 15, 16, 15]), (62, [15, 16, 16, 15]), (8, [2, 2, 2, 2])],
    )
    def test_layers_that_do_not_divide(self, layers, each):
        """As vLLM divides them: the first three are cases of its tests (tests/distributed/test_pipeline_partition.py)."""
        assert layers_of_stages(layers, len(each)) == each

    def test_layers_of_each_stage(self):
        """All that the model does, once, wherever stages begin; with a rope table more, and a send."""
        ops = models.library.load(LLAMA).step()
        parts = staged(ops, 3, [20, 3, 9])
        of_stage = [{op.layer for op in parts.ops if op.device == stage and op.layer >= 0} for stage in range(3)]
        assert of_stage == [{*range(20)}, {*range(20, 23)}, {*range(23, 32)}]
        for name in ("weight", "kv_read", "kv_write", "flops"):
            number = QUANTITIES.index(name)
            assert parts.costs(100)[number].sum() == ops.costs(100)[number].sum()

    def test_no_stages_of_these_layers(self):
        ops = models.library.load(LLAMA).step()
        with pytest.raises(ConfigError, match=r"pipeline: expected at most 32, one stage for each layer, found 33"):
            staged(ops, 33)
        with pytest.raises(ConfigError, match=r"layers: expected a sum of 32, the layers of the model, found 20 \+ 3 = 23"):
            staged(ops, 2, [20, 3])

    def test_copies_stand_together(self):
        ops = staged(shard(models.library.load(LLAMA).step(), 2), 2)
        both = unfolded(ops, 2)
        assert [op.device for op in both.ops[::2]] == [2 * op.device for op in ops.ops]
        assert [op.device for op in both.ops[1::2]] == [2 * op.device + 1 for op in ops.ops]


def stage_of(base, layers: int, **changes: object) -> int:
    """Time of one stage of so many layers, ps."""
    return run(base, **{**changes, "model__layers": layers, "model__scope": "block", "mapping__parallel__pipeline": 1}).makespan


#: A stage does one thing at a time, and a launch takes no time but the picosecond that every task lasts at least.
STREAM = {"mapping__execution": "stream", "cost__model": "roofline", "hardware__engines__overhead": "0 ns"}


class TestPipeline:
    @pytest.mark.parametrize("executor", ["simpy", "compiled"])
    @pytest.mark.parametrize(("stages", "batches"), [(2, 1), (2, 2), (4, 2), (4, 5)])
    def test_bubbles(self, base, stages, batches, executor):
        """One token each: m batches take m + P - 1 turns of a stage, of which P - 1 are bubbles, and P - 1 sends."""
        result = run(
            base, executor=executor, model__layers=8, model__scope="block", mapping__parallel__pipeline=stages, **STREAM,
            workload__sequences=f"[{{context: 512, tokens: 1, count: {batches}}}]",
        )  # fmt: skip
        stage = stage_of(base, 8 // stages, **STREAM, workload__sequences="[{context: 512, tokens: 1}]")
        send = LATENCY + ceil_div(HIDDEN * 10**12, BANDWIDTH)
        launches = batches - 1 + stages - 1  # of sends: of the first batch at each stage, and of all others at the first
        assert result.makespan == (batches + stages - 1) * stage + (stages - 1) * send + launches

    @pytest.mark.parametrize("executor", ["simpy", "compiled"])
    @pytest.mark.parametrize("layers", [None, [1, 3, 1]])
    def test_the_largest_stage_sets_the_pace(self, base, layers, executor):
        """One token of each of 4 batches: the first goes through all stages, and the largest ends a batch each of its turns."""
        given = {} if layers is None else {"mapping__parallel__layers": layers}
        result = run(
            base, executor=executor, model__layers=5, model__scope="block", mapping__parallel__pipeline=3, **STREAM, **given,
            workload__sequences="[{context: 512, tokens: 1, count: 4}]",
        )  # fmt: skip
        alone = [
            stage_of(base, many, **STREAM, workload__sequences="[{context: 512, tokens: 1}]") for many in layers or [2, 2, 1]
        ]
        send = LATENCY + ceil_div(HIDDEN * 10**12, BANDWIDTH)
        launches = 2 + 3  # of sends: of the first batch at two stages, and of the others at the one that they wait for
        assert result.makespan == sum(alone) + 3 * max(alone) + 2 * send + launches

    @pytest.mark.parametrize("executor", ["simpy", "compiled"])
    def test_micro_batches_take_requests_in_turn(self, base, executor):
        """Prompts of 12 requests in three batches of four on two stages take 3 + 2 - 1 turns."""
        serve = {
            "workload__batching__policy": "static", "mapping__attention": "batch", "model__layers": 4, "model__scope": "block",
            "mapping__parallel__pipeline": 2, **STREAM,
        }  # fmt: skip
        result = run(
            base, executor=executor, **serve, mapping__parallel__micro_batches=3,
            workload__sequences="[{prompt: 64, tokens: 1, count: 12}]",
        )  # fmt: skip
        assert [sorted(m) for m in np.split(result.log.members.sequence, [4, 8])] == [
            [0, 3, 6, 9],
            [1, 4, 7, 10],
            [2, 5, 8, 11],
        ]
        one = stage_of(base, 2, **serve, workload__sequences="[{prompt: 64, tokens: 1, count: 4}]")
        send = LATENCY + ceil_div(4 * 64 * HIDDEN * 10**12, BANDWIDTH)
        assert result.makespan == (3 + 2 - 1) * one + send + 3

    def test_tokens_go_round(self, base):
        """Enough batches keep both stages busy; one leaves each of them idle half of the time."""
        long = {"model__layers": 4, "model__scope": "block", "mapping__parallel__pipeline": 2, **STREAM}
        one, two = (
            run(base, **long, workload__sequences=f"[{{context: 512, tokens: 20, count: {count}}}]") for count in (1, 2)
        )
        busy = [sum(each.metrics.engine_busy) / each.makespan for each in (one, two)]
        assert 0.98 < busy[0] < 1.0
        assert 1.90 < busy[1] < 2.0
        assert two.makespan < 1.04 * one.makespan

    @pytest.mark.parametrize("executor", ["simpy", "compiled"])
    def test_one_stage_is_no_pipeline_to_the_picosecond(self, base, executor):
        one, none = (run(base, executor=executor, **given) for given in ({"mapping__parallel__pipeline": 1}, {}))
        for field in fields(one.log.tasks):
            assert np.array_equal(getattr(one.log.tasks, field.name), getattr(none.log.tasks, field.name))

    def test_tensor_parallelism_within_stages(self, base):
        """Four devices as two that are simulated, and as all of them."""
        both = {"mapping__parallel__pipeline": 2, "mapping__parallel__tensor": 2, "model__layers": 4}
        folded, whole = run(base, **both), run(base, **both, mapping__parallel__fold="false")
        assert (len(folded.log.machine.devices), folded.log.machine.like) == (2, 2)
        assert (len(whole.log.machine.devices), whole.log.machine.like) == (4, 1)
        assert times_of(whole, 0) == times_of(whole, 1) == times_of(folded, 0)
        assert times_of(whole, 2) == times_of(whole, 3) == times_of(folded, 1)

    def test_energy_counts_all_devices(self, base):
        """Arithmetic and bytes are those of the model, wherever it runs; static power is that of all devices."""
        energy = {"hardware__energy": "{flop: 1 pJ/FLOP, byte: 10 pJ/B, static: {device: 50 W, engine: 10 W}}"}
        one, two = (run(base, **energy, model__scope="block", mapping__parallel__pipeline=p) for p in (1, 2))
        assert one.energy.compute == two.energy.compute
        assert abs(two.energy.memory / one.energy.memory - 1) < 1e-3
        assert two.energy.static == 2 * (50 + 10) * 1_000 * two.makespan

    def test_a_page_and_a_trace_have_each_device(self, base):
        """Lanes by device on the page; in the trace a group of engines, memory and link for each."""
        result = run(base, mapping__parallel__pipeline=2, hardware__memory__channels__count=2)
        facts, columns, _ = timeline(result)
        assert facts["engine_names"] == ["device 0 engine 0", "device 1 engine 0"]
        device = result.log.graphs[0].device[columns["task"]]
        moves = result.log.graphs[0].moves[columns["task"]]
        expected = np.where(moves == LINK_BIT, 4 + device, 2 * device)[columns["lane"] > 0]
        assert columns["channel"][columns["lane"] > 0].tolist() == expected.tolist()
        canvas = Canvas(result.log, None)
        machine(canvas, None, powered=False)
        tracks = canvas.tracks.all
        path = {track.uuid: track for track in tracks}
        names = [f"{path[track.parent].name}/{track.name}" for track in tracks if track.parent]
        assert [name for name in names if name.startswith("Device 1/")] == [
            "Device 1/Engines",
            "Device 1/Memory",
            "Device 1/Link",
        ]
        assert "Engines/device 1 engine 0" in names
        assert "Memory/device 1 channel 0" in names
        links = ["device 0 link", "device 0 link in", "device 1 link", "device 1 link in"]
        assert [name for name in names if name.startswith("Link/GB/s")] == [f"Link/GB/s, {link}" for link in links]

    def test_requests_that_come_while_several_batches_decode(self, base):
        """An arrival cuts off steps that were worked out ahead; other loops have the rows behind theirs."""
        given = {
            "mapping__parallel__pipeline": 2, "model__scope": "block", "workload__batching__policy": "static",
            "workload__sequences": "[{tokens: 9}, {tokens: 9, arrival: 30 us}, {tokens: 6, arrival: 100 us}]",
        }  # fmt: skip
        assert_same(run(base, **given).log, run(base, executor="compiled", **given).log)

    def test_a_log_keeps_its_devices(self, base, tmp_path):
        pytest.importorskip("pyarrow")
        result = run(base, mapping__parallel__pipeline=2, hardware__sram="2 GB", mapping__weights="{resident: 0.4}")
        assert_saved(result, tmp_path)
        assert len(set(result.log.sram)) == 2, "what the resident weights of each stage leave"


def mixture(tmp_path, **changes: object) -> sim.Result:
    """A run of two layers of Mixtral, whose eight experts are dealt out to the devices, and three sequences."""
    path = tmp_path / "mixture.yaml"
    path.write_text("model: {config: mixtral-8x7b}\n")
    served = {"workload__sequences": "[{context: 512, tokens: 3, count: 3}]", "workload__batching__policy": "continuous"}
    return run(path, **{**served, **changes})


def experts_read(result: sim.Result) -> np.ndarray:
    """Bytes of the weights of experts that each device reads in each layer [device, layer], in all steps."""
    log = result.log
    found = np.zeros((len(log.machine.devices), 2), dtype=np.int64)
    for step, number in enumerate(log.steps.graph.tolist()):
        graph = log.graphs[number]
        weight = graph.ops.costs_of(log.lanes(np.array([step])))[QUANTITIES.index("weight"), :, 0]
        for i, op in enumerate(graph.ops.ops):
            if op.experts is not None:
                found[op.device, op.layer] += weight[i]
    return found


class TestExperts:
    def test_devices_read_the_experts_that_tokens_choose_of_theirs(self, tmp_path):
        """All of them together what one device that has all would read; in a layer each its own, so they differ."""
        one = experts_read(mixture(tmp_path))
        dealt = experts_read(mixture(tmp_path, mapping__parallel__tensor=4, mapping__parallel__expert=4))
        assert dealt.sum(axis=0).tolist() == one[0].tolist()
        assert len(set(dealt[:, 0].tolist())) > 1
        expert = 3 * 4096 * 14336 * 2
        assert not (dealt % expert).any()

    def test_the_device_with_most_of_them_holds_up_the_others(self, tmp_path):
        """The all-reduce that combines waits for the last one, so imbalance costs time that cutting each expert does not."""
        cut = mixture(tmp_path, mapping__parallel__tensor=2)
        dealt = mixture(tmp_path, mapping__parallel__tensor=2, mapping__parallel__expert=2)
        most = experts_read(dealt).max(axis=0).sum() - experts_read(cut).sum()
        assert most > 0
        assert dealt.makespan > cut.makespan + 0.5 * most / 3.35e12 * 1e12

    @pytest.mark.parametrize("execution", ["stream", "prefetch"])
    def test_a_device_none_of_whose_experts_is_chosen(self, tmp_path, execution):
        """One sequence chooses two of eight experts, each on a device of its own; the others read none, in both executors."""
        given = {
            "mapping__parallel__tensor": 8, "mapping__parallel__expert": 8, "mapping__execution": execution,
            "mapping__kv": "transfers", "workload__sequences": "[{context: 5, tokens: 1}]",
        }  # fmt: skip
        result = mixture(tmp_path, **given)
        read_by = experts_read(result)
        assert (read_by > 0).sum(axis=0).tolist() == [2, 2]
        assert_same(result.log, mixture(tmp_path, executor="compiled", **given).log)

    def test_weights_of_each_device(self, tmp_path):
        held = [
            holdings(models_of(mixture(tmp_path, mapping__parallel__tensor=2, mapping__parallel__expert=expert).scenario))
            for expert in (1, 2)
        ]
        assert held[0][0].weights == held[1][0].weights == held[1][1].weights

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"mapping__parallel__tensor": 4, "mapping__parallel__expert": 2}, "expected 1 or 4, the devices of a stage"),
            ({"mapping__parallel__expert": 2}, "expert: expected 1, the devices of a stage"),
            (
                {"mapping__parallel__tensor": 16, "mapping__parallel__expert": 16, "model__config": "mixtral-8x7b"},
                "expected a divisor of the 8 experts, found 16; possible: 1, 2, 4, 8",
            ),
            (
                {"mapping__parallel__tensor": 2, "mapping__parallel__expert": 2, "model__config": LLAMA},
                "mapping.parallel.expert: expected 1: the model has no experts",
            ),
            (
                {
                    "mapping__parallel__tensor": 2, "mapping__parallel__expert": 2,
                    "workload__batching__policy": "independent",
                },
                "expected batches where experts are dealt out",
            ),
        ],
    )  # fmt: skip
    def test_messages(self, tmp_path, changes, message):
        with pytest.raises(sim.InputError, match=message):
            mixture(tmp_path, **changes)


class TestMemory:
    def test_each_stage_holds_its_layers(self, base):
        """A layer of Llama 8B has 436,224,000 bytes of weights and 4 KiB of KV a token; the tables 1,050,673,152 each."""
        scenario = read(
            base,
            [
                "hardware.devices.count=4",
                f"hardware.devices.link={LINK}",
                "mapping.parallel.pipeline=4",
                "hardware.preset=h100-sxm",
            ],
        )
        held = holdings(models_of(scenario))
        layer, table = 2 * (4096 * (4096 + 4096 + 2 * 1024) + 3 * 4096 * 14336 + 2 * 4096), 128_256 * 4096 * 2
        assert [each.weights for each in held] == [8 * layer + table, 8 * layer, 8 * layer, 8 * layer + table + 2 * 4096]
        other = read(base, ["mapping.parallel.pipeline=3", "hardware.preset=h100-sxm", "hardware.devices.count=3"])
        of_three = [(each.layers, each.weights, each.kv) for each in holdings(models_of(other))]
        assert of_three == [
            ((0, 10), 11 * layer + table, 11 * 4096), ((11, 21), 11 * layer, 11 * 4096),
            ((22, 31), 10 * layer + table + 2 * 4096, 10 * 4096),
        ]  # fmt: skip
        assert [each.kv for each in held] == [8 * 4096] * 4
        assert [each.layers for each in held] == [(0, 7), (8, 15), (16, 23), (24, 31)]
        assert [each.sends for each in held] == [{"p2p": (1, HIDDEN)}] * 3 + [{}]

    def test_a_device_that_is_too_small_is_refused(self, base):
        with pytest.raises(
            sim.InputError, match=r"of weights and .* of KV cache on device 0 are .* more than the 4.500 GB of its memory"
        ):
            run(base, model__layers=32, mapping__parallel__pipeline=4, hardware__memory__capacity="4.5 GB")

    def test_capacity_is_that_of_the_device_that_is_full_first(self, base):
        """The last stage leaves least of 6 GB, and each stage keeps a quarter of each token."""
        result = run(
            base, model__layers=32, mapping__parallel__pipeline=4, hardware__memory__capacity="6 GB",
            workload__batching__policy="continuous", mapping__parallel__micro_batches=1,
        )  # fmt: skip
        weights = max(each.weights for each in holdings(models_of(result.scenario)))
        assert result.plan.setup.batching is not None
        assert result.plan.setup.batching.capacity == 4 * (6_000_000_000 - weights)

    @pytest.mark.parametrize(("model", "drafts"), [(LLAMA, "{config: llama-3.2-1b, layers: 1}"), ("glm-4.5-air", "mtp")])
    def test_a_draft_model_takes_memory_of_each_device(self, base, model, drafts):
        """Whether both devices are simulated or one stands for both, each holds half of both models' weights and caches."""
        given = {
            "model.config": model, "model.layers": 2, "mapping.softmax": "online",
            "hardware.devices.count": 2, "mapping.parallel.tensor": 2, "hardware.devices.link": LINK,
            "hardware.memory.capacity": "20 GB", "workload.batching.policy": "continuous",
            "workload.sequences": "[{prompt: 8, tokens: 4, count: 2}]",
            "workload.speculative": f"{{draft: 1, acceptance: 0.5, model: {drafts}}}",
        }  # fmt: skip
        read_as = [
            read(base, [f"{key}={value}" for key, value in (given | {"mapping.parallel.fold": fold}).items()])
            for fold in ("true", "false")
        ]
        of_one, of_both = (plan(scenario).setup.batching for scenario in read_as)
        (one,), (first, second) = (holdings(models_of(scenario)) for scenario in read_as)
        assert one == first == second
        main, draft = models_of(read_as[0])
        assert one.weights == main.holder.weights + draft.holder.weights > holdings([main])[0].weights
        assert of_one is not None
        assert of_both is not None
        assert of_one.capacity == 20_000_000_000 - one.weights
        assert of_both.capacity == 2 * of_one.capacity
        assert one.kv == of_one.layout.token_bytes
        assert 2 * one.kv == of_both.layout.token_bytes


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"hardware.devices.count": 3}, r"mapping.parallel: expected tensor x pipeline of 3, .* found 1 x 2"),
            ({"hardware.sram": "1 MB"}, r"hardware.sram: lm_head needs 1\.051 GB at once, SRAM of device 1 has"),
            (
                {"workload.concurrency.users": 2, "workload.batching.policy": "continuous"},
                r"micro_batches: expected 1 in a closed loop .*, found none, which is one for each of 2 stages .*; write 1$",
            ),
            (
                {
                    "workload.concurrency.users": 2, "workload.batching.policy": "continuous",
                    "mapping.parallel.micro_batches": 2,
                },
                r"micro_batches: expected 1 in a closed loop \(workload.concurrency\), found 2$",
            ),
            (
                {"workload.speculative": "{draft: 2, acceptance: 0.5, model: {config: llama-3.2-1b}}"},
                r"mapping.parallel.pipeline: expected 1 with a draft model",
            ),
            ({"mapping.parallel.layers": "[1, 2]"}, r"parallel.layers: expected a sum of 2, .* found 1 \+ 2 = 3"),
            ({"mapping.parallel.layers": "[2]"}, r"parallel.layers: expected at least 2 items, found a list"),
            ({"mapping.parallel.layers": "[1, 2, 3]"}, r"expected as many 'layers' as stages \('pipeline: 2'\), found 3"),
        ],
    )  # fmt: skip
    def test_messages(self, base, changes, message):
        given = {
            "hardware.devices.count": 2, "mapping.parallel.pipeline": 2, "hardware.devices.link": LINK, "model.layers": 2,
            "workload.sequences": "[{prompt: 8, tokens: 1, count: 2}]", "hardware.preset": "h100-sxm", **changes,
        }  # fmt: skip
        with pytest.raises(sim.InputError, match=message):
            sim.run(read(base, [f"{key}={value}" for key, value in given.items()]))
