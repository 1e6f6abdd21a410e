"""Capture the op graphs of a model from its config alone.

The real Hugging Face model is built on the meta device and run for one step, at a few batch sizes, numbers of query
tokens and contexts. The runs of one variant must issue the same ops; from their costs the exact cost functions follow.
"""

# torch and transformers are only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from itertools import zip_longest
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin
from transformers.utils import logging as transformers_logging

from models import attention, latent, own_attention
from models.cache import KV_STORE, StateLayer, append_cache, own_cache, windows
from models.chunks import in_chunks
from models.compressed import JoinedRows, compressed_layers, rates
from models.config import CAPTURE_VERSION, MLA_FORMS, ModelConfig, dtype_of
from models.costs import Point
from models.decoder import hf_config, make, one_line, sees_whole_prompt
from models.experts import Experts
from models.graph import ModelGraph, Op, OpGraph
from models.grouping import Group, group, single
from models.indexers import choose_last, chosen_tokens
from models.own_states import OwnStates, found_in
from models.polynomials import Pieces
from models.recorder import Modules, Recorder
from models.recording import STORES, Node, Recording
from models.routed import choose_experts, idle_experts, with_experts
from models.states import StateShapes, exact_windows, state_shapes
from models.variants import Layers, Recorded, Variant, captured, first_point
from sim.base.errors import InputError

#: The variants of a step, by (B > 1, Q > 1).
VARIANTS = ((False, False), (False, True), (True, False), (True, True))

GRANULARITIES = ("op", "aten")

#: Is given how much of a capture is done, and how much there is.
OnProgress = Callable[[int, int], None]

#: Tokens of a chunk of the gated delta rule, which configs do not name.
_CHUNK = 64

#: Results of `_states`, by model.
_STATES: WeakKeyDictionary[PreTrainedModel, dict[int, StateShapes]] = WeakKeyDictionary()

#: Results of `_own_states`, by model.
_OWN_STATES: WeakKeyDictionary[PreTrainedModel, OwnStates | None] = WeakKeyDictionary()

#: Modules of each model that is being captured.
_MODULES: WeakKeyDictionary[PreTrainedModel, Modules] = WeakKeyDictionary()


def build(config: PretrainedConfig, dtype: str, device: str = "meta", attention_name: str = attention.NAME) -> PreTrainedModel:
    """The model with the given attention, ready for inference; on the device `meta` it takes no memory."""
    attention.register()
    with torch.device(device):
        model: Any = make(
            config,
            dtype=getattr(torch, dtype),
            attn_implementation=attention_name,
            experts_implementation="batched_mm",
        )
    # It only serves a warning about padding here, which would read tokens that have no data.
    vars(model.config)["pad_token_id"] = None  # not by assignment, which some classes allow numbers alone
    choose_experts(model)
    built: PreTrainedModel = model.eval()
    return built


