"""Roofline costs: the closed form of one op, and public measurements, none of which is below the bound."""

from __future__ import annotations

import pytest

import sim
from sim.scenario import from_dict


def makespan(op: dict, **hardware: object) -> int:  # type: ignore[type-arg]
    """Picoseconds of one op alone on one engine that computes while operands load."""
    engines = {"count": 1, "flops": "2 TFLOP/s", "vector_flops": "1 TOP/s", **hardware.pop("engines", {})}  # type: ignore[dict-item]
    written = {
        "model": {"graph": [{"name": "op", **op}]},
        "hardware": {**hardware, "engines": engines},
        "mapping": {"execution": "stream", "heads": "fused"},
    }
    return sim.run(from_dict(written)).makespan


@pytest.mark.parametrize(("flops", "elements", "expected"), [
    (2 * 10**9, 10**8, 10**9),  # 1 ms of products hides 0.1 ms of vector work
    (2 * 10**8, 10**9, 10**9),  # and the other way round
    (2 * 10**9, 0, 10**9), (0, 10**9, 10**9),
])  # fmt: skip
def test_vector_work_overlaps_the_products_of_its_task(flops: int, elements: int, expected: int) -> None:
    op = {"flops": flops, "vector_ops": elements, "kind": "attention"}
    assert makespan(op) == expected
    assert makespan(op, engines={"overhead": "5 us"}) == expected + 5 * 10**6, "an overhead is paid on top"
