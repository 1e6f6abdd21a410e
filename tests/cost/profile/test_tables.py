"""Kernel tables become samples and a profile; errors in a mapping are reported with their place."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import models.library
from sim.base.errors import InputError
from sim.cli import cli
from sim.cost.model import Rates
from sim.cost.profile import (
    MULTI_HEAD,
    DeviceProfile,
    Provenance,
    Samples,
    cache_advice,
    fit,
    predict,
    read_profile,
    read_tables,
    write_profile,
)
from sim.cost.profiled import Profiled, calls
from sim.mapping.settings import ModelMapping
from sim.mapping.steps import LaidOut, Shape, StepGraphs
from sim.runs.model import Layout
from sim.workload.routing import Uniform
from tests.mapping.test_template import graphs, lanes

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
    rows = [line.split() for line in result.output.splitlines()[1:3]]
    assert rows == [["matmul", "(bfloat16)", "sum", "fitted", "6", *3 * ["0.0%"]], ["others", "2", *3 * ["0.0%"]]]


def test_errors_by_time_count_a_row_as_much_as_it_takes(mapping: Path, tmp_path: Path) -> None:
    """The others: one of 10 us that is predicted as measured, one of 1,000 us that took half of what is predicted."""
    rows = "\n".join(f"1,512,{k},{2 + 2 * (512 * k + 512 + k) * 1e-6}" for k in (256, 512, 1024, 2048))
    small, large = (2 + 2 * (4096 * k + 4096 + k) * 1e-6 for k in (1024, 131072))
    (tmp_path / "gemm.csv").write_text(f"m,n,k,time\n{rows}\n1,4096,1024,{small}\n1,4096,131072,{large / 2}\n")
    result = CliRunner().invoke(cli, ["import-kernels", str(mapping), "-o", str(tmp_path / "device.yaml")])
    others = next(line.split() for line in result.output.splitlines() if "others" in line)
    assert float(others[-1].rstrip("%")) == pytest.approx(100 * large / 2 / (small + large / 2), abs=0.5)  # the fit rounds


@pytest.mark.parametrize(
    ("cache", "faster", "advice"),
    [
        (None, 1, None), ("10 MB", 4, None),
        (None, 4, "cache: 8 of 8 rows move their bytes faster than 1 TB/s, the largest 8.399 MB: name the size"),
        ("4 MB", 4, "rows move more than its 4.000 MB faster than 1 TB/s, the largest 8.399 MB: is it larger?"),
        ("4 MB", 1, "cache: no row moves its bytes faster than 1 TB/s, so that operands came from memory; kernels of more than "
         "4.000 MB have a second rate all the same"),
    ],
)  # fmt: skip
def test_advice_on_the_cache(mapping: Path, tmp_path: Path, cache: str | None, faster: int, advice: str | None) -> None:
    """Bytes at 1 TB/s, or four times as fast and more."""
    rows = "\n".join(f"1,{n},{k},{(2 * (n * k + n + k) * 1e-6) * 1.01 / faster}" for _, n, k, _ in GEMM)
    (tmp_path / "gemm.csv").write_text(f"m,n,k,time\n{rows}\n")
    if cache is not None:
        mapping.write_text(MAPPING.replace("bandwidth: 1 TB/s\n", f"bandwidth: 1 TB/s\ncache: {cache}\n"))
    found = cache_advice(read_tables(mapping))
    assert (found is None) if advice is None else (found is not None and advice in found)


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


def test_columns_may_be_numbers_and_expressions_of_some_rows(mapping: Path) -> None:
    """Rows with k = 256, four of eight; depth is a number, and time is halved."""
    mapping.write_text(MAPPING.replace("n: n, k: k, duration: time", "n: n * 2 + 1 - m, k: 100, duration: (time + time) / 4")
                       .replace("    unit", "    where: {k: [256, 9], m: 1}\n    unit"))  # fmt: skip
    samples = read_tables(mapping).samples
    expected = [(2 * n, 100, round(time / 2 * 10**6)) for _, n, k, time in GEMM if k == 256]
    assert list(zip(samples.n.tolist(), samples.k.tolist(), samples.duration.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("k: k", "k: 2 * depth", "map.yaml:11:33: no column 'depth' in gemm.csv; it has m, n, k, time"),
        ("k: k", "k: 2 ** k", "map.yaml:11:33: '2 ** k': expected names of columns, numbers, and + - * / of them"),
        ("k: k", "k: print(k)", "map.yaml:11:33: 'print(k)': expected names of columns, numbers, and + - * / of them"),
        ("k: k", "k: k / 0", "map.yaml:11:33: column 'k / 0' does not hold numbers: not finite, or too large"),
        ("k: k", "k: 0.5 * k - 0.25", "expected whole numbers from 1, found 127.75"),
        ("unit:", "where: {m: 2}\n    unit:", "map.yaml:10:16: gemm.csv: expected values that leave rows, found none"),
        ("unit:", "where: {rows: 2}\n    unit:", "map.yaml:10:19: no column 'rows' in gemm.csv; it has m, n, k, time"),
    ],
)
def test_expressions_that_say_nothing_have_their_place(mapping: Path, old: str, new: str, expected: str) -> None:
    test_errors_in_a_mapping_have_their_place(mapping, old, new, expected)


def test_attention_of_prompts_is_a_kind_of_its_own(tmp_path: Path, mapping: Path) -> None:
    """5 us, 1 TB/s and 500 TFLOP/s: the profile finds these, for any number of rows."""
    rows = [(b, q, 100 * p, h) for b in (1, 2) for q in (300, 900, 3000) for p in (0, 1, 40) for h in (8, 32)]

    def time(b: int, q: int, past: int, h: int) -> float:
        pairs = q * past + q * (q + 1) // 2  # of a causal mask
        flops, size = 4 * b * h * 64 * pairs, 2 * 2 * b * 8 * 64 * (past + q) + 2 * 2 * b * q * h * 64
        return 5 + flops / 500e6 + size / 1e6

    lines = (f"{b},{q},{p},{h},{time(b, q, p, h):.6f}" for b, q, p, h in rows)
    (tmp_path / "p.csv").write_text("b,q,past,h,time\n" + "\n".join(lines) + "\n")
    columns = "{rows: b * q, sequences: b, heads: h, kv_heads: 8, head_dim: 64, context: past + q, duration: time}"
    text = MAPPING.replace("gemm.csv", "p.csv").replace("kind: matmul", "kind: prefill_attention")
    text = text.replace("{rows: m, n: n, k: k, duration: time}", columns).replace("    calibrate: {n: 2048}\n", "")
    mapping.write_text(text.replace("bandwidth:", "flops: {bfloat16: 600 TFLOP/s}\nbandwidth:"))
    result = CliRunner().invoke(cli, ["import-kernels", str(mapping), "-o", str(tmp_path / "device.yaml"), "--all"])
    assert result.exit_code == 0, result.output
    profile = read_profile(tmp_path / "device.yaml")
    (timing,) = profile.timings
    assert (timing.kind, timing.form, profile.flops) == ("prefill_attention", "sum", {"bfloat16": 600 * 10**12})
    assert list(timing.rows) == [300, 6000]
    assert timing.rows[300].coefficients == pytest.approx(
        {"overhead": 5_000_000, "bandwidth": 10**12, "rate": 500 * 10**12}, rel=1e-3
    )
    samples = read_tables(mapping).samples
    assert predict(profile, samples) == pytest.approx(samples.duration, rel=1e-3)


MIXED_MAPPING = """
device: a device
source: written by hand
date: "2026-01-01"
bandwidth: 2 TB/s
flops: {bfloat16: 600 TFLOP/s}
tables:
  - file: mixed.csv
    kind: mixed_attention
    dtype: bfloat16
    unit: us
    columns: {rows: p * q, sequences: p, context: past + q, decodes: d, decode_context: kv, heads: 32, kv_heads: 8,
              head_dim: 64, duration: time}
