"""Which experts tokens choose, and how many distinct ones a step touches, against closed forms and plain sets."""

from __future__ import annotations

import json
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.experts import Experts, Tokens, counted, counted_of, distinct, share_of
from sim.base.errors import InputError
from sim.workload.routing import Uniform, WrittenRoutes, read


def vectors(*columns):
    return tuple(np.array(column, dtype=np.int64) for column in columns)


def batch(sizes, *, start=100):
    """Steps of so many sequences each, at position `start` of each."""
    sequence = np.concatenate([np.arange(size) for size in sizes])
    lane = np.repeat(np.arange(len(sizes)), sizes)
    return Tokens(sequence=sequence, position=np.full(len(lane), start), lane=lane, lanes=len(sizes))


def test_the_choices_never_change():
    chosen = Uniform(seed=7).choose(*vectors([0, 0, 3], [0, 1, 0], [10, 10, 11]), Experts(count=64, top_k=6, bytes=1))
    assert chosen.tolist() == [[6, 20, 26, 40, 62, 2], [47, 48, 26, 6, 27, 53], [53, 56, 43, 59, 24, 3]]


def plain(seed, layer, sequence, position, count, top_k):
    """The same stream in Python's integers, and Floyd's way with a list."""

    def mix(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    stream = mix(mix(mix(mix(mix(mix(seed) ^ layer)) ^ sequence)) ^ position)
    chosen = []
    for i, last in enumerate(range(count - top_k, count), 1):
        drawn = mix((stream + i * 0x9E3779B97F4A7C15) % 2**64) // 2**32 * (last + 1) // 2**32
        chosen.append(last if drawn in chosen else drawn)
    return chosen


@given(st.integers(0, 2**63 - 1), st.integers(0, 100), st.integers(0, 10**6), st.integers(0, 2**31))
def test_vectors_draw_as_integers_do(seed, layer, sequence, position):
    experts = Experts(count=60, top_k=4, bytes=1)
    chosen = Uniform(seed).choose(*vectors([layer], [sequence], [position]), experts)
    assert chosen[0].tolist() == plain(seed, layer, sequence, position, 60, 4)


@given(
    st.integers(1, 300).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, min(count, 12)))),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**31 - 1),
)
def test_choices_are_distinct_experts(shape, seed, position):
    count, top_k = shape
    experts = Experts(count=count, top_k=top_k, bytes=1)
    chosen = Uniform(seed).choose(*vectors([0] * 50, range(50), [position] * 50), experts)
    assert chosen.shape == (50, top_k)
    assert ((chosen >= 0) & (chosen < count)).all()
    assert all(len(set(row)) == top_k for row in chosen.tolist())


def test_every_set_of_experts_is_equally_likely():
    n, experts = 60_000, Experts(count=6, top_k=3, bytes=1)
    chosen = np.sort(Uniform(1).choose(*vectors([2] * n, range(n), [5] * n), experts), axis=1)
    counts = np.array([(chosen == each).all(axis=1).sum() for each in combinations(range(6), 3)])
    expected = n / comb(6, 3)
    assert counts.sum() == n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 43.8  # 19 degrees of freedom, 0.1 %


@pytest.mark.parametrize("what", ["layer", "sequence", "position", "seed"])
def test_tokens_choose_on_their_own(what):
    n, experts = 20_000, Experts(count=8, top_k=2, bytes=1)
    base = {"layer": np.zeros(n, int), "sequence": np.arange(n), "position": np.arange(n) % 977, "seed": 3}
    other = {**base, what: base[what] + 1}
    a, b = (Uniform(x.pop("seed")).choose(*x.values(), experts) for x in (dict(base), dict(other)))
    overlap = (a[:, :, None] == b[:, None, :]).sum(axis=(1, 2))
    # Hypergeometric: 2 of 8 drawn twice: mean 2 * 2 / 8, variance 2 (2/8) (6/8) (6/7).
    assert overlap.mean() == pytest.approx(0.5, abs=4 * (2 * 0.25 * 0.75 * 6 / 7 / n) ** 0.5)


