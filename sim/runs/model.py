"""The model of a scenario: its op graphs, written or captured, as the mapping fuses and stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import models.library
from models.config import ModelConfig, dtype_of, resolve, stated_dtype
from models.formats import ARITHMETIC, ELEMENT, Formats, misaligned
from models.graph import ModelGraph, OpGraph
from models.quantization import Quantization, as_formats, quantization
from models.rewrites import (
    between_kernels,
    check_arithmetic,
    chunked,
    fuse,
    over_positions,
    refuse_context,
    shard,
    staged,
    unfolded,
    with_formats,
    with_kv_heads,
    with_sends,
    without_weight_casts,
)
from models.rewrites.prediction import KEYS, has_prediction_head, prediction_head
from sim.base.errors import ConfigError, about
from sim.base.memo import Memo
from sim.machine.capacity import Holder, holder
from sim.mapping.lowering import offloaded
from sim.mapping.settings import Offload
from sim.mapping.steps import LaidOut, Variants
from sim.runs.written import written_model
from sim.scenario import Fuse, ModelMapping, Scenario

#: The draft model that is a part of the model itself.
MTP = "mtp"

#: Laid-out graphs of earlier runs: a model of 80 layers has four of 2,000 ops each.
LAID_OUT: Memo[OpGraph] = Memo(2**15)

#: `Modeled.kept` of these.
KEPT: Memo[OpGraph] = Memo(2**15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Turns a captured op graph into the one that is simulated: selects layers, fuses ops and applies number formats.

    kv_heads: heads of the KV cache. element: bytes of a captured number. chunked, prefix: as in `ModelGraph`.
    bounded: SRAM is, so that the activations of kernels count wherever they go.
    """

    mapping: ModelMapping
    layers: int | None
    scope: str
    kv_heads: int
    element: int
    chunked: bool = False
    prefix: bool = False
    bounded: bool = False

    def __call__(self, captured: OpGraph) -> OpGraph:
        """The op graph that is simulated. Raises ConfigError if it cannot be fused."""
        return LAID_OUT.of(captured, repr(self), lambda: self._lay_out(captured))

    def _lay_out(self, captured: OpGraph) -> OpGraph:
        mapping, ops = self.mapping, captured.select(self.layers, self.scope)
        named = mapping.granularity == "op"  # of `aten` each op is a kernel already
        fused = fuse(
            without_weight_casts(ops) if named else ops, element=self.element, softmax=mapping.softmax,
            kv_splits=mapping.kv_splits, qkv=mapping.fuse.qkv, gate_up=mapping.fuse.gate_up,
            chunked=self.chunked, prefix=self.prefix,
        )  # fmt: skip
        if named and (mapping.activations == "off_chip" or self.bounded):
            fused = between_kernels(fused)
        stored = with_formats(with_kv_heads(fused, self.kv_heads), mapping.formats, element=self.element)
        parallel = mapping.parallel
        sharded = shard(
            stored, parallel.tensor, dealt=parallel.expert > 1, sequence=parallel.sequence, exchange=parallel.exchange,
            apart=parallel.homes > 0,
        )  # fmt: skip
        if parallel.context > 1:
            refuse_context(parallel.tensor, next((op.kv_heads for op in stored.ops if op.kv_heads), 1), parallel.context)
        sharded = chunked(over_positions(sharded, parallel.tensor, parallel.context), parallel.overlap_chunks)
        return unfolded(staged(sharded, parallel.pipeline, parallel.layers), parallel.copies)


def op_graphs(scenario: Scenario) -> tuple[ModelGraph, Variants]:
    """The model of a scenario, and the ops of its steps, by (several sequences, several new tokens).

    Raises ConfigError if the model cannot be loaded or laid out so.
    """
    if scenario.model.config is None:
        _refuse_keys_for_captured_ops(scenario.mapping)
        model = written_model(scenario)
        return model, model.variants
    model = _captured(scenario)
    variants = LaidOut(model.variants, _layout(scenario, model))
    check_arithmetic(variants[False, False], scenario.mapping.formats)  # made now, so that its errors are raised here
    return model, variants


def _layout(scenario: Scenario, model: ModelGraph) -> Layout:
    return Layout(
        mapping=scenario.mapping.model_copy(update={"formats": formats_of(scenario)}), layers=scenario.model.layers,
        scope=scenario.model.scope, kv_heads=model.kv_heads, element=ELEMENT[model.dtype],
        chunked=model.chunked, prefix=model.prefix, bounded=scenario.hardware.sram is not None,
    )  # fmt: skip


