"""Attention with a three-pass softmax, so that every model family shows the ops that a machine would run.

Registered with transformers under `NAME`, as an attention function and as its mask. Each part of the computation runs
under a role, which the recorder reads to name the aten ops issued meanwhile:

    scores           q k^T, scaling, soft cap, mask
    softmax_max      the largest score of each row, and its subtraction
    softmax_exp      the exponential
    softmax_norm     the sum of the exponentials (and of the sink's), and the division by it
    weighted_values  the weighted sum of the values, and its layout for the output projection
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function, eager_mask

#: The name under which transformers knows this attention.
NAME = "decode_sim"

#: Roles of the ops that attention issues, in program order.
ROLES = ("scores", "softmax_max", "softmax_exp", "softmax_norm", "weighted_values")

#: Tensors that some families hand to their attention and that would change its result. Ignoring them would be a silent
#: error, so they are refused.
_UNSUPPORTED = ("alibi", "head_mask", "relative_position_bias")

#: Role of helper work (allocating a buffer, evaluating the mask), which the recorder leaves out.
ASIDE = "aside"

#: Attribute of keys that attention reads, with the tensor by which an indexer has chosen them among others.
CHOSEN_BY = "chosen_by"

_stack: list[tuple[str, int, tuple[torch.Tensor, ...]]] = []


@contextmanager
def role(name: str, heads: int = 0, after: Sequence[torch.Tensor] = ()) -> Iterator[None]:
    """Give the aten ops issued inside a role.

    heads: number of heads that they can be split over, 0 if not per head. after: tensors that they need beside their operands.
    """
    _stack.append((name, heads, tuple(after)))
    try:
        yield
    finally:
        _stack.pop()


def current_role() -> tuple[str, int]:
    """The innermost role and its heads, or ("", 0)."""
    return _stack[-1][:2] if _stack else ("", 0)


def needed() -> tuple[torch.Tensor, ...]:
    """The tensors that ops of the innermost role need beside their operands."""
    return _stack[-1][2] if _stack else ()


def three_pass_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [B, H, Q, D]
    key: torch.Tensor,  # [B, KV, T, D]
    value: torch.Tensor,  # [B, KV, T, Dv]
    attention_mask: torch.Tensor | None,  # [B, 1 or H, Q, T], added to the scores
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, and return ([B, Q, H, Dv], None) as transformers expects. See `attend` for the options."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend([(query, key)], value, attention_mask, scaling, **options), None


def _chosen(
    indices: torch.Tensor, operands: Sequence[tuple[torch.Tensor, torch.Tensor]], value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[Sequence[tuple[torch.Tensor, torch.Tensor]], torch.Tensor, torch.Tensor | None]:
    """Operands, values and mask of as many keys as an indexer has chosen: the last ones, which cost the same as any others.

    The shapes are those of `attend`. A lone query sees all that are chosen for it, and needs no mask.
    """
    count = indices.shape[-1]
    seen = None if mask is None or indices.shape[1] == 1 else mask[..., -count:]
    return [(query, key[:, :, -count:]) for query, key in operands], value[:, :, -count:], seen


def attend(
    operands: Sequence[tuple[torch.Tensor, torch.Tensor]],  # queries [B, H, Q, D] and keys [B, KV, T, D]; D may differ by pair
    value: torch.Tensor,  # [B, KV, T, Dv]
    attention_mask: torch.Tensor | None,  # [B, 1 or H, Q, T]
    scaling: float,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,  # [H], attention sink: a score per head without a value
    indices: torch.Tensor | None = None,  # [B, Q, K], the keys that an indexer has chosen for each query
    block_indices: torch.Tensor | None = None,  # [B, KV, Q, K], the same where it chooses for each head of keys
    position_bias: torch.Tensor | None = None,  # [B, 1 or H, Q, T], added to the scores
    **options: Any,
) -> torch.Tensor:
    """Three-pass attention with scores summed over all pairs of queries and keys; returns [B, Q, H, Dv].

    Heads that share a key and value head are put side by side as rows of one matrix product, so that the cache is read
    and never copied. Softmax runs in float32, like transformers' own eager attention. Chosen keys are read where they lie.
    Which they are does not change the costs: the last K stand for them.

    Raises NotImplementedError if the family passes a bias that this function does not know.
    """
    for name in _UNSUPPORTED:
        if options.get(name) is not None:
            raise NotImplementedError(f"its attention takes {name!r}, which is not supported")
    if block_indices is not None:
        indices = block_indices[:, 0]
    if indices is not None:
        operands, value, attention_mask = _chosen(indices, operands, value, attention_mask)
    B, H, Q, _ = operands[0][0].shape
    KV, T, Dv = value.shape[1:]
    G = H // KV
    chosen_by = vars(value).get(CHOSEN_BY, indices)

    with role("scores", H, after=() if chosen_by is None else (chosen_by,)):
        (query, key), *others = operands
        scores = torch.matmul(query.reshape(B, KV, G * Q, query.shape[-1]), key.transpose(2, 3))  # [B, KV, G*Q, T]
        for query, key in others:  # each product is added to the sum as it is made
            rows = query.reshape(B * KV, G * Q, query.shape[-1])
            scores = torch.baddbmm(scores.flatten(0, 1), rows, key.flatten(0, 1).transpose(1, 2)).view_as(scores)
        if scaling != 1.0:
            scores = scores * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.view(B, KV, G, Q, T)
        for added in (position_bias, attention_mask):
            if added is not None:
                shown = added[..., :T]
                scores = scores + (shown.unsqueeze(2) if shown.shape[1] == 1 else shown.reshape(B, KV, G, Q, T))

    weights = softmax_passes(scores, H, value.dtype, None if s_aux is None else s_aux.reshape(1, KV, G, 1, 1))

    with role("weighted_values", H):
        output = torch.matmul(weights.view(B, KV, G * Q, T), value)  # [B, KV, G*Q, Dv]
        return output.view(B, H, Q, Dv).transpose(1, 2).contiguous()


def softmax_passes(
    scores: torch.Tensor,  # [..., T]
    heads: int,
    dtype: torch.dtype,
    sink: torch.Tensor | None = None,  # [..., 1]
) -> torch.Tensor:
    """Probabilities of the scores of each row, in three passes in float32. sink: a score of each row without a value."""
    with role("softmax_max", heads):
        scores = scores.to(torch.float32)
        peak = scores.amax(dim=-1, keepdim=True)
        if sink is not None:
            sink = sink.to(torch.float32)
            peak = torch.maximum(peak, sink)
        scores = scores - peak

    with role("softmax_exp", heads):
        weights = torch.exp(scores)

    with role("softmax_norm", heads):
        total = weights.sum(dim=-1, keepdim=True)
        if sink is not None:
            total = total + torch.exp(sink - peak)
        return (weights / total).to(dtype)


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor | None:
    """Mask for `three_pass_attention`, [B, 1, Q, T]; None, at no cost, where one query sees every key of the cache.

    None, too, beside compressed rows, of which a kernel knows by their places which a query sees.
    """
    if hasattr(options.get("config"), "compress_rates"):
        return None
    indexed = hasattr(options.get("config"), "index_topk")  # an indexer takes no other mask than a tensor
    if q_length == 1 and attention_mask is None and not indexed:
        with role(ASIDE), suppress(RuntimeError):
            # A pattern that depends on tensors without data (left padding of chunks) raises, and keeps its mask.
            zero = torch.zeros((), dtype=torch.long, device="cpu")
            keys = torch.arange(kv_length, device="cpu") + kv_offset
            if bool(mask_function(zero, zero, zero + q_offset, keys).all()):
                return None
    return eager_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        **options,
    )


def register() -> None:
    """Register this attention and its mask with transformers. Without a mask of its own the mask would silently be None."""
    AttentionInterface.register(NAME, three_pass_attention)
    AttentionMaskInterface.register(NAME, mask)
