"""Run a recorded step again on real numbers, in any order that the op graph allows.

All memory that the step writes starts as NaN, and a layer's past rows appear only once its `kv_load` ran. So an op that
starts before something it needs computes on NaN, and the logits come out wrong.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from model_families import OWN_ATTENTION
from torch.utils._pytree import tree_leaves, tree_map

from models import attention, latent, own_attention
from models.cache import KV_STORE, append_cache
from models.capture import build, step
from models.config import ModelConfig
from models.decoder import hf_config
from models.graph import OpGraph
from models.grouping import Group, group, single
from models.recorder import Recorder, TensorRef, tensor_refs
from models.recording import KV_LOAD, Recording


@dataclass
class RealStep:
    """One step of a model with random weights on the CPU: its recording and its results."""

    recording: Recording
    past: dict[int, list[torch.Tensor]]  # layer -> past keys and values [B, KV, past, D]
    logits: torch.Tensor
    logits_ref: TensorRef
    eager: torch.Tensor


def real_model(config: ModelConfig, attention_name: str, seed: int = 0) -> Any:
    """The model on the CPU in float32 with random weights, the same for every attention."""
    torch.manual_seed(seed)
    model = build(hf_config(config), "float32", "cpu", attention_name)
    generator = torch.Generator().manual_seed(seed)
    for parameter in dict.fromkeys(model.parameters()):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
    return model


def real_step(config: ModelConfig, batch: int, query: int, context: int) -> RealStep:
    """Record one step, and run the same one with the family's own eager attention and transformers' own cache."""
    tokens = torch.randint(3, 90, (batch, query), generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    own = config.data["model_type"] in OWN_ATTENTION
    model = real_model(config, own_attention.NAME if own else attention.NAME)
    latent.keep(model, "latent")
    text = model.config.get_text_config(decoder=True)
    recorder = Recorder(model, text.num_hidden_layers, keep_calls=True)
    past_rows: dict[int, list[torch.Tensor]] = {}

    def allocate(layer: int, shape: tuple[int, ...], past: int, like: torch.Tensor) -> torch.Tensor:
        rows = torch.randn(*shape[:-2], past, shape[-1], generator=generator)
        past_rows.setdefault(layer, []).append(rows)
        buffer = torch.full(shape, float("nan"))
        buffer.narrow(-2, 0, past).copy_(rows)
        recorder.register_cache(buffer, layer, past)
        return buffer

    logits = step(model, recorder, (batch, query, context), append_cache(text, context, allocate), tokens)
    eager_model = real_model(config, "eager")
    eager_cache = _filled(eager_model.config, past_rows, context)
    positions = (torch.arange(query) + context).expand(batch, query)
    with torch.no_grad():
        eager = eager_model(input_ids=tokens, past_key_values=eager_cache, position_ids=positions, use_cache=True)
    return RealStep(
        recording=recorder.recording(logits),
        past=past_rows,
        logits=logits,
        logits_ref=tensor_refs(logits),
        eager=eager.logits[:, -1:],
    )


def _filled(config: Any, past_rows: dict[int, list[torch.Tensor]], context: int) -> Any:
    from transformers import DynamicCache

    cache = DynamicCache(config=config)
    for i, layer in enumerate(cache.layers):
        keys, values = past_rows[i]
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = context
    return cache


def groups_of(recording: Recording, granularity: str) -> list[Group]:
    if granularity == "op":
        return group(recording)
    return [single(i, node) for i, node in enumerate(recording.nodes)]


def replay(real: RealStep, graph: OpGraph, granularity: str, seed: int, last: str = "") -> torch.Tensor:
    """Run the ops of a real step in a random topological order of `graph`; returns the logits.

    Ops of kind `last` run only when nothing else can.
    """
    nodes = real.recording.nodes
    groups = groups_of(real.recording, granularity)
    assert [(g.kind, g.path, g.part) for g in groups] == [(op.kind, op.path, op.part) for op in graph.ops]
    memory = _Memory(real)
    for g in _random_order(graph, seed, last):
        for i in groups[g].nodes:
            if nodes[i].name == KV_LOAD:
                memory.load(nodes[i].layer)
            for call in nodes[i].calls:
                memory.run(call, store=nodes[i].name == KV_STORE)
    return memory.view(real.logits_ref).clone()


def _random_order(graph: OpGraph, seed: int, last: str) -> list[int]:
    choose = random.Random(seed)
    waiting = {i: set(op.inputs) for i, op in enumerate(graph.ops)}
    order: list[int] = []
    while waiting:
        ready = [i for i, needs in waiting.items() if not needs]
        i = choose.choice([i for i in ready if graph.ops[i].kind != last] or ready)
        del waiting[i]
        order.append(i)
        for needs in waiting.values():
            needs.discard(i)
    return order


class _Memory:
    def __init__(self, real: RealStep) -> None:
        self.real = real
        self.stores = {n.cache: n for n in real.recording.nodes if n.name == KV_STORE}
        self.caches = {key: s for key, s in real.recording.storages.items() if s.kind == "cache"}
        written = {ref.storage for n in real.recording.nodes for call in n.calls for ref in _results(call)}
        self.storages = {}
        for key, storage in real.recording.storages.items():
            self.storages[key] = storage.keep
            if key in written or key in self.caches:
                fresh = torch.UntypedStorage(storage.keep.nbytes())
                torch.empty(0, dtype=torch.uint8).set_(fresh).fill_(255)  # NaN in every floating type
                self.storages[key] = fresh

    def view(self, ref: TensorRef) -> torch.Tensor:
        return torch.empty(0, dtype=ref.dtype).set_(self.storages[ref.storage], ref.offset, ref.size, ref.stride)

    def load(self, layer: int) -> None:
        """Bring the past rows of a layer's cache."""
        index = next(n.cache for n in self.stores.values() if n.layer == layer)
        held = [key for key, s in self.caches.items() if s.layer == index]
        for key, rows in zip(held, self.real.past[index], strict=True):
            buffer = torch.empty(0).set_(self.storages[key]).view(self.caches[key].shape)
            buffer.narrow(-2, 0, rows.shape[-2]).copy_(rows)

    def run(self, call: Any, *, store: bool) -> None:
        func, args, kwargs, out = call
        refs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, TensorRef)]
        if not store:
            # A reader of the cache takes the new rows from the ops that made them, and does not wait for their store.
            for layer in {self.caches[r.storage].layer for r in refs if r.storage in self.caches}:
                for append in self.stores[layer].calls:
                    self.run(append, store=True)
        real = tree_map(lambda leaf: self.view(leaf) if isinstance(leaf, TensorRef) else leaf, (args, kwargs))
        results = tree_leaves(func(*real[0], **real[1]))
        for ref, result in zip(tree_leaves(out), results, strict=True):
            if isinstance(ref, TensorRef) and ref.storage not in {r.storage for r in refs}:
                self.view(ref).copy_(result)


def _results(call: Any) -> list[TensorRef]:
    return [leaf for leaf in tree_leaves(call[3]) if isinstance(leaf, TensorRef)]
