"""The real model on the CPU: every op of its graph is found among what torch's profiler saw, and the times add up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from model_families import small
from torch.utils.flop_counter import flop_registry

from models.config import ModelConfig
from models.decoder import hf_config
from sim.base.errors import InputError, SimError
from sim.measure.align import Event, Span, device_spans, issued_spans, launches, match, replayed
from sim.measure.place import place
from sim.measure.real import SDPA, THREE_PASS, Decoding, RealModel
from sim.measure.step import assemble, measure, samples, waiting

EAGER_ONLY = ["gemma2", "deepseek_v3", "gpt_oss"]
FAMILIES = ["llama", "gpt2", "mixtral", "gemma2"]
MORE = ["qwen2", "deepseek_v3", "gemma3_text", "gpt_oss", "qwen3_moe", "phi3", "opt", "olmo2"]


def real(family: str, **options: Any) -> RealModel:
    return RealModel(small(family), place("cpu", 1), **{"dtype": "float32", **options})


@pytest.fixture(scope="module")
def llama() -> RealModel:
    return real("llama")


@pytest.mark.parametrize("family", [*FAMILIES, *(pytest.param(f, marks=pytest.mark.slow) for f in MORE)])
def test_every_op_is_found_and_the_times_add_up(family: str) -> None:
    model = real(family)
    assert (model.attention == THREE_PASS) == (family in EAGER_ONLY)
    for point in ((1, 9, 1), (2, 9, 3)):
        decoding = model.at(*point)
        step = measure(decoding)
        runs = np.array([op.kind != "kv_load" for op in decoding.ops.ops])
        assert (step.duration[runs] > 0).all()
        assert not step.duration[~runs].any()
        # No two ops overlap on one thread, and all are inside of the step.
        op, start, duration = step.pieces
        order = np.argsort(start)
        assert (start[order][1:] >= (start + duration)[order][:-1]).all()
        assert start.min() >= 0
        assert (start + duration).max() <= step.wall
        assert step.duration.sum() + step.others <= step.wall
        np.testing.assert_array_equal(np.bincount(op, duration, len(runs)), step.duration)
        # Ops run in an order that the graph allows.
        for i, one in enumerate(decoding.ops.ops):
            for j in one.inputs:
                assert not (runs[i] and runs[j]) or step.start[j] < (start + duration)[op == i].max()


def test_attention_is_one_op_by_sdpa_and_five_by_three_passes(llama: RealModel) -> None:
    layers, fused = 2, [op.kind for op in llama.at(1, 9).ops.ops]
    split = [op.kind for op in real("llama", attention=THREE_PASS).at(1, 9).ops.ops]
    assert len(split) - len(fused) == 4 * layers
    assert fused.count("attention") == layers


def test_no_formula_is_asked_for_the_kernels_of_a_device(llama: RealModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's formula for the attention kernels of GPUs refuses grouped heads; the op graph knows their cost."""

    def refuses(*_: Any, **__: Any) -> int:
        raise AssertionError

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    assert f"aten.{kernel.__name__}" in llama.at(1, 9).issued
    monkeypatch.setitem(flop_registry, kernel, refuses)
    assert llama.at(1, 10).ops.layers() == 2


def test_the_real_model_computes_what_transformers_computes_by_itself(llama: RealModel) -> None:
    """With its own cache and the simulator's, which holds the same rows."""
    decoding = llama.at(2, 9)
    with torch.no_grad():
        options = decoding.ready()
        ours = llama.model(**options).logits
        again = decoding._cache(0)
        theirs = _own_cache(llama, decoding)
        llama.model.set_attn_implementation("eager")
        expected = llama.model(**{**options, "past_key_values": theirs}).logits
        llama.use_attention(SDPA)
    del again
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def _own_cache(model: RealModel, decoding: Decoding) -> Any:
    from transformers import DynamicCache

    cache = DynamicCache(config=model.text)
    for i, layer in enumerate(cache.layers):
        rows = [buffer[..., : decoding.point[2], :].clone() for buffer in decoding._caches[0][2 * i : 2 * i + 2]]
        layer.update(*rows)
    return cache


def test_steps_rotate_caches_and_tokens(llama: RealModel) -> None:
    decoding = llama.at(1, 9)
    seen = [decoding.ready() for _ in range(decoding.slots)]
    assert decoding.slots > 1
    assert len({id(options["input_ids"]) for options in seen}) == decoding.slots
    for _ in range(decoding.slots):
        decoding.wall()
    assert len({buffer.data_ptr() for slot in decoding._caches for buffer in slot}) == 2 * 2 * decoding.slots


def test_some_layers_are_those_of_the_graph(llama: RealModel) -> None:
    one = real("llama", layers=1)
    assert one.name == "small-llama (1 layer)"
    assert one.at(1, 9).ops.layers() == 1
    assert hf_config(small("llama")).num_hidden_layers == 2
    with pytest.raises(InputError, match="expected 1 to 2"):
        real("llama", layers=3)


