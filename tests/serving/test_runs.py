"""Batched runs end to end: against plain runs, against arithmetic, and one executor against the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.base.errors import InputError
from sim.executors import Executor
from sim.runs.result import Result
from sim.runs.run import run
from sim.scenario import from_dict
from tests.executors import assert_same

TASKS = ("step", "task", "engine", "ready", "start", "loaded", "end", "compute", "work")


def result(workload: dict[str, Any], *, layers: int = 2, executor: Executor = "auto", **rest: Any) -> Result:
    scenario = {"model": {"config": "llama-3.2-1b", "layers": layers}, "mapping": {"heads": "fused"}, "workload": workload}
    return run(from_dict({**scenario, **rest}), executor=executor)


def test_a_batch_of_one_is_a_plain_run() -> None:
    plain = result({"sequences": [{"context": 50, "tokens": 4}]}).log
    batched = result({"sequences": [{"context": 50, "tokens": 4}], "batching": "continuous"}).log
    for column in TASKS:
        assert np.array_equal(getattr(plain.tasks, column), getattr(batched.tasks, column))
    assert np.array_equal(plain.members.context, batched.members.context)


def test_weights_are_read_once_a_step() -> None:
    sequences = [{"context": 64, "tokens": 3, "count": 4}]
    alone, together = (result({"sequences": sequences, "batching": policy}) for policy in ("independent", "static"))
    kv = {name: sum(k.bytes for k in r.metrics.kinds if k.kind.startswith("kv")) for name, r in (("a", alone), ("t", together))}
    assert kv["a"] == kv["t"]
    weights = [sum(k.bytes for k in r.metrics.kinds if k.kind == "weight_load") for r in (alone, together)]
    rows = 4096 * 3 * 4  # of the embedding: one for each token
    assert weights[0] - rows == 4 * (weights[1] - rows)


def test_a_verification_costs_what_it_feeds_in_not_what_is_accepted() -> None:
    runs = {
        acceptance: result(
            {"sequences": [{"context": 64, "tokens": 12}], "speculative": {"draft": 3, "acceptance": acceptance}}
        )
        for acceptance in (0, 1)
    }
    assert len(runs[0].log.steps) == 12
    assert len(runs[1].log.steps) == 3
    assert runs[0].log.members.query.tolist() == [4] * 9 + [3, 2, 1]
    first = [int(r.log.steps.end[0] - r.log.steps.released[0]) for r in runs.values()]
    assert first[0] == first[1]


def test_chunks_of_a_prompt_add_up() -> None:
    """FLOPs of the linear layers do not depend on the chunks; those of attention do not either: each chunk sees what came."""
    whole, chunked = (result({"sequences": [{"prompt": 96, "tokens": 1}], "prefill": {"chunk": chunk}}) for chunk in (None, 32))
    assert chunked.log.members.query.tolist() == [32, 32, 32]
    assert whole.log.members.query.tolist() == [96]
    written = [sum(k.bytes for k in r.metrics.kinds if k.kind == "kv_store") for r in (whole, chunked)]
    assert written[0] == written[1] == 96 * 2 * 2048
    loaded = sum(k.bytes for k in chunked.metrics.kinds if k.kind == "kv_load")
    assert loaded == (32 + 64) * 2 * 2048


WORKLOADS: dict[str, dict[str, Any]] = {
    "static": {"sequences": [{"context": 50, "tokens": 20, "count": 3}, {"context": 9, "tokens": 7}], "batching": "static"},
    "arrivals": {
        "generate": {
            "count": 12, "arrivals": {"process": "poisson", "rate": "40/s"},
            "prompt": {"distribution": "uniform", "min": 5, "max": 90}, "tokens": 9,
        },
        "batching": {"policy": "continuous", "max_batch": 4, "max_tokens": 64}, "prefill": {"chunk": 32},
    },
    "closed": {
        "sequences": [{"context": 30, "prompt": 20, "tokens": 8, "count": 9}], "concurrency": 3, "batching": "continuous",
    },
    "swap": {
        "sequences": [{"prompt": 60, "tokens": 25, "count": 3}],
        "batching": {"policy": "continuous", "kv": {"capacity": "0.85 MB", "full": "swap"}},
    },
    "recompute": {
        "sequences": [{"prompt": 60, "tokens": 25, "count": 3}],
        "batching": {"policy": "continuous", "kv": {"capacity": "0.85 MB", "full": "recompute"}},
        "speculative": {"draft": 2, "acceptance": 0.6},
    },
    "samples": {"sequences": [{"prompt": 40, "tokens": 9, "samples": 3}], "batching": "continuous"},
    "one": {"sequences": [{"prompt": 40, "tokens": 12}], "speculative": {"draft": 3, "acceptance": [2, 0]}},
}  # fmt: skip


@pytest.mark.parametrize("arbiter", ["fifo", "processor_sharing"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_the_executors_agree(name: str, arbiter: str) -> None:
    machine = {"memory": {"arbiter": arbiter, "latency": "200 ns"}}
    assert_same(*(result(WORKLOADS[name], executor=executor, hardware=machine).log for executor in ("compiled", "simpy")))


def test_what_cannot_be_batched_is_refused() -> None:
    one = [{"prompt": 5}]
    for workload, message in (
        ({"sequences": one, "dependency": "known"}, "workload.dependency: expected 'sampled' where there are prompts"),
        ({"sequences": [{"samples": 2}]}, "expected samples only with 'static' or 'continuous'"),
        ({"batching": {"policy": "independent", "max_batch": 3}}, "expected 'max_batch' only with"),
        ({"sequences": one * 3, "batching": {"policy": "continuous", "max_tokens": 2}}, "expected at least 3"),
    ):
        with pytest.raises(InputError, match=message):
            result(workload)
    with pytest.raises(InputError, match=r"mapping\.granularity: expected 'op'"):
        result({"sequences": one}, mapping={"granularity": "aten"})
    with pytest.raises(InputError, match=r"workload: expected a model\.config"):
        run(from_dict({"model": {"graph": [{"name": "a", "flops": 5}]}, "workload": {"sequences": one}}))
