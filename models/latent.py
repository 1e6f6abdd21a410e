"""Multi-head latent attention (MLA): two ways to keep its cache.

MLA (DeepSeek-V2, arXiv:2405.04434, section 2.1) makes the keys and values of all heads from one latent per token, and
adds to each key a part with rotary positions that all heads share:

    k_h = [W_UK_h c ; k_rope]      v_h = W_UV_h c      c: kv_lora_rank values, k_rope: qk_rope_head_dim values

`latent` keeps c and k_rope, `kv_lora_rank + qk_rope_head_dim` values per token and layer. Nothing is expanded: W_UK goes
to the queries and W_UV to the result, once per new token ("absorbed", section 2.1.2):

    q_h . k_h = (W_UK_h^T q_nope_h) . c + q_rope_h . k_rope       sum_t p_t v_ht = W_UV_h (sum_t p_t c_t)

`expanded` keeps k_h and v_h of every head, `heads * (qk_nope_head_dim + qk_rope_head_dim + v_head_dim)` values: 71 times as
many for DeepSeek-V3. Each token is expanded once, when it is new.

transformers itself keeps the latents and expands all of them in every step, by a method of the attention module,
`expand_kv(c, k_rope)`. Only this method is replaced, so the code of each family is used as it is.
"""

# torch and transformers are only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from models.attention import attend, mask, role, three_pass_attention
from models.config import MLA_FORMS
from sim.base.errors import unknown

#: The name under which transformers knows attention with absorbed projections.
NAME = "decode_sim_latent"

#: Roles of the products with the two halves of the up-projection, in program order.
ROLES = ("k_up_proj", "v_up_proj")

#: Makes keys [B, H, T, D] and values [B, H, T, Dv] from latents [B, 1, T, C] and rotary keys [B, 1, T, R].
Expand = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def keep(model: Any, form: str) -> bool:
    """Make the model keep its cache in this form. Returns False, and changes nothing, if it has no latent attention.

    Raises InputError for an unknown form, NotImplementedError for latent attention without the method that is replaced.
    """
    if form not in MLA_FORMS:
        raise unknown("form of latent attention", form, MLA_FORMS)
    modules = [module for module in model.modules() if hasattr(module, "kv_b_proj")]
    for module in modules:
        if not hasattr(module, "expand_kv"):
            raise NotImplementedError("its latent attention expands its cache outside of expand_kv, which is not supported")
        module.expand_kv = _as_it_is
        if form == "expanded":
            module.expand_new = partial(_expand, module)
    if modules and form == "latent":
        AttentionInterface.register(NAME, absorbed_attention)
        AttentionMaskInterface.register(NAME, mask)
        model.set_attn_implementation(NAME)
    return bool(modules)


def expansions(model: Any) -> dict[int, Expand]:
    """By layer, the function that makes the rows of an expanded cache."""
    return {module.layer_idx: module.expand_new for module in model.modules() if hasattr(module, "expand_new")}


def absorbed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [B, H, Q, nope + R]
    latent: torch.Tensor,  # [B, 1, T, C]
    rope: torch.Tensor,  # [B, 1, T, R]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend over latents, and return ([B, Q, H, V], None)."""
    if not hasattr(module, "kv_b_proj"):  # a layer of another kind in the same model
        return three_pass_attention(module, query, latent, rope, attention_mask, scaling, **options)
    up: Any = module
    nope, C, R = up.qk_nope_head_dim, latent.shape[-1], rope.shape[-1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    key_up, value_up = up.kv_b_proj.weight.view(query.shape[1], -1, C).split([nope, up.v_head_dim], dim=1)  # [H, ., C]
    with role("k_up_proj"):
        absorbed = torch.einsum("bhqn,hnc->bhqc", query[..., :nope], key_up)
    result = attend([(absorbed, latent), (query[..., -R:], rope)], latent, attention_mask, scaling, **options)
    with role("v_up_proj"):
        return torch.einsum("bqhc,hvc->bqhv", result, value_up).contiguous(), None


def _as_it_is(latent: torch.Tensor, rope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return latent, rope


def _expand(module: Any, latent: torch.Tensor, rope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    B, _, T, _ = latent.shape
    nope, values = module.qk_nope_head_dim, module.v_head_dim
    heads = module.kv_b_proj(latent).view(B, T, -1, nope + values).transpose(1, 2)  # [B, H, T, nope + V]
    key, value = heads.split([nope, values], dim=-1)
    return torch.cat((key, rope.expand(-1, heads.shape[1], -1, -1)), dim=-1), value
