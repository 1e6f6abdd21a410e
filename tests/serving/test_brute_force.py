"""Whole batched runs against a second implementation, written from the documents: members, begin and end of each step.

The machine is one on which times add up: one engine that also waits for its operands (`blocking`), 10 ps a byte, 1 ps a FLOP.
What is no product takes 1 ps, as long as a step has at most 61 tokens, and each launch 7 ps. A model is one layer of
Llama-3.2-1B, or two such layers of Qwen 2, which has biases and a window on the second: hidden 2048, MLP 8192, 32 heads of 64,
8 of the cache.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from models.graph import QUANTITIES
from sim.executors import Executor
from sim.log.tables import EventLog
from sim.mapping.tasks import TaskGraph
from sim.runs.plan import PLAIN
from sim.runs.run import run
from sim.scenario import from_dict

#: [layer]: its window, None if it has none.
Windows = tuple[int | None, ...]

PRODUCTS = 2048 * (2048 + 512 + 512 + 2048) + 3 * 2048 * 8192
NORMS = 2 * 2048
KV = 2 * 512 * 2  # bytes of a token in a layer
BIASES = 2048 + 512 + 512
WINDOW = 19  # tokens: a query sees 18 of the cache and itself
QWEN = {
    "model_type": "qwen2", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_hidden_layers": 2, "vocab_size": 64, "tie_word_embeddings": True,
    "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "torch_dtype": "bfloat16",
}  # fmt: skip

HARDWARE = {
    "engines": {"count": 1, "flops": "1 TFLOP/s", "vector_flops": "1000000 TFLOP/s", "overhead": "7 ps"},
    "memory": {"bandwidth": "100 GB/s"},
}  # fmt: skip


@dataclass
class Seq:
    number: int
    context: int
    prompt: int
    tokens: int
    cached: int = 0
    todo: int = 0  # to be prefilled
    out: int = 0
    steps: int = 0
    reach: int = 0  # tokens that it has pages for


def seen(context: int, window: int | None) -> int:
    """Tokens of a cache that the next query sees."""
    return context if window is None else min(context, window - 1)


def step_time(members: list[tuple[int, int, int]], others: int, windows: Windows) -> int:
    """Duration of a step of members (sequence, context, query). others: ps of ops other than products."""
    tokens = sum(query for _, _, query in members)
    weights = len(windows) * (PRODUCTS + NORMS) + (BIASES * 2 if len(windows) == 2 else 0)
    total = 10 * 2 * weights + 2 * PRODUCTS * tokens * len(windows) + others
    for window in windows:
        for _, context, query in members:
            keys = seen(context, window) + query
            total += 10 * KV * keys + 2 * 2 * 32 * 64 * query * keys
            total += context == 0  # to load nothing takes 1 ps, as any task does
    return total


class BruteForce:
    """`steps`: (begin, end, members), or (begin, end, "out" or "in", sequence)."""

    def __init__(
        self, asked: list[dict[str, int]], rules: dict[str, Any], others: dict[tuple[bool, ...], int], windows: Windows
    ) -> None:  # fmt: skip
        self.rules, self.others, self.windows = rules, others, windows
        self.coming = sorted(enumerate(asked), key=lambda each: each[1]["arrival"])
        self.waiting: list[Seq] = []
        self.running: list[Seq] = []
        self.away: list[Seq] = []
        self.held: dict[int, int] = {}  # pages of 8 tokens of a layer
        self.now = 0
        self.late: Seq | None = None  # its prompt comes first in the next step
        self.steps: list[Any] = []
        while self.coming or self.waiting or self.running or self.away:
            while self.coming and self.coming[0][1]["arrival"] <= self.now:
                number, r = self.coming.pop(0)
                self.waiting.append(Seq(number, r["context"], r["prompt"], r["tokens"], r["context"], r["prompt"]))
            if not self.move():
                self.admit()
                self.step()

    def new_tokens(self, s: Seq) -> int:
        return s.todo or min(1 + self.rules["drafts"], s.tokens - s.out)

    def fits(self, s: Seq, tokens: int) -> bool:
        """Whether there are pages for so many tokens; then it has them."""
        reach = max(s.reach, tokens)
        wanted, others = self.pages(s, reach), sum(self.held.values()) - self.held.get(s.number, 0)
        if self.rules["blocks"] and others + wanted > self.rules["blocks"] * len(self.windows):
            return False
        s.reach, self.held[s.number] = reach, wanted
        return True

    def joins(self, s: Seq, tokens: int) -> bool:
        return self.fits(s, tokens)

    def pages(self, s: Seq, tokens: int) -> int:
        """Most pages that it holds in any step on its way to so many tokens, however they lie on pages."""
        most = max(1 + self.rules["drafts"], min(s.todo, self.rules["chunk"] or s.todo, self.rules["max_tokens"] or s.todo))
        total = 0
        for window in self.windows:
            left = {t // 8 for t in range(s.cached - seen(s.cached, window), tokens)}
            spans = [{t // 8 for t in range(at, at + window - 1 + most)} for at in range(8)] if window else [left]
            total += min(len(left), max(map(len, spans)))
        return total

    def lose(self, s: Seq) -> None:
        """Free all of its pages."""
        del self.held[s.number]
        s.reach = 0

    def move(self) -> bool:
        """Swap or drop a sequence that no longer fits, else bring back one that fits; returns whether a cache was moved."""
        moves: list[tuple[str, Seq]] = []
        for s in list(self.running) if self.rules["full"] != "wait" else ():
            while s in self.running and not s.todo and not self.fits(s, s.cached + self.new_tokens(s)):
                last = self.running.pop()
                self.lose(last)
                if self.rules["full"] == "swap" and last.cached:
                    self.away.insert(0, last)
                    moves.append(("out", last))
                else:
                    last.cached, last.todo = 0, last.cached + (last.todo or 1)
                    self.waiting.insert(0, last)
        while not any(direction == "out" for direction, _ in moves) and self.away and self.may_run(self.away[0]):
            self.running.append(self.away.pop(0))
            moves.append(("in", self.running[-1]))
        for direction, s in moves:
            link = self.rules.get("host")  # (ps of latency, ps of a byte)
            latency, byte = link or (0, 10)
            # The engine waits for one layer after another.
            end = self.now + sum(latency + byte * KV * seen(s.cached, window) for window in self.windows)
            self.steps.append((self.now, end, direction, s.number))
            self.now = end
        return bool(moves)

    def may_run(self, s: Seq) -> bool:
        return len(self.running) < self.rules["max_batch"] and self.fits(s, s.cached + self.new_tokens(s))

    def admit(self) -> None:
        if self.rules["policy"] == "static" and self.running:
            return
        while self.waiting and not self.away and len(self.running) < self.rules["max_batch"]:
            s = self.waiting[0]
            all_of_it = s.context + max(s.prompt - 1, 0) + s.tokens
            if not self.joins(s, all_of_it if self.rules["full"] == "wait" else s.cached + self.new_tokens(s)):
                return
            self.running.append(self.waiting.pop(0))

    def step(self) -> None:
        budget, chunk = self.rules["max_tokens"] or 10**9, self.rules["chunk"]
        late = self.late if self.late in self.running else None
        self.late = None
        members = []
        for s in (s for s in self.running if not s.todo):
            if sum(query for _, query in members) + self.new_tokens(s) + (late.todo if late else 0) <= budget:
                members.append((s, self.new_tokens(s)))
        budget -= sum(query for _, query in members)
        decodes = len(members)
        for s in (s for s in self.running if s.todo):
            query = min(s.todo, chunk, budget) if chunk else s.todo
            if not 0 < query <= budget:
                if late is None and len(members) == decodes > 0:
                    self.late = s
                break
            members.append((s, query))
            budget -= query
        if not members:
            self.now = self.coming[0][1]["arrival"]
            return
        who = [(s.number, s.cached, query) for s, query in members]
        end = self.now + step_time(who, self.others[tuple(query > 1 for _, query in members)], self.windows)
        self.steps.append((self.now, end, who))
        self.now = end
        for s, query in members:
            self.took(s, query)
        for s, _ in members:
            self.filled(s)
        for s in [s for s in self.running if s.out >= s.tokens]:
            self.running.remove(s)
            self.lose(s)
        for s in self.running:
            self.left(s)

    def left(self, s: Seq) -> None:
        """Free the pages that its windows have left."""
        self.held[s.number] = self.pages(s, s.reach)

    def filled(self, s: Seq) -> None:
        pass

    def took(self, s: Seq, query: int) -> None:
        if s.todo:
            s.cached, s.todo = s.cached + query, s.todo - query
            s.out += not s.todo
        else:
            right = min(query - 1, self.rules["right"][s.steps % len(self.rules["right"])])
            s.cached, s.out, s.steps = s.cached + 1 + right, s.out + 1 + right, s.steps + 1


#: A layer, and all tokens up to the end of a page, by names that are equal where tokens are.
Page = tuple[int, list[Any]]


class Sharing(BruteForce):
    """With a prefix cache.

    kept: pages that no sequence has, the one left longest ago first. apart: those of each sequence that count once for all that
    have them. within: those that count as its own. low: the first page of each layer that it has. full: pages that each had
    filled. begins: the prefix of each request, 8 tokens long or more.
    """

    def __init__(self, *given: Any, begins: list[tuple[str, int]]) -> None:
        self.kept: list[Page] = []
        self.apart: dict[int, list[Page]] = {}
        self.within: dict[int, list[Page]] = {}
        self.low: dict[int, list[int]] = {}
        self.full: dict[int, int] = {}
        self.begins, self.found, self.evicted = begins, 0, 0
        super().__init__(*given)

    def page(self, s: Seq, layer: int, i: int) -> Page:
        name, length = self.begins[s.number]
        return layer, [(name, t) if t < min(length, s.prompt) and not s.context else (s.number, t) for t in range(8 * i + 8)]

    def had(self) -> list[Page]:
        """Pages that some sequence has."""
        return [page for pages in (*self.apart.values(), *self.within.values()) for page in pages]

    def lows(self, cached: int) -> list[int]:
        """The first page of each layer that the query after so many tokens sees."""
        return [(cached - seen(cached, window)) // 8 for window in self.windows]

    def pages(self, s: Seq, tokens: int) -> int:
        most = max(1, min(s.todo, self.rules["chunk"] or s.todo, self.rules["max_tokens"] or s.todo))
        total = 0
        for layer, window in enumerate(self.windows):
            mine = len(range(self.lows(s.cached)[layer], -(-tokens // 8)))
            mine -= sum(page[0] == layer for page in self.apart.get(s.number, []))
            spans = [{t // 8 for t in range(at, at + window - 1 + most)} for at in range(8)] if window else []
            total += min([mine, *([max(map(len, spans))] if spans else [])])
        return total

    def fits(self, s: Seq, tokens: int) -> bool:
        reach = max(s.reach, tokens)
        shared: list[Page] = []
        for pages in self.apart.values():
            shared += [page for page in pages if page not in shared]
        own = self.pages(s, reach) + sum(each for number, each in self.held.items() if number != s.number)
        if self.rules["blocks"] and len(shared) + own > self.rules["blocks"] * len(self.windows):
            return False
        s.reach, self.held[s.number] = reach, self.pages(s, reach)
        self.evict(len(shared) + own)
        return True

    def evict(self, used: int) -> None:
        self.kept = [page for page in self.kept if page not in self.had()]
        while self.rules["blocks"] and len(self.kept) + used > self.rules["blocks"] * len(self.windows):
            self.kept.pop(0)
            self.evicted += 1

    def joins(self, s: Seq, tokens: int) -> bool:
        there, found = self.kept + self.had(), 0
        for n in range(1, max(0, s.todo - 1) // 8 + 1) if not s.cached else ():
            lows = self.lows(8 * n)
            if all(self.page(s, layer, i) in there for layer, low in enumerate(lows) for i in range(low, n)):
                found = n
        had, at, todo = self.had(), s.cached, s.todo
        s.cached, s.todo = at + 8 * found, todo - 8 * found
        self.low[s.number] = self.lows(s.cached)
        pages = [self.page(s, layer, i) for layer, low in enumerate(self.low[s.number]) for i in range(low, found)]
        self.within[s.number] = [page for page in pages if self.windows[page[0]] is not None and page not in had]
        self.apart[s.number] = [page for page in pages if page not in self.within[s.number]]
        if not self.fits(s, tokens):
            del self.within[s.number], self.apart[s.number]
            s.cached, s.todo = at, todo
            return False
        self.found += 8 * found
        self.full[s.number] = found
        return True

    def filled(self, s: Seq) -> None:
        for i in range(self.full[s.number], s.cached // 8):
            for layer, window in enumerate(self.windows):
                page = self.page(s, layer, i)
                if i < self.low[s.number][layer] or page in self.kept + self.had():
                    continue
                (self.apart if window is None else self.within)[s.number].append(page)
                self.held[s.number] -= window is None
        self.full[s.number] = s.cached // 8

    def left(self, s: Seq) -> None:
        low, self.low[s.number] = self.low[s.number], self.lows(s.cached)
        for layer, first in enumerate(self.low[s.number]):
            for i in range(first - 1, low[layer] - 1, -1):
                self.drop(s, self.page(s, layer, i))
        super().left(s)
        shared = [page for pages in self.apart.values() for page in pages]
        self.evict(len([i for i, page in enumerate(shared) if page not in shared[:i]]) + sum(self.held.values()))

    def drop(self, s: Seq, page: Page) -> None:
        for pages in (self.apart[s.number], self.within[s.number]):
            if page in pages:
                pages.remove(page)
                if page not in self.had():
                    self.kept.append(page)

    def lose(self, s: Seq) -> None:
        super().lose(s)
        for i in range(self.full[s.number] - 1, -1, -1):
            for layer in range(len(self.windows)):
                self.drop(s, self.page(s, layer, i))
        del self.apart[s.number], self.within[s.number]


def time_of_others(graph: TaskGraph) -> int:
    """Tasks that compute what is no product, at 1 ps each, and launches of all."""
    flops, elements = (QUANTITIES.index(name) for name in ("flops", "vector_ops"))
    count = 0
    for op in graph.op[graph.computes].tolist():
        costs = graph.ops.ops[op].costs
        counts = {what: any(any(piece) for piece in graph.ops.polynomials[costs[what]]) for what in (flops, elements)}
        # Vector work beside products is hidden by them. A task of neither takes the least time there is, 1 ps, which its launch
        # is longer than.
        count += counts[elements] and not counts[flops]
    return count + 7 * int(graph.computes.sum())


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[dict[str, int]], dict[str, Any]]:
    asked = draw(
        st.lists(
            st.fixed_dictionaries({
                "context": st.integers(0, 40), "prompt": st.sampled_from([0, 0, 1, 7, 20]), "tokens": st.integers(1, 16),
                "arrival": st.integers(0, 9).map(lambda ms: ms * 1_000_000_000),
            }),
            min_size=2, max_size=6,
        )
    )  # fmt: skip
    chunk = draw(st.sampled_from([None, 1, 5, 16]))
    drafts = draw(st.integers(0, 3))
    most = draw(st.integers(1, 3))
    least = max(most * (1 + drafts), 0 if chunk else 80)
    return asked, {
        "policy": draw(st.sampled_from(["static", "continuous"])), "max_batch": most, "chunk": chunk, "drafts": drafts,
        "max_tokens": draw(st.sampled_from([None, least, least + 9])), "blocks": draw(st.sampled_from([None, 10, 10, 12])),
        "full": draw(st.sampled_from(["wait", "recompute", "swap"])), "right": draw(st.lists(st.integers(0, 3), min_size=1)),
        "host": draw(st.sampled_from([None, (0, 40), (5_000, 20)])),
    }  # fmt: skip


def crowded(full: str) -> tuple[list[dict[str, int]], dict[str, Any]]:
    """Three that fit as they come, and not as they grow."""
    asked = [{"context": 20, "prompt": 0, "tokens": 16, "arrival": 0}] * 3
    limits = {"max_batch": 3, "chunk": 5, "drafts": 1, "max_tokens": None, "blocks": 10}
    return asked, {"policy": "continuous", "full": full, "right": [1, 0, 0], "host": (5_000, 20), **limits}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("qwen") / "config.json"
    path.write_text(json.dumps(QWEN))
    return str(path)


@pytest.mark.parametrize("windows", [(None,), (None, WINDOW)])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases(), st.sampled_from(("compiled", "simpy")))
@example(crowded("recompute"), "compiled")
@example(crowded("swap"), "compiled")
def test_every_step_is_as_in_the_brute_force(
    windows: Windows, qwen: str, case: tuple[list[dict[str, int]], dict[str, Any]], executor: Executor
) -> None:  # fmt: skip
    asked, rules = case
    capacity = None if rules["blocks"] is None else f"{rules['blocks'] * 8 * KV * len(windows)} B"
    kv = {"block": 8, "full": rules["full"], "capacity": capacity}
    if rules["full"] == "swap":
        kv["moves"] = "between"
    limits = {"max_batch": rules["max_batch"], "max_tokens": rules["max_tokens"], "kv": kv}
    scenario = {
        "model": {"config": "llama-3.2-1b" if len(windows) == 1 else qwen, "layers": len(windows), "scope": "block"},
        "workload": {
            "sequences": [{**r, "arrival": f"{r['arrival']} ps"} for r in asked],
            "batching": {"policy": rules["policy"], **limits}, "prefill": {"chunk": rules["chunk"]},
            "speculative": {"draft": rules["drafts"], "acceptance": rules["right"]} if rules["drafts"] else None,
        },
        "hardware": HARDWARE | ({"host": {"link": link_of(*rules["host"])}} if rules.get("host") else {}),
        "mapping": {"heads": "fused", "execution": "blocking"},
    }  # fmt: skip
    log = run(from_dict(scenario), executor=executor).log
    assert steps_of(log) == BruteForce(asked, rules, others_of(log), windows).steps


def link_of(latency: int, byte: int) -> dict[str, str]:
    """The link of a host that takes so many ps for a byte."""
    return {"latency": f"{latency} ps", "bandwidth": f"{10**12 // byte} B/s"}


def others_of(log: EventLog) -> dict[tuple[bool, ...], int]:
    """`time_of_others` of the graphs of steps, by which of their members feed in several tokens."""
    return {getattr(graph.ops, "shape", PLAIN)[0]: time_of_others(graph) for graph in log.graphs if graph.computes.any()}


def steps_of(log: EventLog) -> list[Any]:
    """The steps of a log as `BruteForce.steps`."""
    found: list[Any] = []
    table = log.members
    for step in range(len(log.steps)):
        rows = np.flatnonzero(table.step == step)
        graph = log.graphs[log.steps.graph[step]]
        begin, end = int(log.steps.released[step]), int(log.steps.end[step])
        if graph.computes.any():
            members = [(int(table.sequence[r]), int(table.context[r]), int(table.query[r])) for r in rows]
            found.append((begin, end, members))
        else:
            found.append((begin, end, graph.kinds[0].removeprefix("kv_swap_"), int(table.sequence[rows[0]])))
    return found


@pytest.mark.parametrize("windows", [(None,), (None, WINDOW)])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases(), st.lists(st.tuples(st.integers(0, 1), st.sampled_from((8, 16, 20, 56))), min_size=6, max_size=6), st.booleans())
def test_prefixes_are_as_in_the_brute_force(
    tmp_path: Path, qwen: str, windows: Windows, case: tuple[list[dict[str, int]], dict[str, Any]],
    begins: list[tuple[int, int]], compiled: bool,
) -> None:  # fmt: skip
    """Each request may begin with 8, 16, 20 or 56 tokens of one of two texts; the ids are of 4 tokens.

    Steps are compared without their times, which the test above compares: of prompts as long as these, what is no product takes
    a few ps more than the 1 ps that it has here.
    """
    asked, rules = sorted(case[0], key=lambda each: each["arrival"]), case[1] | {"drafts": 0}
    first = asked[0]["arrival"]
    asked = [
        each
        | {
            "arrival": each["arrival"] - first, "prompt": each["prompt"] and each["prompt"] + 41,
            "context": each["context"] if each["context"] > 36 else 0,
        }
        for each in asked
    ]  # fmt: skip
    rules["full"] = "wait" if rules["full"] == "swap" else rules["full"]
    for limit, more in (("blocks", 5), ("max_tokens", 41)):  # what prompts have more than in other cases
        rules[limit] = rules[limit] and rules[limit] + more
    rows = [
        each | {"hash_ids": [text * 10 + i for i in range(length // 4)]}
        for each, (text, length) in zip(asked, begins, strict=False)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    kv = {"block": 8, "full": rules["full"], "prefix_cache": True}
    kv["capacity"] = None if rules["blocks"] is None else f"{rules['blocks'] * 8 * KV * len(windows)} B"
    limits = {"max_batch": rules["max_batch"], "max_tokens": rules["max_tokens"], "kv": kv}
    scenario = {
        "model": {"config": "llama-3.2-1b" if len(windows) == 1 else qwen, "layers": len(windows), "scope": "block"},
        "workload": {
            "trace": {"file": str(path), "unit": "ps", "prefix_tokens": 4},
            "batching": {"policy": rules["policy"], **limits}, "prefill": {"chunk": rules["chunk"]},
        },
        "hardware": HARDWARE, "mapping": {"heads": "fused", "execution": "blocking"},
    }  # fmt: skip
    log = run(from_dict(scenario), executor="compiled" if compiled else "simpy").log
    texts = [(f"text {text}", length) for text, length in begins]
    expected = Sharing(asked, rules, others_of(log), windows, begins=texts)
    assert [step[2:] for step in steps_of(log)] == [step[2:] for step in expected.steps]
    assert log.cache is not None
    assert (log.cache.hits, log.cache.evicted) == (expected.found, expected.evicted)
