"""Task graphs of steps by shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.experts import Routing
from models.graph import QUANTITIES
from models.rewrites import ALL_REDUCE, appending, read_in_place
from sim.base.memo import Memo
from sim.base.units import ceil_div
from sim.mapping.collectives import ALIKE, AUTO, Connection, Fastest, LinkRates
from sim.mapping.lowering import HAND_OVERS, lower
from sim.mapping.settings import ModelMapping, Parallel
from sim.mapping.steps.captures import Captures, LaidOut, Variants
from sim.mapping.steps.shape import Shape, template_of
from sim.mapping.steps.stitch import stitch, swapped
from sim.mapping.steps.task_template import TaskTemplate
from sim.mapping.steps.token_chunks import in_chunks
from sim.mapping.tasks import DRAFT, NETWORK_BIT, TaskGraph

#: Task graphs and templates of earlier runs, by the laid-out graph of one sequence: half a million tasks take some 30 MB.
GRAPHS: Memo[TaskGraph] = Memo(2**19)
TEMPLATES: Memo[TaskTemplate] = Memo(2**17)

#: Mappings as text, by which task graphs are known.
KEYS: Memo[str] = Memo(2**16)


class StepGraphs:
    """Task graphs by the shape of a step, each made once.

    routing: the experts that tokens choose. draft: graphs of the draft model, if steps have one. prefilling: those of replicas,
    the first ones, that send what they store; sends: these are such. written: the graph is that of the scenario, of any
    step. tiers and connection: as in `lower`. links: as in `Fastest`, by which `auto` chooses algorithms.
    """

    def __init__(
        self, variants: Variants, mapping: ModelMapping, routing: Routing | None = None, *, draft: StepGraphs | None = None,
        prefilling: StepGraphs | None = None, sends: bool = False, written: bool = False, tiers: tuple[str, ...] = (),
        connection: Connection = ALIKE, links: Sequence[LinkRates] = (),
    ) -> None:  # fmt: skip
        self.captured, self.draft, self.prefilling, self.written = variants, draft, prefilling, written
        self.sends = sends
        # Before stitching: a stitched graph no longer says which member's KV load an operand replaces.
        self.variants = LaidOut(variants, read_in_place) if mapping.kv == "operands" else variants
        self.mapping, self.routing, self.tiers, self.connection = mapping, routing, tiers, connection
        self.fastest = fastest_of(variants, mapping, links, connection)
        self._key = KEYS.of(mapping, (tiers, connection), lambda: repr((mapping, tiers, connection))) + repr(self.fastest)
        self._graphs: dict[Shape, TaskGraph] = {}
        self._drafts: dict[int, TaskGraph] = {}  # by id of the draft model's graph, which that keeps alive
        self._replicas: dict[
            tuple[int, int, tuple[int, ...]], TaskGraph
        ] = {}  # by id of that of the first replica, `device` and `to`
        self._templates: dict[Shape, TaskTemplate] = {}
        self._captures = Captures(self.variants)

    def __call__(self, shape: Shape) -> TaskGraph:
        """Return the task graph of a step of this shape. Raises ConfigError if captures do not correspond."""
        if self.prefilling is not None and not shape.swap and shape.device < self.mapping.parallel.prefill_devices:
            return self.prefilling(shape)
        return self._of_shape(shape)

    def _of_shape(self, shape: Shape) -> TaskGraph:
        """The task graph of a step, wherever it runs."""
        if shape.device or shape.to:
            return self._of_replica(shape)
        if shape.draft:
            return self._of_draft(shape)
        if shape.chunks == 1 and not shape.swap:
            chunks = self.mapping.parallel.chunks_of(shape.tokens)
            shape = shape._replace(chunks=chunks, tokens=ceil_div(shape.tokens, chunks))  # of a chunk, and its collectives
        shape = shape._replace(tokens=1 if self.fastest is None or shape.swap else self.fastest.least(shape.tokens))
        if self.written:
            shape = Shape((False,))
        if self.mapping.parallel.homes:
            shape = shape.at_home()
        if self.mapping.attention == "batch" and not self.sends:
            shape = shape.together()
        if shape not in self._graphs:
            if self.routing is None or self._is_plain(shape):
                made = GRAPHS.of(self.captured[False, False], (self._key, shape), lambda: self._make(shape))
            else:
                made = self._make(shape)
            self._graphs[shape] = made
        return self._graphs[shape]

    def _of_replica(self, shape: Shape) -> TaskGraph:
        """The task graph of a step of a replica: that of the first one, on other devices, or with other receivers."""
        made = self._of_shape(shape._replace(device=0, to=()))
        key = id(made), shape.device, shape.to
        if key not in self._replicas:
            parallel, network = self.mapping.parallel, np.uint16(NETWORK_BIT)
            receiver = np.full(len(made), shape.device)
            if shape.to:
                sends = np.isin(made.kind, [i for i, kind in enumerate(made.kinds) if kind in HAND_OVERS])
                receiver = np.where(sends, np.array(shape.to)[np.maximum(made.ops.member[made.op], 0)], receiver)
            each = parallel.tensor // parallel.copies  # devices that a simulated one stands for
            to = np.where(made.to < 0, made.to, made.to + receiver * each)
            of = replace(made, first_device=shape.device, receivers=shape.to, to=to)
            across = (to >= 0) & self.connection.crosses(of.device * each, to)
            self._replicas[key] = replace(of, moves=made.moves & ~network | across * network)
        return self._replicas[key]

    def _of_draft(self, shape: Shape) -> TaskGraph:
        """The task graph of a step of the draft model, whose kinds of tasks say so."""
        assert self.draft is not None
        made = self.draft(shape._replace(draft=False))
        if id(made) not in self._drafts:
            self._drafts[id(made)] = replace(made, kinds=tuple(f"{DRAFT}{kind}" for kind in made.kinds))
        return self._drafts[id(made)]

    def _is_plain(self, shape: Shape) -> bool:
        """Whether the step is that of a captured graph. Where experts are dealt out, none is: it depends on their choice.

        Nor is one that sends what it stores: that depends on whether a prompt ends.
        """
        return shape.plain and self.mapping.parallel.expert == 1 and not self.sends

    def _make(self, shape: Shape) -> TaskGraph:
        """The task graph of this shape, made now."""
        if self._is_plain(shape):
            return lower(self.variants[False, False], self._mapping_of(shape), tiers=self.tiers, connection=self.connection)
        if self.mapping.attention == "batch":
            sort = shape.together()._replace(homes=(), sampling=())
        else:
            sort = template_of(shape, self.mapping.parallel.homes)
        if sort not in self._templates:
            template = TEMPLATES.of(self.captured[False, False], (self._key, sort), lambda: self._template(sort))
            self._templates[sort] = template
        return self._templates[sort].graph(shape, self.routing)

    def _template(self, sort: Shape) -> TaskTemplate:
        """The template of this shape, made now."""
        together = self.mapping.attention == "batch"
        if sort.swap:  # transfers as large as the KV loads, which `read_in_place` takes out
            ops = self.captured[False, True]
            layers = appending(ops) if sort.swap == "send" and self.prefilling is not None else None  # others sent all before
            stitched = swapped(ops, sort, together=together, layers=layers)
        else:
            stitched = stitch(self._captures, sort, together=together, homes=self.mapping.parallel.homes)
            stitched = in_chunks(stitched, sort.chunks)
        return TaskTemplate(stitched, self._mapping_of(sort), tiers=self.tiers, tier=sort.tier, connection=self.connection)

    def _mapping_of(self, shape: Shape) -> ModelMapping:
        """The mapping with the algorithm of a step."""
        parallel = with_algorithm(self.mapping.parallel, self.fastest, shape.tokens)
        return self.mapping.model_copy(update={"parallel": parallel})


def fastest_of(variants: Variants, mapping: ModelMapping, links: Sequence[LinkRates], connection: Connection) -> Fastest | None:
    """The algorithms that `auto` chooses for a model; None where one is written, or there is nothing to choose."""
    parallel = mapping.parallel
    if parallel.algorithm != AUTO or not links or parallel.tensor == 1:
        return None
    ops = variants[False, False]
    sizes = ops.costs(0)[QUANTITIES.index("act_write"), ops.kind == ALL_REDUCE]
    return Fastest(parallel.tensor, int(sizes.max(initial=0)), tuple(links), connection)


def with_algorithm(parallel: Parallel, fastest: Fastest | None, tokens: int) -> Parallel:
    """Parallelism with the algorithm of a step of so many new tokens."""
    return parallel if fastest is None else parallel.model_copy(update={"algorithm": fastest.algorithm(tokens)})
