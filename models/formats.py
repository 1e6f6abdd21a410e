"""Number formats: weights, KV cache and activations of a model stored in fewer bits, and the arithmetic on them.

| class                | which bytes                               | stored as                                               |
| -------------------- | ----------------------------------------- | ------------------------------------------------------- |
| weights              | of matrix products and embeddings, by kind | bits of the format, and scales by group or block        |
| KV cache             | all bytes read and appended               | bits of the format                                      |
| activations          | all bytes read and written                | in proportion to the captured element                   |

Norms, biases and other vectors keep their captured weights, as in quantized models; they are a ten-thousandth of all weights.
Fractions of bytes are rounded up. `models.rewrites.formats` applies formats to an op graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import ceil, isqrt
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from models.graph import MONOMIALS, QUANTITIES, Op, OpGraph
from models.op import HYPER
from sim.base.section import ONE, TABLE, Section, Whole, default, form

ELEMENT = {"bfloat16": 2, "float16": 2, "float32": 4}  # bytes, by torch's name

WEIGHT, FLOPS = QUANTITIES.index("weight"), QUANTITIES.index("flops")


class Storage(NamedTuple):
    """How numbers are stored. bits: of each. group: numbers that share a scale, 0 if there is none. scale, zero: bits of the
    scale and of the zero point of a group. whole: a group takes all of its bytes even where fewer numbers are left.
    """

    bits: int
    group: int = 0
    scale: int = 0
    zero: int = 0
    whole: bool = False

    def bytes(self, numbers: Fraction) -> int:
        """Bytes of some numbers, rounded up: for whole groups of bits, else ceil(numbers * bits / 8), scales and zero points.

        Raises ValueError for a negative number of bytes that would have to be rounded.
        """
        groups = numbers / self.group if self.group else Fraction(0)
        if self.whole:
            size = Fraction(self.group * self.bits + self.scale, 8)
            return _rounded_up([ceil(groups) * size], [groups * size], numbers)
        each = (Fraction(self.scale, 8), Fraction(self.zero, 8))
        exact = [numbers * self.bits / 8, *(groups * size for size in each)]
        return _rounded_up([exact[0], *(ceil(groups) * size for size in each)], exact, numbers)


def _rounded_up(parts: list[Fraction], exact: list[Fraction], numbers: Fraction) -> int:
    """The sum of parts, each rounded up to bytes. exact: the same parts before any rounding."""
    if numbers < 0 and any(part.denominator != 1 for part in exact):
        raise ValueError(f"{numbers} numbers a step are not a whole number of bytes")
    return sum(map(ceil, parts if numbers > 0 else exact))


#: Bits of plain formats; groups and scales of int4, int8 and fp8 are options of `Formats`.
BITS = {"bf16": 16, "fp8": 8, "int8": 8, "int4": 4}

#: Formats in blocks. Open Compute Project, Microscaling Formats (MX), version 1.0: blocks of 32 with a scale of 8 bits. NVFP4
#: (NVIDIA): blocks of 16 with a scale in E4M3; its one float32 per tensor is not counted. llama.cpp (ggml-common.h): q8_0 and
#: q4_0 have blocks of 32 with a float16; q4_K has blocks of 256 with two float16 and 12 bytes of scales and minima; q6_K has
#: blocks of 256 with a float16 and 16 bytes of scales.
BLOCKS = {
    "mxfp8": Storage(8, 32, 8, whole=True),
    "mxfp4": Storage(4, 32, 8, whole=True),
    "nvfp4": Storage(4, 16, 8, whole=True),
    "q8_0": Storage(8, 32, 16, whole=True),
    "q4_0": Storage(4, 32, 16, whole=True),
    "q4_K": Storage(4, 256, 128, whole=True),
    "q6_K": Storage(6, 256, 144, whole=True),
}

#: Formats that llama.cpp takes for rows that are no whole blocks.
FALLBACKS = {"q4_K": "q5_0", "q6_K": "q8_0"}

WeightFormat = Literal["bf16", "fp8", "int8", "int4", "mxfp8", "mxfp4", "nvfp4", "q8_0", "q4_0", "q4_K", "q6_K"]
assert set(get_args(WeightFormat)) == BITS.keys() | BLOCKS.keys()

#: Bytes of the scale that each group of int4 weights has: one number of 16 bits (as in GPTQ and AWQ).
SCALE = 2

#: Torch's names of the formats that arithmetic is done in, by short names; further ones are written as torch does.
ARITHMETIC = {
    "bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn", "fp4": "float4_e2m1fn_x2",
}  # fmt: skip

ArithmeticFormat = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
KindName = Annotated[str, Field(pattern="^[a-z][a-z0-9_.]*$")]


class WeightFormats(Section):
    """Formats of weights by kind. null: that of `default`, and without one as captured."""

    default: WeightFormat | None = Field(default=None, description="All kinds that have no key of their own here.")
    attention: WeightFormat | None = Field(default=None, description="Projections to and from attention.")
    experts: WeightFormat | None = Field(default=None, description="Experts that a router chooses; not shared ones.")
    router: WeightFormat | None = Field(default=None, description="Routers of mixtures of experts.")
    lm_head: WeightFormat | None = Field(
        default=None, description="The LM head, and the embedding where both are the same tensor."
    )
    embedding: WeightFormat | None = Field(default=None, description="The table of the embedding.")


#: One format for all weights, or a table by kind.
WeightChoice = Annotated[
    Annotated[WeightFormat, Tag(ONE)] | Annotated[WeightFormats, Tag(TABLE)],
    Discriminator(form),
]

#: One format for all weight matmuls, or a table by kind of op.
ArithmeticChoice = Annotated[
    Annotated[ArithmeticFormat, Tag(ONE)] | Annotated[dict[KindName, ArithmeticFormat], Field(min_length=1), Tag(TABLE)],
    Discriminator(form),
]


class Formats(Section):
    """Number formats in memory, and of arithmetic; null: as captured."""

    weights: WeightChoice | None = default(
        None,
        description="Weights of matrix products and embeddings, one format or a table by kind; norms and biases stay as "
        "captured. null: as the `quantization_config` of the model says, if it has one.",
        examples=["int8", {"experts": "mxfp4"}, {"default": "nvfp4", "lm_head": "bf16"}],
    )
    kv: Literal["bf16", "fp8", "int8"] | None = Field(
        default=None, description="The KV cache. null: as the `quantization_config` of the model says, if it has one."
    )
    state: Literal["bf16", "fp8", "int8"] | None = Field(
        default=None, description="States of layers that keep one instead of a KV cache; null: float32."
    )
    activations: Literal["bf16"] | None = Field(default=None, description="Results between ops, where they are off chip.")
    group: Whole = Field(
        default=128,
        ge=1,
        le=2**20,
        description="Number of weights that share a scale: in int4, and with `scale` in int8 and fp8.",
    )
    scale: Whole | None = Field(
        default=None,
        ge=0,
        le=4,
        description="Bytes of the scale of a group of int4, int8 or fp8; null: 2 in int4, 0 in the others.",
    )
    zero_points: bool = Field(
        default=False, description="Whether each group in int4 and int8 also has a zero point, of the bits of a weight."
    )
    arithmetic: ArithmeticChoice | None = default(
        None,
        description="Format that products are computed in, as in `hardware.engines.flops`, or bf16, fp16, fp32, fp8, fp4: one "
        "for all weight matmuls, or a table by kind of op or of weight, with `default` for other weight matmuls. null: as "
        "captured, in the format of activations; if the `quantization_config` of the model says that these are quantized, in "
        "that format, if the machine has a rate for it.",
        examples=["fp8", {"default": "int8", "lm_head": "bf16"}],
    )

    @model_validator(mode="after")
    def _of_use(self) -> Formats:
        names = self.weight_names()
        for key, wanted, formats in (
            ("scale", self.scale is not None, ("int4", "int8", "fp8")), ("zero_points", self.zero_points, ("int4", "int8")),
        ):  # fmt: skip
            if wanted and not names & set(formats):
                raise ValueError(f"expected {key} only with weights in {' or '.join(formats)}")
        return self

    def weight_names(self) -> set[str]:
        """Names of all formats of weights."""
        if not isinstance(self.weights, WeightFormats):
            return set() if self.weights is None else {self.weights}
        return {name for key in WeightFormats.model_fields if (name := getattr(self.weights, key)) is not None}

    def name_of_weights(self, kind: str) -> str | None:
        """The format of weights of a kind, None: as captured. kind: a key of `WeightFormats`."""
        chosen = self.weights
        return getattr(chosen, kind) or chosen.default if isinstance(chosen, WeightFormats) else chosen

    def of_weights(self, kind: str) -> Storage | None:
        """How weights of a kind are stored, None: as captured."""
        name = self.name_of_weights(kind)
        return None if name is None else self.storage(name)

    def storage(self, name: str) -> Storage:
        """How numbers of a format are stored."""
        if name in BLOCKS:
            return BLOCKS[name]
        bits = BITS[name]
        scale = 0 if name == "bf16" else SCALE * (name == "int4") if self.scale is None else self.scale
        zero = bits if self.zero_points and name.startswith("int") else 0
        return Storage(bits, self.group if scale or zero else 0, 8 * scale, zero)

    def arithmetic_of(self, op: Op, *, matmul: bool) -> str:
        """Torch's name of the format that an op computes in. matmul: it multiplies by weights."""
        chosen: Any = self.arithmetic
        if isinstance(chosen, Mapping):
            other = chosen.get("default") if matmul else None
            chosen = chosen.get(op.kind, chosen.get(weight_kind(op), other) if matmul else other)
        elif not matmul:
            chosen = None
        return op.dtype if chosen is None else ARITHMETIC.get(chosen, chosen)


