"""Facts that each scenario of batches shows, by arithmetic: bytes over bandwidth, FLOPs over peak, and which requests wait."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import sim
from sim.analysis.moved import moved_by_kind
from sim.cost.profile import read_samples
from sim.log import derived
from sim.runs.run import read
from sim.scenario.shipped import find_scenario
from tests.reports import run

PS = 10**12
# Llama-3.2-1B in bfloat16: all weights, an embedding row, a token's KV cache; parameters of products in layers, in the LM head
WEIGHTS, ROW, KV = 2_471_628_800, 4096, 32_768
LAYERS, HEAD = 16 * (2048 * (2048 + 512 + 512 + 2048) + 3 * 2048 * 8192), 2048 * 128_256
A100_BANDWIDTH, A100_FLOPS = 2039 * 10**9, 312 * 10**12
L4_BANDWIDTH = 300 * 10**9
PI_FLOPS = 4 * 38_400_000_000


def step_times(result: sim.Result) -> np.ndarray:
    return np.asarray(result.log.steps.end - result.log.steps.released)


def fed(result: sim.Result) -> np.ndarray:
    """New tokens of each step."""
    members = result.log.members
    return np.bincount(members.step, members.query, minlength=len(result.log.steps)).astype(np.int64)


# Batches


def bytes_of_steps(sequences: int, *, loops: int = 1) -> int:
    """Four steps at context 2048 and on: each loop reads the weights, each sequence its embedding row and its cache."""
    return sum(loops * WEIGHTS + sequences * (ROW + KV * (2048 + token)) for token in range(4))


@pytest.mark.parametrize(("name", "sequences", "loops"), [
    ("batch_1", 1, 1), ("batch_8", 8, 1), ("batch_64", 64, 1), ("eight_loops", 8, 8)
])  # fmt: skip
def test_a_batch_reads_the_weights_once_and_loops_read_them_each(name: str, sequences: int, loops: int) -> None:
    moved = bytes_of_steps(sequences, loops=loops)
    assert run(name).metrics.bytes_read == moved
    assert Fraction(moved * PS, A100_BANDWIDTH) < run(name).makespan


@pytest.mark.parametrize("name", ["batch_1", "batch_8", "batch_64"])
def test_a_kernel_takes_the_later_of_bytes_and_arithmetic(name: str) -> None:
    """Kernels run one after another, so the run lies between the bytes alone, and bytes and arithmetic one after the other."""
    result = run(name)
    channel = Fraction((result.metrics.bytes_read + result.metrics.bytes_written) * PS, A100_BANDWIDTH)
    assert channel <= result.makespan <= channel + result.bounds.compute + len(result.log.tasks)


def test_the_gain_of_a_batch_falls_behind_its_size_as_the_caches_grow() -> None:
    speed = {n: n / run(f"batch_{n}").makespan for n in (1, 8, 64)}
    for n in (8, 64):
        by_bytes = n * Fraction(bytes_of_steps(1), bytes_of_steps(n))
        assert by_bytes < n
        assert speed[n] / speed[1] == pytest.approx(float(by_bytes), rel=0.005)
    assert 64 * KV * 2048 > WEIGHTS > 8 * KV * 2048, "the caches of 64 are more than the weights, those of 8 are not"


def test_loops_gain_nothing() -> None:
    assert run("eight_loops").makespan > 8 * Fraction(bytes_of_steps(1) * PS, A100_BANDWIDTH)
    assert run("eight_loops").requests.tokens_per_second <= run("batch_1").requests.tokens_per_second * 1.001


def test_who_is_done_makes_room_only_in_continuous_batches() -> None:
    runs = {name: run(f"batching_{name}") for name in ("static", "continuous")}
    lengths = runs["static"].requests.tokens
    assert (lengths == runs["continuous"].requests.tokens).all()
    assert len(runs["static"].log.steps) == sum(int(lengths[i : i + 8].max()) for i in (0, 8, 16)), "the longest of each batch"
    batch = fed(runs["continuous"])
    waiting = runs["continuous"].requests.started[None, :] > runs["continuous"].log.steps.released[:, None]
    assert (batch[waiting.any(axis=1)] == 8).all(), "no place is empty while somebody waits"
    assert (fed(runs["static"]) < 8).any()
    assert runs["continuous"].makespan < runs["static"].makespan


# A mixture of experts: Qwen3-30B-A3B, 48 layers of 128 experts, 8 for a token

EXPERT = 2 * 3 * 2048 * 768  # bytes
ELSE = 2 * (48 * (2048 * (4096 + 512 + 512) + 4096 * 2048 + 2048 * 128 + 2 * 2048 + 2 * 128) + 2048 + 2048 * 151_936)


def experts_of_a_layer(batch: int) -> float:
    """How many distinct experts a step of two reads in a layer, on average."""
    cache = sum(batch * (2 * 2048 + 48 * 2 * 2 * 4 * 128 * (1024 + token)) for token in range(2))
    return (run(f"moe_batch_{batch}").metrics.bytes_read - 2 * ELSE - cache) / (2 * 48 * EXPERT)


def test_a_batch_reads_the_distinct_experts_of_its_tokens() -> None:
    assert experts_of_a_layer(1) == 8
    assert experts_of_a_layer(32) == pytest.approx(128 * (1 - (1 - 8 / 128) ** 32), abs=1.5)  # a layer varies by 2, 96 of them


def test_a_batch_helps_a_dense_model_and_hardly_a_mixture() -> None:
    gain = {kind: 32 * run(f"{kind}_batch_1").makespan / run(f"{kind}_batch_32").makespan for kind in ("moe", "dense")}
    one = run("moe_batch_1").makespan / run("dense_batch_1").makespan
    assert 0.9 < one < 1.1, "alone they read nearly the same"
    for kind, times in gain.items():
        read = [run(f"{kind}_batch_{n}").metrics.bytes_read for n in (1, 32)]
        assert times == pytest.approx(32 * read[0] / read[1], rel=0.01)
    assert gain["dense"] > 4 * gain["moe"]


# Prefill

CHUNKS = {"prefill_whole": 4096, "prefill_chunks_of_512": 512, "prefill_chunks_of_128": 128}


@pytest.mark.parametrize(("name", "chunk"), CHUNKS.items())
def test_each_chunk_reads_the_weights_and_the_chunks_before_it(name: str, chunk: int) -> None:
    result = run(name)
    decode = sum(4 * (ROW + KV * (2048 + token)) for token in range(48)) + sum(ROW + KV * (4096 + token) for token in range(3))
    prefill = 4096 * ROW + sum(KV * done for done in range(0, 4096, chunk))
    steps = len(result.log.steps)
    assert result.metrics.bytes_read == steps * WEIGHTS + decode + prefill
    assert (result.log.members.query > 1).sum() == 4096 // chunk


@pytest.mark.parametrize(("name", "chunk"), CHUNKS.items())
def test_who_decodes_waits_for_a_whole_step_with_its_chunk(name: str, chunk: int) -> None:
    result = run(name)
    flops = 2 * LAYERS * (chunk + 4)  # at least: without attention and LM head
    longest = int(step_times(result)[fed(result) > 4].max())
    assert longest >= max(Fraction(flops * PS, A100_FLOPS), Fraction(WEIGHTS * PS, A100_BANDWIDTH))
    assert int(result.requests.gaps.max()) == longest, "the longest time between two tokens is the longest step"


def test_chunks_trade_the_first_token_of_one_for_the_next_tokens_of_all() -> None:
    whole, middle, small = (run(name) for name in CHUNKS)
    itl = [int(r.requests.gaps.max()) for r in (whole, middle, small)]
    assert itl[0] > 4 * itl[1] > 4 * itl[2]
    ttft = [int(r.requests.ttft[4]) for r in (whole, middle, small)]
    assert ttft[2] > ttft[1] > ttft[0]
    again = 128_256 * 2048 * 2 + 4 * 2048 * KV  # LM head and caches of the four, which each of seven more steps reads
    assert ttft[1] - ttft[0] == pytest.approx(7 * again * PS / A100_BANDWIDTH, rel=0.1)
    assert ttft[2] > Fraction(4096 // 128 * WEIGHTS * PS, A100_BANDWIDTH), "32 times the weights"
    # 512 tokens take longer to compute than the weights to read, 128 do not.
    read = Fraction(WEIGHTS, A100_BANDWIDTH)
    assert Fraction(2 * LAYERS * 128, A100_FLOPS) < read < Fraction(2 * LAYERS * 512, A100_FLOPS)


# A full KV cache

BLOCKS = 250_000_000 // (16 * KV)
PROMPT, OUTPUT, COUNT = 1496, 32, 10


def largest_batch(result: sim.Result) -> int:
    members = result.log.members
    return int(np.bincount(members.step[members.query > 0]).max())


def test_waiting_admits_what_can_end_and_others_what_can_begin() -> None:
    ends, begins = -(-(PROMPT + OUTPUT - 1) // 16), -(-PROMPT // 16)
    assert (BLOCKS // ends, BLOCKS // begins) == (4, 5)
    assert [largest_batch(run(f"kv_full_{full}")) for full in ("wait", "recompute", "swap")] == [4, 5, 5]


@pytest.mark.parametrize("full", ["wait", "recompute", "swap"])
def test_the_cache_never_holds_more_blocks_than_there_are(full: str) -> None:
    members = run(f"kv_full_{full}").log.members
    held = -(-(members.context + members.query) // 16)
    assert np.bincount(members.step, held).max() <= BLOCKS
    assert (run(f"kv_full_{full}").requests.tokens == OUTPUT).all()


def test_recomputing_feeds_tokens_in_again_and_swapping_moves_them() -> None:
    once = COUNT * (PROMPT + OUTPUT - 1)
    total = {full: int(run(f"kv_full_{full}").log.members.query.sum()) for full in ("wait", "recompute", "swap")}
    assert total["wait"] == total["swap"] == once
    assert total["recompute"] >= once + PROMPT
    kinds = {kind.kind: kind.bytes for kind in run("kv_full_swap").metrics.kinds}
    assert kinds["kv_swap_out"] == kinds["kv_swap_in"] >= KV * PROMPT
    for full, tokens in total.items():
        written = {kind.kind: kind.bytes for kind in run(f"kv_full_{full}").metrics.kinds}["kv_store"]
        assert written == KV * tokens


def test_waiting_keeps_tokens_even_and_lets_requests_wait() -> None:
    runs = {full: run(f"kv_full_{full}") for full in ("wait", "recompute", "swap")}
    a_step = Fraction((WEIGHTS + 4 * (ROW + KV * (PROMPT + OUTPUT))) * PS, L4_BANDWIDTH)
    assert runs["wait"].requests.gaps.max() < 1.1 * a_step, "never more than a step of four"
    for full in ("recompute", "swap"):
        assert runs[full].requests.gaps.max() > 10 * a_step, "a request that was put out waits until others are done"
        assert runs[full].requests.ttft.mean() < runs["wait"].requests.ttft.mean()


# Speculation


def test_drafts_pay_until_arithmetic_takes_longer_than_the_weights() -> None:
    runs = {k: run(f"speculation_{k}") for k in (1, 2, 4, 8)}
    speed = {k: r.requests.tokens_per_second for k, r in runs.items()}
    assert speed[1] < speed[2] > speed[4] > speed[8]
    assert speed[8] < speed[1]
    for k, result in runs.items():
        steps = result.log.steps
        assert len(steps) * (k + 1) >= 64
        full = step_times(result)[result.log.members.query == k + 1]
        flops = 2 * (LAYERS + HEAD) * (k + 1)
        int4 = (WEIGHTS - 2 * 33 * 2048) // 2 * 33 // 64  # 66 bytes for 128 weights
        read, compute = Fraction(int4 * PS, int(0.775 * 17.07e9)), Fraction(flops * PS, PI_FLOPS)
        assert full.min() >= max(read, compute)
        assert compute > 1.5 * read if k > 2 else compute < 1.01 * read, "which of the two decides"


def test_on_the_a100_eight_drafts_cost_next_to_nothing() -> None:
    result = run("speculation_8_a100")
    times, members = step_times(result), result.log.members
    read = (WEIGHTS + 9 * ROW + KV * members.context) * Fraction(PS, A100_BANDWIDTH)
    assert Fraction(2 * (LAYERS + HEAD) * 9, A100_FLOPS) < Fraction(WEIGHTS, 16 * A100_BANDWIDTH), "arithmetic of nine tokens"
    assert all(read <= time <= 1.01 * read for time, read in zip(times[:-1].tolist(), read[:-1], strict=True))


def test_a_draft_model_pays_while_its_drafts_are_short() -> None:
    """A token takes (k D + V) / tokens of a step instead of V."""
    gains = {}
    for size in ("1b", "3b"):
        result = run(f"speculation_draft_{size}")
        drafts, times = derived.drafts(result.log), step_times(result)
        verifications = int((~drafts).sum())
        draft, verify = times[drafts].mean(), times[~drafts].mean()
        assert drafts.sum() == pytest.approx(4 * verifications, rel=0.05)  # fewer at the end
        assert result.makespan == times.sum()
        gains[size] = verify * 64 / result.makespan
        worth = draft / verify < (64 / verifications - 1) / (drafts.sum() / verifications)
        assert worth == (gains[size] > 1)
    alone = sim.run(read(find_scenario("speculation_draft_1b"), ["workload.speculative=null"])).makespan
    assert run("speculation_draft_1b").makespan < 0.65 * alone
    assert run("speculation_draft_3b").makespan > alone
    assert gains["1b"] > 1 > gains["3b"]


# Engines and a channel


def engines(n: int, *changes: str) -> sim.Result:
    changed = [f"hardware.engines.count={n}", *changes]
    return sim.run(read(find_scenario("engines_per_channel"), changed))


def test_three_engines_that_wait_for_their_operands_fill_a_channel() -> None:
    """A closed loop: throughput is at most min(N / (Z + D), 1 / D), and the knee is at N = (Z + D) / D."""
    one = engines(1)
    z, d = one.bounds.compute, one.bounds.memory
    knee = Fraction(z + d, d)
    assert 2.9 < knee < 3.1
    assert one.makespan >= z + d
    times = {n: engines(n).makespan for n in (2, 3, 4, 8)}
    for n, time in times.items():
        assert time >= max(Fraction(z + d, n), d)
    assert times[2] < 1.1 * (z + d) / 2, "below the knee each engine counts"
    assert times[3] == times[4] == times[8], "above it none does"
    shared = {n: engines(n, "hardware.memory.arbiter=processor_sharing").makespan for n in (2, 4, 8)}
    assert all(shared[n] > times[n] for n in shared), "engines that share wait together, and compute together"
    ahead = engines(2, "mapping.execution=prefetch").makespan
    assert max(z // 2, d) <= ahead < 1.05 * d, "with loads ahead of their tasks two are enough: the knee is at Z / D"


# Measured


@pytest.mark.parametrize(("name", "profile", "model", "rows", "context", "error"), [
    ("h100_llama_1b_graphs", "h100_cuda_graphs", "llama-3.2-1b", 1, 2464, 0.02),
    ("h100_llama_1b_eager", "h100_eager", "llama-3.2-1b", 1, 2456, 0.15),  # noise: 14 %
    ("h100_llama_8b_batch_32", "h100_cuda_graphs", "llama-3.1-8b", 32, 2480, 0.02),
])  # fmt: skip
def test_a_measured_device_is_predicted(
    name: str, profile: str, model: str, rows: int, context: int, error: float
) -> None:  # fmt: skip
    """The first step against the steps of the real model, which are among the samples and were not fitted to."""
    found = read_samples(find_scenario(name).with_name("profiles") / f"{profile}.parquet")
    measured = found.take((found.kind == "step") & (found.model == model) & (found.rows == rows) & (found.context == context))
    assert len(measured) >= 5
    assert step_times(run(name))[0] == pytest.approx(np.median(measured.duration), rel=error)


# Several devices


def test_one_batch_is_on_one_stage_at_a_time_and_four_are_on_all() -> None:
    """Stages that work at a time, on average: of one batch one, but for its sends; of four micro-batches nearly all."""
    alone, four = (run(f"h100_llama_8b_pipeline_4{name}") for name in ("_bubbles", ""))
    busy = [Fraction(sum(each.metrics.engine_busy), each.makespan) for each in (alone, four)]
    assert 1 - Fraction(1, 200) < busy[0] < 1
    assert Fraction(33, 10) < busy[1] < 4
    # Four micro-batches read the weights of products four times, norms too, and each sequence what it reads anyway.
    again = 3 * 8 * (15_009_857_536 - 4096 * 2)
    assert four.metrics.bytes_read - alone.metrics.bytes_read == again


def test_devices_with_whole_experts_read_the_same_and_wait_for_one_another() -> None:
    cut, dealt = run("h100_mixtral_experts_cut"), run("h100_mixtral_experts_dealt")
    assert dealt.metrics.bytes_read == 4 * cut.metrics.bytes_read
    assert dealt.makespan > cut.makespan


def test_tokens_that_are_sent_to_their_experts_alone_take_fewer_bytes() -> None:
    """Bytes of 8 x 2,049 tokens in 32 layers, each for 1.393 other devices on average, where 2 of 8 experts are on four."""
    result = run("h100_mixtral_experts_all_to_all")
    sent = {name: moved.sent for name, moved in moved_by_kind(result.log).items()}
    assert sent["expert_dispatch_send"] == sent["expert_combine_send"]
    assert sent["expert_dispatch_send"] == pytest.approx(32 * 8 * 2049 * 8192 * 3 * 13 / 28, rel=0.01)


def test_data_parallel_attention_reads_each_cache_once() -> None:
    """Latents of 128 x 8,192 tokens: with tensor parallelism on each of four devices. Experts are read as often."""
    data, tensor = (run(f"h100_deepseek_v2_lite_attention_{name}") for name in ("data", "tensor"))
    read = [moved_by_kind(result.log)["attention"].read for result in (data, tensor)]
    assert read[1] == 4 * read[0]
    assert read[0] == 128 * sum(27 * (512 + 64) * 2 * (8192 + token) for token in range(2))
    assert 2 * data.makespan < tensor.makespan
