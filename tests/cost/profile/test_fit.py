"""Fits find the coefficients that samples were made from, and files return what was written."""

from __future__ import annotations

import numpy as np
import pytest

from sim.base.errors import InputError
from sim.cost.profile import Provenance, Samples, fit, read_profile, read_samples, write_profile, write_samples

HERE = Provenance(device="test", source="written by hand", date="2026-01-01", libraries={"torch": "2.13.0"}, rounds=3)


def product(m: int, n: int, k: int, duration: float) -> dict[str, int]:
    return {
        "rows": m, "n": n, "k": k, "flops": 2 * m * n * k, "bytes_read": 2 * (n * k + m * k), "bytes_written": 2 * m * n,
        "duration": round(duration),
    }  # fmt: skip


def products() -> Samples:
    """At m rows: m us, 10 GB/s (100 ps a byte) and 1 ns an output."""
    rows = []
    for m in (1, 4):
        for n in (512, 1024, 3072, 8192):
            for k in (256, 2048, 5120):
                rows.append(product(m, n, k, m * 1_000_000 + 100 * 2 * (n * k + m * k + m * n) + 1000 * m * n))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return Samples({**columns, "kind": ["matmul"] * len(rows), "dtype": ["bfloat16"] * len(rows)})


def scores() -> Samples:
    """2 us, and the later of 10 GB/s and 1 TFLOP/s (1 ps each): several queries share a key, so either can be later."""
    shapes = [(group, context) for group in (1, 8, 64, 200, 512) for context in (256, 1000, 4096)]
    flops = np.array([2 * 8 * group * 64 * context for group, context in shapes])
    moved = np.array([2 * 8 * 64 * context for _, context in shapes])
    return Samples({
        "kind": ["scores"] * len(shapes), "dtype": ["float32"] * len(shapes), "heads": [8 * group for group, _ in shapes],
        "context": [context for _, context in shapes], "flops": flops, "bytes_read": moved,
        "duration": 2_000_000 + np.maximum(100 * moved, flops),
    })  # fmt: skip


def test_a_sum_is_found() -> None:
    (timing,) = fit(products(), HERE, bandwidth=10**11).timings
    assert (timing.form, timing.unit) == ("sum", "outputs")
    for m in (1, 4):
        found = timing.rows[m].coefficients
        assert found["overhead"] == pytest.approx(m * 1_000_000, rel=1e-3)
        assert found["bandwidth"] == pytest.approx(10**10, rel=1e-6)
        assert found["rate"] == pytest.approx(10**9, rel=1e-3)
        assert timing.rows[m].residual.p90 < 1e-4
    assert timing.ranges["n"] == (512, 8192)


def test_the_later_of_two_is_found() -> None:
    (timing,) = fit(scores(), HERE, bandwidth=10**11).timings
    assert (timing.form, timing.unit) == ("later", "flops")
    assert timing.rows[1].coefficients == {
        "overhead": pytest.approx(2_000_000, rel=1e-4),
        "bandwidth": pytest.approx(10**10, rel=1e-6),
        "rate": pytest.approx(10**12, rel=1e-6),
    }


def test_streams_are_medians_of_all_together() -> None:
    streams = Samples(
        {"kind": ["read"] * 4, "bytes_read": [1000] * 4, "duration": [100, 100, 150, 170], "streams": [1, 1, 2, 2]}
    )
    both = Samples.concatenate([products(), streams])
    profile = fit(both, HERE)
    assert profile.read == {1: 10 * 10**12, 2: pytest.approx(2 * 1000 / 160 * 10**12, rel=0.01)}
    assert profile.bandwidth == max(profile.read.values())


def test_large_products_count_more_than_large_ops_of_other_kinds() -> None:
    """Nothing but an overhead x fits 1 us and 4 us. Others: the x that minimizes the sum of (x / d - 1)^2,
    (1 + 1/4) / (1 + 1/16); products: of ((x - d) / d^0.75)^2, (1 + 4^-0.5) / (1 + 4^-1.5)."""
    samples = Samples(
        {"kind": ["norm", "norm", "matmul", "matmul"], "heads": [1, 2, 1, 2], "duration": [10**6, 4 * 10**6] * 2}
    )  # fmt: skip
    found = {timing.kind: timing.rows[1].coefficients["overhead"] for timing in fit(samples, HERE, bandwidth=1).timings}
    assert found["norm"] == pytest.approx(1.25 / 1.0625 * 1e6, rel=1e-6)
    assert found["matmul"] == pytest.approx(1.5 / 1.125 * 1e6, rel=1e-6)


