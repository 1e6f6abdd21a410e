"""Facts about the block scenarios and the whole models, read from the event log."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reports import run

MS = 10**9  # picoseconds
ATTENTION = ("scores", "softmax_max", "softmax_exp", "softmax_norm", "weighted_values")
KV_BYTES = 2 * 16 * 8 * 64 * 2  # key and value, layers, KV heads, head dim, bytes of bfloat16: of one token of Llama-3.2-1B


def rows(name: str, token: int, *names: str) -> np.ndarray:
    """Rows of the task table: the tasks of a token whose name is, or starts with, one of `names`."""
    log = run(name).log
    every = range(log.rows(token).start, log.rows(token).stop)
    found = [row for row in every if any(f"{log.name(row)} ".startswith(f"{each} ") for each in names)]
    assert found, names
    return np.array(found)


def times(name: str, token: int, *names: str) -> tuple[int, int]:
    """From the first start to the last end of these tasks."""
    tasks, chosen = run(name).log.tasks, rows(name, token, *names)
    return int(tasks.start[chosen].min()), int(tasks.end[chosen].max())


def test_one_after_the_other_takes_the_sum_of_all_estimates() -> None:
    mlp, heads, linear, rope, softmax = 1000, 2 * 1000, 4 * 800, 2 * 500, 300 + 400 + 400
    total = 2 * 300 + linear + rope + heads + softmax + 2 * 300 + mlp + 1200 + 1500  # microseconds
    assert total == 12_200
    assert run("no_parallelism").makespan == total * MS // 1000
    tasks = run("no_parallelism").log.tasks
    assert tasks.start.min() == 0
    order = np.argsort(tasks.start)
    assert (tasks.start[order][1:] == tasks.end[order][:-1]).all()  # no gap, no overlap


def test_each_freedom_makes_a_token_faster() -> None:
    assert run("multi_head").makespan < run("parallel").makespan < run("no_parallelism").makespan


def test_fused_heads_leave_engines_idle() -> None:
    tasks = run("parallel").log.tasks
    start, end = times("parallel", 0, *ATTENTION)
    chosen = rows("parallel", 0, *ATTENTION)
    assert (tasks.end[chosen] - tasks.start[chosen]).sum() == end - start  # one at a time


def test_heads_fill_all_engines() -> None:
    tasks, chosen = run("multi_head").log.tasks, rows("multi_head", 0, *ATTENTION)
    (store,) = rows("multi_head", 0, "kv_store")
    assert {*tasks.engine[chosen].tolist(), int(tasks.engine[store])} == {0, 1, 2, 3}  # the store holds one meanwhile
    start, end = times("multi_head", 0, *ATTENTION)
    inside = (tasks.end > start) & (tasks.start < end)
    busy = (np.minimum(tasks.end[inside], end) - np.maximum(tasks.start[inside], start)).sum()
    longest = int((tasks.end[chosen] - tasks.start[chosen]).max())
    assert 4 * (end - start) - busy <= 3 * longest, "idle only at its end, and for less than one head's task"


@pytest.mark.parametrize("name", ["two_tokens_4_engines", "two_tokens_8_engines"])
def test_the_second_token_loads_the_cache_as_soon_as_the_first_has_stored_it(name: str) -> None:
    (load,) = rows(name, 1, "kv_load")
    (store,) = rows(name, 0, "kv_store")
    tasks = run(name).log.tasks
    assert tasks.ready[load] == tasks.end[store]
    assert tasks.start[load] == tasks.end[store]
    assert tasks.end[store] < times(name, 0, "residual")[1], "in the middle of the first token, not at its end"


@pytest.mark.parametrize("name", ["two_tokens_4_engines", "two_tokens_8_engines"])
def test_first_ops_of_a_known_token_run_early(name: str) -> None:
    end_of_first = int(run(name).log.steps.end[0])
    for op in ("norm", "q_proj", "rope q"):
        assert run(name).log.tasks.end[rows(name, 1, op)].min() < end_of_first, op


def test_with_more_engines_they_run_earlier() -> None:
    for op in ("q_proj", "rope q", "rope k"):
        assert times("two_tokens_8_engines", 1, op)[1] < times("two_tokens_4_engines", 1, op)[1], op


def test_a_sampled_token_waits_for_all_of_the_one_before() -> None:
    log = run("two_tokens_4_engines_sticky").log
    assert log.tasks.start[log.rows(1)].min() == log.tasks.end[log.rows(0)].max()


@pytest.mark.parametrize("name", ["multi_head", "parallel", "two_tokens_4_engines", "two_tokens_8_engines"])
def test_the_kv_store_waits_only_for_the_rotated_key_and_the_value(name: str) -> None:
    log = run(name).log
    for token in range(len(log.steps)):
        (store,) = rows(name, token, "kv_store")
        ends = [times(name, token, op)[1] for op in ("rope k", "v_proj")]
        assert log.tasks.ready[store] == max(ends)


def test_eight_engines_are_slower_than_four() -> None:
    """Graham's anomaly: with eight, the second token's store is ready early and takes the channel before its load."""
    four, eight = run("two_tokens_4_engines"), run("two_tokens_8_engines")
    assert four.makespan < eight.makespan

    def on_channel(name: str, op: str) -> int:
        services = run(name).log.services
        return int(services.start[services.task == rows(name, 1, op)[0]].min())

    assert on_channel("two_tokens_4_engines", "kv_load") < on_channel("two_tokens_4_engines", "kv_store")
    assert on_channel("two_tokens_8_engines", "kv_store") < on_channel("two_tokens_8_engines", "kv_load")


@pytest.mark.parametrize("context", [256, 2048, 8192])
def test_the_whole_model_reads_its_weights_and_its_cache(context: int) -> None:
    layer = 2048 * (2048 + 512 + 512 + 2048) + 3 * 2048 * 8192 + 2 * 2048
    weights = 2 * (16 * layer + 2048 + 128_256 * 2048)  # with the last norm; the LM head is the embedding, tied
    assert weights == 2_471_628_800
    one_row = 2 * 2048
    metrics = run(f"llama_1b_context_{context}").metrics
    assert metrics.bytes_read == weights + one_row + KV_BYTES * context
    assert metrics.bytes_written == KV_BYTES