@dataclass(frozen=True)
class Modeled:
    """A model of a run: the scenario in which it is the only one, its graph, and the ops of its steps.

    shared: its embedding and LM head are those of the other model of the run.
    """

    scenario: Scenario
    model: ModelGraph
    variants: Variants
    shared: bool = False

    @property
    def ops(self) -> OpGraph:
        """The step of one sequence that decodes one token."""
        return self.variants[False, False]

    @cached_property
    def caching(self) -> OpGraph:
        """Ops that keep the cache or the state of a sequence: those of one device where each has sequences of its own."""
        if not self.scenario.mapping.parallel.homes:
            return self.ops
        return replace(self.ops, ops=tuple(replace(op, inputs=()) for op in self.ops.ops if op.device == 0))

    @cached_property
    def kept(self) -> OpGraph:
        """Ops whose weights are its own, without their inputs."""
        return KEPT.of(self.ops, self.shared, self._kept)

    def _kept(self) -> OpGraph:
        own = (op for op in self.ops.ops if op.kind != "lm_head" or not self.shared)
        return replace(self.ops, ops=tuple(replace(op, inputs=()) for op in own))

    @cached_property
    def sending(self) -> Variants:
        """Its variants as replicas that prefill run them, where each layer sends what it stores."""
        return LaidOut(self.variants, partial(_sending, self.variants))

    @cached_property
    def _on_engines(self) -> dict[int, ModelMapping]:
        return {}

    def on_engines(self, count: int) -> ModelMapping:
        """Its mapping as `ModelMapping.on_engines`: one object for each number of engines."""
        if count not in self._on_engines:
            self._on_engines[count] = self.scenario.mapping.on_engines(count)
        return self._on_engines[count]

    @cached_property
    def formats(self) -> Formats:
        """Its number formats, as `formats_of`."""
        return formats_of(self.scenario)

    @property
    def offloads(self) -> tuple[Sequence[Offload], Sequence[str]]:
        """The weights to offload, and the names of the tiers."""
        return self.scenario.mapping.offloads, self.scenario.hardware.tier_names

    @cached_property
    def holder(self) -> Holder:
        """The bytes that it holds in memory."""
        whole = self.scenario.model.scope == "model" and not self.shared
        return holder(self.model, self.kept, self.formats, whole=whole, tier=offloaded(self.kept, *self.offloads))


def models_of(scenario: Scenario) -> list[Modeled]:
    """The models of a run: the one that samples tokens, and then the draft model, if there is one. Raises ConfigError."""
    found = [Modeled(scenario, *op_graphs(scenario))]
    speculative = scenario.workload.speculative
    if speculative is None or speculative.model is None:
        return found
    key = "workload.speculative.model"
    if scenario.mapping.parallel.pipeline > 1:
        raise ConfigError("mapping.parallel.pipeline", "expected 1 with a draft model, whose layers have no stage")
    if scenario.model.config is None:
        raise ConfigError(key, "expected only with model.config: a written graph may list the ops of its draft model")
    drafts = speculative.model
    if drafts.config == MTP:
        return [*found, _head_of(found[0])]
    model = scenario.model.model_copy(update={"config": drafts.config, "layers": drafts.layers, "dtype": drafts.dtype})
    alone = scenario.model_copy(update={"model": model})
    try:
        return [*found, Modeled(alone, *op_graphs(alone))]
    except ConfigError as error:
        section, _, name = error.key.partition(".")
        raise (ConfigError(f"{key}.{name}", error.message) if section == "model" else error) from None


def _head_of(of: Modeled) -> Modeled:
    """The multi-token-prediction head of a model. Raises ConfigError if it has none."""
    scenario, key = of.scenario, "workload.speculative.model"
    config, speculative = scenario.model.config, scenario.workload.speculative
    assert config is not None
    if not has_prediction_head(_config(scenario).data):
        message = (
            f"{config} has no multi-token-prediction head: expected a config with one of {', '.join(KEYS)}, or a draft model"
        )
        raise ConfigError(key, message)
    if scenario.model.scope != "model" or (
        speculative and speculative.model and speculative.model.model_fields_set > {"config"}
    ):
        raise ConfigError(key, "expected 'mtp' alone, and model.scope: model")
    model, captured = of.model, _captured(scenario)
    lay_out = replace(_layout(scenario, captured), layers=None)
    element = ELEMENT[captured.dtype]
    variants = LaidOut(captured.variants, partial(_laid_out_head, lay_out, captured.hidden, element))
    return Modeled(scenario, replace(model, name=f"the prediction head of {model.name}"), variants, shared=True)


