"""Tracks of sequences in batched steps: when each prefilled, decoded, verified, moved, or waited for its turn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sim.log import derived
from sim.log.tables import EventLog
from sim.render.trace.tracks import Role, Slices, Strings, Times, Tracks, colors


def parts_taken(log: EventLog, strings: Strings, categories: Strings, tracks: Tracks, root: int) -> Slices:
    """A track for each sequence, with a slice for each step that it took part in, and for each time between."""
    members, steps = log.members, log.steps
    order = np.lexsort((steps.released[members.step], members.sequence))
    step, sequence = members.step[order], members.sequence[order]
    track = np.zeros(len(log.arrival), dtype=np.int64)
    for number in np.unique(sequence).tolist():
        description = "One request: what each step did for it. The number is that of the tokens it fed in."
        track[number] = tracks.add(f"sequence {number}", root, description)
    start, end = steps.released[step], steps.end[step]
    name = np.array([strings(text) for text in _names(log, order)], dtype=np.int32)
    first = np.append(True, sequence[1:] != sequence[:-1])[: len(sequence)]
    since: Times = np.where(first, log.arrival[sequence], np.concatenate([[0], end[:-1]])[: len(end)])
    waits = np.where(first, strings("queued"), strings("waits for its turn"))
    return Slices.concatenate([
        Slices.make(
            track=track[sequence], start=since, end=start, name=waits, category=categories("wait"), role=Role.LAYER
        ),
        Slices.make(
            track=track[sequence], start=start, end=end, name=name, category=categories("request"), role=Role.STEP, row=step,
            color=colors((log.members.query > log.members.logits)[order].astype(np.int64)),  # prefill apart from the rest
        ),
    ])  # fmt: skip


def _names(log: EventLog, rows: npt.NDArray[np.integer]) -> list[str]:
    """Names of the parts that members took in steps, such as `prefill 512`."""
    members, steps = log.members, log.steps
    first_kind = [graph.kind_of(0) for graph in log.graphs]
    columns = (column[rows].tolist() for column in (members.step, members.query, members.logits, members.emitted))
    names = []
    draft = derived.drafts(log).tolist()
    for step, query, logits, emitted in zip(*columns, strict=True):
        if draft[step] and query:
            names.append("draft" if query == 1 and logits else f"draft {query}" if logits else f"draft prefill {query}")
        elif not query:
            names.append("first token" if emitted else first_kind[steps.graph[step]].replace("kv_", "", 1).replace("_", " "))
        elif query == logits:
            names.append("decode" if query == 1 else f"verify {query}")
        else:
            names.append(f"prefill {query}")
    return names
