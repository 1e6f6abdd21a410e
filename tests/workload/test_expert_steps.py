"""Mixtures of experts in runs: a step reads the distinct experts that its tokens choose, and computes with every choice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.experts import Experts, Tokens, distinct
from models.graph import QUANTITIES
from sim.base.errors import InputError
from sim.cost.kernels import kernels_of
from sim.executors import Executor
from sim.log.tables import EventLog
from sim.runs.plan import plan
from sim.runs.result import Result
from sim.runs.run import run
from sim.scenario import Scenario, from_dict
from sim.workload.routing import Uniform
from tests.executors import assert_same

FLOPS, WEIGHT = QUANTITIES.index("flops"), QUANTITIES.index("weight")

#: Bytes of one expert of Mixtral 8x7B in bf16: gate and up are 2 x 14336 rows of 4096, down is 4096 rows of 14336.
GATE_UP, DOWN = 2 * 14336 * 4096 * 2, 4096 * 14336 * 2


def scenario(workload: dict[str, Any], *, config: str = "mixtral-8x7b", layers: int = 2, **rest: Any) -> Scenario:
    mapping = {"heads": "fused", "softmax": "online", **rest.pop("mapping", {})}
    model = {"config": config, "layers": layers, "scope": "block"}
    return from_dict({"model": model, "workload": workload, "mapping": mapping, "seed": 5, **rest})


def result(workload: dict[str, Any], *, executor: Executor = "auto", **rest: Any) -> Result:
    return run(scenario(workload, **rest), executor=executor)


def expert_bytes(log: EventLog) -> dict[tuple[int, int, str], int]:
    """Bytes of experts by step, layer and kind of op."""
    found: dict[tuple[int, int, str], int] = {}
    moved = log.bytes_moved()
    for number, graph in enumerate(log.graphs):
        steps = np.flatnonzero(log.steps.graph == number)
        by_task = moved[log.steps.first[steps] + np.arange(len(graph))[:, None]]  # [task, step]
        for task, sizes in enumerate(by_task.tolist()):
            op = graph.ops.ops[graph.op[task]]
            if op.experts is not None and graph.moves[task]:
                for step, size in zip(steps.tolist(), sizes, strict=True):
                    key = (step, op.layer, op.kind)
                    found[key] = found.get(key, 0) + size
    return found


def by_sets(log: EventLog, experts: Experts, *, seed: int = 5) -> Iterator[tuple[int, int, int]]:
    """Step, layer and number of distinct experts: from the members of the step, one token at a time, with sets."""
    members = log.members
    for step in range(len(log.steps)):
        rows = np.flatnonzero((members.step == step) & (members.query > 0))
        tokens = [(members.sequence[r], members.context[r] + i) for r in rows for i in range(members.query[r])]
        for layer in range(2):
            chosen = set()
            for sequence, position in tokens:
                one = (np.array([each], dtype=np.int64) for each in (layer, sequence, position))
                chosen |= set(Uniform(seed).choose(*one, experts)[0].tolist())
            yield step, layer, len(chosen)


def routes(path: Path, *rows: tuple[int, int, list[int]]) -> dict[str, str]:
    """A file of the choices (sequence, position, experts) of layer 0."""
    lines = [json.dumps({"sequence": s, "position": p, "layer": 0, "experts": e}) for s, p, e in rows]
    path.write_text("\n".join(lines))
    return {"file": str(path)}


TWO = [{"context": 7, "tokens": 2, "count": 2}]


def test_by_hand(tmp_path: Path) -> None:
    """Step 0: {0, 1} and {1, 2}, three experts. Step 1: {6, 7} twice, two of them."""
    file = routes(tmp_path / "r.jsonl", (0, 7, [0, 1]), (1, 7, [2, 1]), (0, 8, [6, 7]), (1, 8, [7, 6]))
    log = result({"sequences": TWO, "batching": "static", "routing": file}, layers=1).log
    assert expert_bytes(log) == {
        (0, 0, "gate_up_proj"): 3 * GATE_UP, (0, 0, "down_proj"): 3 * DOWN,
        (1, 0, "gate_up_proj"): 2 * GATE_UP, (1, 0, "down_proj"): 2 * DOWN,
    }  # fmt: skip


def test_a_prompt_and_drafts_by_hand(tmp_path: Path) -> None:
    """Chunks of the prompt at 0 to 2 and at 3: experts {0, 1, 2, 3} and {4, 5}. The step that verifies 4 to 6: {0, 1, 7}."""
    rows = [(0, 0, [0, 1]), (0, 1, [1, 2]), (0, 2, [3, 0]), (0, 3, [4, 5]), (0, 4, [0, 1]), (0, 5, [1, 0]), (0, 6, [7, 1])]
    workload = {
        "sequences": [{"prompt": 4, "tokens": 4}], "prefill": {"chunk": 3}, "speculative": {"draft": 2, "acceptance": 1},
        "routing": routes(tmp_path / "r.jsonl", *rows),
    }  # fmt: skip
    found = expert_bytes(result(workload, layers=1).log)
    assert [found[step, 0, "down_proj"] // DOWN for step in range(3)] == [4, 2, 3]


WORKLOADS: dict[str, dict[str, Any]] = {
    "static": {"sequences": [{"context": 50, "tokens": 8, "count": 5}], "batching": "static"},
    "chunks": {
        "sequences": [{"prompt": 40, "tokens": 5, "count": 3}], "prefill": {"chunk": 16},
        "batching": {"policy": "continuous", "max_tokens": 24},
    },
    "drafts": {"sequences": [{"context": 9, "tokens": 12}], "speculative": {"draft": 3, "acceptance": 0.5}},
    "recompute": {
        "sequences": [{"prompt": 60, "tokens": 25, "count": 3}],
        "batching": {"policy": "continuous", "kv": {"capacity": "1.6 MB", "full": "recompute"}},
    },
    "samples": {"sequences": [{"prompt": 4, "tokens": 6, "samples": 4}], "batching": "continuous"},
}  # fmt: skip

MAPPINGS: dict[str, dict[str, Any]] = {
    "prefetch": {},
    "blocking": {"execution": "blocking"},
    "tiles": {"tiles": 3, "execution": "stream"},
    "a share": {"weights": {"resident": 0.3}},
    "int4": {"formats": {"weights": "int4", "group": 100}},
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_each_distinct_expert_is_read_once_a_step(name: str) -> None:
    log = result(WORKLOADS[name]).log
    found = expert_bytes(log)
    for step, layer, count in by_sets(log, Experts(count=8, top_k=2, bytes=1)):
        assert (found.pop((step, layer, "gate_up_proj")), found.pop((step, layer, "down_proj"))) == (
            count * GATE_UP,
            count * DOWN,
        )
    assert not found


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_whatever_the_mapping(mapping: str) -> None:
    """For a resident share, and in a format, the bytes of each expert are rounded separately."""
    log = result(WORKLOADS["static"], mapping=MAPPINGS[mapping]).log
    one = {
        "a share": (GATE_UP - GATE_UP * 3 // 10, DOWN - DOWN * 3 // 10),
        # Half a byte each, and a scale of 2 bytes for every 100, begun ones included.
        "int4": tuple(size // 4 + 2 * -(-size // 2 // 100) for size in (GATE_UP, DOWN)),
    }.get(mapping, (GATE_UP, DOWN))
    found = expert_bytes(log)
    for step, layer, count in by_sets(log, Experts(count=8, top_k=2, bytes=1)):
        assert found[step, layer, "gate_up_proj"] == count * one[0]
        assert found[step, layer, "down_proj"] == count * one[1]
    served = int(log.services.work.sum())
    assert served == int(log.tasks.work.sum()) >= int(log.bytes_moved().sum()) * 10**12 // log.bandwidth


@pytest.mark.parametrize("arbiter", ["fifo", "processor_sharing"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_the_executors_agree(name: str, arbiter: str) -> None:
    machine = {"memory": {"arbiter": arbiter}}
    assert_same(*(result(WORKLOADS[name], executor=executor, hardware=machine).log for executor in ("compiled", "simpy")))


def test_steps_of_one_shape_differ_in_their_experts() -> None:
    log = result({"sequences": [{"context": 50, "tokens": 60, "count": 4}], "batching": "static"}).log
    assert len(log.graphs) == 1
    assert len({*expert_bytes(log).values()}) > 6  # three to eight experts, in two products


def test_as_many_distinct_experts_as_expected() -> None:
    """E (1 - (1 - k/E)^T) of 128 for 12 tokens that choose 8 each, within four standard errors."""
    log = result(
        {"sequences": [{"context": 5, "tokens": 30, "count": 12}], "batching": "static"}, config="qwen3-30b-a3b", layers=10
    ).log
    counts = np.array([size / (2048 * 768 * 2) for (_, _, kind), size in expert_bytes(log).items() if kind == "down_proj"])
    missed = (1 - 8 / 128) ** 12
    assert len(counts) == 300
    assert counts.mean() == pytest.approx(128 * (1 - missed), abs=4 * (128 * missed * (1 - missed) / 300) ** 0.5)


def test_a_single_token_reads_the_experts_that_it_chooses(tmp_path: Path) -> None:
    one = {"sequences": [{"context": 7, "tokens": 3}]}
    plain = result(one, layers=1)
    assert {*expert_bytes(plain.log).values()} == {2 * GATE_UP, 2 * DOWN}
    file = routes(tmp_path / "r.jsonl", *((0, position, [3, position - 7]) for position in (7, 8, 9)))
    for other in ({**one, "routing": file}, {**one, "batching": "static"}):
        assert result(other, layers=1).metrics == plain.metrics


def test_arithmetic_is_that_of_every_choice() -> None:
    made = scenario(WORKLOADS["static"])
    setup = plan(made).setup
    log = run(made).log
    lanes, one = log.lanes(np.arange(3)), setup.graph.ops.costs(50)
    alone = {op.kind: int(flops) for op, flops in zip(setup.graph.ops.ops, one[FLOPS], strict=True) if op.experts is not None}
    ops = log.graphs[0].ops
    found = {
        op.kind: flops for op, flops in zip(ops.ops, ops.costs_of(lanes)[FLOPS].tolist(), strict=True) if op.experts is not None
    }
    assert alone
    assert found == {kind: [5 * flops] * 3 for kind, flops in alone.items()}


def test_kernels_of_each_layer_have_its_own_experts() -> None:
    log = result(WORKLOADS["static"]).log
    ops, lanes = log.graphs[0].ops, log.lanes(np.arange(len(log.steps)))
    weight = ops.costs_of(lanes)[WEIGHT]
    seen = []
    for i, (op, kernels) in enumerate(zip(ops.ops, kernels_of(ops, lanes), strict=True)):
        if op.experts is not None:
            assert np.array_equal(sum(kernel.memory for kernel in kernels), weight[i])
            seen.append(weight[i].tolist())
    assert seen[0] != seen[2]


def test_without_a_routing_as_many_experts_as_possible() -> None:
    tokens = Tokens.of(*(np.array(column) for column in ([[0, 0], [1, 1]], [[5, 6], [0, 0]], [[1, 1], [1, 9]])))
    assert tokens.position.tolist() == [5, 0, 6, *range(9)]
    assert tokens.lane.tolist() == [0] * 2 + [1] * 10
    assert distinct(None, Experts(count=8, top_k=2, bytes=1), [0, 4], tokens).tolist() == [[4, 8]] * 2


def test_all_experts_take_memory() -> None:
    """Mixtral has 46.7 billion parameters, of which a token uses 12.9."""
    with pytest.raises(InputError, match=r"hardware\.memory\.capacity: 93\.4\d* GB of weights .* more than the 80\.000 GB"):
        run(from_dict({"model": {"config": "mixtral-8x7b"}, "hardware": {"memory": {"capacity": "80 GB"}}}))


def test_a_file_must_have_all_tokens_of_the_run(tmp_path: Path) -> None:
    workload = {"sequences": TWO, "batching": "static"}
    rows = [(0, 7, [0, 1]), (1, 7, [2, 1]), (0, 8, [6, 7])]
    file = routes(tmp_path / "r.jsonl", *rows)
    with pytest.raises(InputError, match=r"workload\.routing\.file: .*r\.jsonl: .* none for sequence 1, position 8, layer 0$"):
        result({**workload, "routing": file}, layers=1)
    file = routes(tmp_path / "r.jsonl", *rows, (1, 8, [0, 8]))
    with pytest.raises(
        InputError, match=r"workload\.routing\.file: .* expected 2 experts from 0 to 7 per token, found 2 up to 8"
    ):
        result({**workload, "routing": file}, layers=1)
    with pytest.raises(InputError, match=r"workload\.routing\.file: .*nowhere: no such file"):
        result({**workload, "routing": {"file": str(tmp_path / "nowhere")}})
    with pytest.raises(InputError, match=r"workload\.routing: expected a file only for a mixture-of-experts model"):
        result({**workload, "routing": file}, config="llama-3.2-1b")


def test_samples_of_one_prompt_need_it_once(tmp_path: Path) -> None:
    """The first sample feeds in the prompt, at 0 and 1; then both feed in what they decode, at 2."""
    rows = [(0, 0, [0, 1]), (0, 1, [0, 1]), (0, 2, [0, 1]), (1, 2, [0, 2])]
    workload = {
        "sequences": [{"prompt": 2, "tokens": 2, "samples": 2}], "batching": "continuous",
        "routing": routes(tmp_path / "r.jsonl", *rows),
    }  # fmt: skip
    found = expert_bytes(result(workload, layers=1).log)
    assert [found[step, 0, "down_proj"] // DOWN for step in range(2)] == [2, 3]


def test_dropped_tokens_are_fed_in_again(tmp_path: Path) -> None:
    """With `recompute` a cache may be dropped, so the choices of its tokens must be known."""
    workload = {
        "sequences": [{"context": 1, "tokens": 2}],
        "batching": {"policy": "continuous", "kv": {"full": "recompute", "capacity": "1 MB"}},
        "routing": routes(tmp_path / "r.jsonl", (0, 1, [0, 1]), (0, 2, [0, 1])),
    }  # fmt: skip
    with pytest.raises(InputError, match="none for sequence 0, position 0, layer 0"):
        result(workload, layers=1)
