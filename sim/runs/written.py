"""Op graphs that are written in a scenario (`model.graph`), for teaching, tests, and work other than transformers.

    model:
      graph:
        - {name: load, kind: kv_load, transfer: 1 ms}
        - {name: attend, inputs: [load], duration: 3 ms}

Every token of the workload is one step of all these ops. Ops may be listed in any order; independent ops keep the order
in which they are written.
"""

from __future__ import annotations

from collections.abc import Set

from models.graph import MONOMIALS, QUANTITIES, ModelGraph, Op, OpGraph
from models.polynomials import Polynomials
from sim.base.errors import nearest
from sim.base.topological import topological_order
from sim.base.units import PS_PER_S, ceil_div
from sim.cost import CostModel, WrittenCosts
from sim.scenario import GraphOp, Scenario


def written_model(scenario: Scenario) -> ModelGraph:
    """The graph of a scenario as a model. Raises InputError for a name that is used twice or not at all, and for a cycle."""
    ops, bandwidth = _in_order(scenario), scenario.hardware.memory.bandwidth
    dtype = scenario.model.dtype or "bfloat16"
    index = {op.name: i for i, op in enumerate(ops)}
    polynomials = Polynomials()
    made = []
    for op in ops:
        amounts = {name: getattr(op, name) or 0 for name in QUANTITIES}
        if op.transfer is not None:  # as many bytes as the channel moves in that time
            amounts[op.moves_kv or "weight"] = max(1, ceil_div(op.transfer * bandwidth, PS_PER_S))
        constants = [((amounts[name], *[0] * (len(MONOMIALS) - 1)),) for name in QUANTITIES]
        kind = op.kind or op.name
        made.append(
            Op(
                kind=kind, path=op.name, layer=op.layer, part=op.name if op.name != kind else "", heads=op.heads, dtype=dtype,
                inputs=tuple(sorted({index[name] for name in op.inputs})),
                costs=tuple(map(polynomials.number, constants)),
            )
        )  # fmt: skip
    graph = OpGraph(ops=tuple(made), polynomials=tuple(polynomials))
    return ModelGraph(
        name=scenario.name, layers=max(op.layer for op in ops) + 1, hidden=0, heads=max(op.heads for op in ops), kv_heads=0,
        head_dim=0, vocabulary=0, dtype=dtype, parameters=0, parameter_bytes=sum(op.weight or 0 for op in ops),
        provenance={"graph": scenario.source}, variants={(False, False): graph},
    )  # fmt: skip


def written_costs(scenario: Scenario, others: CostModel) -> CostModel:
    """Costs with the times that the graph gives; `others` for all other ops."""
    ops = _in_order(scenario)
    if all(op.duration is None and op.transfer is None for op in ops):
        return others
    return WrittenCosts([op.duration for op in ops], [op.transfer for op in ops], others=others)


def _in_order(scenario: Scenario) -> list[GraphOp]:
    """The ops, each after its inputs, otherwise as they are written."""
    ops = scenario.model.graph
    assert ops is not None
    index: dict[str, int] = {}
    for i, op in enumerate(ops):
        if op.name in index:
            first = scenario.locate(f"model.graph[{index[op.name]}].name")
            raise scenario.error(f"model.graph[{i}].name", f"duplicate op name {op.name!r}, first at {first}")
        index[op.name] = i
    inputs: dict[int, set[int]] = {i: set() for i in range(len(ops))}
    for i, op in enumerate(ops):
        for position, name in enumerate(op.inputs):
            if name not in index:
                hint = nearest(name, index)
                raise scenario.error(
                    f"model.graph[{i}].inputs[{position}]", f"expected the name of an op, found {name!r}{hint}"
                )
            inputs[i].add(index[name])
    order = topological_order(inputs)
    if len(order) < len(ops):
        cycle = _cycle(ops, index, inputs.keys() - set(order))
        place = f"model.graph[{index[cycle[0]]}].inputs"
        raise scenario.error(place, f"expected a graph without cycles, found {' <- '.join([*cycle, cycle[0]])}")
    return [ops[i] for i in order]


def _cycle(ops: tuple[GraphOp, ...], index: dict[str, int], left: Set[int]) -> list[str]:
    """The names on one cycle, each followed by an input of it. left: ops on or after a cycle, each of which has an input
    among them.
    """
    i = min(left)
    path: list[str] = []
    while ops[i].name not in path:
        path.append(ops[i].name)
        i = next(index[name] for name in ops[i].inputs if index[name] in left)
    return path[path.index(ops[i].name) :]
