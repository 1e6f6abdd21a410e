"""`sim capture`."""

from __future__ import annotations

import json

import click

import models.library
from models.config import MLA_FORMS
from models.graph import QUANTITIES, IntArray, OpGraph
from sim.base.errors import InputError
from sim.cli.console import output
from sim.render.narrow import Fitting

#: Columns that a narrow terminal leaves out, the first of them first.
LEAST = ("needs", "act_write", "act_read", "path", "result", "kv_write", "vector_ops")


@click.command("capture")
@click.argument("config")
@click.option("--context", type=click.IntRange(0), default=256, show_default=True, help="Tokens in the KV cache.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Sequences in the step.")
@click.option("--query", type=click.IntRange(1), default=1, show_default=True, help="New tokens of each sequence.")
@click.option("--layers", type=click.IntRange(1), default=None, help="Use only the first N layers.")
@click.option("--scope", type=click.Choice(["model", "block"]), default="model", show_default=True,
              help="The whole model, or its blocks without embedding and LM head.")  # fmt: skip
@click.option("--granularity", type=click.Choice(["op", "aten"]), default="op", show_default=True,
              help="Ops with familiar names, or the raw aten ops.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default=None,
              help="Number format.  [default: that of the config]")  # fmt: skip
@click.option("--mla", type=click.Choice(MLA_FORMS), default=MLA_FORMS[0], show_default=True,
              help="KV cache of multi-head latent attention.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object per op, one per line.")
def command(
    config: str, context: int, batch: int, query: int, layers: int | None, scope: str, granularity: str, dtype: str | None,
    mla: str, as_json: bool,
) -> None:  # fmt: skip
    """Print the op graph of a model: a shipped name, a config.json, or a Hugging Face id."""
    model = models.library.load(config, granularity=granularity, dtype=dtype, mla=mla)
    if why := model.too_long(context + query):
        raise InputError(why)
    graph = model.step(batch, query).select(layers, scope)
    costs = graph.costs(context, batch, query)
    routed = _of_distinct_experts(graph, costs)
    if as_json:
        for i, op in enumerate(graph.ops):
            experts = op.experts and {name: getattr(op.experts, name) for name in ("count", "top_k", "bytes", "idle")}
            row = {"op": i, "kind": op.kind, "part": op.part, "path": op.path, "layer": op.layer, "heads": op.heads,
                   "dtype": op.dtype, "shape": op.shape, "inputs": op.inputs, "experts": experts}  # fmt: skip
            click.echo(json.dumps({**row, **{name: int(costs[q, i]) for q, name in enumerate(QUANTITIES)}}))
        return
    table = Fitting(drop=LEAST, header_style="bold",
                  title=f"{model}: {model.parameters:,} parameters; a step of {batch} x {query} tokens, context {context}"
                        + ("; weights of as many experts as can be distinct" if routed else ""),
                  )  # fmt: skip
    table.add_column("#", justify="right")
    for name in ("op", "path", "result", "needs"):
        table.add_column(name)
    shown = [q for q, name in enumerate(QUANTITIES) if not name.startswith("state") or costs[q].any()]
    for q in shown:
        table.add_column(QUANTITIES[q], justify="right")
    for i, op in enumerate(graph.ops):
        table.add_row(
            str(i), f"{op.kind} {op.part}".rstrip(), op.path, " x ".join(op.shape), " ".join(map(str, op.inputs)),
            *(f"{int(costs[q, i]):,}" if costs[q, i] else "" for q in shown),
        )  # fmt: skip
    table.add_row("", "all", "", "", "", *(f"{int(costs[q].sum()):,}" for q in shown), style="bold")
    output(250).print(table)


def _of_distinct_experts(graph: OpGraph, costs: IntArray) -> bool:
    """Limit weight bytes of experts to all of them, since each is read once a step; whether that changed any.

    costs: [quantity, op], in which every choice of every token counts.
    """
    most = [op.experts.working * op.experts.bytes if op.experts is not None else None for op in graph.ops]
    weight = costs[QUANTITIES.index("weight")]
    over = [i for i, limit in enumerate(most) if limit is not None and weight[i] > limit]
    for i in over:
        weight[i] = most[i]
    return bool(over)
