"""The story of a token or of a request, in order of time: as plain data, and on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from sim.analysis.parts import (
    COMPUTE,
    LINK,
    PARTS,
    TRANSFER,
    WAIT_CHANNEL,
    WAIT_ENGINE,
    WAIT_INPUT,
    WAIT_LINK,
    WAIT_POLICY,
    WAIT_SRAM,
)
from sim.analysis.story import NONE, Link, Stories, members_of, step_of
from sim.base.errors import InputError
from sim.base.units import format_time
from sim.log import derived
from sim.log.tables import EventLog
from sim.mapping.tasks import path_of
from sim.render.breakdown import parts as by_name
from sim.render.narrow import Fitting, glued
from sim.render.requests import largest_first, queued_for
from sim.runs.result import Result
from sim.serving.queue import TITLES

LINES = 60  # of a story; tasks whose waits are short are summed up where there are more
IN_TIME = tuple(PARTS[part] for part in (WAIT_INPUT, WAIT_ENGINE, WAIT_POLICY, WAIT_SRAM, WAIT_CHANNEL, WAIT_LINK))
OWN = tuple(PARTS[part] for part in (COMPUTE, TRANSFER, LINK))
NAMED = 2  # transfers of others that a line names


def named(result: Result, row: int, of: int) -> str:
    """Name of another task as one says it: `token 0's kv_store`, with what tells it from task `of`."""
    log = result.log
    mine, its = int(log.tasks.step[of]), int(log.tasks.step[row])
    layer = _layer(result, row)
    name = log.name(row) + (f" of layer {layer}" if layer >= 0 and layer != _layer(result, of) else "")
    if mine == its:
        return name
    word, steps = log.owner_words[1], log.steps
    alone = steps.sequence[mine] == steps.sequence[its]
    return f"{word} {steps.token[its] if alone else f'{steps.sequence[its]}.{steps.token[its]}'}'s {name}"


def _layer(result: Result, row: int) -> int:
    """Decoder layer of a task, -1 outside of layers."""
    return int(derived.layer(result.log)[row])


def token(result: Result, sequence: int, number: int) -> dict[str, Any]:
    """JSON-ready story of an output token. Raises InputError if there is none, or if ops were not recorded."""
    log = result.rows("the story of a token")
    step = step_of(log, sequence, number)
    if step is None:
        raise InputError(f"--token {sequence}.{number}: {_there_is(result, sequence)}")
    return {"sequence": sequence, "token": number, **_step(result, Stories(log, result.plan.rules), step)}


def request(result: Result, sequence: int) -> dict[str, Any]:
    """JSON-ready story of a request: each of its steps, with the longest wait of each."""
    log, r = result.rows("the story of a request"), result.requests
    if not 0 <= sequence < len(r):
        raise InputError(f"--request {sequence}: {_there_is(result, sequence)}")
    stories, members = Stories(log, result.plan.rules), log.members
    steps, emitted = [], 0
    for row in members_of(log, sequence).tolist():
        step = int(members.step[row])
        emitted += int(members.emitted[row])
        steps.append({
            "query": int(members.query[row]), "emitted": int(members.emitted[row]), "tokens": emitted,
            "batch": int((members.step == step).sum()), "moved": _moved(log, row), **_step(result, stories, step),
        })  # fmt: skip
    return {
        "request": sequence, "arrival_ps": int(r.arrival[sequence]), "queued_ps": int(r.queued[sequence]),
        **({} if r.waits is None else {"queued_for_ps": queued_for(r.waits[sequence])}),
        "ttft_ps": int(r.ttft[sequence]), "tpot_ps": int(r.tpot[sequence]) if r.tpot[sequence] >= 0 else None,
        "e2e_ps": int(r.e2e[sequence]), "tokens": int(r.tokens[sequence]), "steps": steps,
    }  # fmt: skip


#: Words for steps that only move a cache, by the ends of kinds of their tasks.
MOVES = {
    "_swap_out": "moved out", "_swap_in": "moved back in", "_spill": "moved out", "_fetch": "loaded", "_send": "sent",
}  # fmt: skip


def _moved(log: EventLog, member: int) -> str | None:
    """The move that a step makes of a cache, for a row of the member table; None where it computes."""
    graph = log.graphs[log.steps.graph[log.members.step[member]]]
    done = next((words for end, words in MOVES.items() if graph.kinds[0].endswith(end)), None)
    if done is None or log.members.query[member]:
        return None
    link = log.machine.path_names[int(path_of(graph.moves[:1])[0])]
    return f"{int(log.members.context[member]):,} cached tokens {done} over the {link}"


def _there_is(result: Result, sequence: int) -> str:
    tokens = result.requests.tokens
    if not 0 <= sequence < len(tokens):
        return f"no such sequence; there are 0 to {len(tokens) - 1}"
    return f"no such token; sequence {sequence} has 0 to {tokens[sequence] - 1}"


def _step(result: Result, stories: Stories, step: int) -> dict[str, Any]:
    steps, row = result.log.steps, result.breakdown.tokens[step]
    return {
        "step": step, "start_ps": int(steps.released[step]), "end_ps": int(steps.end[step]), "breakdown_ps": by_name(row),
        "tasks": [_link(result, link) for link in stories.of(step)],
    }  # fmt: skip


def _link(result: Result, link: Link) -> dict[str, Any]:
    """Data of a task of a story: `waits` name what was in the way, the largest first for the channel."""
    log = result.log
    tasks = log.tasks
    behind: dict[str, list[str]] = {}
    if link.source != NONE:
        behind["wait_input"] = [named(result, link.source, link.row)]
    if link.engine != NONE:
        behind["wait_engine"] = [named(result, link.engine, link.row)]
    if link.channel:
        behind["wait_link" if link.parts[WAIT_LINK] else "wait_channel"] = [
            named(result, row, link.row) for row, _ in link.channel
        ]
    if link.sram:
        behind["wait_sram"] = [named(result, row, link.row) for row in link.sram]
    return {
        "row": link.row, "name": log.name(link.row), "layer": _layer(result, link.row),
        "engine": int(tasks.engine[link.row]) if tasks.engine[link.row] >= 0 else None,
        "begin_ps": link.begin, "ready_ps": int(tasks.ready[link.row]), "start_ps": int(tasks.start[link.row]),
        "end_ps": int(tasks.end[link.row]), "breakdown_ps": dict(zip(PARTS, link.parts, strict=True)), "behind": behind,
    }  # fmt: skip


# On a terminal


def render_token(data: dict[str, Any], words: tuple[str, str]) -> RenderableType:
    """Render the data of `token`. words: names of what the numbers of a step count."""
    title = f"token {data['token']} of sequence {data['sequence']}"
    if words[1] != "token":
        title += f", made by step {data['step']}"
    return Group(Text(title, style="bold"), Text(glued(_sums(data))), Text(), _lines(data["tasks"]))


def render_request(data: dict[str, Any]) -> RenderableType:
    """Render the data of `request`: a line for each step, with its longest wait."""
    head = f"request {data['request']}: arrived at {format_time(data['arrival_ps'])}, {data['tokens']:,} tokens"
    times = [f"queued {format_time(data['queued_ps'])}"] if data["queued_ps"] else []
    times.append(f"TTFT {format_time(data['ttft_ps'])}")
    times += [] if data["tpot_ps"] is None else [f"TPOT {format_time(data['tpot_ps'])}"]
    times.append(f"end to end {format_time(data['e2e_ps'])}")
    table = _table("at", "step", "took", "of it", "longest wait")
    before = data["arrival_ps"]
    shown, left_out = _chosen(data["steps"])
    for i, step in enumerate(data["steps"]):
        paused = step["start_ps"] - before
        if paused > 0 and i in shown:
            what, waits = ("paused, without a step", {}) if i else ("queued", data.get("queued_for_ps", {}))
            table.add_row(format_time(before), what, format_time(paused), "", glued(_queued(waits)))
        before = step["end_ps"]
        if i in shown:
            took = format_time(step["end_ps"] - step["start_ps"])
            table.add_row(
                format_time(step["start_ps"]), _made(step), took, _shares(step["breakdown_ps"]), glued(_longest(step["tasks"]))
            )  # fmt: skip
    more = [] if not left_out else [Text(f"and {left_out:,} shorter steps", style="dim")]
    return Group(Text(head, style="bold"), Text(glued(", ".join(times))), Text(), table, *more)


def _queued(waits: dict[str, int]) -> str:
    """`for free KV blocks 3 ms`; empty if nothing is known of it."""
    return ", ".join(f"for {TITLES[reason]} {format_time(ps)}" for reason, ps in largest_first(waits.values())) if waits else ""


def _chosen(steps: Sequence[dict[str, Any]]) -> tuple[set[int], int]:
    """The first, the last and the longest steps, and how many are left out."""
    by_time = sorted(range(len(steps)), key=lambda i: steps[i]["start_ps"] - steps[i]["end_ps"])
    shown = {0, len(steps) - 1, *by_time[: LINES - 2]} if steps else set()
    return shown, len(steps) - len(shown)


def _made(step: dict[str, Any]) -> str:
    """`token 3`, `512 tokens fed in`, `16 cached tokens moved out over the host link`."""
    if step["moved"]:
        return str(step["moved"])
    several = f", in a batch of {step['batch']}" if step["batch"] > 1 else ""
    first, last = step["tokens"] - step["emitted"], step["tokens"] - 1
    made = "" if not step["emitted"] else f"token {last}" if first == last else f"tokens {first} to {last}"
    fed = f"{step['query']:,} tokens fed in" if step["query"] != 1 or not made else ""
    return ", ".join(each for each in (fed, made) if each) + several


def _shares(parts: dict[str, int]) -> str:
    whole = sum(parts.values()) or 1
    return ", ".join(f"{name.replace('_', ' ')} {ps / whole:.0%}" for name, ps in parts.items() if 200 * ps >= whole)


def _longest(tasks: Sequence[dict[str, Any]]) -> str:
    """The longest wait of a step, as a phrase."""
    waits = [(task["breakdown_ps"][part], part, task) for task in tasks for part in IN_TIME]
    ps, part, task = max(waits, key=lambda each: each[0], default=(0, "", {}))
    return f"{task['name']} {_wait(part, ps, task)}" if ps else ""


def _sums(data: dict[str, Any]) -> str:
    took = data["end_ps"] - data["start_ps"]
    span = f"from {format_time(data['start_ps'])} to {format_time(data['end_ps'])}: {format_time(took)}"
    return f"{span}, of it {_parts(data['breakdown_ps'])}"


def _parts(parts: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {format_time(ps)}" for name, ps in parts.items() if ps)


def _lines(tasks: Sequence[dict[str, Any]]) -> Fitting:
    """A line for each task that waited long, and one for the tasks between two of them together."""
    table = _table("ready at", "task", "took", "what it did")
    least = _least(tasks)
    group: list[dict[str, Any]] = []

    def flush() -> None:
        if group:
            table.add_row(*map(glued, _together(group)), style="dim" if len(group) > 1 else "")
            group.clear()

    for task in tasks:
        if _waited(task) >= least:
            flush()
            table.add_row(*map(glued, _together([task])))
        else:
            group.append(task)
    flush()
    return table


def _least(tasks: Sequence[dict[str, Any]]) -> int:
    """Shortest wait that has a line of its own, so that there are at most about LINES of them."""
    waits = sorted((_waited(task) for task in tasks), reverse=True)
    return max(1, waits[LINES // 2]) + 1 if len(waits) > LINES and waits[LINES // 2] else 1


def _waited(task: dict[str, Any]) -> int:
    return sum(task["breakdown_ps"][part] for part in IN_TIME)


def _together(tasks: Sequence[dict[str, Any]]) -> tuple[str, str, str, str]:
    """The cells of a line for consecutive tasks."""
    first, last = tasks[0], tasks[-1]
    took = format_time(last["end_ps"] - first["begin_ps"])
    if len(tasks) > 1:
        sums = {part: sum(task["breakdown_ps"][part] for task in tasks) for part in PARTS}
        return format_time(first["begin_ps"]), f"{_of(first)} to {_of(last)}", took, f"{len(tasks)} tasks: {_parts(sums)}"
    parts = first["breakdown_ps"]
    done = [_wait(part, parts[part], first) for part in IN_TIME if parts[part]]
    where = "by DMA" if first["engine"] is None else f"on engine {first['engine']}"
    own = {part: parts[part] for part in OWN}
    return format_time(first["begin_ps"]), _of(first), took, "; ".join([*done, f"{_parts(own)} {where}"])


def _of(task: dict[str, Any]) -> str:
    return f"{task['name']} (layer {task['layer']})" if task["layer"] >= 0 else str(task["name"])


def _wait(part: str, ps: int, task: dict[str, Any]) -> str:
    """`waited 1.500 ms for the channel behind token 0's kv_store`."""
    names = task["behind"].get(part, [])
    others = len(names) - NAMED
    behind = ", ".join(names[:NAMED]) + (f" and {others:,} more" if others > 0 else "")
    time = f"waited {format_time(ps)}"
    if part == PARTS[WAIT_INPUT]:
        return f"{time} for {behind or 'the KV cache'}"
    if part == PARTS[WAIT_ENGINE]:
        return f"{time} for an engine" + (f" behind {behind}" if behind else "")
    if part == PARTS[WAIT_CHANNEL]:
        return (
            f"{time} for the channel behind {behind}"
            if behind
            else f"lost {format_time(ps)} because the channel serves one transfer no faster"
        )
    if part == PARTS[WAIT_LINK]:
        return f"{time} for the link behind {behind}" if behind else f"{time} for the link"
    return {
        PARTS[WAIT_SRAM]: f"{time} for space in SRAM" + (f", held by {behind}" if behind else ""),
        PARTS[WAIT_POLICY]: f"{time} although an engine was idle",
    }[part]


def _table(*columns: str) -> Fitting:
    table = Fitting()
    for name in columns:
        right = name in {"took", "at", "ready at"}
        table.add_column(name, justify="right" if right else "left", no_wrap=right)
    return table
