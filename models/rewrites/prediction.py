"""Multi-token-prediction heads: a decoder layer that drafts the token after next from the hidden states of the model itself.

The module normalizes the hidden state and the embedding of a token, projects both together to one hidden state, and passes it
through one layer like the last of the model, a norm, and the LM head. Embedding and LM head are the model's own. See section
2.2 of the technical report of DeepSeek-V3 (https://arxiv.org/abs/2412.19437).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from models.config import parts
from models.graph import QUANTITIES, Op, OpGraph, terms
from models.op import MONOMIALS
from models.polynomials import Polynomials

#: Keys of a config that count such heads.
KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")
#: Types of models that have one without a key that says so.
TYPES = ("qwen3_next",)

_PER_TOKEN, _ONCE = MONOMIALS.index((1, 1, 0)), MONOMIALS.index((0, 0, 0))


def has_prediction_head(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config, or the decoder nested in it, has such a head."""
    return any(each.get("model_type") in TYPES or any(each.get(key) for key in KEYS) for each in parts(config))


def prediction_head(ops: OpGraph, hidden: int, element: int) -> OpGraph:
    """The graph of the head of a captured model. hidden: size of a hidden state. element: bytes of a number."""
    last = ops.layers() - 1
    polynomials = Polynomials(ops.polynomials)
    embedding = next(i for i, op in enumerate(ops.ops) if op.layer < 0 and op.kind == "embedding")
    norm = next(op for op in reversed(ops.ops) if op.layer < 0 and op.kind == "norm")
    place: dict[int, int] = {}  # op of the model -> op here
    made: list[Op] = []

    def add(op: Op, inputs: tuple[int, ...]) -> int:
        made.append(replace(op, inputs=inputs))
        return len(made) - 1

    projected = -1
    for i, op in enumerate(ops.ops):
        if 0 <= op.layer < last:
            continue
        if op.layer == last and projected < 0:
            normed = [
                add(replace(norm, path=f"mtp.{name}"), inputs)
                for name, inputs in (("enorm", (place[embedding],)), ("hnorm", ()))
            ]
            projected = add(_projection(ops, polynomials, hidden, element, norm.dtype), tuple(normed))
        # What an earlier layer gave comes from the projection instead.
        inputs = {place.get(j, projected) for j in op.inputs}
        place[i] = add(op if op.layer < 0 else replace(op, layer=0), tuple(sorted(inputs)))
    return replace(ops, ops=tuple(made), polynomials=tuple(polynomials))


def _projection(ops: OpGraph, polynomials: Polynomials, hidden: int, element: int, dtype: str) -> Op:
    """The product of both inputs, side by side, with a matrix [2 hidden, hidden]."""
    amounts = {
        "flops": (_PER_TOKEN, 4 * hidden * hidden), "weight": (_ONCE, 2 * hidden * hidden * element),
        "act_read": (_PER_TOKEN, 2 * hidden * element), "act_write": (_PER_TOKEN, hidden * element),
    }  # fmt: skip
    costs = []
    for quantity in QUANTITIES:
        coefficients = [0] * terms(ops.masks)
        if quantity in amounts:
            term, amount = amounts[quantity]
            coefficients[term] = amount
        costs.append(polynomials.number((tuple(coefficients),) * (len(ops.breaks) + 1)))
    return Op(kind="eh_proj", path="mtp.eh_proj", layer=-1, dtype=dtype, costs=tuple(costs))
