"""Damaged files of every kind that the program reads, made from sound ones by a seeded random generator.

    python -m tests.fuzz KIND [--first N] [--count N] [--seconds S] [--least N]

An input is either read, or refused by an `InputError` of one printable line; anything else is a defect. Input number i
of a kind depends on i alone, so that a failure can be repeated; `--least` inputs are made however long it takes. The process
may take 6 GiB more than it has, and an input 30 seconds.
"""

from __future__ import annotations

import gzip
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models import library
from models.config import resolve
from sim.base.errors import InputError
from sim.cli import cli
from sim.cost.profile import Samples, read_profile, read_samples, read_tables, write_samples
from sim.measure.partial import Partial
from sim.render.trace.tokens import span_of
from sim.runs.run import read
from sim.runs.saved import load
from sim.study import points
from sim.workload import routing, trace

ROOT = Path(__file__).parents[2]

#: Texts that are put into a file: the ends of ranges, words of YAML, JSON or CSV, and characters that terminals act on.
TOKENS = (
    "", "0", "-1", "1e309", "-1e-400", "1e999999", "9" * 309, "9" * 5000, "0x" + "f" * 300, "nan", ".inf", "null", "~",
    "true", "[]", "{}", "[[[[", "}", "'", '"', "&a", "*a", "&a [*a]", "!!python/object:os.system", "<<: *a", "- ", ": ",
    "#", "\n", "\r", "\t", "\0", "\x1b[2J", "\u202e", "\ufeff", "\u2028", "\U0001f600", "1 TB", "-5 us", "0 GB/s",
    "1e30 s", "/dev/zero", "../../x", ",", ",,,,", "\ud7ff", "é",
)  # fmt: skip
NUMBERS = (b"0", b"1", b"-1", b"2147483648", b"9223372036854775808", b"1e18", b"0.5", b"1e-300", b"9" * 400, b"NaN")


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The content with one to four changes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(changed) + 1), rng.choice([1, 1, 2, 8, 64])
        numbers = list(re.finditer(rb"\d+", changed)) if rng.random() < 0.4 else []
        match rng.randrange(7):
            case _ if numbers:
                found = rng.choice(numbers)
                changed[found.start() : found.end()] = rng.choice(NUMBERS)
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = changed[at : at + length] * rng.choice([1, 2, 50])
            case 3 | 4:
                changed[at:at] = rng.choice(TOKENS).encode("utf-8", "surrogatepass")
            case 5:
                lines = changed.split(b"\n")
                rng.shuffle(lines) if len(lines) < 20 else lines.pop(rng.randrange(len(lines)))
                changed = bytearray(b"\n".join(lines))
            case _:
                del changed[at:]
    return bytes(changed)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file. name: that it has. sound: contents that can be read. read: reads it, given its path."""

    name: str
    sound: Callable[[Path], list[bytes]]
    read: Callable[[Path], object]


def _scenarios(folder: Path) -> list[bytes]:
    shutil.copytree(ROOT / "scenarios" / "profiles", folder / "profiles", dirs_exist_ok=True)
    return [path.read_bytes() for path in sorted((ROOT / "scenarios").glob("*.yaml"))]


def _studies(folder: Path) -> list[bytes]:
    _scenarios(folder)
    for path in (ROOT / "scenarios").glob("*.yaml"):
        shutil.copy(path, folder)
    (folder / "studies").mkdir(exist_ok=True)
    return [path.read_bytes() for path in sorted((ROOT / "scenarios" / "studies").glob("*.yaml"))]


def _configs(_: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((ROOT / "models").rglob("*.json")) if b'"model_type"' in path.read_bytes()]


def _requests(_: Path) -> list[bytes]:
    csv = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:50.95,396,109\n"
    own = "arrival,tokens,prompt\n0.5,3,10\n300 us,4,20\n1.5 s,5,30\n"
    return [csv.encode(), own.encode()]


def _request_lines(_: Path) -> list[bytes]:
    return [
        b'{"timestamp": 27, "input_length": 6955, "output_length": 52, "hash_ids": [1, 2]}\n'
        b'{"timestamp": 30, "input_length": 5, "output_length": 2, "hash_ids": [1]}'
    ]


def _routes(_: Path) -> list[bytes]:
    return [b"".join(b'{"sequence": 0, "position": %d, "layer": 3, "experts": [5, 41]}\n' % i for i in range(5))]


def _profiles(_: Path) -> list[bytes]:
    found = sorted((ROOT / "scenarios" / "profiles").glob("*.yaml"), key=lambda path: path.stat().st_size)
    return [path.read_bytes() for path in found[:3]]


MAPPING = """device: d
source: s
date: "2026-01-01"
bandwidth: 1 TB/s
flops: {bfloat16: 1 TFLOP/s}
tables:
  - {file: times.csv, kind: matmul, dtype: bfloat16, unit: us, columns: {rows: m, n: n, k: k, duration: latency / 2}}
