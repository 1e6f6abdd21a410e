"""Tensor parallelism: the ops of one of n devices that each hold a part of every layer.

Sharding follows from the kinds that capture gives to ops, and from the data flow (Shoeybi et al., 2019, Megatron-LM):

| op                                   | each device                                                                     |
| ------------------------------------ | ------------------------------------------------------------------------------- |
| q, k, v, gate and up projections, LM head | computes 1/n of the columns of the weights; the result is split               |
| o and down projections               | computes with 1/n of the rows; results are *partial*, an `all_reduce` adds them up |
| the first of two o projections, by groups of heads | has 1/n of the groups; the result is split                        |
| attention, KV cache                  | has 1/n of the heads; of the cache at least one head, so those are replicated beyond |
| a latent KV cache, its down-projections | the same on all devices                                                      |
| experts                              | holds 1/n of each, or dealt out, each n-th; one `all_reduce` after they are combined |
| router, norms, residuals, embedding  | the same on all devices                                                           |
| anything else                        | 1/n where its input is split, else the same on all devices                        |

With `sequence` (Korthikanti et al., 2022, sequence parallelism) a `reduce_scatter` leaves each device the sums of 1/n of the
tokens, if residuals and norms are all that reads them. These do 1/n of their work, up to the `all_gather` of what others need.

With `exchange` scattered tokens go from the device that has them to those of their experts alone: a router chooses for its own
tokens, an `expert_dispatch` sends them, and an `expert_combine` brings back the sums that a device has made for each of them,
as the `alltoall` dispatcher of Megatron-LM and DeepEP do. Shared experts get all tokens; their sums are reduced and scattered.

With `apart` (data-parallel attention) each device has sequences of its own from the embedding to the LM head, with all weights
but those of experts, and sends tokens to the devices of their experts in the same way. No other op needs what others have.

An op that needs a whole result gets it from an `all_reduce` (of partial results) or an `all_gather` (of split ones), which
stands behind the op that computed it. The sampler needs whole logits, so they are gathered.

Costs are those of the device that has most of everything: what does not divide is rounded up, term by term. Columns of the LM
head are padded to a multiple of n, as inference engines do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from models.graph import QUANTITIES, Op, OpGraph
from models.polynomials import Polynomials, each_term, zero
from models.rewrites.kernels import Comparison, result_bytes
from sim.base.errors import ConfigError

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER = SHARDED = ("all_reduce", "all_gather", "reduce_scatter")

#: Collectives of the devices that share the positions of a context (see `models.rewrites.context`), and those of all.
CONTEXT = ("context_gather", "context_scatter")
COLLECTIVES = (*SHARDED, *CONTEXT)

#: Ops that send tokens to the devices of the experts that they choose, and bring back what these made of them; and the
#: transfers of these, one to each other device.
EXCHANGES = DISPATCH, COMBINE = ("expert_dispatch", "expert_combine")
EXCHANGE_SENDS = tuple(f"{kind}_send" for kind in EXCHANGES)

#: Collectives that add up partial results.
REDUCING = (ALL_REDUCE, REDUCE_SCATTER)

#: Ops within layers that work on each token alone, with all of its columns; and those that do so before tokens are sent.
OF_TOKENS = ("norm", "residual")
OF_OWN_TOKENS = ("router", "dispatch")

FLOPS, WEIGHT, ACT_WRITE = (QUANTITIES.index(name) for name in ("flops", "weight", "act_write"))

#: Products whose columns are split, unless the result is normalized as a whole; and those whose rows are.
COLUMNS = ("q_proj", "k_proj", "v_proj", "qk_proj", "qv_proj", "kv_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj")
ROWS = ("o_proj", "down_proj")

#: Products that make nothing but keys and values.
KEYS = ("k_proj", "v_proj", "kv_proj")

#: Products with weights of each head.
BY_HEAD = ("k_up_proj", "v_up_proj")

#: Ops that move the cache.
CACHE = ("kv_load", "kv_store")

#: Ops that compute the sum of what they compute from partial results.
ADDING = ("combine", "aten.add")

#: The state of the result of an op: all of it, some columns or heads, all to be added up, or some tokens.
State = Literal["whole", "split", "partial", "scattered"]

#: The work of a device: all of an op, its columns or heads, or its tokens.
Work = Literal["whole", "split", "scattered"]


@dataclass(slots=True)
class _Sharding:
    """The states of the results of ops, and the ops of one device. heads, kv_heads: of attention in the whole model.

    dealt: experts are dealt out, not cut. sequence: residuals and norms are of some tokens. exchange: experts get these sent.
    apart: devices have sequences of their own.
    """

    ops: OpGraph
    devices: int
    heads: int
    kv_heads: int
    dealt: bool
    sequence: bool
    exchange: bool
    apart: bool
    of_keys: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.of_keys = set(keys_and_values(self.ops))

    @property
    def kv_share(self) -> Fraction:
        """The share of the KV heads that a device holds."""
        return Fraction(max(1, self.kv_heads // self.devices), self.kv_heads)

    def share(self, i: int, op: Op) -> Fraction:
        """The share of an op whose work is split that one device does."""
        equal = Fraction(1, self.devices)
        if op.kind == "qkv_proj":
            kept = self.heads * equal + 2 * self.kv_heads * self.kv_share
            return kept / (self.heads + 2 * self.kv_heads)
        return self.kv_share if i in self.of_keys or op.kind in CACHE else equal


def shard(
    ops: OpGraph, devices: int, *, dealt: bool = False, sequence: bool = False, exchange: bool = False, apart: bool = False
) -> OpGraph:  # fmt: skip
    """The op graph of one of some devices, with collectives. Raises ConfigError if the model does not divide.

    dealt: whole experts are dealt out to devices, and this one has the first of them (`unfolded` gives others theirs).
    sequence: residuals and norms are of 1/n of the tokens on each device. exchange: these go to the devices of their experts.
    apart: each device has sequences of its own, and sends their tokens to the devices of their experts.
    """
    if devices == 1:
        return ops
    if apart:
        return _apart(ops, devices)
    attention = next((op for op in ops.ops if op.heads and op.kv_heads), None)
    if attention is None:
        raise ConfigError("mapping.parallel.tensor", "expected 1: the model has no attention whose heads can be split")
    if any(op.kind.startswith("state_") for op in ops.ops):
        raise ConfigError("mapping.parallel.tensor", "expected 1: layers that keep a state are not split over devices")
    _refuse_heads(devices, attention.heads, attention.kv_heads)
    if dealt:
        _refuse_experts(ops, devices)
    sharding = _Sharding(ops, devices, attention.heads, attention.kv_heads, dealt, sequence, exchange, apart=False)
    sharded = _Builder(sharding).graph()
    if sequence and all(op.kind != REDUCE_SCATTER for op in sharded.ops):
        raise ConfigError("mapping.parallel.sequence", "expected false: no norm or residual reads the sums of an all-reduce")
    if exchange and all(op.kind != DISPATCH for op in sharded.ops):
        message = "expected all_gather: no experts read what a norm makes of some tokens"
        raise ConfigError("mapping.parallel.dispatch", message)
    return sharded


def _apart(ops: OpGraph, devices: int) -> OpGraph:
    """The op graph of one of some devices that have sequences of their own."""
    _refuse_experts(ops, devices)
    return _Builder(_Sharding(ops, devices, 1, 1, dealt=True, sequence=False, exchange=True, apart=True)).graph()


class _Builder:
    """Collects the ops of one device. place: [captured op], its index here; collective: that of its result, once made.

    exchanged: layers whose experts are sent their tokens.
    """

    def __init__(self, sharding: _Sharding) -> None:
        self.sharding, self.captured = sharding, sharding.ops
        self.readers = _readers(self.captured)
        self.polynomials = Polynomials(self.captured.polynomials)
        self.nothing = self.polynomials.number(zero(self.captured.breaks, self.captured.masks))
        self.compare = Comparison(self.captured)
        self.made: list[Op] = []
        self.state: list[State] = []
        self.place: list[int] = []
        self.collective: dict[int, int] = {}
        self.exchanged: set[int] = set()

    def graph(self) -> OpGraph:
        for i, op in enumerate(self.captured.ops):
            self._add(i, op)
        for i, op in enumerate(self.captured.ops):
            if op.kind == "lm_head" and self.state[i] == "split":
                self._gathered(i)
        return replace(self.captured, ops=tuple(self.made), polynomials=tuple(self.polynomials))

    def _add(self, i: int, op: Op) -> None:
        """Add an op, behind the collectives that it needs."""
        state, work = self._plan(i, op)
        inputs = []
        for j in op.inputs:
            needed = self.state[j] in ("whole", work) or self._adds(op)
            if op.experts is not None and self.state[j] == "scattered":
                if self.captured.ops[j].kind != "router":  # the choice comes with the tokens
                    inputs.append(self._exchanged(j, op, DISPATCH))
            elif work == "scattered" and self.state[j] == "partial":
                of = self.captured.ops[j]
                inputs.append(self._sent(j, REDUCE_SCATTER) if of.experts is None else self._exchanged(j, of, COMBINE))
            else:
                inputs.append(self.place[j] if needed else self._gathered(j))
        self.state.append(state)
        self.place.append(len(self.made))
        self.made.append(self._on_one_device(i, op, work, tuple(sorted(set(inputs)))))

    def _plan(self, i: int, op: Op) -> tuple[State, Work]:
        """The state of the result of an op, and whether a device does all of its work or a part."""
        if self.sharding.apart:
            return self._plan_apart(op)
        if any(self.state[j] == "scattered" or self._is_scattered(j) for j in op.inputs) and _of_tokens(op):
            return "scattered", "scattered"
        if self._is_of_own_tokens(op):
            return "scattered", "scattered"
        split_input = any(self.state[j] == "split" for j in op.inputs)
        if op.kind == "lm_head":
            return "split", "split"
        if op.heads or op.kind in CACHE or op.kind in BY_HEAD:
            return "split", "split"
        if op.kind in ROWS and split_input:
            return ("split" if self._is_of_groups(i) else "partial"), "split"
        if op.kind in COLUMNS and _is_product(self.captured, op):
            if self._is_normalized(i) or self._is_of_all_keys(i, op):
                return "whole", "whole"
            if op.experts is None or not self.sharding.dealt:
                self._refuse_columns(op)
            return "split", "split"
        if self._adds(op):
            return "partial", "whole"
        if op.kind == "norm" and split_input and not _by_head(op):
            return "whole", "whole"
        return ("split", "split") if split_input else ("whole", "whole")

    def _plan_apart(self, op: Op) -> tuple[State, Work]:
        """As `_plan`, where devices have sequences of their own: only products with experts, and what is between them, are of
        tokens of all devices.
        """
        if op.experts is not None:
            return ("partial" if op.kind in ROWS else "split"), "split"
        return ("split", "split") if any(self.state[j] == "split" for j in op.inputs) else ("scattered", "scattered")

    def _is_of_own_tokens(self, op: Op) -> bool:
        """Whether an op, on the way to experts that get their tokens sent or on that back, works on tokens of the device."""
        if not self.sharding.exchange:
            return False
        adds = op.kind in ADDING and not op.heads
        if any(self.state[j] == "scattered" for j in op.inputs):
            return adds or op.kind in OF_OWN_TOKENS
        return adds and op.layer in self.exchanged and any(self.captured.ops[j].experts is not None for j in op.inputs)

    def _adds(self, op: Op) -> bool:
        """Whether an op may work on partial results: all of its inputs are, but for weights of experts."""
        results = [j for j in op.inputs if self.captured.ops[j].kind != "router"]
        return op.kind in ADDING and not op.heads and all(self.state[j] == "partial" for j in results)

    def _is_scattered(self, i: int) -> bool:
        """Whether partial results are added up for some tokens on each device: if only ops of tokens read the sums."""
        of_tokens = self.sharding.sequence and self.state[i] == "partial" and self.captured.ops[i].kind != "router"
        return of_tokens and all(_of_tokens(self.captured.ops[k]) for k in self.readers[i])

    def _is_of_groups(self, i: int) -> bool:
        """Whether a product with rows is one for each group of heads, as the first of two o projections (DeepSeek-V4).

        Raises ConfigError if the groups do not divide.
        """
        op = self.captured.ops[i]
        if op.experts is not None or not any(self.captured.ops[k].kind in ROWS for k in self.readers[i]):
            return False
        groups, devices = int(op.shape[0]), self.sharding.devices
        if groups % devices:
            raise ConfigError(
                "mapping.parallel.tensor",
                f"expected a divisor of the {groups} groups of heads of {op.kind}, found {devices}; "
                f"{_largest(devices, groups)} would do",
            )
        return True

    def _is_normalized(self, i: int) -> bool:
        """Whether the result goes through a norm of all its columns to a further product, as low-rank projections do."""
        norms = [j for j in self.readers[i] if self.captured.ops[j].kind == "norm" and not _by_head(self.captured.ops[j])]
        latent = any(self.captured.ops[k].kind in CACHE for j in norms for k in self.readers[j])
        return latent or any(_is_product(self.captured, self.captured.ops[k]) for j in norms for k in self.readers[j])

    def _is_of_all_keys(self, i: int, op: Op) -> bool:
        """Whether a product makes keys and values alone, of all heads, because each device holds these."""
        return op.kind in KEYS and i in self.sharding.of_keys and self.sharding.kv_share == 1

    def _refuse_columns(self, op: Op) -> None:
        columns, devices = columns_of(op), self.sharding.devices
        if op.kind in ("gate_proj", "up_proj", "gate_up_proj") and columns % devices:
            raise ConfigError(
                "mapping.parallel.tensor",
                f"expected a divisor of the {columns} columns of {op.kind}, found {devices}; "
                f"{_largest(devices, columns)} would do",
            )

    def _on_one_device(self, i: int, op: Op, work: Work, inputs: tuple[int, ...]) -> Op:
        """The op with what one device does of it."""
        if work == "whole":
            return replace(op, inputs=inputs)
        if work == "scattered" and self.sharding.apart:
            return replace(op, inputs=inputs, own=True)
        if work == "scattered":
            each = Fraction(1, self.sharding.devices)
            shared = (
                cost if name == "weight" else self._shared(cost, each) for name, cost in zip(QUANTITIES, op.costs, strict=True)
            )
            return replace(op, inputs=inputs, costs=tuple(shared))
        share = self.sharding.share(i, op)
        if op.kind == "lm_head":
            columns = columns_of(op)
            share = Fraction(-(-columns // self.sharding.devices), columns)
        partial = op.kind in ROWS and not self._is_of_groups(i)
        kept = {"act_read"} if op.kind in COLUMNS or op.kind == "lm_head" else {"act_write"} if partial else set()
        costs = tuple(
            cost if name in kept else self._shared(cost, share) for name, cost in zip(QUANTITIES, op.costs, strict=True)
        )
        experts = op.experts and replace(
            op.experts, bytes=_rounded_up(op.experts.bytes, share), flops=_rounded_up(op.experts.flops, share)
        )
        if op.experts is not None and self.sharding.dealt:
            captured = self.captured.polynomials[op.costs[FLOPS]][0]  # of all choices of each token
            held, choice = op.experts.working // self.sharding.devices, sum(captured) // op.experts.top_k
            experts = replace(op.experts, held=held, flops=op.experts.flops or choice)
        heads = op.heads // self.sharding.devices if op.kv_heads else int(op.heads * self.sharding.kv_share)
        return replace(
            op, inputs=inputs, costs=costs, experts=experts, heads=heads, kv_heads=int(op.kv_heads * self.sharding.kv_share)
        )

    def _shared(self, number: int, share: Fraction) -> int:
        """The number of the polynomial that is a share of another."""
        return self.polynomials.number(each_term(lambda term: _rounded_up(term, share), self.polynomials[number]))

    def _gathered(self, i: int) -> int:
        """The index of the collective that makes the result of a captured op whole on all devices; it is added once."""
        return self._sent(i, ALL_REDUCE if self.state[i] == "partial" else ALL_GATHER)

    def _exchanged(self, i: int, product: Op, kind: str) -> int:
        """The index of the exchange of the tokens that a product with experts reads or makes; it is added once."""
        if i not in self.collective:
            self.exchanged.add(product.layer)
            experts = product.experts
            assert experts is not None
            last = next(  # whose result has as many columns as a token, for each choice
                op for op in self.captured.ops if op.layer == product.layer and op.kind in ROWS and op.experts is not None
            )
            made = result_bytes(self.captured, last, self.compare)
            token = sum(made[0]) // experts.top_k
            held, shares = experts.working // self.sharding.devices, self.sharding.devices
            most = each_term(lambda term: _rounded_up(term, Fraction(1, experts.top_k * shares)), made)
            number = self.polynomials.number(most)
            at = self._sent(i, kind, number)
            self.made[at] = replace(self.made[at], experts=replace(experts, bytes=token, held=held, shares=shares, flops=0))
        return self.collective[i]

    def _sent(self, i: int, kind: str, sent: int | None = None) -> int:
        """The index of the collective of the result of a captured op; it is added once. sent: its bytes, if not the result."""
        if i not in self.collective:
            op = self.captured.ops[i]
            if sent is None:
                sent = self.polynomials.number(result_bytes(self.captured, op, self.compare))
            costs = tuple(sent if quantity == ACT_WRITE else self.nothing for quantity in range(len(QUANTITIES)))
            self.collective[i] = len(self.made)
            self.made.append(
                Op(
                    kind=kind, path=op.path, part=op.part, layer=op.layer, dtype=op.dtype, shape=op.shape,
                    inputs=(self.place[i],), costs=costs,
                )
            )  # fmt: skip
        return self.collective[i]


def _readers(ops: OpGraph) -> list[list[int]]:
    """[op]: the ops that read its result."""
    readers: list[list[int]] = [[] for _ in ops.ops]
    for i, op in enumerate(ops.ops):
        for j in op.inputs:
            readers[j].append(i)
    return readers


def keys_and_values(ops: OpGraph) -> Iterator[int]:
    """The ops that make keys and values: from what is stored in the cache back to products with weights."""
    seen: set[int] = set()
    todo = [j for op in ops.ops if op.kind == "kv_store" for j in op.inputs]
    while todo:
        i = todo.pop()
        if i in seen or (ops.ops[i].kind, ops.ops[i].part) == ("rope", "table"):
            continue
        seen.add(i)
        yield i
        if not _is_product(ops, ops.ops[i]):
            todo += ops.ops[i].inputs


def _is_product(ops: OpGraph, op: Op) -> bool:
    """Whether an op multiplies by weights."""
    return all(any(map(any, ops.polynomials[op.costs[quantity]])) for quantity in (FLOPS, WEIGHT))


def _refuse_heads(devices: int, heads: int, kv_heads: int) -> None:
    """Raise ConfigError if heads do not divide."""
    if heads % devices or (kv_heads % devices and devices % kv_heads):
        fitting = [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
        raise ConfigError(
            "mapping.parallel.tensor",
            f"expected a number of devices that divides {heads} heads of queries and {kv_heads} of the KV cache, found "
            f"{devices}; possible: {', '.join(map(str, fitting))}",
        )


def _refuse_experts(ops: OpGraph, devices: int) -> None:
    """Raise ConfigError if there are no experts, or they do not divide."""
    count = next((op.experts.working for op in ops.ops if op.experts is not None), 0)
    if not count:
        raise ConfigError("mapping.parallel.expert", "expected 1: the model has no experts")
    if count % devices:
        fitting = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise ConfigError(
            "mapping.parallel.expert", f"expected a divisor of the {count} experts, found {devices}; possible: {fitting}"
        )


def _largest(most: int, columns: int) -> int:
    return max(n for n in range(1, most + 1) if columns % n == 0)


def columns_of(op: Op) -> int:
    """Columns of the result of a product: its last dimension, but for a single one behind it."""
    dimensions = [int(text) for text in op.shape if re.fullmatch(r"\d+", text)]
    while len(dimensions) > 1 and dimensions[-1] == 1:
        dimensions.pop()
    return dimensions[-1] if dimensions else 1


def _of_tokens(op: Op) -> bool:
    """Whether an op works on each token alone."""
    return op.kind in OF_TOKENS and op.layer >= 0 and not _by_head(op)


def _by_head(op: Op) -> bool:
    """Whether a norm is one of each head: its result has a dimension of heads."""
    return len(op.shape) > 3


def _rounded_up(term: int, share: Fraction) -> int:
    return -(-term * share.numerator // share.denominator)