"""


def mixed_time(p: int, q: int, past: int, d: int, kv: int) -> float:
    """5 us, then the later of bytes at 1 TB/s and FLOPs at 500 TFLOP/s, of p prompts of q tokens and d decodes together."""
    flops = 4 * 32 * 64 * (p * (q * past + q * (q + 1) // 2) + d * kv)
    size = 2 * 2 * 8 * 64 * (p * (past + q) + d * kv) + 2 * 2 * 32 * 64 * (p * q + d)
    return 5 + max(flops / 500e6, size / 1e6)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A table in which prompts and decodes share launches, and in 7 of 25 rows have one of their own."""
    rows = [(1, q, past, d, kv) for q in (64, 512, 3000) for past in (0, 2000) for d, kv in ((1, 500), (16, 2000), (64, 4000))]
    rows += [(2, q, 100, 0, 0) for q in (128, 1024, 2048)] + [(0, 0, 0, d, 3000) for d in (1, 2, 8, 64)]
    lines = (",".join(map(str, (*row, f"{mixed_time(*row):.6f}"))) for row in rows)
    (tmp_path / "mixed.csv").write_text("p,q,past,d,kv,time\n" + "\n".join(lines) + "\n")
    (tmp_path / "mixed.yaml").write_text(MIXED_MAPPING)
    return tmp_path / "mixed.yaml"


