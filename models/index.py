"""The index of the shipped models: the facts that a table of them shows, so that no graph is loaded for it.

`python -m models.ship` writes it beside the graphs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

#: One line for each model, by name.
INDEX = Path(__file__).parent / "graphs" / "index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Facts of a model. kv_bytes: that a token adds to the KV cache. experts: those that each token chooses, `6 of 64`."""

    parameters: int
    parameter_bytes: int
    dtype: str
    layers: int
    hidden: int
    kv_bytes: int
    experts: str | None


def summaries() -> dict[str, Summary]:
    """The shipped models by name, in alphabetical order."""
    return {name: Summary(**facts) for name, facts in json.loads(INDEX.read_text(encoding="utf-8")).items()}


def store(found: dict[str, Summary]) -> None:
    """Write the index."""
    lines = (f"{json.dumps(name)}: {json.dumps(asdict(found[name]))}" for name in sorted(found))
    INDEX.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