def weight_kind(op: Op) -> str:
    """The kind of the weights of an op, a key of `WeightFormats`."""
    if op.experts is not None:
        return "experts"
    if op.kind in ("router", "lm_head"):
        return op.kind
    if "embedding" in op.kind:
        return "embedding"
    return "attention" if "attn" in op.path or "attention" in op.path else "default"


def rate_of(rates: int | Mapping[str, int], dtype: str) -> int | None:
    """FLOP/s in `dtype` of one rate for all formats, or of a table by torch's names; None if it is not known.

    Formats of 8 bits with a float are as fast as each other: a device has one of them.
    """
    if isinstance(rates, int) or dtype in rates:
        return rates if isinstance(rates, int) else rates[dtype]
    alike = [rate for name, rate in rates.items() if name.startswith("float8") and dtype.startswith("float8")]
    return alike[0] if alike else None


def is_matrix(ops: OpGraph, op: Op) -> bool:
    """Whether the weights of an op are a matrix: it multiplies by them, or looks rows up in them.

    Products whose FLOPs grow with the context multiply by the KV cache: weights of attention are vectors (sinks). What a
    hyper-connection multiplies by is a parameter of its own that engines keep in float32, no layer that is quantized.
    """
    if op.kind == HYPER:
        return False
    if op.experts is not None or "embedding" in op.kind:
        return True
    flops, weight = ops.polynomials[op.costs[FLOPS]], ops.polynomials[op.costs[WEIGHT]]
    pairs = [bool(context) for _, _, context in MONOMIALS] + [True] * 2 * len(ops.masks)  # of queries and keys
    cached = any(term and pair for piece in flops for term, pair in zip(piece, pairs, strict=True))
    return multiplies(ops, op) and any(map(any, weight)) and not cached


