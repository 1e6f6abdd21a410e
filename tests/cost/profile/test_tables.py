"""Kernel tables become samples and a profile; errors in a mapping are reported with their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sim.base.errors import InputError
from sim.cli import cli
from sim.cost.profile import MULTI_HEAD, Samples, fit, predict, read_profile, read_tables
from sim.cost.profile.device import Provenance

MAPPING = """
device: a device
source: written by hand
date: "2026-01-01"
bandwidth: 1 TB/s
tables:
  - file: gemm.csv
    kind: matmul
    dtype: bfloat16
    unit: us
    columns: {rows: m, n: n, k: k, duration: time}
    calibrate: {n: 2048}
"""

# 2 us and 1 TB/s: 2 bytes a weight are 2 ps, and so are those of the m inputs and results
GEMM = [(1, n, k, 2 + 2 * (n * k + n + k) * 1e-6) for n in (512, 1024, 2048, 4096) for k in (256, 1024)]


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    rows = "\n".join(f"{m},{n},{k},{time}" for m, n, k, time in GEMM)
    (tmp_path / "gemm.csv").write_text(f"m,n,k,time\n{rows}\n")
    (tmp_path / "map.yaml").write_text(MAPPING)
    return tmp_path / "map.yaml"


def test_a_table_becomes_a_profile(mapping: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["import-kernels", str(mapping), "-o", str(tmp_path / "device.yaml")])
    assert result.exit_code == 0, result.output
    profile = read_profile(tmp_path / "device.yaml")
    (timing,) = profile.timings
    found = timing.rows[1].coefficients
    assert found["overhead"] == pytest.approx(2_000_000, rel=1e-3)
    assert found["bandwidth"] == pytest.approx(10**12, rel=1e-3)
    assert timing.ranges["n"] == (512, 2048)
    row = next(line for line in result.output.splitlines() if line.startswith("matmul"))
    assert row.split() == ["matmul", "(bfloat16)", "sum", "6", "0.0%", "0.0%", "2", "0.0%", "0.0%"]


def test_attention_has_bytes_by_formula(tmp_path: Path, mapping: Path) -> None:
    """2 sequences, 8 heads, 4 of the cache, 64 wide, 100 tokens: 2 x 2 x 2 x 4 x 64 x 100 bytes of keys and values."""
    (tmp_path / "a.csv").write_text("b,h,kv,d,c,ms\n2,8,4,64,100,0.01\n1,8,8,64,100,0.02\n")
    text = MAPPING.replace("gemm.csv", "a.csv").replace("kind: matmul", "kind: attention").replace("unit: us", "unit: ms")
    columns = "{rows: b, heads: h, kv_heads: kv, head_dim: d, context: c, duration: ms}"
    text = text.replace("{rows: m, n: n, k: k, duration: time}", columns).replace("    calibrate: {n: 2048}\n", "")
    mapping.write_text(text)
    samples = read_tables(mapping).samples
    queries = 2 * 2 * 8 * 64
    assert samples.bytes_read[0] == 2 * 2 * 2 * 4 * 64 * 100 + queries
    assert samples.bytes_written[0] == queries
    assert samples.flops[0] == 4 * 2 * 8 * 64 * 100
    assert samples.duration.tolist() == [10**7, 2 * 10**7]
    assert samples.kind.tolist() == ["attention", MULTI_HEAD]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("n: n,", "n: cols,", "map.yaml:11:27: no column 'cols' in gemm.csv; it has m, n, k, time"),
        ("n: n, ", "", "map.yaml:11:14: the key 'n' is missing"),
        ("unit: us", "unit: usec", "map.yaml:10:11: tables[0].unit: expected one of ms, ns, ps, s, us, found 'usec'"),
        ("dtype: bfloat16", "dtype: bf16", "map.yaml:9:12: tables[0].dtype: expected one of bfloat16"),
        ("gemm.csv", "none.csv", "none.csv: no such file"),
        ("bandwidth: 1 TB/s", "bandwidth: 1", "map.yaml:5:12: bandwidth: expected a bandwidth with its unit"),
        ("source:", "sources:", "map.yaml:3:1: unknown key 'sources' (did you mean 'source'?); valid: device, title, source, "),
        ("tables:\n", "tables: []\nlibraries:\n", "map.yaml:6:9: tables: expected at least one item, found an empty list"),
        ("duration:", "durations:", "tables[0].columns: unknown key 'durations' (did you mean 'duration'?)"),
        ("{n: 2048}", "{n: 1.5}", "map.yaml:12:20: tables[0].calibrate.n: expected a whole number, found 1.5"),
        ("kind:", "kinds:", "map.yaml:8:5: tables[0]: unknown key 'kinds' (did you mean 'kind'?)"),
    ],
)
def test_errors_in_a_mapping_have_their_place(mapping: Path, old: str, new: str, expected: str) -> None:
    mapping.write_text(MAPPING.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        read_tables(mapping)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_value_that_is_no_number_is_refused(mapping: Path, tmp_path: Path) -> None:
    (tmp_path / "gemm.csv").write_text("m,n,k,time\n1,512,512,fast\n")
    with pytest.raises(InputError, match="column 'time' does not hold numbers"):
        read_tables(mapping)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("0,512,512,3", r"map\.yaml:11:21: column 'm' of gemm\.csv: expected whole numbers from 1, found 0"),
        ("1,512,-1,3", r"map\.yaml:11:33: column 'k' of gemm\.csv: expected whole numbers from 1, found -1"),
        ("1,512.5,512,3", r"map\.yaml:11:27: column 'n' of gemm\.csv: expected whole numbers from 1, found 512\.5"),
        ("1_0,512,512,3", r"map\.yaml:11:21: column 'm' does not hold numbers: '1_0'"),
        ("1,512,512,1e30", r"map\.yaml:11:46: column 'time' does not hold numbers: not finite, or too large"),
        ("1,512,512,3,9", r"gemm\.csv:10: expected 4 columns, found 5"),
        ("1,512,512", r"gemm\.csv:10: expected 4 columns, found 3"),
        ("1,4e9,4e9,3", r"map\.yaml:7:5: gemm\.csv: expected FLOPs and bytes below 2\^62, found a larger matmul"),
    ],
)
def test_sizes_that_no_kernel_has_are_refused(mapping: Path, tmp_path: Path, row: str, expected: str) -> None:
    with (tmp_path / "gemm.csv").open("a") as file:
        file.write(f"{row}\n")
    with pytest.raises(InputError, match=expected):
        read_tables(mapping)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("m,n,k,m,time\n1,2,3,4,5\n", r"gemm\.csv:1: expected each column once, found 'm' twice"),
        ("m,n,k,time\n", r"map\.yaml:7:11: gemm\.csv: expected a header and rows, found no rows"),
        ("", r"map\.yaml:7:11: gemm\.csv: expected a header and rows, found no rows"),
        ('m,n,k,time\n1,2,3,"4\n', r"gemm\.csv: cannot be read as a table: unexpected end of data"),
    ],
    ids=["a column twice", "a header alone", "empty", "an open quote"],
)
def test_a_file_that_is_no_table_is_refused(mapping: Path, tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "gemm.csv").write_text(content)
    with pytest.raises(InputError, match=expected):
        read_tables(mapping)


def test_a_folder_is_no_table(mapping: Path, tmp_path: Path) -> None:
    for name in ("tables.csv", "tables"):
        (tmp_path / name).mkdir()
        mapping.write_text(MAPPING.replace("gemm.csv", name))
        with pytest.raises(InputError, match=rf"{name}: expected a CSV or Parquet file, found a folder"):
            read_tables(mapping)


def test_limits_that_leave_nothing_to_fit_to_are_refused(mapping: Path) -> None:
    mapping.write_text(MAPPING.replace("n: 2048", "n: 0"))
    with pytest.raises(InputError, match=r"map\.yaml:12:16: expected limits that leave rows to fit to, found none"):
        read_tables(mapping)


def test_a_kernel_with_a_cache_is_found() -> None:
    """3 us, 5 TB/s from a cache of 10 MB and 5 TB/s more beyond, 1 GHz along k up to 2048, 4 GHz along n."""
    rng = np.random.default_rng(0)
    m = np.repeat([1, 8], 150)
    n, k = rng.integers(64, 16384, (2, 300))
    moved = 2 * n * k
    time = 3_000_000 + moved / 5 * (1 + (moved > 10**7)) + np.minimum(k, 2048) * 1000 + n * 250
    samples = Samples({
        "kind": ["matmul"] * 300, "dtype": ["bfloat16"] * 300, "rows": m, "n": n, "k": k, "bytes_read": moved,
        "flops": 2 * m * n * k, "duration": np.rint(time),
    })  # fmt: skip
    here = Provenance(device="made up", source="by hand", date="2026-01-01")
    profile = fit(samples, here, bandwidth=3 * 10**12, cache=10**7)
    (timing,) = profile.timings
    assert timing.form == "cached"
    for row in timing.rows.values():
        found = row.coefficients
        assert found["split"] == 2048
        assert found["cache"] == 10**7
        assert found["overhead"] == pytest.approx(3_000_000, rel=0.02)
        assert found["bandwidth"] == pytest.approx(5 * 10**12, rel=0.01)
        assert found["beyond"] == pytest.approx(5 * 10**12, rel=0.01)
        assert found["chain"] == pytest.approx(10**9, rel=0.02)
        assert found["tiles"] == pytest.approx(4 * 10**9, rel=0.02)
    assert predict(profile, samples) == pytest.approx(time, rel=0.01)
