"""Task graphs of steps by shape."""

from __future__ import annotations

from dataclasses import replace

from models.experts import Routing
from models.rewrites import read_in_place
from sim.base.memo import Memo
from sim.mapping.collectives import ALIKE, Connection
from sim.mapping.lowering import lower
from sim.mapping.settings import ModelMapping
from sim.mapping.steps.captures import Captures, LaidOut, Variants
from sim.mapping.steps.shape import Shape, template_of
from sim.mapping.steps.stitch import stitch, swapped
from sim.mapping.steps.task_template import TaskTemplate
from sim.mapping.tasks import DRAFT, TaskGraph

#: Task graphs and templates of earlier runs, by the laid-out graph of one sequence: half a million tasks take some 30 MB.
GRAPHS: Memo[TaskGraph] = Memo(2**19)
TEMPLATES: Memo[TaskTemplate] = Memo(2**17)


class StepGraphs:
    """Task graphs by the shape of a step, each made once.

    routing: the experts that tokens choose. draft: graphs of the draft model, if steps have one. written: the graph is that of
    the scenario, and of any step. host, connection: as in `lower`.
    """

    def __init__(
        self, variants: Variants, mapping: ModelMapping, routing: Routing | None = None, *, draft: StepGraphs | None = None,
        written: bool = False, host: bool = False, connection: Connection = ALIKE,
    ) -> None:  # fmt: skip
        self.captured, self.draft, self.written = variants, draft, written
        # Before stitching: a stitched graph no longer says which member's KV load an operand replaces.
        self.variants = LaidOut(variants, read_in_place) if mapping.kv == "operands" else variants
        self.mapping, self.routing, self.host, self.connection = mapping, routing, host, connection
        self._key = repr((mapping, host, connection))
        self._graphs: dict[Shape, TaskGraph] = {}
        self._drafts: dict[int, TaskGraph] = {}  # by id of the draft model's graph, which that keeps alive
        self._templates: dict[Shape, TaskTemplate] = {}
        self._captures = Captures(self.variants)

    def __call__(self, shape: Shape) -> TaskGraph:
        """Return the task graph of a step of this shape. Raises ConfigError if captures do not correspond."""
        if shape.draft:
            return self._of_draft(shape)
        if self.written:
            shape = Shape((False,))
        if self.mapping.attention == "batch":
            shape = shape.together()
        if shape not in self._graphs:
            if self.routing is None or self._is_plain(shape):
                made = GRAPHS.of(self.captured[False, False], (self._key, shape), lambda: self._make(shape))
            else:
                made = self._make(shape)
            self._graphs[shape] = made
        return self._graphs[shape]

    def _of_draft(self, shape: Shape) -> TaskGraph:
        """The task graph of a step of the draft model, whose kinds of tasks say so."""
        assert self.draft is not None
        made = self.draft(shape._replace(draft=False))
        if id(made) not in self._drafts:
            self._drafts[id(made)] = replace(made, kinds=tuple(f"{DRAFT}{kind}" for kind in made.kinds))
        return self._drafts[id(made)]

    def _is_plain(self, shape: Shape) -> bool:
        """Whether the step is that of a captured graph; where experts are dealt out, none is: it depends on their choice."""
        return shape.plain and self.mapping.parallel.expert == 1

    def _make(self, shape: Shape) -> TaskGraph:
        """The task graph of this shape, made now."""
        if self._is_plain(shape):
            return lower(self.variants[False, False], self.mapping, host=self.host, connection=self.connection)
        sort = shape if self.mapping.attention == "batch" else template_of(shape)
        if sort not in self._templates:
            template = TEMPLATES.of(self.captured[False, False], (self._key, sort), lambda: self._template(sort))
            self._templates[sort] = template
        return self._templates[sort].graph(shape, self.routing)

    def _template(self, sort: Shape) -> TaskTemplate:
        """The template of this shape, made now."""
        together = self.mapping.attention == "batch"
        if sort.swap:  # transfers as large as the KV loads, which `read_in_place` takes out
            stitched = swapped(self.captured[False, False], sort, together=together)
        else:
            stitched = stitch(self._captures, sort, together=together)
        return TaskTemplate(stitched, self.mapping, host=self.host, connection=self.connection)