@torch.no_grad()
def step(
    model: PreTrainedModel,
    recorder: Recorder,
    point: Point,
    cache: Any,
    tokens: torch.Tensor | None = None,
    states: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """Run one step at (B, Q, N) under the recorder; returns the logits of the last token of each sequence [B, 1, V].

    states: arguments of a model with states of its own.
    """
    options = {**arguments(model, point, cache, tokens), **(states or {})}
    own = model.config._attn_implementation == own_attention.NAME
    seen = own_attention.OwnAttention(recorder.is_cache) if own else nullcontext()
    with seen, JoinedRows(getattr(cache, "layers", ())), recorder.active():
        logits: torch.Tensor = model(**options).logits
    return logits


def arguments(model: PreTrainedModel, point: Point, cache: Any, tokens: torch.Tensor | None = None) -> dict[str, Any]:
    """Keyword arguments of a model's call for one step at (B, Q, N)."""
    B, Q, N = point
    device = model.device
    tokens = torch.zeros(B, Q, dtype=torch.long, device=device) if tokens is None else tokens
    parameters = inspect.signature(model.forward).parameters
    named = "past_key_values" if "past_key_values" in parameters else "cache_params"  # without attention
    options: dict[str, Any] = {"input_ids": tokens, "use_cache": True, **({named: cache} if named in parameters else {})}
    if "position_ids" in parameters:
        options["position_ids"] = (torch.arange(Q, device=device) + N).expand(B, Q).contiguous()
    if "logits_to_keep" in parameters:
        options["logits_to_keep"] = 1
    return options


def record(model: PreTrainedModel, point: Point) -> Recording:
    """Record one step at (B, Q, N) on the meta device."""
    config = model.config.get_text_config(decoder=True)
    if model not in _MODULES:
        _MODULES[model] = Modules.of(model, config.num_hidden_layers)
    recorder = Recorder(model, config.num_hidden_layers, modules=_MODULES[model])
    choose_last(model, point)

    def allocate(layer: int, shape: tuple[int, ...], past: int, like: torch.Tensor) -> torch.Tensor:
        buffer = torch.empty(shape, dtype=like.dtype, device=like.device)
        recorder.register_cache(buffer, layer, past)
        return buffer

    def state(number: int, shapes: StateShapes) -> StateLayer:
        conv, recurrent = (
            {i: torch.empty((point[0], *shape[1:]), dtype=dtype, device=model.device) for i, (shape, dtype) in of.items()}
            for of in (shapes.conv, shapes.recurrent)
        )
        for part in (*conv.values(), *recurrent.values()):
            recorder.register_state(part, number)
        return StateLayer(conv, recurrent, shapes.states)

    states, own = {number: state(number, shapes) for number, shapes in _states(model).items()}, _own_states(model)
    class_of_cache = own_cache(model) if states else None
    placed: Any = nullcontext({})
    if own is not None:
        tensors = own.tensors(point[0], model.device)
        for layer, parts in tensors.items():
            for part in parts:
                recorder.register_state(part, layer, own.mixer(layer))
        states |= {layer: StateLayer({}, {}, 1) for layer in tensors}  # nothing asks for it
        placed = own.placed(model, tensors, point[2])
    compressed = compressed_layers(config, point[2], allocate)
    cache = append_cache(config, point[2], allocate, latent.expansions(model), states, class_of_cache, compressed)
    with placed as options:
        return recorder.recording(step(model, recorder, point, cache, states=options))


def _cache_kinds(model: PreTrainedModel) -> list[tuple[Any, ...]]:
    """By layer, the kind of its cache, and its type: a layer that reads the cache of another has none.

    Layers that attend several times are all of one kind.
    """
    config = model.config.get_text_config(decoder=True)
    caches = [(type(layer).__name__, getattr(layer, "sliding_window", None)) for layer in DynamicCache(config=config).layers]
    return list(zip_longest(caches, getattr(config, "layer_types", None) or ()))


def _rates(model: PreTrainedModel) -> list[int]:
    """By layer, the tokens that a compressed row of its cache stands for; 0 if it keeps none."""
    return rates(DynamicCache(config=model.config.get_text_config(decoder=True)).layers)


def _states(model: PreTrainedModel) -> dict[int, StateShapes]:
    """The states that the layers of the model keep, by layer: what is in the cache after a first token."""
    if model not in _STATES:
        cache: Any = DynamicCache(config=model.config.get_text_config(decoder=True))
        exact: set[int] = set()
        if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers):
            own = own_cache(model)
            cache = cache if own is None else own()
            with torch.no_grad():
                model(**arguments(model, (1, 1, 0), cache))
                exact = exact_windows(cache, lambda: model(**arguments(model, (1, 1, 1), cache)))
        _STATES[model] = state_shapes(cache.layers, getattr(cache, "linear_cache", ()), exact)
    return _STATES[model]


def _own_states(model: PreTrainedModel) -> OwnStates | None:
    """The states that the model keeps outside of the cache of transformers, None if it keeps none there."""
    if model not in _OWN_STATES:
        found, kept = None, DynamicCache(config=model.config.get_text_config(decoder=True)).layers
        linear = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in kept)
        named = "past_key_values" in inspect.signature(model.forward).parameters
        if not _states(model) and (linear or not named):
            options = arguments(model, (1, 1, 0), None)
            with torch.no_grad():
                found = found_in(model, _MODULES[model].layers_path, lambda: model(**options))
        _OWN_STATES[model] = found
    return _OWN_STATES[model]


def _chunk(model: PreTrainedModel) -> int:
    """Tokens that the model scans at once; where it scans one by one, or keeps no state, the fewest of which costs are linear.

    A model may scan fewer tokens than a chunk one by one (xLSTM).
    """
    own = _own_states(model)
    if not _states(model) and own is None:
        return 1
    text = model.config.get_text_config(decoder=True)
    sizes = [size for name in ("chunk_size", "mamba_chunk_size") if isinstance(size := getattr(text, name, None), int)]
    two, three = (_issued(model, Q) for Q in (2, 3))
    if two == three:
        return max(sizes, default=_CHUNK)
    if own is not None and sizes and _issued(model, max(sizes)) < 2 * three:
        return max(sizes)
    return 1 if own is None else own.window + 1


