"""Experts that a family multiplies all in one dense product, as products with those that tokens choose.

Llama 4 gives every token to every expert, with an input of 0 where the router did not choose it. An engine multiplies the
chosen ones alone, which gives the same result: an expert has no biases, so it makes 0 of 0.
"""

# torch and transformers are only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch


def choose_experts(model: torch.nn.Module) -> None:
    """Replace dense products with all experts by products with the chosen ones, in every mixture that has some."""
    for module in model.modules():
        if _is_dense(module):
            module.forward = partial(_forward, module)


def _is_dense(module: Any) -> bool:
    experts: Any = getattr(module, "experts", None)
    parts = all(hasattr(module, name) for name in ("router", "shared_expert", "top_k", "hidden_dim"))
    if not parts or not all(hasattr(experts, name) for name in ("gate_up_proj", "down_proj", "act_fn")):
        return False
    return list(inspect.signature(type(experts).forward).parameters) == ["self", "hidden_states"]  # so it takes all


def _forward(module: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mixture of a layer [T, D], and the logits of its router [T, E]."""
    hidden = hidden_states.reshape(-1, module.hidden_dim)
    scores, logits = module.router(hidden)
    chosen_scores, chosen = torch.topk(scores, module.top_k, dim=-1)  # [T, k]
    result = module.shared_expert(hidden)
    result.add_(_experts_forward(module.experts, hidden, chosen_scores, chosen))
    return result, logits


def _experts_forward(experts: Any, hidden: torch.Tensor, scores: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The sum [T, D] of what chosen experts make of tokens [T, D] times their scores. scores, chosen: [T, k]."""
    tokens, top_k = chosen.shape
    taken = (hidden.unsqueeze(1) * scores.unsqueeze(-1)).view(tokens * top_k, 1, -1)
    which = chosen.reshape(-1)
    gate, up = torch.bmm(taken, experts.gate_up_proj[which]).chunk(2, dim=-1)  # [T * k, 1, F] each
    made = torch.bmm(up * experts.act_fn(gate), experts.down_proj[which])
    return made.view(tokens, top_k, -1).sum(dim=1)
