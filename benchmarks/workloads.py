"""Workloads: each a shipped scenario with changed values, and its target speed.

Targets of those in `COMPARED` are multiples of the tasks/s of the idiomatic SimPy program on the same work (fewer tokens of
it) in the same round; of those in `SERVING`, seconds and bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A workload that the idiomatic program covers.

    overrides: of the shipped scenario. context, count: of its sequences. few, many: the tokens (of each sequence) that the
    idiomatic program and the simulator decode. simulate, run: how many times as fast the simulator must be.
    """

    title: str
    scenario: str = "llama_1b_context_256"
    overrides: tuple[str, ...] = ()
    context: int = 256
    count: int = 1
    few: int = 4
    many: int = 1_024
    simulate: int = 250
    run: int = 100

    def scaled(self, tokens: int) -> list[str]:
        """The overrides of a run of so many tokens for each sequence."""
        return [*self.overrides, f"workload.sequences=[{{context: {self.context}, tokens: {tokens}, count: {self.count}}}]"]

    def tiny(self) -> Compared:
        """The same for a try."""
        return replace(self, count=min(self.count, 2), few=1, many=2)


#: An arbiter's name and options, as overrides.
FAIR = "hardware.memory.arbiter=processor_sharing"
URGENT = "hardware.memory.arbiter={name: priority, classes: [kv_load, kv_store]}"
WEIGHTED = "hardware.memory.arbiter={name: weighted, weights: {kv_load: 3, weight_load: 1}}"
BLOCK = ("model.layers=1", "model.scope=block")

COMPARED = {
    "fifo": Compared(title="one sequence, fifo", simulate=350, run=150),
    "overhead": Compared(
        title="from context 100, 1 us of overhead, 100 ns of latency",
        overrides=("hardware.engines.overhead=1 us", "hardware.memory.latency=100 ns"),
        context=100,
    ),
    "fair": Compared(title="fair sharing, prefetch", overrides=(FAIR,)),
    "fair_stream": Compared(title="fair sharing, stream", overrides=(FAIR, "mapping.execution=stream")),
    "sram": Compared(
        title="SRAM of 8 MiB, tiles", overrides=("hardware.sram=8 MiB", "mapping.tiles={default: 8, lm_head: 64}")
    ),
    "two_channels": Compared(title="two interleaved channels", overrides=("hardware.memory.channels.count=2",)),
    "priority": Compared(title="priority", overrides=(URGENT,)),
    "weighted": Compared(title="weighted", overrides=(WEIGHTED,)),
    "sequences": Compared(
        title="32 independent sequences, fair sharing", overrides=(FAIR,), count=32, few=1, many=32, simulate=150, run=80,
    ),
    "known": Compared(
        title="64 known tokens of one block on 8 engines",
        overrides=(*BLOCK, "hardware.engines.count=8", "workload.dependency=known"), few=64, many=64, simulate=100, run=60,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Requests served in batches. trace: they come from a file that the benchmark makes.

    warm: overrides of a run that is just large enough for all to be compiled. few: of a try. seconds, memory: at most so many,
    of CPU time and bytes; 0 if there is no target.
    """

    title: str
    overrides: tuple[str, ...]
    scenario: str = "dense_batch_32"  # an H100 as one engine, whose kernels run one after another
    warm: tuple[str, ...]
    few: tuple[str, ...]
    trace: bool = False
    seconds: float = 0
    memory: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """A step over eight devices that do the same. warm, few: as in `Serving`. most: the target, how many times as long as one
    device that stands for all they may take.
    """

    title: str
    scenario: str
    overrides: tuple[str, ...]
    warm: tuple[str, ...]
    few: tuple[str, ...]
    most: int = 8


DEVICES = (
    Devices(
        title="Llama-3.1-8B on eight H100, batch of 32", scenario="h100_llama_8b_tensor_parallel_8",
        overrides=("workload.sequences=[{context: 2048, tokens: 200, count: 32}]",),
        warm=("workload.sequences=[{context: 2048, tokens: 20, count: 32}]",),
        few=("workload.sequences=[{context: 2048, tokens: 2, count: 2}]", "model.layers=2"),
    ),
    Devices(
        title="Llama-3.1-70B on eight B200, batch of 8", scenario="b200_llama_70b_tensor_parallel_8",
        overrides=("workload.sequences=[{context: 2048, tokens: 80, count: 8}]",),
        warm=("workload.sequences=[{context: 2048, tokens: 8, count: 8}]",),
        few=("workload.sequences=[{context: 2048, tokens: 2, count: 2}]", "model.layers=2"),
    ),
)  # fmt: skip

REQUESTS = (
    "model={config: llama-3.1-8b}",
    "workload={generate: {count: 1000, arrivals: {process: poisson, rate: 20/s}, prompt: 512, tokens: 128}, "
    "batching: {policy: continuous, max_batch: 32}}",
)
#: It serves the hour of requests as they come, 10 at a time on average. On an H100 or an MI300X their queue would only grow.
B200 = "hardware={preset: b200}"
MOONCAKE = (
    "model={config: llama-3.1-8b}",
    B200,
    "cost=kernel",
    "workload={trace: {file: requests.jsonl}, prefill: {chunk: 8192}, "
    "batching: {policy: continuous, max_batch: 32, max_tokens: 8192}}",
    "mapping.attention=batch",
    "record=steps",
)  # fmt: skip
SERVING = {
    "sequence": Serving(
        title="1,000 requests, attention by sequence",
        overrides=(*REQUESTS, "mapping.attention=sequence"), warm=("workload.generate.count=40",),
        few=("workload.generate.count=2",), seconds=4,
    ),
    "batch": Serving(
        title="1,000 requests, attention by batch",
        overrides=(*REQUESTS, "mapping.attention=batch"), warm=("workload.generate.count=40",),
        few=("workload.generate.count=2",), seconds=1.5,
    ),
    "mooncake": Serving(
        title="23,608 requests, attention by batch, `record: steps`",
        overrides=MOONCAKE, warm=("workload.trace.limit=60",), few=("workload.trace.limit=2",), trace=True, seconds=60,
        memory=10**9,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """Work that is independent. work: as in `benchmarks.alone`. warm, few: as in `Serving`."""

    title: str
    scenario: str = "llama_1b_context_256"
    overrides: tuple[str, ...]
    warm: tuple[str, ...]
    few: tuple[str, ...]
    work: str = "run"


SIDE_BY_SIDE = (
    SideBySide(
        title="one sequence, fifo: its steps between barriers",
        overrides=("workload.sequences=[{context: 256, tokens: 2048}]",),
        warm=("workload.sequences=[{context: 256, tokens: 400}]",), few=("workload.sequences=[{context: 256, tokens: 2}]",),
    ),
    SideBySide(
        title="one batch of 16 without arrivals: its steps between barriers", scenario="dense_batch_32",
        overrides=("workload.sequences=[{context: 1024, tokens: 256, count: 16}]", "workload.batching=static"),
        warm=("workload.sequences=[{context: 1024, tokens: 40, count: 16}]",),
        few=("workload.sequences=[{context: 1024, tokens: 2, count: 2}]",),
    ),
    SideBySide(
        title="four repeats of 100 requests with other seeds", scenario="dense_batch_32",
        overrides=(
            "workload={generate: {count: 100, arrivals: {process: poisson, rate: 20/s}, prompt: 512, tokens: 64}, "
            "batching: {policy: continuous, max_batch: 32}}",
        ),
        warm=("workload.generate.count=20",), few=("workload.generate.count=2",), work="repeats",
    ),
)  # fmt: skip
