"""Sparse attention: an indexer scores all tokens by small keys of its own, and attention reads the best of them.

DeepSeek Sparse Attention (DeepSeek-V3.2, https://arxiv.org/abs/2512.02556, section 2.1) chooses k = 2,048 tokens for a query.
A decode step reads the indexer's keys of all N tokens of the context, and the cache of min(N, k - 1): the query's own token is
among those it sees. Several queries of a step are counted as if they chose the same tokens wherever they can.
"""

# torch and transformers are only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

from typing import Any

import torch

from models.costs import Point

#: The attribute of an indexer with the number of tokens that it chooses for a query.
_CHOSEN = "index_topk"

#: Where an indexer keeps that number during a capture.
_OF_CONFIG = "_chosen_by_config"


def _indexers(model: torch.nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(getattr(module, _CHOSEN, None), int)]


def chosen_tokens(model: torch.nn.Module) -> set[int]:
    """The numbers of tokens that indexers choose for a query."""
    return {getattr(module, _OF_CONFIG, getattr(module, _CHOSEN)) for module in _indexers(model)}


def choose_last(model: torch.nn.Module, point: Point) -> None:
    """Let indexers choose as many tokens as queries of a step (B, Q, N) see together: k - 1 cached ones, and the new ones."""
    _, Q, N = point
    for module in _indexers(model):
        most = vars(module).setdefault(_OF_CONFIG, getattr(module, _CHOSEN))
        setattr(module, _CHOSEN, min(N, most - 1) + Q)