@pytest.mark.parametrize(("count", "top_k"), [(8, 2), (64, 6), (256, 8)])
@pytest.mark.parametrize("size", [1, 2, 8, 32, 200])
def test_distinct_experts_of_a_batch_are_as_expected(count, top_k, size):
    steps, layers = 40, range(25)
    sequence, lane = np.tile(np.arange(size), steps), np.repeat(np.arange(steps), size)
    tokens = Tokens(sequence=sequence, position=lane + 500, lane=lane, lanes=steps)
    found = distinct(Uniform(11), Experts(count=count, top_k=top_k, bytes=1), layers, tokens)
    expected = count * (1 - (1 - top_k / count) ** size)
    if size == 1:
        assert (found == top_k).all()
    # Experts compete for the choices, so the variance is below that of independent ones.
    spread = (count * (1 - top_k / count) ** size * (1 - (1 - top_k / count) ** size) / found.size) ** 0.5
    assert found.mean() == pytest.approx(expected, abs=4 * spread + 1e-9)
    assert found.max() <= count


def test_many_tokens_touch_all_experts():
    assert distinct(Uniform(0), Experts(count=128, top_k=8, bytes=1), [0, 5], batch([5000])).tolist() == [[128], [128]]


@pytest.mark.parametrize("block", [1, 50, 2**22])
def test_counted_in_blocks_or_by_sets_it_is_the_same(monkeypatch, block):
    monkeypatch.setattr("models.experts._BLOCK", block)
    experts, layers = Experts(count=16, top_k=3, bytes=1), [1, 4]
    tokens = batch([3, 0, 1, 7], start=9)
    found = distinct(Uniform(5), experts, layers, tokens)
    for row, layer in enumerate(layers):
        for lane in range(4):
            mine = [i for i in range(len(tokens.lane)) if tokens.lane[i] == lane]
            chosen = [Uniform(5).choose(*vectors([layer], [tokens.sequence[i]], [9]), experts)[0].tolist() for i in mine]
            assert found[row, lane] == len({expert for row in chosen for expert in row})


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("count", ["distinct", "sent", "chosen"])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    shape=st.integers(1, 40).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, min(count, 9)))),
    layers=st.lists(st.integers(0, 100), min_size=1, max_size=3),
    steps=st.lists(
        st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 2**31), st.integers(0, 5)), min_size=2, max_size=2),
        min_size=1, max_size=3,
    ),
    share=st.integers(1, 5).flatmap(lambda shares: st.tuples(st.integers(0, shares - 1), st.just(shares))),
)  # fmt: skip
def test_the_kernel_counts_what_vectors_choose(compiled, count, seed, shape, layers, steps, share):
    """members: [lane, member, (sequence, context, new tokens)]."""
    held = {"first": shape[0] // 2, "held": -(-shape[0] // 4), "share": share[0], "shares": share[1]}
    experts, members = Experts(count=shape[0], top_k=shape[1], bytes=1, **held), np.array(steps, dtype=np.int64)
    tokens = Tokens.of(*(members[:, :, column].T for column in range(3)))
    expected = counted(Uniform(seed), experts, layers, tokens, count)
    found = Uniform(seed).counted(np.array(layers), members, experts, count, compiled=compiled)
    assert found.tolist() == expected.tolist()
    most = counted(None, experts, layers, tokens, count)
    assert counted_of(Uniform(seed), experts, np.array(layers), members, count).tolist() == expected.tolist()
    assert counted_of(None, experts, np.array(layers), members, count).tolist() == most.tolist()
    assert (expected <= most).all()


@pytest.mark.parametrize("tokens", [0, 1, 3, 4, 17])
def test_shares_are_all_tokens_of_a_step_and_differ_by_one(tokens):
    bounds = [share_of(tokens, share, 4) for share in range(5)]
    sizes = np.diff(bounds).tolist()
    assert (bounds[0], bounds[-1]) == (0, tokens)
    assert sizes[0] == max(sizes) <= min(sizes) + 1


def written(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def row(sequence, position, layer, *experts):
    return {"sequence": sequence, "position": position, "layer": layer, "experts": experts}


def test_given_choices(tmp_path):
    path = written(tmp_path / "routing.jsonl", row(1, 7, 0, 3, 2), "", row(0, 7, 0, 1, 3), row(0, 7, 2, 0, 1))
    routing = read(path)
    experts = Experts(count=4, top_k=2, bytes=1)
    assert routing.choose(*vectors([0, 2, 0], [0, 0, 1], [7, 7, 7]), experts).tolist() == [[1, 3], [0, 1], [3, 2]]
    tokens = Tokens(*vectors([0, 1], [7, 7], [0, 0]), lanes=1)
    assert distinct(routing, experts, [0], tokens).tolist() == [[3]]  # 1, 3 and 2
    members = np.array([[[0, 7, 1], [1, 7, 1]]])
    assert counted_of(routing, experts, np.array([0]), members).tolist() == [[3]]
    with pytest.raises(InputError, match=r"^.*routing\.jsonl: .* none for sequence 0, position 8, layer 0$"):
        routing.choose(*vectors([0], [0], [8]), experts)
    for count, top_k in ((3, 2), (4, 3)):
        with pytest.raises(InputError, match=rf"expected {top_k} experts from 0 to {count - 1} per token, found 2 up to 3"):
            routing.choose(*vectors([0], [0], [7]), Experts(count=count, top_k=top_k, bytes=1))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected an object like"),
        ("[1]", "expected an object like"),
        ({"sequence": 0, "position": 1, "layer": 1}, "no experts; expected an object like"),
        ({**row(0, 1, 0, 1, 2), "expert": 1}, "unknown key 'expert' (did you mean 'experts'?); known: "),
        (row(-1, 1, 0, 1, 2), "sequence: expected a whole number from 0 to 1048575, found -1"),
        (row(0, 2**31, 0, 1, 2), "position: expected a whole number from 0"),
        (row(0, True, 0, 1, 2), "position: expected a whole number from 0"),
        (row(0, 1, 0), "experts: expected a list of whole numbers from 0"),
        (row(0, 1, 0, 1, -1), "experts: expected whole numbers from 0 to 2147483647, found -1"),
        (row(0, 1, 0, 1, 5.5), "experts: expected whole numbers from 0 to 2147483647, found 5.5"),
        (row(0, 1, 0, 1, 1), "experts: expected no expert twice, found 1 again"),
        (row(0, 1, 0, 1), "experts: expected 2, as in the lines before, found 1"),
        (row(0, 0, 0, 1, 2), "expected each token and layer once, found it twice, first in line 1"),
    ],
)
def test_errors_in_a_line_have_its_number(tmp_path, line, message):
    path = written(tmp_path / "routing.jsonl", row(0, 0, 0, 0, 1), line)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:2: {message}"), caught.value
    assert "\n" not in str(caught.value)


def test_an_empty_or_missing_file(tmp_path):
    with pytest.raises(InputError, match="expected lines like"):
        read(written(tmp_path / "routing.jsonl"))
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "nowhere")


def test_impossible_experts():
    for top_k in (0, 5):
        with pytest.raises(ValueError, match="expected each token to choose 1 to 4 experts"):
            Experts(count=4, top_k=top_k, bytes=1)


def test_given_is_a_routing():
    assert WrittenRoutes(source="", keys=np.array([0]), experts=np.array([[0]])).choose(
        *vectors([0], [0], [0]), Experts(count=1, top_k=1, bytes=1)
    ).tolist() == [[0]]
