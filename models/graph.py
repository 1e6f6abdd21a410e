"""The op graph: the computation and data movement of one decode step of a model, before any machine is chosen.

An `OpGraph` is a DAG of ops in program order. The costs of an op are exact functions of three integers:

    B  batch: sequences in the step
    Q  query: tokens that each sequence feeds into the step (1 in plain decode)
    N  context: tokens of each sequence already in the KV cache

Each cost is a polynomial over `MONOMIALS`, in pieces along N (a sliding window stops growing at its width). In a graph whose
attention skips what its masks hide, two more terms stand for each mask: the pairs that it lets through, and B times these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from models.experts import Experts
from models.lanes import Members, StepLanes
from models.masks import Mask, pairs
from models.op import MONOMIALS, QUANTITIES, IntArray, Op, Polynomial
from models.selection import select

__all__ = [
    "MONOMIALS", "QUANTITIES", "IntArray", "Members", "ModelGraph", "Op", "OpGraph", "Polynomial", "StepLanes",
    "terms",
]  # fmt: skip


#: Number of quantities that every model has; those after them are of states.
OF_ALL = QUANTITIES.index("state_read")

#: Fields of an op that are stored as they are.
_COLUMNS = ("kind", "path", "layer", "part", "heads", "dtype", "shape", "inputs", "costs")

#: Fields of experts as stored.
_EXPERTS = ("count", "top_k", "bytes", "idle", "flops")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpGraph:
    """The DAG of one step.

    breaks: ascending contexts at which a new piece of the costs starts; piece p holds for breaks[p-1] <= N < breaks[p].
    polynomials: distinct piecewise polynomials; `polynomials[i][p]` is piece p of number i, `len(breaks) + 1` pieces.
    batch: B of a step, by default.
    masks: distinct masks whose pairs the costs count; a polynomial has two more terms for each, after `MONOMIALS`.

    The same as arrays, for evaluation:

    table: int64 [polynomial, piece, term], coefficients.
    cost_index: int64 [quantity, op], which polynomial.
    several_index: int64 [quantity, op], the polynomial for members that feed in several tokens, if an op serves all members.
    """

    ops: tuple[Op, ...]
    polynomials: tuple[tuple[Polynomial, ...], ...]
    breaks: tuple[int, ...] = ()
    batch: int = 1
    masks: tuple[Mask, ...] = ()
    table: IntArray = field(init=False, repr=False, compare=False)
    cost_index: IntArray = field(init=False, repr=False, compare=False)
    several_index: IntArray = field(init=False, repr=False, compare=False)
    _made: dict[str, Any] = field(init=False, repr=False, compare=False)  # columns made so far

    def __post_init__(self) -> None:
        pieces = len(self.breaks) + 1
        for polynomial in self.polynomials:
            if len(polynomial) != pieces:
                raise ValueError(f"a cost has {len(polynomial)} pieces, expected {pieces}")
        for i, op in enumerate(self.ops):
            if len(op.costs) != len(QUANTITIES) or any(not 0 <= j < i for j in op.inputs):
                raise ValueError(f"op {i} ({op.kind} at {op.path}) has bad inputs {op.inputs} or costs {op.costs}")
        table = np.array(self.polynomials, dtype=np.int64).reshape(len(self.polynomials), pieces, terms(self.masks))
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "cost_index", _index([op.costs for op in self.ops]))
        several = [(op.several or op).costs for op in self.ops]
        object.__setattr__(self, "several_index", _index(several))
        object.__setattr__(self, "_made", {})

    def __len__(self) -> int:
        """Number of ops."""
        return len(self.ops)

    def __repr__(self) -> str:
        return f"OpGraph({len(self)} ops, {len(self.polynomials)} costs, breaks={self.breaks})"

    def at_batch(self, batch: int) -> OpGraph:
        """The same step for `batch` sequences."""
        return self if batch == self.batch else replace(self, batch=batch)

    def costs(self, context: int | IntArray, batch: int | None = None, query: int = 1) -> IntArray:
        """Evaluate all costs exactly.

        `context` may be a vector with one lane per step. Returns int64 [quantity, op] or [quantity, op, lane].
        """
        batch = self.batch if batch is None else batch
        lanes = np.atleast_1d(np.asarray(context, dtype=np.int64))
        values = self.evaluate(np.full_like(lanes, batch), np.full_like(lanes, query), lanes)
        result = values[self.cost_index]  # [quantity, op, lane]
        return result if np.ndim(context) else result[:, :, 0]

    def costs_of(self, steps: StepLanes) -> IntArray:
        """Costs of some steps, int64 [quantity, op, lane]; in this graph, of one sequence that decodes one token."""
        return self.costs(steps.context)

    def alike(self) -> npt.NDArray[np.intp]:
        """[op]: the first op of the same dtype and format of weights that has the same costs in every step."""
        if "alike" not in self._made:
            self._made["alike"] = self._first_alike()
        made: npt.NDArray[np.intp] = self._made["alike"]
        return made

    def _first_alike(self, *keys: IntArray) -> npt.NDArray[np.intp]:
        """[op]: the first op with equal costs. keys: [op] each, further columns that costs depend on."""
        dtype, weights = (np.unique(labels, return_inverse=True)[1] for labels in (self.dtype, self.weights))
        columns = np.vstack([dtype, weights, *keys, self.cost_index, self.several_index])
        _, first, which = np.unique(columns, axis=1, return_index=True, return_inverse=True)
        return first[which]

    @property
    def kind(self) -> npt.NDArray[np.str_]:
        """[op]: its kind."""
        return self._labels("kind")

    @property
    def dtype(self) -> npt.NDArray[np.str_]:
        """[op]: its compute type."""
        return self._labels("dtype")

    @property
    def weights(self) -> npt.NDArray[np.str_]:
        """[op]: the format in memory of the matrix that it reads; empty if as captured."""
        return self._labels("weights")

    @property
    def device(self) -> IntArray:
        """[op]: the simulated device that it runs on."""
        return self._numbers("device")

    @property
    def heads(self) -> IntArray:
        """[op]: the attention heads that it covers, 0 if it is not about heads."""
        return self._numbers("heads")

    def _numbers(self, name: str) -> IntArray:
        if name not in self._made:
            self._made[name] = np.array([getattr(op, name) for op in self.ops], dtype=np.int64)
        made: IntArray = self._made[name]
        return made

    def _labels(self, name: str) -> npt.NDArray[np.str_]:
        if name not in self._made:
            self._made[name] = np.array([getattr(op, name) for op in self.ops], dtype=np.str_)
        made: npt.NDArray[np.str_] = self._made[name]
        return made

    def sizes_of(self, steps: StepLanes) -> tuple[IntArray, IntArray, IntArray]:
        """B, Q and N of each op in some steps, int64 [op, lane] each, at which its shape and costs are evaluated."""
        context = np.broadcast_to(steps.context, (len(self), len(steps.context)))
        return np.full_like(context, self.batch), np.ones_like(context), context

    def evaluate(self, batch: IntArray, query: IntArray, context: IntArray) -> IntArray:
        """Every polynomial at each (B, Q, N) of three vectors: int64 [polynomial, lane]."""
        piece = np.searchsorted(np.asarray(self.breaks, dtype=np.int64), context, side="right")
        powers = self.terms_at(batch, query, context)
        values = np.empty((len(self.polynomials), len(context)), dtype=np.int64)
        for p in range(len(self.breaks) + 1):
            chosen = piece == p
            if chosen.any():
                values[:, chosen] = self.table[:, p, :] @ powers[:, chosen]
        return values

    def terms_at(self, batch: IntArray, query: IntArray, context: IntArray) -> IntArray:
        """The value of each term of a polynomial at each (B, Q, N) of three arrays: int64 [term, ..]."""
        one = np.ones_like(context)
        b1, q1, n1 = (one, batch), (one, query, query * query), (one, context)
        values = [b1[b] * q1[q] * n1[n] for b, q, n in MONOMIALS]
        for mask in self.masks:
            visible = pairs(mask.kind, mask.size, query, context)
            values += [visible, batch * visible]
        return np.stack(values)

    @property
    def members(self) -> int | None:
        """Number of sequences of a step: None for one that decodes one token, 0 for any number that share their kernels."""
        return None

    @property
    def member(self) -> IntArray:
        """[op]: the member of the step that the op belongs to; -1 if it serves all, or there is only one."""
        return np.full(len(self), -1, dtype=np.int64)

    def layers(self) -> int:
        """Number of decoder layers that the graph holds."""
        return 1 + max((op.layer for op in self.ops), default=-1)

    def select(self, layers: int | None = None, scope: str = "model") -> OpGraph:
        """The graph of the first `layers` layers; see `models.selection.select`."""
        return replace(self, ops=select(self.ops, layers, scope))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form that `from_json` reads back, of a graph as it was captured."""
        columns = {name: [getattr(op, name) for op in self.ops] for name in _COLUMNS}
        if not self.table[self.cost_index[OF_ALL:]].any():  # the quantities of states, which few models keep
            columns["costs"] = [costs[:OF_ALL] for costs in columns["costs"]]
        columns["experts"] = [op.experts and _written(op.experts) for op in self.ops]
        masks = {"masks": self.masks} if self.masks else {}
        return {"breaks": self.breaks, "polynomials": self.polynomials, "ops": columns, **masks}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], kv_heads: int) -> OpGraph:
        """The graph from its JSON. kv_heads: heads of the cache, a fact of the model."""
        columns = data["ops"]
        masks = tuple(Mask(*mask) for mask in data.get("masks", ()))
        polynomials = [tuple(tuple(piece) for piece in pieces) for pieces in data["polynomials"]]
        if any(len(costs) < len(QUANTITIES) for costs in columns["costs"]):
            nothing = ((0,) * terms(masks),) * (len(data["breaks"]) + 1)
            if nothing not in polynomials:
                polynomials.append(nothing)
            rest = (polynomials.index(nothing),) * (len(QUANTITIES) - OF_ALL)
            columns = columns | {"costs": [(*costs, *rest) for costs in columns["costs"]]}
        ops = tuple(
            Op(
                kind=kind, path=path, layer=layer, part=part, heads=heads, kv_heads=kv_heads if heads else 0, dtype=dtype,
                shape=tuple(shape), inputs=tuple(inputs), costs=tuple(costs),
                experts=experts and Experts(**dict(zip(_EXPERTS, experts, strict=False))),
            )
            for kind, path, layer, part, heads, dtype, shape, inputs, costs, experts in zip(
                *(columns[name] for name in (*_COLUMNS, "experts")),
                strict=True,
            )
        )  # fmt: skip
        return cls(ops=ops, polynomials=tuple(polynomials), breaks=tuple(data["breaks"]), masks=masks)


