"""Time and memory by the size of a run, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import alone
from benchmarks.workloads import BLOCK, FAIR

SCENARIO = "llama_1b_context_256"
TASKS = 2_967  # of a step
LONGEST = 2**15  # tokens of one sequence; the next arrives when it has ended
SLOT = 3_300  # seconds that such a sequence takes at most
SIZES = (*(n * 10**k for k in range(4, 9) for n in (1, 3)), 10**9)

WARM = ("workload.sequences=[{context: 256, tokens: 20}]",)


def sequences(tasks: int) -> str:
    """About so many tasks, one sequence after the other, as an override."""
    tokens = max(1, round(tasks / TASKS))
    counts = [LONGEST] * (tokens // LONGEST) + [tokens % LONGEST] * (tokens % LONGEST > 0)
    rows = (f"{{context: 256, tokens: {count}, arrival: {SLOT * k} s}}" for k, count in enumerate(counts))
    return f"workload.sequences=[{', '.join(rows)}]"


def grown(tasks: int, record: str) -> dict[str, Any]:
    """A run of about so many tasks, with all checks. record: `all` or `steps`."""
    overrides = [sequences(tasks), *([] if record == "all" else [f"record={record}"])]
    return alone("benchmarks.alone", {"scenario": SCENARIO, "overrides": overrides, "work": "run", "warm": WARM})


def rows(largest: int, records: Mapping[str, int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs of each size, up to the largest and to the limit of each kind of record."""
    for record, most in records.items():
        for size in SIZES:
            if size <= min(largest, most):
                yield record, grown(size, record)


@dataclass(frozen=True, slots=True)
class Many:
    """Many sequences of one block and one token, or one sequence on many engines; how many, and how many to try it with."""

    overrides: tuple[str, ...]
    counts: tuple[int, ...]
    few: int
    engines: bool = False

    def of(self, count: int) -> list[str]:
        if self.engines:
            sequences = "{context: 256, tokens: 100}"
            return [*BLOCK, *self.overrides, f"hardware.engines.count={count}", f"workload.sequences=[{sequences}]"]
        sequences = f"{{context: 256, tokens: 1, count: {count}}}"
        return [*BLOCK, *self.overrides, "hardware.engines.count=16", f"workload.sequences=[{sequences}]"]


MANY = {
    "sequences, fifo": Many((), (500, 4_000), 20),
    "sequences, fair sharing": Many((FAIR,), (500, 4_000), 20),
    "sequences, round robin": Many(("hardware.memory.arbiter=round_robin",), (300, 3_000), 20),
    "sequences, pre-emptive priority": Many(
        ("hardware.memory.arbiter={name: priority, preemptive: true}",), (300, 3_000), 20
    ),
    "engines": Many(("mapping.tiles=64",), (4, 4_096), 4, engines=True),
}  # fmt: skip


def many(name: str, count: int) -> dict[str, Any]:
    """A simulation with so many of them (sequences or engines)."""
    found = MANY[name]
    request = {"scenario": SCENARIO, "overrides": found.of(count), "work": "simulate", "warm": found.of(found.few)[-1:]}
    return alone("benchmarks.alone", request)
