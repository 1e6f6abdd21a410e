"""Stored reports of the shipped scenarios: what `sim run --json` says, without wall-clock times and the trace.

`make reports` writes them all anew; read the difference before you commit it.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import sim
from sim.cli.run import write_trace
from sim.scenario.shipped import find_scenario

FOLDER = Path(__file__).parent
SAMPLE = FOLDER.parents[1] / "traces" / "sample.pftrace.gz"
LONGEST = 64  # items of a list that are stored one by one


@cache
def run(name: str) -> sim.Result:
    """A shipped scenario, run once for all tests."""
    return sim.run(find_scenario(name))


def stored(result: sim.Result) -> str:
    """The stored form of the report of a run."""
    data = json.loads(json.dumps(sim.summary(result, timing=False)))
    return _lines(_short(data)) + "\n"


def write_sample(path: Path) -> None:
    """Write the trace that is kept in the repository."""
    write_trace(run("two_tokens_4_engines"), path)


def _short(value: Any) -> Any:
    """The same, with the first items of long lists and a digest of all, so that any change still shows."""
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, list) and len(value) > LONGEST:
        digest = hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()
        return {"items": len(value), "sha256": digest, "first": [_short(each) for each in value[:4]]}
    return [_short(each) for each in value] if isinstance(value, list) else value


def _lines(value: Any, indent: str = "\n") -> str:
    """JSON with one line for each object that holds only plain values: small, and its differences read well."""
    inner = indent + " "
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(child, dict | list) and child for child in children):
        return json.dumps(value)
    if isinstance(value, dict):
        items, brackets = [f"{json.dumps(key)}: {_lines(child, inner)}" for key, child in value.items()], "{}"
    else:
        items, brackets = [_lines(child, inner) for child in value], "[]"
    return brackets[0] + inner + ("," + inner).join(items) + indent + brackets[1]
