"""Sparse attention: an indexer scores all tokens by small keys of its own, and attention reads the best of them.

DeepSeek Sparse Attention (DeepSeek-V3.2, https://arxiv.org/abs/2512.02556, section 2.1) chooses k = 2,048 tokens for a query.
A decode step reads the indexer's keys of all N tokens of the context, and the cache of min(N, k - 1): the query's own token is
among those it sees. Several queries of a step are counted as if they chose the same tokens wherever they can.

DeepSeek-V4 chooses k = 512 compressed rows of 4 tokens each (see `models.compressed`).

MiniMax-M3 chooses blocks of tokens, 16 of 128, among them the query's own. They are counted as 2,048 tokens, whole blocks,
though the query sees its own block only up to itself: at most 127 tokens, or 6 %, too many.
"""

# torch and transformers are only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

from models.costs import Point

#: The attribute of an indexer with the number of tokens that it chooses for a query.
_CHOSEN = "index_topk"

#: The attributes of one that chooses blocks: how many, and the tokens of a block.
_BLOCKS, _BLOCK = "topk_blocks", "block_size"

#: The attribute of one that chooses compressed rows: the tokens that a row stands for.
_RATE = "compress_rate"

#: Where an indexer keeps the number of tokens during a capture.
_OF_CONFIG = "_chosen_by_config"


#: The indexers of models.
_INDEXERS: WeakKeyDictionary[torch.nn.Module, list[Any]] = WeakKeyDictionary()


def _indexers(model: torch.nn.Module) -> list[Any]:
    if model not in _INDEXERS:
        _INDEXERS[model] = [module for module in model.modules() if _chosen_by(module) is not None]
    return _INDEXERS[model]


def _chosen_by(module: Any) -> int | None:
    """The number of tokens, or of compressed rows, that a module chooses for a query by its config, None if none."""
    if _OF_CONFIG in vars(module):
        return int(vars(module)[_OF_CONFIG])
    if isinstance(getattr(module, _CHOSEN, None), int):
        return int(getattr(module, _CHOSEN))
    blocks, size = getattr(module, _BLOCKS, None), getattr(module, _BLOCK, None)
    return blocks * size if isinstance(blocks, int) and isinstance(size, int) else None


def chosen_tokens(model: torch.nn.Module) -> set[int]:
    """The numbers of tokens that indexers choose for a query, its own included; of rows, those that they stand for, and it."""
    found = {(_chosen_by(module), getattr(module, _RATE, 0)) for module in _indexers(model)}
    return {most * rate + 1 if rate else most for most, rate in found if most is not None}


def choose_last(model: torch.nn.Module, point: Point) -> None:
    """Let indexers choose as many tokens as queries of a step (B, Q, N) see together: k - 1 cached ones, and the new ones.

    Those of blocks choose blocks of one token: a number of blocks is no polynomial in N. Those of compressed rows choose as
    many as there are, up to k for one query; several choose k of those before the step, and all that it makes.
    """
    _, Q, N = point
    for module in _indexers(model):
        most = vars(module).setdefault(_OF_CONFIG, _chosen_by(module))
        if rate := getattr(module, _RATE, 0):
            before, after = N // rate, (N + Q) // rate
            setattr(module, _CHOSEN, min(most, after) if Q == 1 else min(most, before) + after - before)
            continue
        of_blocks = hasattr(module, _BLOCKS)
        setattr(module, _BLOCKS if of_blocks else _CHOSEN, min(N, most - 1) + Q)
        if of_blocks:
            setattr(module, _BLOCK, 1)
