"""How fast the trace writer is, and how large its traces are.

    python -m benchmarks.trace_writer [--slices 1000000] [--tasks 300000] [--rounds 5]

Encodes the same bare slices (BEGIN and END with interned name, category and track) with the columnar encoder, with a plain
encoder that writes one record at a time, and with the classes that protobuf generates, in one run. Then it writes
whole traces of a synthetic run at each level of detail.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sim.render.trace import perfetto, write
from sim.render.trace.of_result import write_trace
from sim.render.trace.tracks import Role, Slices, nesting_order, to_ns
from sim.runs.result import Result
from tests.render.trace import reference
from tests.render.trace.logs import decoder, repeat, run


def bare(count: int, tracks: int = 16) -> Slices:
    """Slices end to end on each track, of a microsecond or so."""
    random = np.random.default_rng(0)
    track = np.arange(count) % tracks + 1
    length = random.integers(100_000, 2_000_000, count)
    end = np.zeros(count, dtype=np.int64)
    for each in range(tracks):
        end[each::tracks] = np.cumsum(length[each::tracks])
    return Slices.make(track=track, start=end - length, end=end, name=random.integers(1, 200, count), category=1, role=Role.RUN)


def columnar(slices: Slices) -> int:
    return sum(len(block) for block in perfetto._slice_blocks(slices, None, None))


def plain(slices: Slices) -> int:
    index, begin = nesting_order(slices)
    ns = to_ns(np.where(begin, slices.start[index], slices.end[index]))
    rows = zip(begin.tolist(), ns.tolist(), slices.track[index].tolist(), slices.name[index].tolist(), strict=True)
    return sum(len(reference.slice_packet(reference.Slice(b, at, track, name))) for b, at, track, name in rows)


def generated(slices: Slices) -> int:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TracePacket  # noqa: PLC0415 -- only needed to compare

    index, begin = nesting_order(slices)
    ns = to_ns(np.where(begin, slices.start[index], slices.end[index]))
    size = 0
    for b, at, track, name in zip(
        begin.tolist(), ns.tolist(), slices.track[index].tolist(), slices.name[index].tolist(), strict=True
    ):
        packet = TracePacket(timestamp=at, trusted_packet_sequence_id=1, sequence_flags=2)
        event = packet.track_event
        event.type, event.track_uuid = 1 if b else 2, track
        if b:
            event.category_iids.append(1)
            event.name_iid = name
        size += len(packet.SerializeToString()) + 2
    return size


def rate(work: Callable[[Slices], int], slices: Slices, rounds: int) -> tuple[float, float, int]:
    """Median slices/s over some rounds, its spread (largest over smallest), and the bytes."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        size = work(slices)
        seconds.append(time.perf_counter() - start)
    return len(slices) / statistics.median(seconds), max(seconds) / min(seconds), size


def whole(result: Result) -> tuple[int, float, int]:
    """Tasks, CPU seconds and bytes of the trace of a run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.pftrace"
        began = time.process_time()
        write_trace(result, path)
        return result.metrics.tasks, time.process_time() - began, path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=1_000_000)
    parser.add_argument("--tasks", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    print("| bare slices | slices/s | spread | bytes a slice | ratio |")
    print("| --- | --- | --- | --- | --- |")
    few = bare(max(options.slices // 20, 1))
    assert columnar(few) == plain(few)
    rows = {
        "one record at a time": rate(plain, few, options.rounds),
        "generated classes": rate(generated, few, options.rounds),
        "columnar": rate(columnar, bare(options.slices), options.rounds),
    }
    base = rows["generated classes"][0]
    for name, (speed, spread, size) in rows.items():
        count = options.slices if name == "columnar" else len(few)
        print(f"| {name} | {speed:,.0f} | {spread:.2f} | {size / count:.1f} | {speed / base:.1f} |")

    one = run(decoder(layers=4, heads=32), tokens=1)
    log = repeat(one, max(1, options.tasks // len(one.tasks)))
    print(f"\n| whole trace of {len(log.tasks):,} tasks | slices | seconds | slices/s | bytes a slice |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for detail, suffix in (("engines", "pftrace"), ("ops", "pftrace"), ("full", "pftrace"), ("full", "pftrace.gz")):
            path = Path(folder) / f"trace.{suffix}"
            start = time.perf_counter()
            count = write(log, path, metadata={}, detail=detail)
            seconds = time.perf_counter() - start
            size = path.stat().st_size / count
            print(f"| {detail}, {suffix} | {count:,} | {seconds:.2f} | {count / seconds:,.0f} | {size:.1f} |")


if __name__ == "__main__":
    main()
