"""Experts as products with those that tokens choose, where a family multiplies all of them, or one after another.

Families that loop over the experts that some token has chosen (Step 3.5, DBRX) look at the values of tensors to find them;
their products are the same.

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
    """Replace dense products with all experts, and loops over some, by products with the chosen ones, in every mixture."""
    for module in model.modules():
        if _is_dense(module):
            module.forward = partial(_forward, module)
        elif _is_loop(module) and all(hasattr(module, name) for name in ("gate_up_proj", "down_proj", "_apply_gate")):
            module.forward = partial(_joined_experts_forward, module)
        elif _is_loop(module) and all(hasattr(getattr(module, "mlp", None), name) for name in ("w1", "v1", "w2")):
            module.forward = partial(_flat_experts_forward, module)


def _is_loop(module: Any) -> bool:
    """Whether a module multiplies experts one after another; where transformers can choose how, its function is wrapped."""
    function = type(module).forward
    named = list(inspect.signature(function).parameters) == ["self", "hidden_states", "top_k_index", "top_k_weights"]
    return named and inspect.unwrap(function) is function


def _joined_experts_forward(experts: Any, hidden: torch.Tensor, chosen: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The mixture [T, D] of tokens [T, D], of experts [E, 2 F, D] and [E, D, F]. chosen, scores: [T, k]."""
    taken, which = _for_each_choice(hidden, chosen)
    made = experts._apply_gate(torch.bmm(taken, experts.gate_up_proj[which].transpose(1, 2)))  # [T * k, 1, F]
    return _sum_of_choices(torch.bmm(made, experts.down_proj[which].transpose(1, 2)), scores)


def _flat_experts_forward(experts: Any, hidden: torch.Tensor, chosen: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The mixture [B, Q, D] of tokens [B, Q, D], of experts [E * F, D] one below another. chosen, scores: [B * Q, k]."""
    mlp = experts.mlp
    taken, which = _for_each_choice(hidden.reshape(-1, hidden.shape[-1]), chosen)
    of_all = (-1, experts.ffn_hidden_size, experts.hidden_size)
    gate = mlp.activation_fn(torch.bmm(taken, mlp.w1.view(of_all)[which].transpose(1, 2)))  # [T * k, 1, F]
    made = gate * torch.bmm(taken, mlp.v1.view(of_all)[which].transpose(1, 2))
    return _sum_of_choices(torch.bmm(made, mlp.w2.view(of_all)[which]), scores).view_as(hidden)


def _for_each_choice(hidden: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [T, D] once for each of their choices [T, k], as [T * k, 1, D], and the experts [T * k]."""
    tokens, top_k = chosen.shape
    return hidden.unsqueeze(1).expand(-1, top_k, -1).reshape(tokens * top_k, 1, -1), chosen.reshape(-1)


def _sum_of_choices(made: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The sum [T, D] of what experts make of each choice, [T * k, 1, D], times its score [T, k]."""
    tokens, top_k = scores.shape
    return (made.view(tokens, top_k, -1) * scores.unsqueeze(-1).to(made.dtype)).sum(dim=1)


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
