"""Layers that are alike: one of each kind is captured, and all together come out as if each had been."""

from __future__ import annotations

from itertools import pairwise, repeat
from typing import Any

import numpy as np
import pytest
from model_families import small
from test_model_indexed import config as indexed
from test_model_shared_kv import GEMMA_3N

from models import capture as of_capture
from models.capture import build, quiet, record
from models.config import ModelConfig
from models.costs import Point, plan
from models.decoder import hf_config
from models.latent import keep
from models.recording import Recording
from models.repeats import firsts
from models.variants import Layers, solved, verified


def _sparse(layers: int) -> dict[str, Any]:
    return {"num_hidden_layers": layers, "mlp_layer_types": ["dense", *["sparse"] * (layers - 1)]}


#: Models; for each layer the one that stands for it; the contexts at which windows end.
MODELS: dict[str, tuple[ModelConfig, list[int], tuple[int, ...]]] = {
    "all alike": (small("llama", num_hidden_layers=4), [0, 0, 0, 0], ()),
    "each chooses": (indexed("glm_moe_dsa", **_sparse(4)), [0, 1, 1, 1], (5,)),
    "some take the choice of another": (
        indexed("glm_moe_dsa", **_sparse(4), indexer_types=["full", "full", "full", "shared"]),
        [0, 1, 1, 3],  # layer 3 gets the choice of layer 1 by way of 2
        (5,),
    ),
    # Layers 2 and 3 have the caches that layers 4 and 5 read; 1 is like 0.
    "some read the cache of another": (ModelConfig(name="shared", data=GEMMA_3N), [0, 0, 2, 3, 4, 5], (15,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_layers_that_stand_for_others(name: str) -> None:
    config, expected, window = MODELS[name]
    with quiet():
        model = build(hf_config(config), "float32")
        keep(model, "latent")
        plans = [plan(False, False, low, high) for low, high in pairwise((0, *window, None)) if low is not None]
        points = [each.check[-1] for each in plans]
        whole = record(model, points[0])
        first = firsts(whole, of_capture._cache_kinds(model))
        assert [first[layer] for layer in range(len(expected))] == expected
        counts: list[int] = []

        def counted(point: Point) -> Recording:
            made = record(model, point)
            counts.append(len(made.nodes))
            return made

        layers = Layers(model, counted, of_capture._cache_kinds(model), of_capture._rates(model))
        alike = verified(layers, plans, (points, whole), first, window, repeat(None))
        assert counts.count(len(whole.nodes)) == len(plans) - 1  # all others are of the first layers of their kind
        each = solved(layers, plans, (points[0], whole), window, repeat(None))
    np.testing.assert_array_equal(alike.costs, each.costs)
    assert alike.shapes == each.shapes
