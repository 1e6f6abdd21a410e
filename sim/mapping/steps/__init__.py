"""The graph of a step of several sequences, each with its own context and its own number of new tokens.

Engines that batch read the weights of a layer once a step, for all new tokens together, while attention is each sequence's
own. So the graph of a step is stitched from captured ones:

| ops                                                           | how often         | costs at (batch, query, context)       |
| ------------------------------------------------------------- | ----------------- | -------------------------------------- |
| of a sequence: KV cache, per head, or growing with context     | once per member   | (1, its new tokens, its context)       |
| of the logits: growing with the batch and not with the query   | once              | (rows of logits that are wanted, 1, 0) |
| all others: projections, MLP, experts, norms, embedding        | once              | (new tokens of all members, 1, 0)      |

The last two are those of the capture with several sequences, the first those of a capture with one. Ops of two captures
correspond if they have the same kind, module path and part (and among equals the same place in the order).

With `attention: batch` the ops of a sequence are there once, too, as kernels that serve all members: each costs the sum of
what it would cost for every member alone. Such a step has the same tasks whatever its members.

Otherwise steps differ in how many members they have. Only a template is stitched op by op and lowered, with one member of
each sort; in the graph of a step its blocks are repeated, one for each member (see `sim.mapping.template`).

Weights of experts are those of the distinct experts that the new tokens of a step choose: see `models.experts`.

| file            | makes                                                                                |
| --------------- | ------------------------------------------------------------------------------------ |
| `shape`         | the shape of a step, and of the template for it                                      |
| `captures`      | captured graphs with what stitching needs to know of their ops                       |
| `stitch`        | a graph op by op                                                                     |
| `token_chunks`  | a graph in which the new tokens are in chunks                                        |
| `batch_graph`   | the op graph of a step, from the template's                                          |
| `task_template` | the task graph of a step, from the template's                                        |
| `graphs`        | `StepGraphs`: all of this on request, once for each shape                            |
"""

from __future__ import annotations

from sim.mapping.steps.batch_graph import BatchGraph, Template
from sim.mapping.steps.captures import Captures, LaidOut, Variants
from sim.mapping.steps.graphs import StepGraphs, fastest_of, with_algorithm
from sim.mapping.steps.shape import LOGITS, MEMBERS, TOKENS, Shape, Swap
from sim.mapping.steps.stitch import stitch, swapped

__all__ = [
    "LOGITS", "MEMBERS", "TOKENS", "BatchGraph", "Captures", "LaidOut", "Shape", "StepGraphs", "Swap",
    "Template", "Variants",
    "fastest_of", "stitch", "swapped", "with_algorithm",
]  # fmt: skip