def _issued(model: PreTrainedModel, queries: int) -> int:
    """Number of aten ops of a step that feeds in so many tokens."""
    return sum(len(node.issued) for node in record(model, (1, queries, 5)).nodes)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing.

    It warns about token ids and weights, which do not matter here, and repeats what the one-line error says.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@quiet()
def capture(
    config: ModelConfig, dtype: str | None = None, mla: str = MLA_FORMS[0], on_progress: OnProgress | None = None
) -> dict[str, ModelGraph]:
    """Capture a model at every granularity. mla: contents of a cache of latent attention, one of `MLA_FORMS`.

    on_progress: is given the parts that are done, and how many there are in all: a piece of the costs of a variant each.
    Returns a `ModelGraph` by granularity. Raises InputError, in one line, for a model that cannot be captured.
    """
    hf = hf_config(config)
    dtype = dtype_of(config, dtype)
    try:
        model, form, first = _captured_by(hf, dtype, mla)
        breaks, chunk = _breaks(model), _chunk(model)
        parts = _parts(len(VARIANTS) * (len(breaks) + 1), on_progress)
        layers = Layers(model, partial(record, model), _cache_kinds(model), _rates(model))
        variants = {key: captured(layers, key, breaks, chunk, parts, first) for key in VARIANTS}
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(f"{config.name}: ") else f"{config.name}: {error}") from None
    except Exception as error:  # whatever a model's own code may raise on tensors without data
        raise InputError(f"{config.name}: cannot capture model_type {hf.model_type!r}: {one_line(error)}") from error
    return {name: _model_graph(config, dtype, model, form, variants, breaks, name) for name in GRANULARITIES}


def _parts(total: int, on_progress: OnProgress | None) -> Iterator[None]:
    """Report each part of a capture as it is done: `next` after each."""
    for done in range(1, total + 1):
        if on_progress is not None:
            on_progress(done, total)
        yield
    while True:  # layers that turn out to differ are captured once more
        yield


def _breaks(model: PreTrainedModel) -> tuple[int, ...]:
    """The contexts at which the costs of a model have a new piece."""
    bounds = {*windows(model.config.get_text_config(decoder=True)), *chosen_tokens(model)}
    return tuple(bound - 1 for bound in sorted(bounds) if bound > 1)


def _captured_by(hf: PretrainedConfig, dtype: str, mla: str) -> tuple[PreTrainedModel, str, Recorded]:
    """The model with the attention by which it can be captured, the form of its cache, and a recording of all layers.

    The form is `none` if it is no choice.
    Raises InputError if a step has no KV cache and no state, or attention that is not recognized, else what the first raises.
    """
    first: Exception | None = None
    for name in (attention.NAME, own_attention.NAME):
        try:
            model = build(hf, dtype, attention_name=name)
            form = mla if latent.keep(model, mla) else "none"
            point = first_point((False, False), _breaks(model), _rates(model))
            recording = record(model, point)
        except Exception as error:  # such as of families with a table of their own of attentions, or that need a mask
            first = first or error
            continue
        nodes = recording.nodes
        stores = {node.name for node in nodes}.intersection(STORES)
        if not stores:
            own = "state" in inspect.signature(model.forward).parameters
            none = "has no KV cache, and no state, that can be captured (encoder-only, or not written for the cache interface)"
            raise InputError(f"model_type {hf.model_type!r} {'keeps states in an argument of its own' if own else none}")
        if KV_STORE not in stores or _attends(nodes):
            return model, form, (point, recording)
    if first is not None and first.args != (attention.NAME,):
        raise first
    raise InputError(f"model_type {hf.model_type!r} has attention code of its own in a form that is not known")


def _attends(nodes: Sequence[Node]) -> bool:
    """Whether each layer that appends to a KV cache attends to one in all passes."""
    layers = {node.layer for node in nodes if node.role == KV_STORE}
    return all(layers <= {node.layer for node in nodes if node.role == part} for part in attention.ROLES)


