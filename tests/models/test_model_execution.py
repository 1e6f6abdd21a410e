"""The graph's dependencies are those of the real model: run in any order they allow, it gives the model's own logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_families import captured, small
from model_replay import RealStep, real_step, replay

from models.graph import OpGraph

#: Grouped queries, windows, soft cap, sinks, experts, latent cache, fused projections, parallel blocks, partial rope,
#: attention that a family writes out.
FAMILIES = ["llama", "gemma2", "mixtral", "falcon"]
MORE_FAMILIES = [
    "mistral",
    "gpt_oss",
    "gemma3_text",
    "deepseek_v3",
    "gpt2",
    "opt",
    "cohere",
    "phi",
    "qwen3_moe",
    "starcoder2",
    "olmo2",
    "granite",
    "bloom",
    "gptj",
    "gpt_neo",
    "codegen",
    "xglm",
]

CONTEXT = 9  # past the windows of 6


@pytest.fixture(scope="module", params=[*FAMILIES, *(pytest.param(f, marks=pytest.mark.slow) for f in MORE_FAMILIES)])
def family(request: pytest.FixtureRequest):
    config = small(request.param)
    return config, captured(request.param)


@pytest.mark.parametrize(
    ("batch", "query"),
    [(1, 1), (2, 3), pytest.param(3, 1, marks=pytest.mark.slow), pytest.param(1, 4, marks=pytest.mark.slow)],
)
def test_any_order_that_the_graph_allows_gives_the_logits_of_the_model(family, batch, query):
    config, graphs = family
    real = real_step(config, batch, query, CONTEXT)
    torch.testing.assert_close(real.logits, real.eager, rtol=2e-4, atol=2e-5)  # the simulator's attention against the family's
    for granularity, model in graphs.items():
        logits = replay(real, model.step(batch, query), granularity, seed=batch)
        torch.testing.assert_close(logits, real.logits, rtol=1e-5, atol=1e-6)


def without_edge(graph: OpGraph, kind: str, needed: str) -> OpGraph:
    ops = tuple(
        replace(op, inputs=tuple(j for j in op.inputs if graph.ops[j].kind != needed)) if op.kind == kind else op
        for op in graph.ops
    )
    assert ops != graph.ops
    return OpGraph(ops=ops, polynomials=graph.polynomials, breaks=graph.breaks)


@pytest.mark.parametrize(
    ("kind", "needed"), [("scores", "rope"), ("scores", "kv_load"), ("weighted_values", "v_proj"), ("residual", "o_proj")]
)
def test_a_graph_with_a_missing_dependency_is_found_out(kind, needed):
    config = small("llama")
    graph = without_edge(captured("llama")["op"].step(2, 3), kind, needed)
    real: RealStep = real_step(config, 2, 3, CONTEXT)
    logits = replay(real, graph, "op", seed=0, last=needed)
    assert not torch.allclose(logits, real.logits, rtol=1e-5, atol=1e-6)
