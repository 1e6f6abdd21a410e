"""Make the graphs that ship with the package: `python -m models.ship [NAME...]`.

Without names, those of all shipped configs. Graphs at the granularity `aten` ship for `ATEN` only; those of models with
latent attention ship in every form of their cache, unless an index chooses what they read: no engine expands these.
"""

from __future__ import annotations

import sys

from models.capture import capture
from models.config import MLA_FORMS, names, resolve
from models.library import GRAPHS, encode, keeps_latents, shipped_path
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


if __name__ == "__main__":
    main(sys.argv[1:])