def _model_graph(
    config: ModelConfig,
    dtype: str,
    model: PreTrainedModel,
    form: str,
    variants: Mapping[tuple[bool, bool], Variant],
    breaks: tuple[int, ...],
    granularity: str,
) -> ModelGraph:
    text = model.config.get_text_config(decoder=True)
    chunked = "chunked_attention" in (getattr(text, "layer_types", None) or ())
    recording = variants[False, False].recording
    parameters = dict.fromkeys(model.parameters())  # each shared tensor once
    kv_heads, head_dim = recording.kv_shape
    idle = idle_experts(model)
    graphs = {key: _op_graph(variant, key, breaks, granularity, kv_heads, idle) for key, variant in variants.items()}
    return ModelGraph(
        name=config.name,
        layers=sum(1 for _ in model.get_submodule(recording.layers_path).children()),
        hidden=text.hidden_size,
        heads=next((node.heads for node in recording.nodes if node.role == "scores"), 0),
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=text.vocab_size,
        dtype=dtype,
        parameters=sum(p.numel() for p in parameters),
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        positions=_positions(model),
        chunked=chunked,
        prefix=sees_whole_prompt(config),
        provenance={
            "capture": str(CAPTURE_VERSION),
            "config": config.digest,
            "granularity": granularity,
            "mla": form,
            "model_type": str(text.model_type),
            "torch": version("torch"),
            "transformers": version("transformers"),
        },
        variants={key: in_chunks(graph) for key, graph in graphs.items()} if chunked else graphs,
    )


def _positions(model: PreTrainedModel) -> int | None:
    """Number of positions that the model can distinguish, None where it computes their encoding.

    A learned encoding is a table with one row per position; some families add a few rows of padding.
    """
    limit: int = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 0
    words = model.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not words]
    return limit if limit and any(limit <= table.num_embeddings <= limit + 2 for table in tables) else None


def _op_graph(
    variant: Variant,
    key: tuple[bool, bool],
    breaks: tuple[int, ...],
    granularity: str,
    kv_heads: int,
    idle: Mapping[str, int],
) -> OpGraph:
    nodes = variant.recording.nodes
    groups: list[Group] = group(variant.recording) if granularity == "op" else [single(i, n) for i, n in enumerate(nodes)]
    home = {i: g for g, members in enumerate(groups) for i in members.nodes}
    totals = _totals(variant.costs, groups)
    experts: list[Experts | None] = []
    for total, members in zip(totals, groups, strict=True):
        mine, found = [nodes[i] for i in members.nodes], None
        if any(node.experts != (0, 0) for node in mine):
            found, total[:] = with_experts(mine, _pieces(total), key, idle)
        experts.append(found)
    polynomials, numbers = _numbered(totals)
    ops = []
    for g, members in enumerate(groups):
        result = members.result
        ops.append(
            Op(
                kind=members.kind,
                path=members.path,
                layer=nodes[result].layer,
                part=members.part,
                heads=members.heads,
                kv_heads=kv_heads if members.heads else 0,
                dtype=members.dtype or nodes[result].dtype,
                shape=variant.shapes[result],
                inputs=tuple(sorted({home[j] for i in members.nodes for j in nodes[i].inputs} - {g})),
                costs=tuple(numbers[g]),
                experts=experts[g],
            )
        )
    return OpGraph(ops=tuple(ops), polynomials=polynomials, breaks=breaks, masks=variant.masks)


def _totals(costs: np.ndarray[Any, np.dtype[np.int64]], groups: Sequence[Group]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Costs of groups, the sums of those of their nodes: [group, quantity, piece, monomial]."""
    totals = np.zeros((len(groups), *costs.shape[1:]), dtype=np.int64)
    home = [g for g, members in enumerate(groups) for _ in members.nodes]
    np.add.at(totals, home, costs[[i for members in groups for i in members.nodes]])
    return totals


def _pieces(total: np.ndarray[Any, np.dtype[np.int64]]) -> list[Pieces]:
    """Costs [quantity, piece, monomial] as integers of Python."""
    return [tuple(map(tuple, quantity)) for quantity in total.tolist()]


def _numbered(totals: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[tuple[Pieces, ...], list[list[int]]]:
    """Distinct polynomials of costs [group, quantity, piece, monomial], in order of first use, and their numbers."""
    groups, quantities, pieces, monomials = totals.shape
    _, first, which = np.unique(totals.reshape(groups * quantities, -1), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    numbers = np.argsort(order)[which.reshape(groups, quantities)]
    distinct = totals.reshape(-1, pieces, monomials)[first[order]].tolist()
    return tuple(tuple(map(tuple, each)) for each in distinct), numbers.tolist()