def _sending(variants: Variants, ops: OpGraph) -> OpGraph:
    """One of these variants, with what its layers send."""
    return with_sends(ops, variants[False, True])


def _laid_out_head(lay_out: Layout, hidden: int, element: int, ops: OpGraph) -> OpGraph:
    """The prediction head beside a captured graph, laid out."""
    return lay_out(prediction_head(ops, hidden, element))


def formats_of(scenario: Scenario) -> Formats:
    """Number formats of a run: those of the model's own config where the scenario does not say."""
    formats = scenario.mapping.formats
    stored = _stored(scenario)
    return formats if stored is None or not stored.formats else as_formats(stored.formats, formats)


def notes_of(of_run: Sequence[Modeled]) -> tuple[str, ...]:
    """Lines for reports: what the models' own configs do not say, what their formats mean for a run, and the draft model."""
    drafts = [f"{each.model.name} drafts, and {of_run[0].model.name} verifies" for each in of_run[1:]]
    rows = [
        line
        for each in of_run
        if each.scenario.model.config is not None
        for line in misaligned(each.model.step(), formats_of(each.scenario))
    ]
    return tuple(dict.fromkeys([*(note for each in of_run for note in _notes(each.scenario)), *drafts, *rows]))


def _notes(scenario: Scenario) -> list[str]:
    if scenario.model.config is None:
        return []
    stored, config = _stored(scenario), _config(scenario)
    unsaid = scenario.model.dtype is None and stated_dtype(config) is None
    assumed = f"dtype {dtype_of(config, None)} assumed: the config names none; model.dtype says otherwise"
    return [*([assumed] if unsaid else []), *([] if stored is None else [stored.note])]


def _stored(scenario: Scenario) -> Quantization | None:
    """How the model's config says that weights are stored; None if it does not, or the scenario says it."""
    if scenario.model.config is None or scenario.mapping.formats.weights is not None:
        return None
    config = _config(scenario)
    with about("model.dtype"):
        found = quantization(config.data, dtype_of(config, scenario.model.dtype))
    return None if found is None else _as_run(found, scenario)


def _as_run(stored: Quantization, scenario: Scenario) -> Quantization:
    """The formats of a config that a scenario does not override, and that its machine has rates for."""
    said, engines = scenario.mapping.formats, scenario.hardware.engines
    for key in ("arithmetic", "kv"):
        stored = stored.without(key) if getattr(said, key) is not None else stored
    products = stored.formats.get("arithmetic", {}).values()
    lacking = sorted({name for name in products if engines.peak(ARITHMETIC.get(name, name)) is None})
    if not lacking:
        return stored
    reason = f"products as captured, because hardware.engines.flops has no rate for {', '.join(lacking)}"
    return stored.without("arithmetic", reason)


def _config(scenario: Scenario) -> ModelConfig:
    """The config that `model.config` names. Raises ConfigError if it names none."""
    assert scenario.model.config is not None
    with about("model.config"):
        return resolve(scenario.model.config, scenario.folder)


def _captured(scenario: Scenario) -> ModelGraph:
    """The whole model as it was captured. Raises ConfigError if there is none, or if it lacks what the scenario asks for."""
    mapping, layers = scenario.mapping, scenario.model.layers
    config = _config(scenario)
    with about("model.config"):
        model = models.library.load(config, granularity=mapping.granularity, dtype=scenario.model.dtype, mla=mapping.mla)
    if mapping.mla != "latent" and not models.library.keeps_latents(model):
        raise ConfigError("mapping.mla", f"expected only for multi-head latent attention, which {model.name} does not have")
    if layers is not None and layers > model.layers:
        raise ConfigError("model.layers", f"expected 1 to {model.layers}, all layers of {model.name}, found {layers}")
    return model


def _refuse_keys_for_captured_ops(mapping: ModelMapping) -> None:
    """Raise ConfigError for a key of the mapping that changes captured ops: the graph of the scenario is taken as written."""
    if mapping.formats != Formats():
        raise ConfigError("mapping.formats", "expected only with model.config: a written graph states its own bytes")
    for key, plain in (("softmax", "three_pass"), ("fuse", Fuse())):
        if getattr(mapping, key) != plain:
            raise ConfigError(f"mapping.{key}", "expected only with model.config: a written graph states its own ops")
    for key in ("tensor", "pipeline"):
        if getattr(mapping.parallel, key) > 1:
            message = "expected only with model.config: a written graph is that of one device"
            raise ConfigError(f"mapping.parallel.{key}", message)
    if not isinstance(mapping.weights, str):
        raise ConfigError("mapping.weights", "expected a share only with model.config: a written graph states its own bytes")