def _written(experts: Experts) -> tuple[int, ...]:
    """The fields of experts as they were captured; the last ones only where some are idle."""
    fields = tuple(getattr(experts, name) for name in _EXPERTS)
    return fields if experts.idle else fields[:3]


def terms(masks: Sequence[Mask]) -> int:
    """Number of terms of a polynomial in a graph with these masks."""
    return len(MONOMIALS) + 2 * len(masks)


def _index(costs: Sequence[tuple[int, ...]]) -> IntArray:
    """The costs of each op, as int64 [quantity, op]."""
    return np.ascontiguousarray(np.array(costs, dtype=np.int64).reshape(len(costs), len(QUANTITIES)).T)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGraph:
    """A model as the simulator knows it: facts from its config, and its op graphs.

    A model may run different ops for one sequence and for several, and for one query token and for several, so there are
    up to four graphs, by (B > 1, Q > 1).
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    dtype: str
    parameters: int  # elements, each shared tensor once
    parameter_bytes: int
    positions: int | None = None  # number of learned positions; None if their encoding is computed
    chunked: bool = False  # layers that see a bounded number of keys see those of a chunk, not of a window
    prefix: bool = False  # all tokens of a prompt see each other (prefix LM)
    provenance: Mapping[str, str]  # library versions, capture version, config digest
    variants: Mapping[tuple[bool, bool], OpGraph]

    def __str__(self) -> str:
        experts = f" with {self.experts} experts per token" if self.experts is not None else ""
        return f"{self.name}{experts}"

    def step(self, batch: int = 1, query: int = 1) -> OpGraph:
        """The op graph of a step of `batch` sequences with `query` tokens each."""
        return self.variants[batch > 1, query > 1].at_batch(batch)

    @property
    def experts(self) -> Experts | None:
        """The experts of a layer that has some, None in a dense model."""
        return next((op.experts for op in self.step().ops if op.experts is not None), None)

    def too_long(self, tokens: int) -> str:
        """Reason why a sequence of this many tokens is too long for the model; empty if it is not."""
        if self.positions is None or tokens <= self.positions:
            return ""
        return f"expected at most {self.positions} tokens in all, the positions that {self.name} has learned, found {tokens}"

    def to_json(self) -> dict[str, Any]:
        facts = {
            name: getattr(self, name)
            for name in (
                "name",
                "layers",
                "hidden",
                "heads",
                "kv_heads",
                "head_dim",
                "vocabulary",
                "dtype",
                "parameters",
                "parameter_bytes",
                "positions",
            )
        }
        variants = [{"batch": b, "query": q, "graph": g.to_json()} for (b, q), g in sorted(self.variants.items())]
        facts |= {name: True for name in ("chunked", "prefix") if getattr(self, name)}
        return {**facts, "provenance": dict(self.provenance), "variants": variants}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelGraph:
        facts = {key: value for key, value in data.items() if key != "variants"}
        variants = {(v["batch"], v["query"]): OpGraph.from_json(v["graph"], data["kv_heads"]) for v in data["variants"]}
        return cls(**facts, variants=variants)
