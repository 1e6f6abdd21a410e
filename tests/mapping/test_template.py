"""Graphs of steps: repeating the blocks of a template against stitching op by op; kernels for all members against their sum."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models.library
import sim
import sim.mapping.grid
import sim.mapping.steps.graphs
from models.graph import IntArray, Members, OpGraph, StepLanes
from sim.base.errors import InputError
from sim.base.memo import Memo
from sim.cost.kernels import ONLY_MOVES, Kernel, joined, kernels_of
from sim.cost.model import Rates
from sim.cost.profiled import Profiled, calls
from sim.cost.roofline import Roofline
from sim.mapping.lowering import lower
from sim.mapping.settings import Fuse, ModelMapping, Residency
from sim.mapping.steps import BatchGraph, Captures, LaidOut, Shape, StepGraphs, Variants, stitch, swapped
from sim.mapping.tasks import TaskGraph
from sim.mapping.template import first_of_each
from sim.runs.model import Layout
from sim.scenario import from_dict
from sim.workload.routing import Uniform

MODELS = ("llama-3.2-1b", "mixtral-8x7b", "deepseek-v2-lite", "gemma-2-2b", "gpt-oss-20b")
LAYERS = 2
MAPPINGS: dict[str, ModelMapping] = {
    "heads split": ModelMapping(),
    "splits": ModelMapping(kv_loads="head", softmax="online", kv_splits=3),
    "operands": ModelMapping(
        kv="operands", execution="stream", heads="fused", weights="resident", softmax="online", kv_splits=2
    ),
    "blocking": ModelMapping(kv="operands", execution="blocking", activations="off_chip", weights=Residency(resident=0.4)),
    "tiles": ModelMapping(
        tiles={"default": 3, "lm_head": 8}, weights=Residency(resident=0.3), softmax="fused", fuse=Fuse(qkv=True)
    ),
    "off chip": ModelMapping(activations="off_chip", tiles=2, heads="fused", fuse=Fuse(gate_up=True)),
}


@cache
def laid(model: str, mapping: str) -> Variants:
    """The captures of a model as a mapping lays them out."""
    found = models.library.load(model)
    kv_heads = 1 if model.startswith("deepseek") else found.kv_heads
    layout = Layout(mapping=MAPPINGS[mapping], layers=LAYERS, scope="model", kv_heads=kv_heads, element=2)
    return LaidOut(found.variants, layout)


@cache
def graphs(model: str, mapping: str, attention: str = "sequence") -> StepGraphs:
    chosen = MAPPINGS[mapping].model_copy(update={"attention": attention})
    return StepGraphs(laid(model, mapping), chosen, Uniform(3))


def lanes(members: list[tuple[int, int, int]], logits: int) -> StepLanes:
    """One step of members with (context, new tokens, tokens loaded)."""
    context, query, loads = (np.array(column, dtype=np.int64)[:, None] for column in zip(*members, strict=True))
    sequence, one = np.arange(len(members))[:, None], np.zeros(1, dtype=np.int64)
    rows = np.where(sequence == 0, logits, 0)
    return StepLanes(
        sequence=one, token=one, context=context.sum(axis=0),
        members=Members(
            sequence=sequence, context=context, query=query, loads=loads, kept=0 * context, logits=rows, home=0 * rows
        ),
    )  # fmt: skip


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    several = tuple(draw(st.lists(st.booleans(), min_size=1, max_size=6)))
    leaders = tuple(draw(st.integers(-1, member - 1)) for member in range(len(several)))
    if draw(st.booleans()) or max(leaders) < 0:
        leaders = ()
    return Shape(several, draw(st.booleans()), leaders)


COLUMNS = ("kind", "op", "part", "parts", "head", "tile", "layer", "engine", "computes", "moves", "prefetch")
EDGES = ("inputs", "input_start", "outputs", "output_start")


def same(one: TaskGraph, other: TaskGraph) -> None:
    for name in (*COLUMNS, *EDGES):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype, name
        assert np.array_equal(mine, theirs), name
    assert one.kinds == other.kinds
    assert (dict(one.kv_loads), dict(one.kv_stores)) == (dict(other.kv_loads), dict(other.kv_stores))


@settings(max_examples=40, deadline=None)
@given(shapes(), st.sampled_from(MODELS), st.sampled_from(sorted(MAPPINGS)))
def test_blocks_repeated_are_the_graph_stitched_op_by_op(shape: Shape, model: str, mapping: str) -> None:
    """In program order, to the last edge, label and coefficient."""
    if shape.plain:
        return
    made = graphs(model, mapping)(shape)
    by_hand = stitch(Captures(graphs(model, mapping).variants), shape)
    expected = lower(by_hand.ops, MAPPINGS[mapping])
    same(made, expected)
    ops = made.ops
    assert isinstance(ops, BatchGraph)
    assert ops.owner.tolist() == list(by_hand.owner)
    assert np.array_equal(ops.cost_index, expected.ops.cost_index)
    assert (ops.polynomials, ops.breaks, ops.ops) == (expected.ops.polynomials, expected.ops.breaks, expected.ops.ops)
    assert [made.kind_of(task) for task in range(len(made))] == [expected.kind_of(task) for task in range(len(made))]


@pytest.mark.parametrize("direction", ["in", "out"])
def test_swaps_are_repeated_too(direction: str) -> None:
    shape = Shape((False, True, False), logits=False, swap=direction)  # type: ignore[arg-type]
    made = graphs("llama-3.2-1b", "splits")(shape)
    same(made, lower(swapped(laid("llama-3.2-1b", "splits")[False, False], shape).ops, MAPPINGS["splits"]))


def test_no_op_object_is_made_before_it_is_read() -> None:
    graph = graphs("llama-3.2-1b", "heads split")(Shape((False,) * 9))
    Roofline(machine=MACHINE, seed=0).durations(graph, lanes([(50, 1, 50)] * 9, 9))
    with pytest.raises(AttributeError):
        object.__getattribute__(graph.ops, "ops")  # without the accessor that makes it
    assert len(graph.ops.ops) == len(graph.ops)


@given(st.lists(st.integers(0, 40), max_size=60), st.sampled_from([41, 2_000_000]))
def test_the_first_of_each_key(keys: list[int], bound: int) -> None:
    first, which = first_of_each(np.array(keys, dtype=np.int64), bound)
    _, expected, inverse = np.unique(np.array(keys, dtype=np.int64), return_index=True, return_inverse=True)
    assert (first.tolist(), which.tolist()) == (expected.tolist(), inverse.tolist())


MACHINE = Rates(flops=10**12, vector_flops=10**11, overhead=0, bandwidth=10**11)
PROFILED = Profiled(
    machine=MACHINE, seed=0, otherwise="roofline",
    profile=str(Path(__file__).parents[2] / "scenarios" / "profiles" / "h100_cuda_graphs.yaml"),
)  # fmt: skip
MEMBERS = st.lists(
    st.tuples(st.integers(0, 6000), st.sampled_from([1, 1, 1, 4, 33]), st.integers(0, 6000)).map(
        lambda member: (member[0], member[1], min(member[0], member[2]))
    ),
    min_size=2,
    max_size=7,
)


def by_role(ops: OpGraph, costs: IntArray) -> dict[tuple[str, str, str], list[int]]:
    """Costs summed over the ops of one kind, part and path."""
    total: dict[tuple[str, str, str], npt.NDArray[np.int64]] = {}
    for i, op in enumerate(ops.ops):
        role = (op.kind, op.part, op.path)
        total[role] = total.get(role, 0) + costs[:, i, 0]
    return {role: values.tolist() for role, values in total.items()}


@settings(max_examples=40, deadline=None)
@given(MEMBERS, st.sampled_from(MODELS), st.sampled_from(sorted(MAPPINGS)))
def test_a_kernel_for_all_costs_the_sum_of_those_of_each(members: list[tuple[int, int, int]], model: str, mapping: str) -> None:
    """All quantities, op by op, whichever member loads a shared context, and the same experts."""
    shape, steps = Shape(tuple(query > 1 for _, query, _ in members)), lanes(members, len(members))
    each, all_ = (graphs(model, mapping, attention)(shape).ops for attention in ("sequence", "batch"))
    assert by_role(all_, all_.costs_of(steps)) == by_role(each, each.costs_of(steps))
    assert len({(op.kind, op.part, op.path) for op in all_.ops}) == len({(op.kind, op.part, op.path) for op in each.ops})


def test_a_step_looks_the_same_however_many_are_in_it() -> None:
    """Llama-3.2-1B with heads fused: as many tasks as for one sequence, and one of each kind per layer."""
    steps = graphs("llama-3.2-1b", "operands", "batch")
    pair, many = steps(Shape((False, False))), steps(Shape((False,) * 200, leaders=(-1,) + (0,) * 199))
    assert pair is many
    assert len(pair) == len(steps(Shape((False,))))
    assert (pair.ops.member == -1).all()
    mixed = steps(Shape((False,) * 30 + (True,)))
    assert mixed is steps(Shape((False, True, True)))
    assert mixed is not steps(Shape((False, True), logits=False))
    kinds = [op.kind for op in mixed.ops.ops if op.layer == 1]
    assert all(kinds.count(kind) == 1 for kind in ("kv_store", "attention", "combine"))


def test_lanes_may_have_different_numbers_of_members() -> None:
    ops = graphs("gemma-2-2b", "heads split", "batch")(Shape((False, True))).ops
    few, many = lanes([(90, 1, 90), (0, 7, 0)], 2), lanes([(4100, 1, 4100), (3, 1, 3), (5000, 20, 17)], 3)
    members = [step.members for step in (few, many)]
    joined = StepLanes(
        sequence=np.zeros(2, dtype=np.int64), token=np.zeros(2, dtype=np.int64),
        context=np.concatenate([few.context, many.context]),
        members=Members.side_by_side([each for each in members if each is not None]),
    )  # fmt: skip
    assert np.array_equal(ops.costs_of(joined), np.concatenate([ops.costs_of(few), ops.costs_of(many)], axis=2))


def test_an_overhead_is_paid_once_a_kernel() -> None:
    """1 us per kernel: with 8 sequences, 8 us per layer for separate scores, 1 us for scores of all."""
    members = [(100 + i, 1, 100 + i) for i in range(8)]
    steps, slow = lanes(members, 8), Rates(flops=10**12, vector_flops=10**11, overhead=10**6, bandwidth=10**11)
    more = {}
    for attention in ("sequence", "batch"):
        graph = graphs("llama-3.2-1b", "off chip", attention)(Shape((False,) * 8))
        times = [Roofline(machine=machine, seed=0).durations(graph, steps)[0] for machine in (MACHINE, slow)]
        assert set((times[1] - times[0])[graph.computes, 0].tolist()) == {10**6}
        kinds = np.array(graph.kinds)[graph.kind]
        more[attention] = int((times[1] - times[0])[kinds == "scores"].sum())
    assert more == {"sequence": LAYERS * 8 * 10**6, "batch": LAYERS * 10**6}


@settings(max_examples=15, deadline=None)
@given(MEMBERS, st.sampled_from(["llama-3.2-1b", "gemma-2-2b"]))
def test_a_profile_sees_the_same_kernels(members: list[tuple[int, int, int]], model: str) -> None:
    """The kernels of each sequence, together, are the kernels for all sequences. Decodes come first."""
    members.sort(key=lambda member: member[1] > 1)
    shape, steps = Shape(tuple(query > 1 for _, query, _ in members)), lanes(members, len(members))
    each, all_ = (graphs(model, "operands", attention)(shape).ops for attention in ("sequence", "batch"))
    wanted: dict[tuple[str, str, str], list[list[Kernel]]] = {}
    for rows, parts in calls(each, steps):
        op = each.ops[rows[0]]
        wanted.setdefault((op.kind, op.part, op.path), []).append(joined([part for own in parts for part in own]))
    for op, found in zip(all_.ops, kernels_of(all_, steps), strict=True):
        for kernel, expected in zip(found, wanted[op.kind, op.part, op.path].pop(0), strict=True):
            assert (kernel.kinds, kernel.dtype) == (expected.kinds, expected.dtype)
            assert kernel.sequences.tolist() == expected.sequences.tolist()
            for name in ("rows", "flops", "elements", "bytes", "shared", "context", "heads", "kv_heads", "head_dim", "n"):
                assert getattr(kernel.shapes, name).tolist() == getattr(expected.shapes, name).tolist(), (op.kind, name)
    assert not any(wanted.values()), "a kernel of a sequence that no kernel for all does"


def scenario(attention: str, **workload: object) -> sim.Result:
    return sim.run(
        from_dict(
            {
                "model": {"config": "llama-3.2-1b", "layers": LAYERS},
                "workload": {"sequences": [{"context": 300, "tokens": 3}], **workload},
                "mapping": {"attention": attention},
            }
        )
    )


def test_it_changes_nothing_for_one_sequence() -> None:
    one, other = scenario("sequence"), scenario("batch")
    assert one.makespan == other.makespan
    assert np.array_equal(one.log.tasks.end, other.log.tasks.end)


def test_a_batch_moves_the_same_bytes_in_fewer_tasks() -> None:
    workload = {
        "sequences": [{"context": 300, "prompt": 40, "tokens": 4, "count": 3}, {"context": 20, "tokens": 9}],
        "batching": {"policy": "continuous"},
        "prefill": {"chunk": 16},
    }
    one, other = scenario("sequence", **workload), scenario("batch", **workload)
    assert [other.metrics.bytes_read, other.metrics.bytes_written] == [one.metrics.bytes_read, one.metrics.bytes_written]
    assert len(other.log.steps) == len(one.log.steps)
    assert len(other.log.tasks) < len(one.log.tasks)


def test_operations_of_torch_are_no_kernels_for_a_batch() -> None:
    with pytest.raises(InputError, match="expected 'attention: batch' only with granularity: op"):
        from_dict(
            {
                "model": {"config": "llama-3.2-1b"},
                "workload": {"sequences": [{"context": 1, "tokens": 1}]},
                "mapping": {"attention": "batch", "granularity": "aten"},
            }
        )


@settings(max_examples=30, deadline=None)
@given(shapes(), st.sampled_from(MODELS), st.sampled_from(["tiles", "off chip", "splits"]))
def test_edges_through_joins_are_the_same_edges(shape: Shape, model: str, mapping: str) -> None:
    """With a lower threshold for joins: edges from task to task stay the same, in templates as op by op."""
    plain = graphs(model, mapping)(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sim.mapping.grid, "MANY_EDGES", 4)
        for kept in ("GRAPHS", "TEMPLATES"):  # of runs before, with other edges
            patch.setattr(sim.mapping.steps.graphs, kept, Memo(0))
        made = StepGraphs(laid(model, mapping), MAPPINGS[mapping])
        joined = made(shape)
        ops = laid(model, mapping)[False, False] if shape.plain else stitch(Captures(made.variants), shape).ops
        by_hand = lower(ops, MAPPINGS[mapping])
    assert plain.links.joins == 0
    assert joined.links.joins > 0 or mapping != "tiles"  # only tiles meet with tiles, or with heads
    assert len(joined.links.inputs) <= len(plain.inputs)
    same(joined, plain)
    links, expected = joined.links, by_hand.links
    assert links.joins == expected.joins
    starts = [np.searchsorted(each.inputs[each.input_start[len(plain)] :], len(plain)) for each in (links, expected)]
    assert starts == [len(each.inputs) - each.input_start[len(plain)] for each in (links, expected)]  # joins need tasks only


def test_many_tiles_have_few_edges() -> None:
    """Each of 1,024 tiles needs all 1,024 of the op before: 2,048 edges and a join, not a million."""
    mapping = ModelMapping(weights="resident", tiles=1024, heads="fused")
    graph = lower(models.library.load("llama-3.2-1b").step().select(1), mapping)
    assert graph.links.joins > 0
    assert len(graph.links.inputs) < 8 * len(graph)
    (down,) = (i for i, op in enumerate(graph.ops.ops) if op.kind == "down_proj")
    first = int(np.flatnonzero(graph.op == down)[0])
    (join,) = graph.links.inputs[graph.links.input_start[first] : graph.links.input_start[first + 1]].tolist()
    (act,) = (i for i, op in enumerate(graph.ops.ops) if op.kind == "act")
    needed = graph.links.inputs[graph.links.input_start[join] : graph.links.input_start[join + 1]]
    assert needed.tolist() == np.flatnonzero(graph.op == act).tolist()
    assert graph.inputs[graph.input_start[first] : graph.input_start[first + 1]].tolist() == needed.tolist()


@settings(max_examples=30, deadline=None)
@given(MEMBERS, st.sampled_from(MODELS), st.sampled_from(sorted(MAPPINGS)))
def test_times_by_call_are_those_of_op_by_op(members: list[tuple[int, int, int]], model: str, mapping: str) -> None:
    """A profile that measured some of the ops: the same picoseconds, whether calls come from a template or from each op."""
    shape, steps = Shape(tuple(query > 1 for _, query, _ in members)), lanes(members, len(members))
    ops = graphs(model, mapping)(shape).ops
    found = PROFILED.op_times(ops, steps)
    whole, loading, work = np.zeros((3, len(ops), 1), dtype=np.int64)
    measured = np.zeros(len(ops), dtype=np.bool_)
    for rows, times in PROFILED._by_op(ops, steps):
        whole[rows], loading[rows], work[rows], measured[rows] = times
    first = next(i for i, kind in enumerate(ops.kind.tolist()) if kind not in ONLY_MOVES)
    whole[first] += PROFILED.profile.step.per_step
    for name, expected in (("whole", whole), ("loading", loading), ("work", work), ("measured", measured)):
        assert np.array_equal(getattr(found, name), expected), name


def test_a_swap_takes_the_same_time_by_call() -> None:
    ops = graphs("llama-3.2-1b", "splits")(Shape((False, True), logits=False, swap="out")).ops
    steps = lanes([(900, 0, 900), (30, 0, 30)], 0)
    found = PROFILED.op_times(ops, steps)
    by_op = list(PROFILED._by_op(ops, steps))
    assert by_op
    for rows, (whole, loading, work, _) in by_op:
        assert np.array_equal(found.whole[rows], whole)
        assert np.array_equal(found.loading[rows], loading)
        assert np.array_equal(found.work[rows], work)
