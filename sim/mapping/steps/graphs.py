"""Task graphs of steps by shape."""

from __future__ import annotations

from models.experts import Routing
from models.rewrites import read_in_place
from sim.mapping.lowering import lower
from sim.mapping.settings import ModelMapping
from sim.mapping.steps.captures import Captures, Laid, Variants
from sim.mapping.steps.shape import Shape, template_of
from sim.mapping.steps.stitch import stitch, swapped
from sim.mapping.steps.task_template import TaskTemplate
from sim.mapping.tasks import TaskGraph


class StepGraphs:
    """Task graphs by the shape of a step, each made once. routing: the experts that tokens choose."""

    def __init__(self, variants: Variants, mapping: ModelMapping, routing: Routing | None = None) -> None:
        self.captured = variants
        # Before stitching: a stitched graph no longer says which member's KV load an operand replaces.
        self.variants = Laid(variants, read_in_place) if mapping.kv == "operands" else variants
        self.mapping, self.routing = mapping, routing
        self._graphs: dict[Shape, TaskGraph] = {}
        self._templates: dict[Shape, TaskTemplate] = {}
        self._captures = Captures(self.variants)

    def __call__(self, shape: Shape) -> TaskGraph:
        """Return the task graph of a step of this shape. Raises ConfigError if captures do not correspond."""
        together = self.mapping.attention == "batch"
        if together:
            shape = shape.together()
        if shape not in self._graphs:
            if shape.plain:
                self._graphs[shape] = lower(self.variants[False, False], self.mapping)
            else:
                self._graphs[shape] = self._template(shape, together=together).graph(shape, self.routing)
        return self._graphs[shape]

    def _template(self, shape: Shape, *, together: bool) -> TaskTemplate:
        sort = shape if together else template_of(shape)
        if sort not in self._templates:
            if shape.swap:  # transfers as large as the KV loads, which `read_in_place` takes out
                stitched = swapped(self.captured[False, False], sort, together=together)
            else:
                stitched = stitch(self._captures, sort, together=together)
            self._templates[sort] = TaskTemplate(stitched, self.mapping)
        return self._templates[sort]
