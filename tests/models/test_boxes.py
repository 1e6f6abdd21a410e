"""Parts of a cache that views cover, against the elements that they index one by one; and what a step loads of it."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from model_families import small

from models.boxes import box_of, covered, rows_before, volume
from models.capture import build, record
from models.decoder import hf_config
from models.graph import QUANTITIES

SHAPE = (2, 4, 6, 8)

#: Views of a buffer of that shape, and the boxes that they cover.
VIEWS = {
    "all": (lambda t: t, ((0, 2), (0, 4), (0, 6), (0, 8))),
    "the last rows": (lambda t: t[:, :, -2:], ((0, 2), (0, 4), (4, 6), (0, 8))),
    "the first rows of a sequence": (lambda t: t[1:, :, :3], ((1, 2), (0, 4), (0, 3), (0, 8))),
    "half of the heads": (lambda t: t.chunk(2, dim=1)[1], ((0, 2), (2, 4), (0, 6), (0, 8))),
    "heads and sequences as one": (lambda t: t.view(8, 6, 8), ((0, 2), (0, 4), (0, 6), (0, 8))),
    "all as one": (lambda t: t.view(-1), ((0, 2), (0, 4), (0, 6), (0, 8))),
    "a dimension split": (lambda t: t.view(2, 2, 2, 6, 2, 4).transpose(1, 4), ((0, 2), (0, 4), (0, 6), (0, 8))),
    "heads repeated": (lambda t: t[:, :, None].expand(2, 4, 3, 6, 8), ((0, 2), (0, 4), (0, 6), (0, 8))),
    "a part of each row": (lambda t: t[..., 2:5].transpose(2, 3), ((0, 2), (0, 4), (0, 6), (2, 5))),
    "one element": (lambda t: t[1, 2, 3, 4], ((1, 2), (2, 3), (3, 4), (4, 5))),
    "every other row": (lambda t: t[:, :, ::2], None),
    "a row and a half": (lambda t: t.view(-1)[:12], None),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_covers_a_box(view):
    cut, expected = VIEWS[view]
    numbers = torch.arange(384).view(SHAPE)
    part = cut(numbers)
    box = box_of(part.shape, part.stride(), int(part.storage_offset()), SHAPE)
    assert box == expected
    if box is not None:
        assert torch.equal(numbers[tuple(slice(*edge) for edge in box)].flatten(), part.unique())


def test_dimensions_of_one_are_no_places_of_others():
    part = torch.empty(1, 1, 5, 1)[:, :, 2:]
    assert box_of(part.shape, part.stride(), int(part.storage_offset()), (1, 1, 5, 1)) == ((0, 1), (0, 1), (2, 5), (0, 1))


def test_boxes_together_count_each_element_once():
    boxes = [((0, 2), (0, 3)), ((1, 4), (2, 5)), ((0, 1), (0, 2)), ((3, 3), (0, 9)), ((6, 7), (0, 1))]
    elements = {(i, j) for (a, b), (c, d) in boxes for i, j in product(range(a, b), range(c, d))}
    assert covered(boxes) == len(elements) == 15
    assert covered([]) == covered([((2, 2), (0, 4))]) == 0
    assert volume(rows_before(((0, 2), (3, 9), (0, 4)), 5)) == 2 * 2 * 4
    assert volume(rows_before(((0, 2), (6, 9), (0, 4)), 5)) == 0


@pytest.mark.parametrize("family", ["llama", "diffllama"])  # the second reads its values in two halves, and its keys twice
@pytest.mark.parametrize("B", [1, 3])
def test_a_step_loads_the_whole_cache_once(family, B):
    nodes = record(build(hf_config(small(family)), "float32"), (B, 2, 7)).nodes
    loads = [node.costs[QUANTITIES.index("kv_read")] for node in nodes if node.name == "kv_load"]
    assert loads == [B * 7 * 2 * 2 * 8 * 4] * 2  # tokens, keys and values, heads, head dim, bytes; layers
