"""The real model with random weights on a device, and its decode steps.

The code is transformers' own. Its attention is, as chosen,

    sdpa         transformers' sdpa attention, what it takes by itself where a model allows: one op, `attention`
    three_pass   `models.attention`, where softmax is three ops

The KV cache is `models.cache`: buffers with space for the new rows, which a step appends, as in inference engines and in
the simulation. (transformers' DynamicCache copies the whole cache in every step instead, its StaticCache attends to
the unused rows of its buffer as well.) A step takes the next of several caches and other tokens, and before it a buffer larger
than the processor's caches is read, so that it finds none of its operands there: as after another step of a large model.
"""

# torch and transformers leave parts of themselves without types.
# mypy: allow-untyped-calls

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import models.library
from models import attention, latent
from models.attention import ROLES, role
from models.cache import append_cache
from models.capture import arguments, build, quiet, step
from models.config import MLA_FORMS, ModelConfig, dtype_of
from models.costs import Point
from models.decoder import hf_config
from models.formats import ELEMENT
from models.graph import QUANTITIES, Op, OpGraph
from models.grouping import group
from models.recorder import Recorder
from models.rewrites import fuse
from sim.base.errors import InputError, SimError
from sim.base.quantities import SIZE
from sim.base.units import PS_PER_NS
from sim.measure.place import Place

SDPA, THREE_PASS = "sdpa", "three_pass"
ATTENTIONS = (SDPA, THREE_PASS)

#: The name under which transformers knows its own sdpa attention with our mask, and the role of the ops that it issues.
_OWN_SDPA = "decode_sim_sdpa"
FUSED = "attention"

#: Bytes read before each step, larger than the caches of processors.
EVICT = {"cpu": 512 << 20, "cuda": 256 << 20, "mps": 256 << 20}

#: Bytes of all KV caches together that suffice for none to be in a processor's cache when its turn comes, and how many at most.
ROTATE_BYTES, ROTATE = 512 << 20, 4

#: Elements of the block of random numbers that weights and caches are made of; making new ones for all would take minutes.
_BLOCK = 1 << 20


class RealModel:
    """A model on a device with random weights.

    layers: only the first ones, None: all. attention: one of `ATTENTIONS`, or None for the first that the model allows.
    Raises InputError for a model that is not supported, or that does not fit the memory of the device.
    """

    def __init__(
        self, config: ModelConfig, place: Place, *, dtype: str | None = None, layers: int | None = None,
        attention: str | None = None, mla: str = MLA_FORMS[0],
    ) -> None:  # fmt: skip
        self.config, self.place, self.layers = config, place, layers
        self.dtype = dtype_of(config, dtype)
        self.graph = models.library.load(config, dtype=self.dtype, mla=mla, installed=True)
        self.graph.step().select(layers)  # an error, if there are fewer
        hf = _with_layers(hf_config(config), layers)
        self._fits(hf)
        place.use()
        with quiet():
            self.model, self.latent = _build(hf, self.dtype, place.device, mla)
        self.text: PretrainedConfig = self.model.config.get_text_config(decoder=True)
        self.attention = self._choose(attention)
        self._evict = _large(place.device, EVICT[place.device])
        self._random = _block(self.dtype, place.device)

    def __repr__(self) -> str:
        return f"RealModel({self.config.name}, {self.dtype}, {self.place.device}, {self.attention})"

    @property
    def name(self) -> str:
        """Name of the model, with its number of layers if it has not all of them."""
        return (
            self.config.name
            if self.layers is None
            else f"{self.config.name} ({self.layers} layer{'s' if self.layers > 1 else ''})"
        )

    def ops(self, batch: int, query: int = 1) -> OpGraph:
        """The op graph of a step, with attention as it runs here."""
        graph = self.graph.step(batch, query).select(self.layers)
        if self.attention == THREE_PASS:
            return graph
        # The text model runs by itself, so that its prompts are causal, whatever its wrapper does.
        return fuse(graph, element=ELEMENT[self.dtype], softmax="online", chunked=self.graph.chunked)

    def at(self, batch: int, context: int, query: int = 1, *, slots: int | None = None) -> Decoding:
        """Steps of `batch` sequences with `context` tokens in their caches. slots: number of caches, by default enough."""
        if why := self.graph.too_long(context + query):
            raise InputError(f"{self.config.name}: {why}")
        return Decoding(self, (batch, query, context), slots)

    def evict(self, *, wait: bool = True) -> None:
        """Leave nothing of a model in the caches of the processor. wait: until that is done, not only in the queue."""
        self._evict.sum()
        if wait:
            self.place.synchronise()

    def fill(self, tensor: torch.Tensor) -> None:
        """Put random numbers into it."""
        _fill(tensor, self._random)

    def use_attention(self, name: str) -> None:
        """Make the model's code call this attention."""
        if not self.latent:
            self.model.set_attn_implementation(attention.NAME if name == THREE_PASS else _OWN_SDPA)

    def _choose(self, wanted: str | None) -> str:
        if wanted not in (None, *ATTENTIONS):
            raise InputError(f"attention: expected one of {', '.join(ATTENTIONS)}, found {wanted!r}")
        why = "keeps latents" if self.latent else "" if self.model._supports_sdpa else "has only eager attention"
        if not why and getattr(self.text, "attn_logit_softcapping", None) is not None:
            why = "caps its scores"
        if why and wanted == SDPA:
            raise InputError(
                f"attention: expected {THREE_PASS}: {self.config.name} {why}, which transformers' sdpa does not do"
            )
        return THREE_PASS if why else wanted or SDPA

    def _fits(self, hf: PretrainedConfig) -> None:
        with quiet():
            model = build(deepcopy(hf), self.dtype)
        self.weights = sum(p.numel() * p.element_size() for p in dict.fromkeys(model.parameters()))
        self._room(self.weights, "its weights")

    def _room(self, needed: int, what: str) -> None:
        free = self.place.free_memory()
        if free is not None and needed > free:
            raise InputError(
                f"{self.name} in {self.dtype}: {what} need {SIZE.format(needed)}, {SIZE.format(needed - free)} more than the "
                f"{SIZE.format(free)} that are free on this {self.place.device}; fewer layers would fit"
            )