def matrix_numbers(ops: OpGraph, op: Op) -> int:
    """Numbers of the matrix (of one expert) that an op multiplies by: its multiplications for one token; 0 if it has none."""
    if op.experts is not None and op.experts.flops:  # not every choice multiplies
        return op.experts.flops // 2
    flops = ops.polynomials[op.costs[FLOPS]][0]
    token = sum(flops[i] for i, (_, _, context) in enumerate(MONOMIALS) if not context)
    return token // (2 * (1 if op.experts is None else op.experts.top_k))


def row_length(ops: OpGraph, op: Op) -> int:
    """Numbers of a row of the matrix that an op multiplies by, as many as its input has (k); 0 if it is not one matrix."""
    results = int(op.shape[-1]) if op.shape and op.shape[-1].isdecimal() else 0
    numbers = matrix_numbers(ops, op)
    return numbers // results if results and numbers % results == 0 and "embedding" not in op.kind else 0


def misaligned(ops: OpGraph, formats: Formats) -> Iterator[str]:
    """Lines about matrices whose rows are no whole blocks, or groups, of their format, which engines store in another one.

    llama.cpp takes q5_0 for q4_K and q8_0 for q6_K (github.com/ggml-org/llama.cpp/pull/3747).
    """
    found: dict[tuple[str, int], list[str]] = {}
    for op in ops.ops:
        name = formats.name_of_weights(weight_kind(op)) if is_matrix(ops, op) else None
        if name is None or not formats.storage(name).group:
            continue
        length = row_length(ops, op)
        if length % _columns(formats.storage(name).group) and op.kind not in (kinds := found.setdefault((name, length), [])):
            kinds.append(op.kind)
    for (name, length), kinds in found.items():
        start = f"{', '.join(kinds)}: rows of {length:,} weights are no multiple of {_columns(formats.storage(name).group)}"
        if name not in BLOCKS:
            yield f"{start}, a group of {name}; counted without regard to rows, but engines need groups that divide them"
            continue
        instead = f", as llama.cpp in {FALLBACKS[name]}" if name in FALLBACKS else ""
        yield (f"{start}, a block of {name}; counted in whole blocks, but engines store such rows in another format{instead}")


#: From so many numbers on a group is a square of several rows, such as 128 x 128 of fp8; those of one row have 16 to 256.
SQUARE = 1024


def _columns(group: int) -> int:
    """Numbers of a row that share a scale."""
    side = isqrt(group)
    return side if group >= SQUARE and side * side == group else group


def multiplies(ops: OpGraph, op: Op) -> bool:
    """Whether an op has matrix products."""
    return any(map(any, ops.polynomials[op.costs[FLOPS]]))


def product_formats(ops: OpGraph) -> list[str]:
    """Torch's names of the formats that the matrix products of a graph are computed in, in alphabetical order."""
    return sorted({op.dtype for op in ops.ops if multiplies(ops, op)})


def stored_bytes(captured: int, element: int, storage: Storage | None) -> int:
    """Bytes in a format, rounded up; as captured if it is None. element: bytes of a captured number.

    Raises ValueError for a negative number of bytes that would have to be rounded.
    """
    return captured if storage is None else storage.bytes(Fraction(captured, element))
