"""The section `mapping` of a scenario: how the model is mapped onto the machine."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator

from models.formats import Formats
from models.rewrites import CONTEXT
from models.rewrites.fusion import Softmax
from sim.base.quantities import show
from sim.base.section import LINE, ONE, TABLE, Section, Whole, default, form, integral, real
from sim.mapping.collectives import Algorithm

#: Tasks that a weight matmul can be cut into.
MOST_TILES = 1024

#: Parts of the keys that attention can be cut into.
MOST_SPLITS = 1024

Execution = Literal["blocking", "stream", "prefetch"]


class Residency(Section):
    """Weights of which a share stays on chip."""

    resident: Annotated[float, Field(gt=0, lt=1), BeforeValidator(real)] = Field(
        description="Share of the weights of each op that stays on chip; the rest is read at every step."
    )


def listed(value: object) -> str:
    """Whether a value is a list, or one word."""
    return TABLE if isinstance(value, list | tuple) else ONE


#: All, none or a share of the weights on chip.
Weights = Annotated[
    Annotated[Literal["resident", "streamed"], Tag(ONE)] | Annotated[Residency, Tag(TABLE)],
    Discriminator(form),
]


def _tile_count(value: object) -> object:
    """A number of tiles or `engines`, checked together, because a union would raise two errors."""
    count = integral(value)
    if count != "engines" and (type(count) is not int or not 1 <= count <= MOST_TILES):
        raise ValueError(f"expected a number from 1 to {MOST_TILES}, or engines, found {show(value)}")
    return count


#: Tiles of a weight matmul; `engines`: one for each engine.
Tiles = Annotated[
    int | Literal["engines"],
    BeforeValidator(_tile_count),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": MOST_TILES}, {"const": "engines"}]}),
]
KindName = Annotated[str, Field(pattern=LINE, min_length=1, max_length=100)]

#: One number for all weight matmuls, or a table by op kind.
TileTable = Annotated[
    Annotated[Tiles, Tag(ONE)] | Annotated[dict[KindName, Tiles], Field(min_length=1), Tag(TABLE)],
    Discriminator(form),
]


class Fuse(Section):
    """Weight matmuls of the same input that run as one kernel, as in inference engines."""

    qkv: bool = Field(default=False, description="The projections to queries, keys and values.")
    gate_up: bool = Field(default=False, description="The gate and up projections of the MLP.")


class Offload(Section):
    """Weights that stay in the memory of the host, or in another tier, and are loaded over the link to it at every step."""

    weights: Annotated[
        Annotated[Literal["all", "experts"], Tag(ONE)]
        | Annotated[tuple[KindName, ...], Field(min_length=1, strict=False), Tag(TABLE)],
        Discriminator(listed),
    ] = Field(
        default="experts",
        description="`experts`: those of mixtures; `all`: all but embeddings; or a list of kinds of ops.",
        examples=["experts", ["gate_up_proj", "down_proj"]],
    )
    layers: Whole | None = Field(
        default=None, ge=1, description="Only of so many layers, the first ones; null: of all, and outside of layers."
    )
    tier: str | None = Field(
        default=None,
        min_length=1,
        description="Name of the tier: `host`, or one of `hardware.tiers`; null: the first of them.",
        examples=["ssd"],
    )


#: Weights in one tier, or a list of these.
Offloads = Annotated[
    Annotated[Offload, Tag(ONE)] | Annotated[tuple[Offload, ...], Field(min_length=1, max_length=64, strict=False), Tag(TABLE)],
    Discriminator(listed),
]


class Parallel(Section):
    """Parallelism over the devices of `hardware.devices`: as many as the product of `data`, `tensor` and `pipeline`."""

    data: Whole = Field(
        default=1,
        ge=1,
        le=1024,
        description="Data parallelism: replicas of the model, each on `tensor` x `pipeline` devices of its own, with a KV "
        "cache and batches of its own; `workload.router` gives each request to one of them. Only for batches.",
    )
    prefill: Whole = Field(
        default=0,
        ge=0,
        lt=1024,
        description="Disaggregation: replicas, the first ones, that only prefill prompts; the KV cache of each goes over their "
        "links to the others, which decode. 0: each does both.",
    )
    hand_overs: Whole = Field(
        default=4,
        ge=1,
        le=1024,
        description="With `prefill`: KV caches that a replica sends at a time, which share its links.",
    )
    hand_over: Literal["whole", "layers"] = Field(
        default="whole",
        description="With `prefill`: a KV cache is sent when its prompt has ended (`whole`), or each layer sends what it "
        "stores while the step goes on (`layers`), to a replica that is chosen as the request arrives; what was cached before "
        "follows.",
    )
    tensor: Whole = Field(
        default=1, ge=1, le=1024, description="Tensor parallelism: devices that each hold a part of every layer of their stage."
    )
    pipeline: Whole = Field(
        default=1,
        ge=1,
        le=1024,
        description="Pipeline parallelism: stages that each have some of the layers; each sends activations to the next.",
    )
    layers: tuple[Annotated[Whole, Field(ge=1)], ...] | None = Field(
        default=None,
        min_length=2,
        max_length=1024,
        strict=False,
        description="With `pipeline`: layers of each stage; null: equally many, and one more for each one that is left over in "
        "the stages before the last, later ones first, as in vLLM (61 layers on 4 stages: 15, 15, 16, 15).",
        examples=[[15, 16, 16, 14]],
    )
    expert: Whole = Field(
        default=1,
        ge=1,
        le=1024,
        description="Expert parallelism: 1, so that each expert is cut like other matrices, or `tensor`, so that whole experts "
        "are dealt out to the devices of a stage, all of which are simulated then. Only for batches.",
    )
    attention: Literal["tensor", "data"] = Field(
        default="tensor",
        description="Attention on the devices of `tensor`. `tensor`: each has some of the heads, of all sequences; `data` "
        "(data-parallel attention, with `expert` and `dispatch: all_to_all`): each has sequences of its own and all weights "
        "but those of experts, which are dealt out; `workload.router` gives each request to one of them.",
    )
    dispatch: Literal["all_gather", "all_to_all"] = Field(
        default="all_gather",
        description="With `expert`: the tokens that a device of experts gets. `all_gather`: all, of which it takes those that "
        "choose them; `all_to_all`: those alone, once each, from the devices that have them with `sequence: true` or "
        "`attention: data`, and back.",
    )
    micro_batches: Whole | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Batches in flight at a time in a replica, each with its own share of the requests (in turn) and of the KV "
        "cache; null: as many as there are stages.",
    )
    fold: bool = Field(
        default=True,
        description="Devices of a stage do the same (unless experts are dealt out), so one is simulated and stands for all of "
        "them; `false`: all are simulated, with the same times.",
    )
    algorithm: Literal[Algorithm, "auto"] = Field(
        default="two_shot",
        description="All-reduce of n devices. `ring`: 2(n-1) rounds of one n-th; `two_shot`: two rounds of n-1 n-ths at once; "
        "`one_shot`: n-1 times all at once; `tree`: 2 log2 n rounds of all; `auto`: for each step the one that is fastest "
        "alone on its link, by the bytes of its tokens.",
    )
    overlap_chunks: Whole = Field(
        default=1,
        ge=1,
        le=64,
        description="Chunks of columns in which partial results are computed and all-reduced, so that a chunk is on its way "
        "while the next one is computed; each is a kernel with a launch of its own. 1: no overlap.",
    )
    token_chunks: Whole = Field(
        default=1,
        ge=1,
        le=64,
        description="Chunks of the new tokens of a step. Each goes through all layers with kernels, collectives and reads of "
        "weights of its own, so that collectives of one overlap what others compute. With `attention: batch`. 1: no overlap.",
    )
    token_chunks_from: Whole = Field(
        default=512,
        ge=2,
        description="With `token_chunks`: new tokens of a step from which on they are in chunks; smaller steps stay whole.",
    )
    context: Whole = Field(
        default=1,
        ge=1,
        le=1024,
        description="Context parallelism: devices of those of `tensor` that would hold the same KV heads, and divide the "
        "positions instead, each with its part of the KV cache. With `softmax: online`.",
    )
    sequence: bool = Field(
        default=False,
        description="Sequence parallelism: instead of an all-reduce, each device gets the sums of its part of the tokens "
        "(reduce-scatter), does residuals and norms of these, and an all-gather follows; as many bytes, norms divided.",
    )

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Parallel:
        for name in ("hand_over", "hand_overs"):
            if not self.prefill and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"expected {name!r} only with 'prefill' above 0")
        if self.token_chunks == 1 and self.token_chunks_from != type(self).model_fields["token_chunks_from"].default:
            raise ValueError("expected 'token_chunks_from' only with 'token_chunks' above 1")
        if self.layers is not None and len(self.layers) != self.pipeline:
            message = f"expected as many 'layers' as stages ('pipeline: {self.pipeline}'), found {len(self.layers)}"
            raise ValueError(message if self.pipeline > 1 else "expected 'layers' only with 'pipeline' above 1")
        if self.exchange and self.attention == "tensor" and not (self.sequence and self.expert > 1):
            message = "expected 'dispatch: all_to_all' only with 'expert' above 1 and 'sequence: true'"
            raise ValueError(f"{message}, or with 'attention: data'")
        if self.attention == "data":
            self._refuse_what_is_not_apart()
        return self

    def _refuse_what_is_not_apart(self) -> None:
        """Raise ValueError for what devices with sequences of their own do not do."""
        if self.expert != self.tensor or not self.exchange:
            if self.tensor == 1:
                raise ValueError("expected 'tensor' above 1 with 'attention: data', found 1")
            message = f"'expert: {self.tensor}' (as many as 'tensor') and 'dispatch: all_to_all' with 'attention: data'"
            raise ValueError(f"expected {message}, found expert: {self.expert} and dispatch: {self.dispatch}")
        for name in ("pipeline", "prefill", "context", "overlap_chunks", "token_chunks", "sequence"):
            plain, found = type(self).model_fields[name].default, getattr(self, name)
            if found != plain:
                raise ValueError(f"expected {name}: {str(plain).lower()} with 'attention: data', found {str(found).lower()}")

    def devices_of(self, kind: str) -> int:
        """Number of devices that take part in a collective of this kind."""
        return self.context if kind in CONTEXT else self.tensor

    @property
    def homes(self) -> int:
        """Number of devices of a replica that have sequences of their own; 0 if all work on the same."""
        return self.tensor if self.attention == "data" and self.tensor > 1 else 0

    @property
    def exchange(self) -> bool:
        """Whether tokens are sent to the devices of their experts."""
        return self.dispatch == "all_to_all"

    @property
    def simulated(self) -> int:
        """Number of devices that are simulated."""
        return self.data * self.group

    @property
    def group(self) -> int:
        """Number of devices of a replica that are simulated."""
        return self.pipeline * self.copies

    @property
    def prefill_devices(self) -> int:
        """Number of devices that are simulated of replicas that prefill for others."""
        return self.prefill * self.group

    @property
    def copies(self) -> int:
        """Number of devices of a stage that are simulated."""
        return 1 if self.fold and self.expert == 1 else self.tensor

    def chunks_of(self, tokens: int) -> int:
        """Number of chunks of a step with so many new tokens."""
        return self.token_chunks if tokens >= max(self.token_chunks_from, self.token_chunks) else 1

    @property
    def batches(self) -> int:
        """Number of batches in flight at a time."""
        return self.micro_batches or self.pipeline


class ModelMapping(Section):
    """The mapping of the model onto the machine."""

    heads: Literal["split", "fused"] = Field(
        default="split", description="Attention as one task per head, or as one task for all heads."
    )
    softmax: Softmax = Field(
        default="three_pass",
        description="`three_pass`: subtract the maximum, exponentiate, normalize; `fused`: one task, one pass over scores on "
        "chip; `online`: scores, softmax and values as one task (FlashAttention). The last two skip pairs of a query and a "
        "key that the mask hides.",
    )
    kv_splits: Whole = Field(
        default=1,
        ge=1,
        le=MOST_SPLITS,
        description="With `softmax: online`: parts of the keys that are attended to independently and then combined "
        "(flash-decoding); each loads its own part of the KV cache.",
    )
    kv_loads: Literal["layer", "head"] = Field(
        default="layer",
        description="The KV cache of a layer as one transfer, or as one for each of its heads, which the query heads of that "
        "head share.",
    )
    fuse: Fuse = default({}, description="Projections that run as one kernel.")
    granularity: Literal["op", "aten"] = Field(
        default="op", description="`op`: named operations such as `q_proj`; `aten`: every operation that torch issues."
    )
    mla: Literal["latent", "expanded"] = Field(
        default="latent",
        description="For models with multi-head latent attention. The cache holds `latent`: the latents, with the "
        "up-projections absorbed; `expanded`: keys and values of every head.",
    )
    weights: Weights = default(
        "streamed",
        description="Weights stay on chip and cost no bandwidth, are read at every step, or stay on chip in part. Resident "
        "weights must fit `hardware.sram`, if that is bounded, and leave the rest of it to operands in flight.",
        examples=["streamed", {"resident": 0.4}],
    )
    offload: Offloads | None = Field(
        default=None,
        description="Weights in the memory of the host (`hardware.host`) or another tier (`hardware.tiers`); null: none. Of a "
        "list, the first entry that fits an op holds. Only with `model.config`.",
        examples=[
            {"weights": "experts", "layers": 20},
            [{"weights": "experts", "layers": 20}, {"weights": "experts", "tier": "ssd"}],
        ],
    )
    activations: Literal["on_chip", "off_chip"] = Field(
        default="on_chip", description="Whether results between ops stay on chip or travel through the channel."
    )
    execution: Execution = Field(
        default="prefetch",
        description="`blocking`: an engine waits while operands load; `stream`: load and compute overlap within a "
        "task; `prefetch`: operands load ahead of their task as far as SRAM allows.",
    )
    kv: Literal["transfers", "operands"] = Field(
        default="transfers",
        description="`transfers`: the KV cache of a layer is loaded by a transfer of its own, which all heads share; "
        "`operands`: the ops of attention read it themselves, as kernels of CPUs and GPUs do (`blocking` or `stream`).",
    )
    attention: Literal["sequence", "batch"] = Field(
        default="sequence",
        description="In steps of several sequences, ops that depend on the context (KV cache, scores, softmax, values) run as "
        "kernels of each sequence, or as one kernel for all of them, which costs the sum (a launch overhead is paid once). "
        "`sequence` shows which sequence delays which.",
    )
    tiles: TileTable = default(
        1,
        description="Tasks that each weight matmul is split into: one number, `engines` for one task per engine, or a table of "
        "these by kind, with `default` for kinds that are not listed (1 if it is missing).",
        examples=[4, "engines", {"default": "engines", "k_proj": 8}],
    )
    parallel: Parallel = default({}, description="The model over several devices; only with `model.config`.")
    formats: Formats = default({}, description="Number formats in memory and of arithmetic; only with `model.config`.")

    @property
    def residency(self) -> Literal["resident", "streamed"] | Fraction:
        """The weights that stay on chip: all, none, or the share as it is written, exactly: 0.4 is 2/5."""
        return self.weights if isinstance(self.weights, str) else Fraction(str(self.weights.resident))

    def on_engines(self, count: int) -> ModelMapping:
        """The same mapping with numbers of tiles in place of `engines`, which stands for one tile for each of them."""
        each = min(count, MOST_TILES)
        tiles = self.tiles if isinstance(self.tiles, dict) else {"": self.tiles}
        numbers = {kind: each if tile == "engines" else tile for kind, tile in tiles.items()}
        return self.model_copy(update={"tiles": numbers if isinstance(self.tiles, dict) else numbers[""]})

    def tiles_of(self, kind: str) -> int:
        """Number of tasks that a weight matmul of this kind is cut into; the mapping must be `on_engines`."""
        tiles = self.tiles.get(kind, self.tiles.get("default", 1)) if isinstance(self.tiles, dict) else self.tiles
        assert isinstance(tiles, int)
        return tiles

    @property
    def offloads(self) -> tuple[Offload, ...]:
        """Weights that are offloaded, with their tiers: of an op, the first that fits it holds."""
        return () if self.offload is None else (self.offload,) if isinstance(self.offload, Offload) else self.offload

    @model_validator(mode="after")
    def _consistent(self) -> ModelMapping:
        if self.offload is not None and self.weights == "resident":
            raise ValueError("expected 'offload' only with weights that are streamed, found weights: resident")
        if self.kv_splits > 1 and self.softmax != "online":
            raise ValueError(f"expected kv_splits only with softmax: online, found softmax: {self.softmax}")
        if self.granularity == "aten" and (self.softmax != "three_pass" or self.fuse != Fuse()):
            raise ValueError("expected softmax: fused, softmax: online and fuse only with granularity: op")
        if self.granularity == "aten" and self.attention == "batch":
            raise ValueError("expected 'attention: batch' only with granularity: op")
        if self.kv == "operands" and self.kv_loads == "head":
            raise ValueError("expected 'kv_loads: head' only with kv: transfers, of which there can be one per head")
        if self.kv == "operands" and self.execution == "prefetch":
            raise ValueError("expected 'kv: operands' only with execution blocking or stream, where engines load operands")
        return self