class Decoding:
    """Decode steps of one model at one point (B, Q, N), and what is known of their ops.

    issued: names of all that a step dispatches, in order. owner: of each, the op of `ops` that it is of, -1 if of none.
    """

    def __init__(self, real: RealModel, point: Point, slots: int | None = None) -> None:
        self.real, self.point = real, point
        B, Q, N = point
        self.ops = real.ops(B, Q)
        kv = int(real.graph.step(B, Q).select(real.layers).costs(N, B, Q)[QUANTITIES.index("kv_read")].sum())
        self.slots = slots or max(1, min(ROTATE, -(-ROTATE_BYTES // max(kv, 1))))
        real._room(kv * self.slots + EVICT[real.place.device] // 4, f"the KV caches of {B} sequences of {N:,} tokens")
        self._caches: list[list[torch.Tensor]] = [[] for _ in range(self.slots)]
        self._next = 0
        self._tokens = [
            torch.randint(0, real.graph.vocabulary, (B, Q), device=real.place.device) for _ in range(max(self.slots, ROTATE))
        ]
        self.issued, self.owner = self._ops_of_dispatched()
        real.use_attention(real.attention)

    def ready(self) -> dict[str, Any]:
        """Arguments of the model for the next step: with other tokens, and the next cache."""
        slot, self._next = self._next % self.slots, self._next + 1
        tokens = self._tokens[self._next % len(self._tokens)]
        self.real.place.use()
        return arguments(self.real.model, self.point, self._cache(slot), tokens)

    @torch.no_grad()
    def wall(self) -> int:
        """Run one step, and nothing beside it; picoseconds."""
        options = self.ready()
        self.real.evict()
        with undisturbed():
            began = time.perf_counter_ns()
            self.real.model(**options)
            self.real.place.synchronise()
            return (time.perf_counter_ns() - began) * PS_PER_NS

    def _cache(self, slot: int, recorder: Recorder | None = None) -> Any:
        buffers, used = self._caches[slot], 0

        def allocate(layer: int, shape: tuple[int, ...], past: int, like: torch.Tensor) -> torch.Tensor:
            nonlocal used
            if used == len(buffers):
                buffers.append(torch.empty(shape, dtype=like.dtype, device=like.device))
                self.real.fill(buffers[-1])
            buffer = buffers[used]
            used += 1
            if recorder is not None:
                recorder.register_cache(buffer, layer, past)
            return buffer

        return append_cache(self.real.text, self.point[2], allocate, latent.expansions(self.real.model))

    def _record(self, attention_name: str, *, names_only: bool = False) -> tuple[Recorder, torch.Tensor]:
        """The ops that a step dispatches, and its logits."""
        self.real.use_attention(attention_name)
        recorder = Recorder(self.real.model, self.real.text.num_hidden_layers, names_only=names_only)
        with quiet():
            self.wall()  # what is allocated at first is there when the ops are recorded
            logits = step(self.real.model, recorder, self.point, self._cache(0, recorder), self._tokens[0])
        if not bool(torch.isfinite(logits).all()):
            raise SimError(f"{self.real.name}: the logits of a step with random weights are not finite")
        return recorder, logits

    def _ops_of_dispatched(self) -> tuple[list[str], list[int]]:
        """Record the step here, with the softmax in three passes, which names all ops; then with the attention that runs."""
        recorder, logits = self._record(THREE_PASS)
        recording = recorder.recording(logits)
        groups = group(recording)
        unfused = self.real.graph.step(*self.point[:2]).select(self.real.layers)
        expected = [(op.kind, op.part, op.path) for op in unfused.ops]
        found = [(g.kind, g.part, g.path) for g in groups]
        if expected != found:
            i = next(
                (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found))
            )
            here, there = (repr(" ".join(names[i]).strip()) if i < len(names) else "none" for names in (found, expected))
            raise SimError(f"{self.real.name}: op {i} of a step on this device is {here}, in its op graph {there}")
        owner = [-1] * len(recorder.issued)
        for number, members in enumerate(groups):
            for node in members.nodes:
                for i in recording.nodes[node].issued:
                    owner[i] = number
        if self.real.attention == THREE_PASS:
            return [name for name, _ in recorder.issued], owner
        return self._with_fused_attention(recorder, owner, unfused)

    def _with_fused_attention(self, reference: Recorder, owner: Sequence[int], unfused: OpGraph) -> tuple[list[str], list[int]]:
        """The same without the softmax in three passes: all outside of attention is the same, in the same order."""
        fused = _same_ops(unfused, self.ops)
        attends = [i for i, op in enumerate(self.ops.ops) if op.kind == FUSED]
        outside = [
            (name, -1 if op < 0 else fused[op])
            for (name, role_name), op in zip(reference.issued, owner, strict=True)
            if role_name not in ROLES
        ]
        recorder, _ = self._record(SDPA, names_only=True)
        result, at, seen, inside = [], 0, -1, False
        for name, role_name in recorder.issued:
            if role_name == FUSED:
                seen += not inside
                result.append(attends[seen])
            else:
                if at == len(outside) or outside[at][0] != name:
                    raise SimError(f"{self.real.name}: its ops outside of attention differ with the attention: {name}")
                result.append(outside[at][1])
                at += 1
            inside = role_name == FUSED
        assert (at, seen + 1) == (len(outside), len(attends))
        return [name for name, _ in recorder.issued], result


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep garbage collection, which takes tens of milliseconds among that many objects, out of what is timed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _same_ops(before: OpGraph, after: OpGraph) -> list[int]:
    """For each op of a graph the op that it is after a fusion, -1 for one that became a part of another."""

    def key(op: Op) -> tuple[object, ...]:
        return op.kind, op.part, op.path, op.layer

    places: dict[object, list[int]] = {}
    for i, op in enumerate(after.ops):
        places.setdefault(key(op), []).append(i)
    return [left.pop(0) if (left := places.get(key(op))) else -1 for op in before.ops]


def _sdpa(module: torch.nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
    with role(FUSED, query.shape[1]):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def _with_layers(config: PretrainedConfig, layers: int | None) -> PretrainedConfig:
    """The config of the model's first layers."""
    text = config.get_text_config(decoder=True)
    if layers is not None:
        text.num_hidden_layers = layers
        for name in ("layer_types", "mlp_layer_types", "no_rope_layers"):
            if isinstance(kinds := getattr(text, name, None), list):
                setattr(text, name, kinds[:layers])
    return config


def _build(config: PretrainedConfig, dtype: str, device: str, mla: str) -> tuple[PreTrainedModel, bool]:
    """The model with random weights, and whether it keeps latents."""
    AttentionInterface.register(_OWN_SDPA, _sdpa)
    AttentionMaskInterface.register(_OWN_SDPA, attention.mask)
    with no_init_weights():
        model = build(config, dtype, device)
    model.tie_weights()
    block = _block(dtype, device)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            _fill(parameter.data, block)
            parameter.data.mul_(parameter.shape[-1] ** -0.5)
        else:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
    return model, latent.keep(model, mla)


@lru_cache(maxsize=1)
def _large(device: str, size: int) -> torch.Tensor:
    """Buffers that are read before a step; all models share them."""
    return torch.zeros(size // 8, dtype=torch.int64, device=device)


def _block(dtype: str, device: str) -> torch.Tensor:
    """Random numbers; none so small that a processor would take longer for it."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_BLOCK, generator=generator).to(getattr(torch, dtype)).to(device)


def _fill(tensor: torch.Tensor, block: torch.Tensor) -> None:
    flat = tensor.view(-1)
    whole = flat.numel() // _BLOCK * _BLOCK
    flat[:whole].view(-1, _BLOCK).copy_(block.expand(whole // _BLOCK, _BLOCK))
    flat[whole:].copy_(block[: flat.numel() - whole])
