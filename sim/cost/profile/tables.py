"""Public tables of kernel times as samples: a mapping file names their columns.

    device: NVIDIA H100 80GB SXM5
    source: origin of the measurements, method, and license
    date: "2026-11-22"
    bandwidth: 3.35 TB/s
    capacity: 80 GB          # optional
    cache: 50 MB             # optional: the last cache of a GPU: kernels take the form `cached`
    flops: {bfloat16: 989 TFLOP/s}  # optional: peaks by number format
    tables:
      - file: gemm.parquet   # or .csv, in the folder of this file or the one that is named for it
        kind: matmul         # or attention, prefill_attention, mixed_attention, an op kind
        where: {backend: [cublas, cutlass]}  # optional: rows with one of these values
        dtype: bfloat16
        unit: ms             # of the durations
        columns: {rows: m, n: n, k: 4096, duration: latency_ms / repeats}  # names, numbers, or + - * / of them
        calibrate: {n: 8192, k: 8192}   # fit to rows up to this; report on all others

A matmul of [rows, k] by [k, n] and an attention of `rows` sequences have their FLOPs and bytes by formula, and so has that of
prompts: `rows` new tokens of `sequences` (1 if not named), with `context` tokens of each when it is done, under a causal mask.
A `mixed_attention` is one launch for these and for `decodes` sequences with one token each, which attend to `decode_context`; a
row of it without decodes is a prompt, one without new tokens a decode. For other kinds name columns for `bytes_read`,
`bytes_written`, `elements` or `flops`.
"""

from __future__ import annotations

import ast
import csv
import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, create_model

from sim.base.documents import Document, Place, read
from sim.base.errors import InputError, nearest
from sim.base.files import check_parquet, check_readable
from sim.base.problems import OneOf, validated
from sim.base.quantities import BANDWIDTH, Bandwidth, FlopRate, Size, number, show
from sim.base.section import Section, Text
from sim.base.units import PS_PER_S, format_bytes
from sim.cost.profile.device import ATTENTION, MATMUL, MIXED, MULTI_HEAD, PREFILL, Provenance
from sim.cost.profile.samples import NUMBERS, Samples

UNITS = {"ps": 1, "ns": 10**3, "us": 10**6, "ms": 10**9, "s": 10**12}
ELEMENT = {"bfloat16": 2, "float16": 2, "float32": 4, "float8_e4m3fn": 1, "int8": 1}

#: Columns that a kind cannot do without.
NEEDED = {MATMUL: ("rows", "n", "k"), ATTENTION: ("rows", "heads", "kv_heads", "head_dim", "context")}
NEEDED[PREFILL] = NEEDED[ATTENTION]
NEEDED[MIXED] = (*NEEDED[ATTENTION], "decodes", "decode_context")

#: Columns of these that may be 0.
MAY_BE_0 = {MIXED: ("rows", "context", "decodes", "decode_context")}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTables:
    """Contents of a mapping file and its tables. calibrate: mask of the samples to fit to; the others judge the fit."""

    title: str
    provenance: Provenance
    bandwidth: int
    capacity: int | None
    cache: int | None
    flops: Mapping[str, int]
    samples: Samples
    calibrate: npt.NDArray[np.bool_]


