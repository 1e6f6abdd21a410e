"""Draft models: their steps by hand, in time, bytes and memory, on both executors; and how speculation loses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim
from models.graph import QUANTITIES
from sim.base.errors import ConfigError, InputError
from sim.executors import compiled, reference
from sim.executors.size import fewest_drafts, most_drafts, tasks_in_all
from sim.log import derived
from sim.runs.model import models_of
from sim.runs.plan import kept_layers_of, plan
from sim.runs.run import run
from sim.runs.saved import load, save
from sim.scenario import from_dict
from sim.serving.batch import Batch
from sim.serving.loops import loops
from sim.serving.settings import DraftModel, Speculative
from sim.workload.requests import Request
from tests.executors import assert_same
from tests.serving.test_batcher import drive, emitted, resolved

MS = 10**9
DRAFTS = DraftModel(config="drafts")


def rounds(asked: list[Request], acceptance: float | tuple[int, ...], draft: int, **batching: Any) -> list[Batch]:
    speculation = Speculative(draft=draft, acceptance=acceptance, model=DRAFTS)
    batchers = loops(resolved(speculation=speculation, **batching), asked)
    return [batch for _, batch in drive(batchers)]


def rows(batches: list[Batch]) -> list[tuple[str, list[tuple[int, int, int]]]]:
    """Model of each step, and context, new tokens and rows of logits of its members."""
    return [
        ("draft" if batch.shape.draft else "verify", [(m.context, m.query, m.logits) for m in batch.members])
        for batch in batches
    ]


def test_each_draft_is_a_step_and_after_full_acceptance_the_last_one_is_fed_in_as_well() -> None:
    """Drafts come after 10, 11 and 12 tokens. If all are right, the draft model then lacks the third and the next token."""
    asked = [Request(context=10, tokens=9, arrival=0)]
    assert rows(rounds(asked, (3, 1), 3, policy="independent")) == [
        ("draft", [(10, 1, 1)]), ("draft", [(11, 1, 1)]), ("draft", [(12, 1, 1)]), ("verify", [(10, 4, 4)]),
        ("draft", [(13, 2, 1)]), ("draft", [(15, 1, 1)]), ("draft", [(16, 1, 1)]), ("verify", [(14, 4, 4)]),
        ("draft", [(16, 1, 1)]), ("draft", [(17, 1, 1)]), ("verify", [(16, 3, 3)]),
    ]  # fmt: skip


def test_the_draft_model_takes_in_a_prompt_chunk_by_chunk_after_the_model() -> None:
    asked = [Request(context=0, prompt=25, tokens=4, arrival=0)]
    assert rows(rounds(asked, (2,), 2, policy="continuous", chunk=10)) == [
        ("verify", [(0, 10, 0)]),
        ("draft", [(0, 10, 0)]), ("verify", [(10, 10, 0)]),
        ("draft", [(10, 10, 0)]), ("verify", [(20, 5, 1)]),  # the first token, which no draft has to wait for
        ("draft", [(20, 6, 1)]), ("draft", [(26, 1, 1)]), ("verify", [(25, 3, 3)]),
    ]  # fmt: skip


def test_a_prefix_is_found_by_both_models() -> None:
    """A prompt of 18 tokens begins with 16 that the one before it had, in four blocks. Each model computes the other two alone.

    The first request fills the blocks of the draft model with its first draft, and leaves them when it ends. The third wants no
    drafts, and finds them as well; of its own text, that draft model never has a token, so the fourth computes it again.
    """
    asked = [
        Request(context=0, prompt=18, tokens=tokens, arrival=0, prefix=(text,), prefix_tokens=16)
        for tokens, text in ((3, 1), (3, 1), (1, 1), (1, 2), (1, 2))
    ]
    found = rows(rounds(asked, (0,), 1, policy="continuous", sequences=1, block=4, prefix_cache=True))
    assert found == [
        ("verify", [(0, 18, 1)]), ("draft", [(0, 19, 1)]), ("verify", [(18, 2, 2)]), ("verify", [(19, 1, 1)]),
        ("verify", [(16, 2, 1)]), ("draft", [(16, 3, 1)]), ("verify", [(18, 2, 2)]), ("verify", [(19, 1, 1)]),
        ("verify", [(16, 2, 1)]), ("verify", [(0, 18, 1)]), ("verify", [(0, 18, 1)]),
    ]  # fmt: skip


def test_sequences_draft_together_as_long_as_each_needs_drafts() -> None:
    """The second needs one more token after the next, so one draft; the third is prefilled meanwhile and drafts never."""
    asked = [Request(context=8, tokens=4, arrival=0), Request(context=5, tokens=2, arrival=0)]
    asked.append(Request(context=0, prompt=7, tokens=2, arrival=0))
    found = rows(rounds(asked, (0,), 2, policy="continuous", sequences=3))
    assert found[:3] == [
        ("draft", [(8, 1, 1), (5, 1, 1)]), ("draft", [(9, 1, 1)]), ("verify", [(8, 3, 3), (5, 2, 2), (0, 7, 1)])
    ]  # fmt: skip
    assert ("draft", [(0, 7, 1)]) not in found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.builds(Request, context=st.integers(0, 9), prompt=st.integers(0, 20), tokens=st.integers(1, 9), arrival=st.just(0)),
        min_size=1, max_size=4,
    ),
    st.integers(1, 4), st.floats(0, 1), st.none() | st.integers(1, 8), st.sampled_from(("wait", "recompute")),
)  # fmt: skip
def test_steps_of_the_model_are_those_without_a_draft_model(
    asked: list[Request], draft: int, acceptance: float, chunk: int | None, full: str
) -> None:
    """And the draft model never feeds in a token without all before it in its cache, nor one that the model cannot have."""
    batching: dict[str, Any] = {"policy": "continuous", "sequences": 2, "chunk": chunk, "blocks": 12, "block": 4, "full": full}
    free = loops(resolved(speculation=Speculative(draft=draft, acceptance=acceptance), **batching), asked)
    expected = [batch for _, batch in drive(free)]
    found = rounds(asked, acceptance, draft, **batching)
    assert [batch.members for batch in found if not batch.shape.draft] == [batch.members for batch in expected]
    assert not any(emitted([(0, batch) for batch in found if batch.shape.draft]).values())
    cached = [request.context for request in asked]
    for before, batch in enumerate(found):
        if not batch.shape.draft:
            continue
        verify = next(each for each in found[before:] if not each.shape.draft)
        at = {member.sequence: member for member in verify.members}
        for member in batch.members:
            assert member.context <= max(cached[member.sequence], at[member.sequence].context)
            assert member.context + member.query <= at[member.sequence].context + max(at[member.sequence].query - 1, 0) + 1
            cached[member.sequence] = member.context + member.query


LIKE = {
    "model": {"config": "llama-3.2-1b", "layers": 4},
    "hardware": {"engines": {"count": 2, "flops": "8 TFLOP/s"}, "memory": {"bandwidth": "100 GB/s"}},
    "mapping": {"execution": "stream", "softmax": "online"},
}
DRAFT = {"config": "qwen3-0.6b", "layers": 2}


def speculating(
    draft: dict[str, Any] | None, workload: dict[str, Any], acceptance: Any = (0, 2, 1), **others: Any
) -> sim.Result:
    speculative = {"draft": 2, "acceptance": acceptance, "model": draft}
    return run(from_dict({**LIKE, "workload": {**workload, "speculative": speculative}, **others}), executor="simpy")


def test_a_draft_takes_as_long_as_a_step_of_its_model_and_adds_to_the_time() -> None:
    workload = {"sequences": [{"context": 40, "tokens": 12}]}
    result, free = speculating(DRAFT, workload, [0]), speculating(None, workload, [0])
    alone = run(from_dict({**LIKE, "model": DRAFT, "workload": workload}), executor="simpy").log
    by_context = dict(zip(alone.steps.context.tolist(), (alone.steps.end - alone.steps.released).tolist(), strict=True))
    log, drafts = result.log, derived.drafts(result.log)
    took = log.steps.end - log.steps.released
    assert drafts.sum() == 2 * 10 + 1
    assert took[drafts].tolist() == [by_context[context] for context in log.steps.context[drafts].tolist()]
    assert took[~drafts].tolist() == (free.log.steps.end - free.log.steps.released).tolist()
    assert result.makespan == free.makespan + took[drafts].sum()
    assert result.requests.tokens_per_second < free.requests.tokens_per_second
    bytes_of = {kind.kind: kind.bytes for kind in result.metrics.kinds}
    one = {kind.kind: kind.bytes for kind in run(from_dict({**LIKE, "model": DRAFT, "workload": {}})).metrics.kinds}
    assert bytes_of["draft lm_head"] == drafts.sum() * one["lm_head"]


def test_the_example_of_gpt_fast() -> None:
    """Drafts of 25.4 ms and a verification of 41 ms for 3.2 tokens: 48 tokens/s, and 78 if drafts were free.

    https://github.com/pytorch-labs/gpt-fast reports 48.4 for 70B with a draft of 7B, both in int4.
    """
    graph = [{"name": "draft", "duration": "25.4 ms"}, {"name": "verify", "duration": "41 ms", "inputs": ["draft"]}]
    workload = {
        "sequences": [{"context": 5, "tokens": 320}], "speculative": {"draft": 5, "acceptance": [2, 2, 3, 2, 2]},
    }  # fmt: skip
    result = run(from_dict({"model": {"graph": graph}, "workload": workload}))
    assert result.makespan == 100 * 66_400_000_000
    assert result.requests.tokens_per_second == pytest.approx(3.2 / 0.0664)
    with pytest.raises(InputError, match=r"workload.speculative.model: expected only with model.config"):
        run(from_dict({"model": {"graph": graph}, "workload": {"speculative": {"draft": 1, "acceptance": 1, "model": "gpt2"}}}))


BATCHES = {
    "alone": {"sequences": [{"context": 20, "tokens": 7, "count": 2}, {"prompt": 30, "tokens": 4, "arrival": "9 ms"}]},
    "together": {
        "sequences": [{"prompt": 30, "tokens": 7, "count": 3}, {"context": 9, "tokens": 5}], "batching": "continuous",
        "prefill": {"chunk": 16},
    },
    "dropped": {
        "sequences": [{"prompt": 30, "tokens": 9, "count": 3}],
        "batching": {"policy": "continuous", "kv": {"capacity": "1500 kB", "block": 4, "full": "recompute"}},
    },
    "prefixes": {
        "generate": {"count": 5, "prompt": 6, "tokens": 5, "prefixes": {"count": 2, "tokens": 20}},
        "batching": {"policy": "continuous", "max_batch": 2, "kv": {"block": 4, "prefix_cache": True}},
    },
}  # fmt: skip


@pytest.mark.parametrize("execution", ["stream", "prefetch"])
@pytest.mark.parametrize("workload", BATCHES.values(), ids=BATCHES)
def test_both_executors_draft_alike(workload: dict[str, Any], execution: str) -> None:
    speculative = {"draft": 3, "acceptance": 0.6, "model": DRAFT}
    mapping = {"execution": execution, "attention": "batch" if execution == "stream" else "sequence"}
    setup = plan(from_dict({**LIKE, "mapping": mapping, "workload": {**workload, "speculative": speculative}})).setup
    log = reference.simulate(setup)
    assert_same(log, compiled.simulate(setup))
    assert derived.drafts(log).any()
    fewest, most = tasks_in_all(setup)
    assert fewest <= len(log.tasks)
    if workload is BATCHES["alone"]:
        assert len(log.tasks) <= most


@pytest.mark.parametrize(("tokens", "draft"), [(1, 3), (4, 3), (5, 3), (12, 3), (2, 8), (9, 1)])
def test_drafts_in_all(tokens: int, draft: int) -> None:
    for acceptance, count in (((draft,), fewest_drafts), ((0,), most_drafts)):
        steps = rounds([Request(context=3, tokens=tokens, arrival=0)], acceptance, draft, policy="independent")
        assert sum(batch.shape.draft for batch in steps) == count(tokens, draft)


def test_weights_and_cache_of_the_draft_model_take_memory() -> None:
    workload = {"sequences": [{"context": 100, "tokens": 5}], "speculative": {"draft": 2, "acceptance": 0.5}}
    fits = {"model": {"config": "llama-3.2-1b"}, "hardware": {"memory": {"capacity": "2.5 GB"}}, "workload": workload}
    plan(from_dict(fits))
    workload["speculative"]["model"] = "qwen3-0.6b"
    with pytest.raises(InputError, match=r"hardware.memory.capacity: 3.664 GB of weights and .* of KV cache"):
        plan(from_dict(fits))


def test_the_cache_of_both_models_is_counted_in_blocks() -> None:
    speculative = {"draft": 2, "acceptance": 0.5, "model": "qwen3-0.6b"}
    kv = {"capacity": "1 GB", "block": 1}
    workload = {"sequences": [{"context": 99, "tokens": 1}], "batching": {"policy": "continuous", "kv": kv}}
    of_both = run(
        from_dict({**LIKE, "model": {"config": "llama-3.2-1b"}, "workload": {**workload, "speculative": speculative}})
    )
    alone = [
        run(from_dict({**LIKE, "model": {"config": config}, "workload": workload})).series.kv_bytes.max()
        for config in ("llama-3.2-1b", "qwen3-0.6b")
    ]
    assert of_both.series.kv_bytes.max() == sum(alone)


@pytest.mark.parametrize(
    ("speculative", "batching", "sequence", "key", "message"),
    [
        ({"model": "no-such-model"}, {}, {}, "workload.speculative.model.config", "no-such-model"),
        ({"model": {"config": "gpt2", "layers": 99}}, {}, {}, "workload.speculative.model.layers", "expected 1 to 12"),
        ({"model": "gpt2"}, {}, {"samples": 2}, "workload.sequences", "no samples"),
        ({"model": "gpt2"}, {}, {"context": 1020}, "workload", "at most 1024 tokens"),
    ],
)
def test_what_a_draft_model_cannot_do(
    speculative: dict[str, Any], batching: dict[str, Any], sequence: dict[str, Any], key: str, message: str
) -> None:
    workload = {
        "sequences": [{"prompt": 9, "tokens": 5, **sequence}], "batching": {"policy": "continuous", **batching},
        "speculative": {"draft": 2, "acceptance": 0.5, **speculative},
    }  # fmt: skip
    with pytest.raises((ConfigError, InputError), match=rf"{key}: .*{message}"):
        plan(from_dict({**LIKE, "workload": workload}))


def test_a_saved_log_has_its_draft_steps(tmp_path: Any) -> None:
    pytest.importorskip("pyarrow")
    result = speculating(DRAFT, {"sequences": [{"context": 4, "tokens": 4}]})
    save(result.log, result.scenario, tmp_path / "log.parquet")
    log, _ = load(tmp_path / "log.parquet")
    assert_same(result.log, log)
    assert derived.drafts(log).tolist() == derived.drafts(result.log).tolist()
    assert [log.name(row) for row in range(3)] == [result.log.name(row) for row in range(3)]
    assert log.name(0).startswith("draft ")


HEAD = {
    "model": {"config": "deepseek-v3", "layers": 4},
    "workload": {"sequences": [{"prompt": 9, "tokens": 5, "count": 2}], "batching": "continuous"},
    "mapping": {"execution": "stream", "softmax": "online", "attention": "batch", "formats": {"weights": "bf16"}},
}


def test_a_prediction_head_is_one_layer_between_a_projection_and_the_shared_lm_head() -> None:
    """DeepSeek-V3's head has 11.5 billion parameters of its own, beside the embedding and LM head that it shares.

    https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md
    """
    speculative = {"draft": 1, "acceptance": 0.85, "model": "mtp"}
    scenario = from_dict({**HEAD, "workload": {**HEAD["workload"], "speculative": speculative}})
    main, head = models_of(scenario)
    own = head.holder.weights / 2
    assert own == pytest.approx(11.5e9, rel=0.01)
    hidden, experts, routed, shared = 7168, 256, 3 * 7168 * 2048, 3 * 7168 * 2048
    attention = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    assert own == pytest.approx(2 * hidden**2 + experts * (routed + hidden) + shared + attention, rel=1e-4)
    assert [group.bytes for group in kept_layers_of([head])] == [group.bytes // 4 for group in kept_layers_of([main])]
    setup = plan(scenario).setup
    log = reference.simulate(setup)
    assert_same(log, compiled.simulate(setup))
    drafts = derived.drafts(log)
    assert 0 < drafts.sum() <= (~drafts).sum()
    kinds = {kind for graph in log.graphs for kind in graph.kinds}
    assert {"draft eh_proj", "draft lm_head", "draft gate_up_proj"} <= kinds
    assert "eh_proj" not in kinds


#: Parameters of the whole checkpoint by the hub, and those of them that neither the model nor its head has here: copies of
#: embedding and LM head in the head, biases that choose experts (buffers), and a vision model. And bytes of the head's bias.
CHECKPOINTS = {
    # https://huggingface.co/Qwen/Qwen3-Next-80B-A3B-Instruct
    "qwen3-next-80b-a3b": (81_324_862_720, 0, 0),
    # https://huggingface.co/zai-org/GLM-4.5-Air
    "glm-4.5-air": (110_468_824_832, 2 * 151_552 * 4096 + 46 * 128, 128 * 4),
    # https://huggingface.co/deepseek-ai/DeepSeek-V3.2
    "deepseek-v3.2": (685_355_329_792, 2 * 129_280 * 7168 + 59 * 256, 256 * 4),
    # https://huggingface.co/Qwen/Qwen3.6-27B; the vision model as its class in transformers makes it
    "qwen3.6-27b": (27_781_427_952, 460_730_096, 0),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_model_and_its_prediction_head_are_all_that_the_hub_counts(name: str) -> None:
    published, others, bias = CHECKPOINTS[name]
    workload = {"sequences": [{"context": 64}], "speculative": {"draft": 1, "acceptance": 0.85, "model": "mtp"}}
    main, head = models_of(from_dict({
        "model": {"config": name}, "workload": workload, "mapping": {"formats": {"weights": "bf16"}},
    }))  # fmt: skip
    assert main.model.parameters + (head.holder.weights - bias) / 2 + others == published


def test_the_head_of_a_hybrid_is_its_last_layer_of_attention_and_keeps_no_state() -> None:
    """Qwen3-Next: the last of each four layers has 16 query heads with gates, 2 KV heads of 256, and 10 of 512 experts."""
    speculative = {"draft": 1, "acceptance": 0.85, "model": "mtp"}
    scenario = from_dict({
        "model": {"config": "qwen3-next-80b-a3b", "layers": 4},
        "workload": {"sequences": [{"context": 64, "tokens": 2}], "speculative": speculative},
        "mapping": {"softmax": "online"},
    })  # fmt: skip
    _, head = models_of(scenario)
    assert [(group.window, group.bytes) for group in kept_layers_of([head])] == [(None, 2 * 2 * 256 * 2)]
    cost = dict(zip(QUANTITIES, head.ops.costs(64).sum(axis=1).tolist(), strict=True))
    attention = 2048 * (2 * 4096 + 2 * 512) + 4096 * 2048
    experts = 2048 * (512 + 1) + (10 + 1) * 3 * 2048 * 512  # router, gate of the shared expert, and experts
    products = 2 * 2048 * 2048 + attention + experts + 151_936 * 2048
    norms = (2 + 2 + 1) * 2048 + 2 * 256
    assert cost["weight"] == 2 * (products + norms + 2048)  # and one row of the embedding
    assert cost["flops"] == 2 * products + 2 * 2 * 4096 * (64 + 1)
    assert (cost["kv_read"], cost["kv_write"]) == (64 * 2048, 2048)
    assert cost["state_read"] == cost["state_write"] == 0
    log = reference.simulate(plan(scenario).setup)
    assert_same(log, compiled.simulate(plan(scenario).setup))
    drafts = [kind for graph in log.graphs for kind in graph.kinds if kind.startswith("draft ")]
    assert "draft eh_proj" in drafts
    assert not any("state" in kind for kind in drafts)


def test_a_model_without_a_prediction_head_has_none_to_draft_with() -> None:
    for model, key in (
        ({"config": "llama-3.2-1b"}, "has no multi-token"),
        ({**HEAD["model"], "scope": "block"}, "model.scope"),
    ):
        workload = {"speculative": {"draft": 1, "acceptance": 0.85, "model": "mtp"}}
        with pytest.raises(InputError, match=rf"workload.speculative.model: .*{key}"):
            plan(from_dict({"model": model, "workload": workload}))
