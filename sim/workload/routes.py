"""Which experts the tokens of a run choose, as a scenario says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sim.errors import InputError
from sim.experts import Routing
from sim.graph import IntArray, OpGraph
from sim.requests import Request
from sim.routing import Uniform, read
from sim.scenario import Scenario


def routing(scenario: Scenario, ops: OpGraph, sequences: Sequence[Request], *, again: bool) -> Routing:
    """The routing of a run. again: prompts may be prefilled once more, with what was in the cache before them.

    Refuses a file that lacks some of the tokens, or has choices that the model cannot make.
    """
    written = scenario.workload.routing
    if isinstance(written, str):
        return Uniform(scenario.seed)
    layers = {op.layer: op.experts for op in ops.ops if op.experts is not None}
    if not layers:
        raise scenario.error("workload.routing", "expected a file only for a mixture of experts, which the model is not")
    try:
        given = read(scenario.folder / written.file)
        for number, position in enumerate(_fed_in(sequences, again)):
            sequence = np.full_like(position, number)
            for layer, experts in layers.items():
                given.choose(np.full_like(position, layer), sequence, position, experts)
    except InputError as error:
        raise scenario.error("workload.routing.file", str(error)) from None
    return given


def _fed_in(sequences: Sequence[Request], again: bool) -> Iterator[IntArray]:
    """Positions of the tokens that each sequence feeds in: of samples of one prompt, the first feeds it in for all."""
    groups = set[int]()
    for request in sequences:
        shared = request.prompt if request.group in groups else 0
        groups |= {request.group} - {-1}
        yield np.arange(0 if again else request.context + shared, request.final)