def test_samples_have_one_row_per_op_and_one_for_the_step(llama: RealModel) -> None:
    decoding = llama.at(2, 9)
    steps = [measure(decoding, plain=decoding.wall()) for _ in range(2)]
    table = samples(steps, rounds=[0, 1], first_step=7)
    whole = table.take(table.kind == "step")
    assert whole.step.tolist() == [7, 8]
    assert whole.round.tolist() == [0, 1]
    assert whole.duration.tolist() == [step.plain for step in steps]
    for number, step in zip((7, 8), steps, strict=True):
        ops = table.take((table.step == number) & (table.kind != "step"))
        assert len(ops) == whole.ops[0] == len(step.ops.ops) - 2  # but the loads of two layers
        assert ops.duration.sum() == step.duration.sum()
    head = table.take((table.kind == "matmul") & (table.n == 97))
    assert set(zip(head.rows.tolist(), head.k.tolist(), head.flops.tolist(), strict=True)) == {(2, 32, 2 * 2 * 97 * 32)}
    attends = table.take(table.kind == "attention")
    assert {(r.item(), h.item(), c.item()) for r, h, c in zip(attends.rows, attends.heads, attends.context, strict=True)} == {
        (2, 4, 10)
    }


def test_a_model_that_does_not_fit_is_refused_before_it_is_allocated() -> None:
    data = {**small("llama").data, "hidden_size": 65536, "intermediate_size": 2**20, "vocab_size": 10**6}
    with pytest.raises(
        InputError, match=r"huge in bfloat16: its weights need .* more than the .* free on this cpu; fewer layers"
    ):
        RealModel(ModelConfig(name="huge", data=data), place("cpu", 1), dtype="bfloat16")


def test_sdpa_is_refused_where_transformers_has_none() -> None:
    with pytest.raises(InputError, match="attention: expected three_pass: small-gemma2"):
        real("gemma2", attention=SDPA)


@pytest.mark.parametrize(
    ("device", "threads", "what"),
    [
        ("tpu", None, "expected one of cpu, cuda, mps, found 'tpu'"),
        ("cpu", 10**6, "threads: expected 1 to"),
        ("cpu", 0, "found 0"),
    ],
)
def test_devices_that_are_not_there_are_refused(device: str, threads: int | None, what: str) -> None:
    with pytest.raises(InputError, match=what):
        place(device, threads)


# Alignment, by events written by hand: host times 0 to 100, kernels of the device later.

HOST = [
    Event("aten::linear", 0, 30, id=1),
    Event("aten::t", 1, 2, id=2),
    Event("aten::mm", 3, 29, id=3),
    Event("aten::resize_", 4, 5, id=4),
    Event("aten::_to_copy", 40, 60, id=5),
    Event("aten::copy_", 45, 59, id=6),
    Event("aten::copy_", 70, 80, id=7),
]
ISSUED = ["aten.mm", "aten._to_copy", "aten.copy_"]
KERNELS = [
    Event("gemm", 50, 90, link=3),
    Event("splitk", 90, 95, link=4),
    Event("convert", 100, 110, link=6),
    Event("unrelated", 111, 112, link=99),
]


def test_events_inside_of_an_op_are_not_taken_for_the_next() -> None:
    found, owner = match(ISSUED, HOST)
    assert [event.id for event in found] == [3, 5, 7]
    assert owner == {3: 0, 4: 0, 5: 1, 6: 1, 7: 2}


def test_an_op_without_an_event_is_an_error_that_names_it() -> None:
    with pytest.raises(SimError, match=r"saw 2 of 3 ops of a step: none is aten.exp, after aten._to_copy"):
        match(["aten.mm", "aten._to_copy", "aten.exp"], HOST)


def test_kernels_belong_to_the_op_that_launched_them() -> None:
    found, owner = match(ISSUED, HOST)
    launched = launches(owner, KERNELS[::-1])
    assert [op for op, _ in launched] == [0, 0, 1, -1]
    assert device_spans(len(found), launched) == [Span(50, 45), Span(100, 10), Span(110, 0)]


def test_a_replayed_graph_gives_its_kernels_to_the_ops_in_order() -> None:
    launched = launches(match(ISSUED, HOST)[1], KERNELS)
    again = [replace(kernel, start=kernel.start * 2, end=kernel.start * 2 + 3, link=500) for kernel in KERNELS]
    # Starts at 100, 180, 200, 222; of the last, which no op launched, the end is 225.
    assert device_spans(3, replayed(launched, again)) == [Span(100, 100), Span(200, 22), Span(222, 0)]
    with pytest.raises(SimError, match="3 kernels that are not the 4"):
        replayed(launched, again[1:])


def test_an_op_that_is_issued_is_through_when_host_and_device_are() -> None:
    """The host turns to the next ops at 40 and 70, and ends at 80; kernels end at 95 (of the first), and 110 or 60."""
    found, owner = match(ISSUED, HOST)
    assert issued_spans(found, launches(owner, KERNELS), began=-5) == [Span(-5, 100), Span(95, 15), Span(110, 0)]
    early = [replace(kernel, end=60) if kernel.link == 6 else kernel for kernel in KERNELS[2:]]
    assert issued_spans(found, launches(owner, early), began=0) == [Span(0, 40), Span(40, 30), Span(70, 10)]


def test_ops_that_are_waited_for_are_the_same_ops(llama: RealModel) -> None:
    """As on a device that the profiler does not see."""
    decoding = llama.at(1, 9)
    found, wall = waiting(decoding)
    step = assemble(decoding, found, wall)
    profiled = measure(decoding)
    np.testing.assert_array_equal(step.duration > 0, profiled.duration > 0)
    np.testing.assert_array_equal(step.pieces[0], profiled.pieces[0])
    assert step.duration.sum() < wall