"""
TIMES = "m,n,k,latency\n" + "".join(f"{m},64,64,{m}.5\n" for m in range(1, 20))


def _mappings(folder: Path) -> list[bytes]:
    (folder / "times.csv").write_text(TIMES)
    return [MAPPING.encode()]


def _times(folder: Path) -> list[bytes]:
    (folder / "mapping.yaml").write_text(MAPPING)
    return [TIMES.encode()]


def _logs(folder: Path) -> list[bytes]:
    path = folder / "sound.parquet"
    cli.main(["run", "parallel", "--no-trace", "--json", "--save-log", str(path)], standalone_mode=False)
    return [path.read_bytes()]


def _traces(folder: Path) -> list[bytes]:
    path = folder / "sound.pftrace"
    cli.main(["run", "parallel", "--json", "--out", str(path)], standalone_mode=False)
    return [path.read_bytes()]


def _samples(folder: Path) -> list[bytes]:
    write_samples(Samples({"kind": ["q"] * 9, "duration": list(range(1, 10)), "step": [0] * 9}), folder / "sound.parquet")
    return [(folder / "sound.parquet").read_bytes()]


def _graphs(_: Path) -> list[bytes]:
    found = sorted((ROOT / "models").rglob("*.json.gz"), key=lambda path: path.stat().st_size)
    return [found[0].read_bytes(), gzip.compress(gzip.decompress(found[0].read_bytes())[:3000])]


def _cached(path: Path) -> object:
    return library._read(path)


def _plan(path: Path) -> object:
    return Partial(path.parent.parent / "device.yaml", {"a": "b"})


KINDS: dict[str, Kind] = {
    "scenario": Kind("a.yaml", _scenarios, read),
    "study": Kind("studies/a.yaml", _studies, points.load),
    "config": Kind("config.json", _configs, lambda path: resolve(str(path))),
    "requests": Kind("a.csv", _requests, trace.read),
    "request lines": Kind("a.jsonl", _request_lines, trace.read),
    "packed requests": Kind("a.csv.gz", lambda folder: list(map(gzip.compress, _requests(folder))), trace.read),
    "routing": Kind("a.jsonl", _routes, routing.read),
    "profile": Kind("a.yaml", _profiles, read_profile),
    "mapping": Kind("a.yaml", _mappings, read_tables),
    "kernel table": Kind("times.csv", _times, lambda path: read_tables(path.parent / "mapping.yaml")),
    "samples": Kind("a.parquet", _samples, read_samples),
    "log": Kind("a.parquet", _logs, load),
    "trace": Kind("a.pftrace", _traces, lambda path: span_of(path, 0, 0)),
    "cache": Kind("a.json.gz", _graphs, _cached),
    "plan": Kind("device.partial/plan.json", lambda _: [b'{"a": "b"}'], _plan),
}


def read_sound(kind: Kind, sound: list[bytes], folder: Path) -> None:
    """Read the contents as they are."""
    for content in sound:
        path = folder / kind.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        kind.read(path)


def attempt(kind: Kind, sound: list[bytes], number: int, folder: Path) -> str:
    """Make input `number` of a kind and read it. Returns the refusal, empty if it was read; raises whatever else comes."""
    rng = random.Random(f"{kind.name} {number}")
    path = folder / kind.name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(mutated(rng, rng.choice(sound)))
    try:
        kind.read(path)
    except InputError as error:
        text = str(error)
        if not text.isprintable():
            raise AssertionError(f"not one printable line: {text!r}") from error
        return text or "?"
    return ""