def test_prompts_and_decodes_in_one_launch_are_a_kind_of_its_own(mixed: Path, tmp_path: Path) -> None:
    """The profile finds the constants of `mixed_time`, for rows with both parts and for those with one of them."""
    result = CliRunner().invoke(cli, ["import-kernels", str(mixed), "-o", str(tmp_path / "device.yaml"), "--all"])
    assert result.exit_code == 0, result.output
    profile, samples = read_profile(tmp_path / "device.yaml"), read_tables(mixed).samples
    assert {kind: int((samples.kind == kind).sum()) for kind in sorted(set(samples.kind))} == {
        "attention": 4, "mixed_attention": 18, "prefill_attention": 3,
    }  # fmt: skip
    found = profile.timing(["mixed_attention"], "bfloat16")
    assert found is not None
    assert (found.form, list(found.rows)) == ("later", [64 + 1, 3000 + 64])
    assert found.rows[65].coefficients == pytest.approx(
        {"overhead": 5_000_000, "bandwidth": 10**12, "rate": 500 * 10**12}, rel=1e-3
    )
    of_both = samples.take(samples.kind == "mixed_attention")
    assert predict(profile, of_both) == pytest.approx(of_both.duration, rel=1e-3)


@cache
def flash_attention(attention: str) -> StepGraphs:
    """One layer of Llama 3.2 1B with attention as one kernel."""
    mapping = ModelMapping.model_validate({
        "kv": "operands", "execution": "stream", "heads": "fused", "softmax": "online", "attention": attention,
    })  # fmt: skip
    layout = Layout(mapping=mapping, layers=1, scope="model", kv_heads=8, element=2)
    return StepGraphs(LaidOut(models.library.load("llama-3.2-1b").variants, layout), mapping, Uniform(0))


def test_a_step_with_prompts_and_decodes_takes_the_time_of_their_one_launch(mixed: Path, tmp_path: Path) -> None:
    """A prompt of 300 tokens beside decodes at 900 and 400: one launch; alone, or by a profile without them, one of each."""
    CliRunner().invoke(cli, ["import-kernels", str(mixed), "-o", str(tmp_path / "device.yaml"), "--all"])
    device = read_profile(tmp_path / "device.yaml")
    apart = replace(device, timings=tuple(each for each in device.timings if each.kind != "mixed_attention"))
    rates = Rates(flops=6 * 10**14, vector_flops=33 * 10**12, overhead=0, bandwidth=2 * 10**12, overlap=True)

    def microseconds(profile: DeviceProfile, *members: tuple[int, int, int], attention: str = "batch") -> float:
        costs = Profiled(machine=rates, seed=0, profile=profile, otherwise="roofline")
        ops = flash_attention(attention)(Shape(tuple(query > 1 for _, query, _ in members))).ops
        times = costs.op_times(ops, lanes(list(members), len(members)))
        return float(times.whole[[op.kind == "attention" for op in ops.ops]].sum()) / 1e6

    prompt, decodes = (0, 300, 0), ((900, 1, 900), (400, 1, 400))
    flops = 4 * 32 * 64 * (300 * 301 // 2 + 901 + 401)
    size = 2 * 2 * 8 * 64 * (300 + 901 + 401) + 2 * 2 * 32 * 64 * 302
    for attention in ("batch", "sequence"):
        whole = microseconds(device, prompt, *decodes, attention=attention)
        assert whole == pytest.approx(5 + max(flops / 500e6, size / 1e6), rel=1e-3)
    for members in ((prompt,), decodes):
        assert microseconds(device, *members) == microseconds(apart, *members)
    assert microseconds(apart, prompt, *decodes) == pytest.approx(
        microseconds(apart, prompt) + microseconds(apart, *decodes), rel=1e-4
    )
    assert microseconds(device, prompt, *decodes) < microseconds(apart, prompt, *decodes) - 4  # a launch less


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("0,0,0,0,9,3", r"mixed\.yaml:12:14: mixed\.csv: expected rows or decodes, found a row that has neither"),
        ("1,9,0,-1,9,3", r"mixed\.yaml:12:70: column 'd' of mixed\.csv: expected whole numbers from 0, found -1"),
        ("1,0.5,9,1,9,3", r"column 'p \* q' of mixed\.csv: expected whole numbers from 0, found 0\.5"),
    ],
)
def test_rows_of_mixed_attention_that_no_launch_has_are_refused(mixed: Path, row: str, expected: str) -> None:
    with mixed.with_suffix(".csv").open("a") as file:
        file.write(f"{row}\n")
    with pytest.raises(InputError, match=expected):
        read_tables(mixed)


