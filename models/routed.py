"""Experts as products with those that tokens choose, where a family multiplies all of them, or one after another.

Families that loop over the experts that some token has chosen (Step 3.5, DBRX) look at the values of tensors to find them;
their products are the same.

Of the experts that LongCat-Flash chooses from, some compute nothing: they return the token. They have no weights in its
checkpoint (https://arxiv.org/abs/2509.01322, section 2.1), though transformers allocates a projection for each.

Llama 4 gives every token to every expert, with an input of 0 where the router did not choose it. An engine multiplies the
chosen ones alone, which gives the same result: an expert has no biases, so it makes 0 of 0.
"""

# torch and transformers are only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from models.costs import powers
from models.experts import Experts
from models.op import QUANTITIES
from models.polynomials import Pieces, each_term
from models.recording import Node
from sim.base.errors import InputError

WEIGHT, FLOPS = QUANTITIES.index("weight"), QUANTITIES.index("flops")


def choose_experts(model: torch.nn.Module) -> None:
    """Replace dense products with all experts, and loops over some, by products with the chosen ones, in every mixture."""
    module: Any
    for module in model.modules():
        if _is_dense(module):
            module.forward = partial(_forward, module)
        elif _is_loop(module) and all(hasattr(module, name) for name in ("gate_up_proj", "down_proj")):
            if _idle(module):
                module.gate_up_proj = torch.nn.Parameter(module.gate_up_proj[: len(module.down_proj)].detach())
            module.forward = partial(_joined_experts_forward, module)
        elif _is_loop(module) and all(hasattr(getattr(module, "mlp", None), name) for name in ("w1", "v1", "w2")):
            module.forward = partial(_flat_experts_forward, module)


def idle_experts(model: torch.nn.Module) -> dict[str, int]:
    """By path of a mixture's experts, how many more a token may choose that compute nothing."""
    return {path: idle for path, module in model.named_modules() if (idle := _idle(module))}


def _idle(module: Any) -> int:
    idle = getattr(module, "zero_expert_num", 0)
    return idle if isinstance(idle, int) else 0


def with_experts(
    nodes: Sequence[Node], costs: Sequence[Pieces], key: tuple[bool, bool], idle: Mapping[str, int]
) -> tuple[Experts | None, list[Pieces]]:
    """The experts of an op made of these nodes, None if it has none, and its costs [quantity, piece, monomial].

    key: variant of the step. idle: as `idle_experts` has them. Where some are idle, the op is charged for the part of the
    choices that falls on the others if all are equally likely, rounded up; batches count the choices of a step instead.
    """
    gathers = [node for node in nodes if node.experts != (0, 0)]
    if not gathers:
        return None, list(costs)
    count, size, more = gathers[0].experts[0], sum(node.experts[1] for node in gathers), idle.get(gathers[0].path, 0)
    top_k = _chosen(gathers, costs[WEIGHT], size, key)
    if not more:
        return Experts(count=count, top_k=top_k, bytes=size), list(costs)
    flops = sum(costs[FLOPS][0]) // top_k
    made = [
        each_term(lambda term: -(-term * count // (count + more)), cost) if quantity in (WEIGHT, FLOPS) else cost
        for quantity, cost in enumerate(costs)
    ]
    return Experts(count=count + more, top_k=top_k, bytes=size, idle=more, flops=flops), made


def _chosen(gathers: Sequence[Node], weight: Pieces, size: int, key: tuple[bool, bool]) -> int:
    """Number of experts that a token chooses. weight: of the op, as [piece, monomial]. size: bytes of one."""
    B, Q = (2 if many else 1 for many in key)
    chosen = {sum(c * p for c, p in zip(piece, powers((B, Q, 0)), strict=False)) for piece in weight}
    top_k, rest = divmod(chosen.pop(), size * B * Q)
    if rest or chosen or any(node.experts[0] != gathers[0].experts[0] for node in gathers):
        raise InputError(f"the experts at {gathers[0].path!r} are not gathered one by one, a fixed number for each token")
    return top_k


def _is_loop(module: Any) -> bool:
    """Whether a module multiplies experts one after another; where transformers can choose how, its function is wrapped."""
    function = type(module).forward
    named = list(inspect.signature(function).parameters) == ["self", "hidden_states", "top_k_index", "top_k_weights"]
    return named and inspect.unwrap(function) is function


def _joined_experts_forward(experts: Any, hidden: torch.Tensor, chosen: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The mixture [T, D] of tokens [T, D], of experts [E, 2 F, D] and [E, D, F]. chosen, scores: [T, k]."""
    taken, which = _for_each_choice(hidden, chosen)
    last = len(experts.down_proj) - 1
    product = which.clamp(max=last) if _idle(experts) else which
    joined = torch.bmm(taken, experts.gate_up_proj[product].transpose(1, 2))  # [T * k, 1, 2 F]
    made = torch.bmm(_gated(experts, joined), experts.down_proj[product].transpose(1, 2))
    if _idle(experts):
        made = torch.where((which > last).view(-1, 1, 1), taken, made)
    return _sum_of_choices(made, scores)


def _gated(experts: Any, joined: torch.Tensor) -> torch.Tensor:
    """The hidden values [T * k, 1, F] of experts from the joined products of gate and up [T * k, 1, 2 F]."""
    if hasattr(experts, "_apply_gate"):
        gated: torch.Tensor = experts._apply_gate(joined)
        return gated
    gate, up = joined.chunk(2, dim=-1)
    return experts.act_fn(gate) * up  # type: ignore[no-any-return]


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