def test_a_step_is_more_than_its_ops() -> None:
    """1.1 x sum + 2 us an op + 5 us, whatever happened in one round of three."""
    rng = np.random.default_rng(1)
    rows: list[dict[str, object]] = []
    for model, count in enumerate((10, 17, 24, 31)):
        times = rng.integers(1_000_000, 90_000_000, count)
        for number, disturbed in enumerate((1, 1, 3)):
            step = {"step": 3 * model + number, "model": f"model {model}", "round": number}
            rows += [
                {**step, "kind": "norm", "n": i, "elements": i, "duration": disturbed * int(t)} for i, t in enumerate(times)
            ]
            whole = 1.1 * int(times.sum()) + count * 2_000_000 + 5_000_000
            rows.append({**step, "kind": "step", "ops": count, "duration": disturbed * round(whole)})
    defaults = {"n": 0, "elements": 0, "ops": 1}
    names = ("kind", "model", "n", "elements", "step", "round", "duration", "ops")
    columns = {name: [{**defaults, **row}[name] for row in rows] for name in names}
    found = fit(Samples(columns), HERE, bandwidth=1).step
    assert found.scale == pytest.approx(1.1, rel=1e-5)
    assert found.per_op == pytest.approx(2_000_000, rel=1e-3)
    assert found.per_step == pytest.approx(5_000_000, rel=1e-2)


def test_files_return_what_was_written(tmp_path) -> None:  # type: ignore[no-untyped-def]
    profile = fit(products(), HERE, bandwidth=10**11, title='a "device"', capacity=10**9)
    write_profile(profile, tmp_path / "device.yaml")
    assert read_profile(tmp_path / "device.yaml") == profile
    samples = products()
    write_samples(samples, tmp_path / "device.parquet")
    back = read_samples(tmp_path / "device.parquet")
    assert all((back.columns[name] == samples.columns[name]).all() for name in samples.columns)


def test_errors_in_a_profile_are_one_line(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "device.yaml"
    write_profile(fit(products(), HERE, bandwidth=10**11), path)
    text = path.read_text()
    for old, new, expected in (
        ("form: sum", "form: sums", ".form: expected one of cached, later, sum, found 'sums' (did you mean 'sum'?)"),
        ("bandwidth: 100 GB/s", "bandwidth: 100", "expected a bandwidth with its unit"),
        (
            "form: sum",
            "from: sum",
            "ops.matmul.bfloat16: unknown key 'from' (did you mean 'form'?); valid: form, unit, ranges, rows",
        ),
        (
            "overhead:",
            "overhed:",
            "ops.matmul.bfloat16.rows.1: unknown key 'overhed' (did you mean 'overhead'?); valid: overhead, ba",
        ),
        ("k: [", "kk: [", "ops.matmul.bfloat16.ranges: unknown key 'kk' (did you mean 'k'?)"),
        ('"1":', '"0":', "ops.matmul.bfloat16.rows.0: expected as key a whole number from 1 to 999999, found '0'"),
        ("unit: outputs", "unit: output", "expected one of elements, flops, outputs, found 'output' (did you mean 'outputs'?)"),
        ("rounds: 3", "rounds: 0", "provenance.rounds: expected a number from 1, found 0"),
        ("median: 0", "median: -1", ".median: expected a number from 0, found -1"),
        ("title:", "titel:", "unknown key 'titel' (did you mean 'title'?)"),
        ("n: [512, 8192]", "n: [512]", "expected [smallest, largest], two whole numbers"),
        ("n: [512, 8192]", "n: [8192, 512]", "expected [smallest, largest], two whole numbers"),
        ("n: [512, 8192]", "n: [0.5, 8192]", "expected [smallest, largest], two whole numbers"),
        ("n: [512, 8192]", "n: [true, 8192]", "expected [smallest, largest], two whole numbers"),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(InputError) as error:
            read_profile(path)
        assert expected in str(error.value)
        assert str(error.value).startswith(f"{path}:")


def test_no_samples_no_profile() -> None:
    with pytest.raises(InputError, match="expected samples of ops"):
        fit(Samples({}), HERE, bandwidth=1)
    with pytest.raises(ValueError, match="unknown column 'm'"):
        Samples({"m": [1]})