def test_columns_of_mixed_attention_are_of_no_other_kind(mapping: Path) -> None:
    mapping.write_text(MAPPING.replace("n: n,", "n: n, decodes: m,"))
    with pytest.raises(InputError, match=r"map\.yaml:11:39: 'decodes' is of mixed_attention, found it in a table of matmul"):
        read_tables(mapping)
    mapping.write_text(MAPPING.replace("kind: matmul", "kind: mixed_attention"))
    with pytest.raises(InputError, match=r"map\.yaml:11:14: the key 'heads' is missing"):
        read_tables(mapping)


def test_more_sequences_than_new_tokens_are_refused(mixed: Path) -> None:
    mixed.write_text(MIXED_MAPPING.replace("sequences: p", "sequences: 100"))
    with pytest.raises(InputError, match=r"expected rows of at least one for each of 100 sequences, found 64"):
        read_tables(mixed)


@pytest.mark.parametrize(("new", "past"), [(300, 0), (7, 1000)])
def test_flops_of_prompts_are_those_of_the_op_graph(mixed: Path, new: int, past: int) -> None:
    """A causal mask lets Q N + Q (Q + 1) / 2 pairs through, in tables as in graphs."""
    (mixed.parent / "mixed.csv").write_text(f"p,q,past,d,kv,time\n1,{new},{past},0,0,9\n")
    ops = graphs("llama-3.2-1b", "operands")(Shape((True,))).ops
    step = lanes([(past, new, past)], 1)
    launch = next(each[0][0] for rows, each in calls(ops, step) if ops.ops[rows[0]].kind == "attention")
    pairs = new * past + new * (new + 1) // 2
    assert read_tables(mixed).samples.flops.tolist() == launch.shapes.flops.tolist() == [4 * 32 * 64 * pairs]


def attention_samples(contexts: list[int], factor: float) -> Samples:
    """Decode attention of 8 and of 32 heads; that of 32 takes `factor` times what a formula says beyond 1,000 tokens."""
    heads, context = (grid.ravel() for grid in np.meshgrid([8, 16, 24, 32], contexts))
    moved = 2 * 2 * 8 * 64 * context
    slow = np.where((heads == 32) & (context > 1000), factor, 1.0)
    return Samples({
        "kind": ["attention"] * len(heads), "dtype": ["bfloat16"] * len(heads), "rows": np.ones_like(heads), "heads": heads,
        "kv_heads": np.full_like(heads, 8), "head_dim": np.full_like(heads, 64), "context": context, "bytes_read": moved,
        "flops": 4 * heads * 64 * context, "duration": np.rint((5_000_000 + moved) * slow),
    })  # fmt: skip


def test_near_measured_shapes_times_are_interpolated(tmp_path: Path) -> None:
    """One form is more than a fifth too low for 32 heads; with the factors of the shapes beside it, 1 %."""
    measured = attention_samples([16, 128, 512, 2048, 4096, 8192, 16384], 2.0)
    here = Provenance(device="made up", source="by hand", date="2026-01-01")
    between = attention_samples([3000, 6000, 12_000], 2.0)
    between = between.take(between.heads == 32)
    form, near = (fit(measured, here, bandwidth=10**12, near=near) for near in (False, True))
    errors = [np.abs(predict(profile, between) / between.duration - 1) for profile in (form, near)]
    assert errors[0].max() > 0.2
    assert errors[1].max() < 0.01
    assert predict(near, measured) == pytest.approx(measured.duration, rel=1e-4)
    write_profile(near, tmp_path / "device.yaml")
    assert read_profile(tmp_path / "device.yaml") == near
    others = between.take(between.heads == 32)
    others.columns["heads"] = np.full(len(others), 20)  # not measured: by the form
    assert predict(near, others) == pytest.approx(predict(form, others), rel=1e-12)


def test_factors_of_a_profile_are_checked(tmp_path: Path) -> None:
    write_profile(fit(attention_samples([16, 128], 1.0), Provenance(device="d", source="s", date="2026-01-01"),
                      bandwidth=10**12, near=True), tmp_path / "device.yaml")  # fmt: skip
    text = (tmp_path / "device.yaml").read_text()
    (tmp_path / "device.yaml").write_text(text.replace('"16: ', '"900: ', 1))
    with pytest.raises(InputError, match=r"near.*expected ascending contexts with factors, such as '2: 0.98, 4: 1.013'"):
        read_profile(tmp_path / "device.yaml")


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
        with pytest.raises(InputError, match=rf"{name}: expected a file, found a folder"):
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