def read_tables(mapping: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> KernelTables:
    """Read a mapping file and its tables, which are in `folder` (by default beside it).

    Raises InputError in one line that says where: a key, a column that a table does not have, a value that is no number.
    """
    document = read(Path(mapping))
    found = validated(document, _Mapping)
    parts, masks = [], []
    for i, table in enumerate(found.tables):
        samples, mask = _samples(table, document, i, Path(folder) if folder is not None else Path(mapping).parent)
        parts.append(samples)
        masks.append(mask)
    return KernelTables(
        title=found.title or found.device,
        provenance=Provenance(
            device=found.device, source=found.source, date=found.date, libraries=found.libraries, driver=found.driver
        ),
        bandwidth=found.bandwidth, capacity=found.capacity, cache=found.cache, flops=found.flops,
        samples=Samples.concatenate(parts), calibrate=np.concatenate(masks),
    )  # fmt: skip


def cache_advice(found: KernelTables) -> str | None:
    """A sentence on `cache` if it contradicts the rows: those with bytes faster than the memory were read from one."""
    moved = found.samples.bytes_read + found.samples.bytes_written
    faster = moved > found.samples.duration / PS_PER_S * found.bandwidth
    rows = f"{int(faster.sum()):,} of {len(moved):,} rows"
    rate, largest = BANDWIDTH.format(found.bandwidth), format_bytes(int(moved[faster].max(initial=0)))
    if found.cache is None and faster.any():
        return f"cache: {rows} move their bytes faster than {rate}, the largest {largest}: name the size of their cache"
    if found.cache is not None and (beyond := faster & (moved > found.cache)).any():
        more = f"{int(beyond.sum()):,} rows move more than its {format_bytes(found.cache)}"
        return f"cache: {more} faster than {rate}, the largest {largest}: is it larger?"
    if found.cache is not None and not faster.any():
        still = f"kernels of more than {format_bytes(found.cache)} have a second rate all the same"
        return f"cache: no row moves its bytes faster than {rate}, so that operands came from memory; {still}"
    return None


def _columns(type_: Any, *more: str) -> type[Section]:
    """The model of a mapping by column of samples, and of some more."""
    fields: dict[str, Any] = dict.fromkeys((*NUMBERS, *more), (type_ | None, None))
    return create_model("Columns", __base__=Section, **fields)


MAX_BYTES = 2**28  # of a CSV file; its values take some ten times as much memory

#: Columns beside those of samples, by the kinds that may have them.
BESIDE = {PREFILL: ("sequences",), MIXED: ("sequences", "decodes", "decode_context")}

Value = str | int | float


class _Table(Section):
    file: Text
    where: dict[str, Value | list[Value]] = Field(default_factory=dict)
    kind: Text
    dtype: Annotated[str, OneOf(ELEMENT)]
    unit: Annotated[str, OneOf(UNITS)]
    columns: _columns(Text | int, *BESIDE[MIXED])  # type: ignore[valid-type]
    calibrate: _columns(int) | None = None  # type: ignore[valid-type]


class _Mapping(Section):
    device: Text
    title: Text = ""
    source: Text
    date: Text
    driver: str = ""
    libraries: dict[str, str] = Field(default_factory=dict)
    bandwidth: Bandwidth
    capacity: Size | None = None
    cache: Size | None = None
    flops: dict[str, FlopRate] = Field(default_factory=dict)
    tables: tuple[_Table, ...] = Field(min_length=1, strict=False)


def _samples(table: _Table, document: Document, index: int, folder: Path) -> tuple[Samples, npt.NDArray[np.bool_]]:
    def place(*path: str) -> Place:
        return document.place(("tables", index, *path))

    file, kind, dtype = table.file, table.kind, table.dtype
    content = _read(folder / file)
    if not any(content.values()):
        raise place("file").error(f"{file}: expected a header and rows, found no rows")
    columns = _whole_columns(table, _chosen(content, table, place), place)
    kinds = _kinds(kind, columns)
    if (kinds == "").any():
        raise place("columns").error(f"{file}: expected rows or decodes, found a row that has neither")
    if kind in FORMULAS:
        formula, size = FORMULAS[kind], ELEMENT[dtype]
        inexact = formula({name: column.astype(np.float64) for name, column in columns.items()}, size)
        if any((column >= 2**62).any() for column in inexact.values()):
            raise place().error(f"{file}: expected FLOPs and bytes below 2^62, found a larger {kind}")
        columns.update(formula(columns, size))
    for name in BESIDE.get(kind, ()):
        columns.pop(name, None)
    try:
        samples = Samples({**columns, "kind": kinds.tolist(), "dtype": [dtype] * len(kinds)})
    except ValueError as error:
        raise place().error(f"{file}: {error}") from None
    mask = np.ones(len(samples), dtype=np.bool_)
    if table.calibrate is not None:
        for name, limit in table.calibrate.model_dump(exclude_none=True).items():
            mask &= samples.columns[name] <= limit
        if not mask.any():
            raise place("calibrate").error("expected limits that leave rows to fit to, found none within them")
    return samples, mask


def _whole_columns(table: _Table, content: dict[str, list[Any]], place: Callable[..., Place]) -> dict[str, Any]:
    """The columns that a mapping names, as whole numbers; durations in ps."""
    file, kind, given = table.file, table.kind, table.columns.model_dump(exclude_none=True)
    for name in (*NEEDED.get(kind, ()), "duration"):
        if name not in given:
            raise place("columns").error(f"the key {name!r} is missing")
    for name in set(BESIDE[MIXED]) - {*BESIDE.get(kind, ())} & {*given}:
        kinds = " and ".join(each for each, names in BESIDE.items() if name in names)
        raise place("columns", name).error(f"{name!r} is of {kinds}, found it in a table of {kind}")
    columns: dict[str, Any] = {}
    for name, source in given.items():
        at = place("columns", name)
        found = _values(content, source, file, at)
        if name == "duration":
            with np.errstate(over="ignore"):  # what is not finite is refused with its place
                columns[name] = _whole(found * UNITS[table.unit], source, at)
            continue
        columns[name] = _whole(found, source, at)
        least = 1 if name in ("rows", *NEEDED.get(kind, ())) and name not in MAY_BE_0.get(kind, ()) else 0
        if (wrong := np.flatnonzero((columns[name] < least) | (columns[name] != found))).size:
            value = f"{found[wrong[0]]:.12g}"
            raise at.error(f"column {source!r} of {file}: expected whole numbers from {least}, found {value}")
    if kind in BESIDE:
        rows, named = columns["rows"], columns.get("sequences", np.ones_like(columns["rows"]))
        columns["sequences"] = np.where(rows > 0, named, 0)
        if (wrong := np.flatnonzero(rows < columns["sequences"])).size:
            least, found = columns["sequences"][wrong[0]], rows[wrong[0]]
            raise place("columns").error(f"{file}: expected rows of at least one for each of {least} sequences, found {found}")
    return columns


def _kinds(kind: str, columns: Mapping[str, Any]) -> npt.NDArray[Any]:
    """The kind of each row: of attention by its heads, of mixed attention by the parts that it has; "" if it has none."""
    if kind not in (ATTENTION, MIXED):
        return np.full(len(columns["duration"]), kind, dtype=object)
    decode = np.where(columns["heads"] == columns["kv_heads"], MULTI_HEAD, ATTENTION).astype(object)
    if kind == ATTENTION:
        return decode
    prompts, decodes = columns["rows"] > 0, columns["decodes"] > 0
    decode[prompts] = PREFILL
    decode[prompts & decodes] = MIXED
    decode[~prompts & ~decodes] = ""
    return decode


def _matmul(c: Mapping[str, Any], size: int) -> dict[str, Any]:
    """[m, k] by [k, n]: 2 m n k FLOPs; the weights, k n numbers, are shared by all rows."""
    weights = size * c["n"] * c["k"]
    return {
        "flops": 2 * c["rows"] * c["n"] * c["k"], "bytes_read": weights + size * c["rows"] * c["k"],
        "bytes_written": size * c["rows"] * c["n"], "bytes_shared": weights,
    }  # fmt: skip


def _attention(c: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Scores and weighted values are 2 * heads * head_dim * context FLOPs each; keys and values are read once."""
    queries = size * c["rows"] * c["heads"] * c["head_dim"]
    return {
        "flops": 4 * c["rows"] * c["heads"] * c["head_dim"] * c["context"],
        "bytes_read": 2 * size * c["rows"] * c["kv_heads"] * c["head_dim"] * c["context"] + queries, "bytes_written": queries,
    }  # fmt: skip


def _prefill(c: Mapping[str, Any], size: int) -> dict[str, Any]:
    """As attention, of `rows` queries; the first of Q attends to Q - 1 tokens less than the last."""
    hidden = c["rows"] * (c["rows"] - c["sequences"]) // (2 * np.maximum(c["sequences"], 1))  # pairs
    queries = size * c["rows"] * c["heads"] * c["head_dim"]
    return {
        "flops": 4 * c["heads"] * c["head_dim"] * (c["rows"] * c["context"] - hidden),
        "bytes_read": 2 * size * c["sequences"] * c["kv_heads"] * c["head_dim"] * c["context"] + queries,
        "bytes_written": queries,
    }


def _mixed(c: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The sums of both parts; context is the mean over rows."""
    parts = _prefill(c, size), _attention({**c, "rows": c["decodes"], "context": c["decode_context"]}, size)
    rows = c["rows"] + c["decodes"]
    attended = c["rows"] * c["context"] + c["decodes"] * c["decode_context"]
    return {**{name: parts[0][name] + parts[1][name] for name in parts[0]}, "rows": rows, "context": attended // rows}


FORMULAS = {MATMUL: _matmul, ATTENTION: _attention, PREFILL: _prefill, MIXED: _mixed}


# Columns --------------------------------------------------------------------------------------------------------------------


def _chosen(content: dict[str, list[Any]], table: _Table, place: Callable[..., Place]) -> dict[str, list[Any]]:
    """The rows that `where` selects."""
    kept = np.ones(len(next(iter(content.values()))), dtype=np.bool_)
    for name, wanted in table.where.items():
        if name not in content:
            raise place("where", name).error(_no_column(name, content, table.file))
        values = {str(value) for value in (wanted if isinstance(wanted, list) else [wanted])}
        kept &= np.array([str(value).strip() in values for value in content[name]])
        if not kept.any():
            raise place("where", name).error(f"{table.file}: expected values that leave rows, found none that have them")
    return {name: [values[i] for i in np.flatnonzero(kept)] for name, values in content.items()}


def _no_column(name: str, content: Mapping[str, Any], file: str) -> str:
    return f"no column {show(name)} in {file}{nearest(name, content)}; it has {', '.join(content)}"


OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def _values(content: Mapping[str, list[Any]], source: str | int, file: str, at: Place) -> npt.NDArray[np.float64]:
    """A column, a number for all rows, or what an expression of these says."""
    if isinstance(source, str) and source in content:
        return _numbers(content[source], source, at)
    try:
        tree = ast.parse(str(source), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise at.error(_no_column(str(source), content, file)) from None

    def value(node: ast.expr) -> Any:
        match node:
            case ast.BinOp(left, operation, right) if type(operation) in OPERATORS:
                return OPERATORS[type(operation)](value(left), value(right))
            case ast.Name(name) if name in content:
                return _numbers(content[name], name, at)
            case ast.Name(name):
                raise at.error(_no_column(name, content, file))
            case ast.Constant(int() | float() as number) if not isinstance(number, bool) and abs(number) < 2**62:
                return np.float64(number)
        raise at.error(f"{source!r}: expected names of columns, numbers, and + - * / of them")

    with np.errstate(all="ignore"):  # what is not finite is refused with its place
        return np.broadcast_to(value(tree), len(next(iter(content.values())))).astype(np.float64)


def _read(path: Path) -> dict[str, list[Any]]:
    """The columns of a CSV or Parquet file."""
    try:
        check_readable(path)
        if path.suffix == ".csv":
            if path.stat().st_size > MAX_BYTES:
                raise InputError(f"{path}: larger than {MAX_BYTES:,} bytes")
            return _csv(path)
        with import_module("pyarrow.parquet").ParquetFile(path) as file:
            check_parquet(path, file.metadata)
            table = file.read()
        return {name: table.column(name).to_pylist() for name in table.column_names}
    except ImportError:
        raise InputError(f"{path}: Parquet files need pyarrow: pip install 'decode-sim[parquet]'") from None
    except InputError:
        raise
    except Exception as error:  # pyarrow raises many kinds, for files that are none of its own
        raise InputError(" ".join(f"{path}: cannot be read as a table: {error}".splitlines())) from None


def _csv(path: Path) -> dict[str, list[Any]]:
    """The columns of a CSV file: a header, and rows of as many values."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        lines = [(reader.line_num, row) for row in reader if row]
    if not lines:
        return {}
    (first, header), rows = lines[0], lines[1:]
    names = [name.strip() for name in header]
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise InputError(f"{path}:{first}: expected each column once, found {show(twice)} twice")
    for line, row in rows:
        if len(row) != len(names):
            raise InputError(f"{path}:{line}: expected {len(names)} columns, found {len(row)}")
    return {name: [row[i] for _, row in rows] for i, name in enumerate(names)}


def _numbers(values: list[Any], source: str, place: Place) -> npt.NDArray[np.float64]:
    found = [number(value.strip()) if isinstance(value, str) else value for value in values]
    wrong = next((i for i, value in enumerate(found) if not isinstance(value, (int, float, Decimal))), None)
    if wrong is not None:
        raise place.error(f"column {source!r} does not hold numbers: {show(values[wrong])}")
    return np.array(found, dtype=np.float64)


def _whole(values: npt.NDArray[np.float64], source: str, place: Place) -> npt.NDArray[np.int64]:
    if not (np.abs(values) < 2**62).all():  # not a number is not below either
        raise place.error(f"column {source!r} does not hold numbers: not finite, or too large")
    rounded: npt.NDArray[np.int64] = np.rint(values).astype(np.int64)
    return rounded
