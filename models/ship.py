"""Make the graphs that ship with the package: `python -m models.ship [NAME...]`.

Without names, those of all shipped configs. Graphs at the granularity `aten` ship for `ATEN` only; those of models with
latent attention ship in every form of their cache, unless an index chooses what they read: no engine expands these.
The index of all shipped models (`models.index`) is written anew.
"""

from __future__ import annotations

import sys

from models.capture import capture
from models.config import MLA_FORMS, names, resolve
from models.graph import MONOMIALS, QUANTITIES, ModelGraph, OpGraph
from models.index import Summary, store
from models.library import GRAPHS, encode, keeps_latents, load, shipped_path
from models.masks import ROWS
from models.recording import CHOSEN

#: Models whose raw graphs ship as well.
ATEN = ("llama-3.2-1b",)


def main(chosen: list[str]) -> None:
    """Capture and store graphs, and print one line for each file."""
    GRAPHS.mkdir(exist_ok=True)
    for name in chosen or names():
        for form in MLA_FORMS:
            graphs = capture(resolve(name), mla=form)
            for granularity, graph in graphs.items():
                if granularity == "op" or name in ATEN:
                    path = shipped_path(name, granularity, form)
                    path.write_bytes(encode(graph))
                    ops = ", ".join(str(len(g.ops)) for g in graph.variants.values())
                    print(f"{path.name}: {path.stat().st_size} bytes; {graph.parameters} parameters; ops: {ops}")
            if not keeps_latents(graphs["op"]) or any(op.part == CHOSEN for op in graphs["op"].step().ops):
                break
    store({name: summary_of(load(name)) for name in names() if shipped_path(name, "op").exists()})


def summary_of(model: ModelGraph) -> Summary:
    """The facts of a model that the index has."""
    return Summary(
        parameters=model.parameters,
        parameter_bytes=model.parameter_bytes,
        dtype=model.dtype,
        layers=model.layers,
        hidden=model.hidden,
        kv_bytes=_kept(model.step()),
        experts=None if model.experts is None else str(model.experts),
    )


def _kept(step: OpGraph) -> int:
    """Bytes that a token adds to a KV cache, on average: what a step writes; of a compressed cache what it reads for it."""
    rows = {len(MONOMIALS) + 2 * i: mask.size for i, mask in enumerate(step.masks) if mask.kind == ROWS}
    if not rows:
        return int(step.costs(0)[QUANTITIES.index("kv_write")].sum())
    read = step.table[step.cost_index[QUANTITIES.index("kv_read")], 0].sum(axis=0)  # before windows are full
    of_tokens = sum(int(read[i]) for i, (_, _, context) in enumerate(MONOMIALS) if context)
    return of_tokens + sum(-(-int(read[at]) // rate) for at, rate in rows.items())


if __name__ == "__main__":
    main(sys.argv[1:])
