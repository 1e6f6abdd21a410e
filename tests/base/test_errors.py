"""Hints to the nearest valid name."""

import pytest

from sim.base.errors import nearest, same_format

WEIGHTS = ("bf16", "fp8", "int8", "int4", "mxfp4", "nvfp4", "q4_0", "q4_K")
DTYPES = ("bfloat16", "float16", "float32")


@pytest.mark.parametrize(
    ("word", "valid", "meant"),
    [
        ("bfloat16", WEIGHTS, "bf16"),
        ("torch.bfloat16", WEIGHTS, "bf16"),
        ("BF16", DTYPES, "bfloat16"),
        ("fp16", DTYPES, "float16"),
        ("half", DTYPES, "float16"),
        ("float16", WEIGHTS, "bf16"),  # of as many bits, where there is no fp16
        ("float8_e4m3fn", WEIGHTS, "fp8"),
        ("q4_k_m", WEIGHTS, "q4_K"),
        ("h100", ("h200", "h100-sxm"), "h100-sxm"),
    ],
)
def test_the_nearest_name(word: str, valid: tuple[str, ...], meant: str) -> None:
    assert nearest(word, valid) == f" (did you mean {meant!r}?)"


def test_no_name_is_near() -> None:
    assert nearest("fp8", DTYPES) == nearest("tpu", WEIGHTS) == ""


def test_names_of_a_format_mean_it_alone() -> None:
    assert same_format("bfloat16", ["float16"]) is None
    assert same_format("bfloat16", ["bf16", "float16"]) == "bf16"
    assert same_format("int5", WEIGHTS) is None
