"""Published figures of engines: the table is sound, the page is what the table gives, and no figure beats physics."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import models.library
from benchmarks.fidelity.public import (
    AIMS,
    LONE_PROMPTS,
    Compared,
    Row,
    compare,
    measured,
    page,
    seconds,
    shown,
    table,
    two_lines,
)
from benchmarks.pages import BY_HAND
from models.graph import QUANTITIES
from sim.machine.presets import PRESETS, find
from sim.runs.model import op_graphs
from sim.scenario import from_dict

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/fidelity_public.md").read_text(encoding="utf-8")
FOUND = table()

#: Numbers of llama-2-7b in matrices of blocks, and in the LM head. All else that a step reads is a few percent.
BLOCKS, HEAD = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 32000 * 4096


def row(preset: str, weights: str, measure: str = "decode") -> Row:
    """The first row of llama-2-7b on a device."""
    wanted = ("llama-2-7b", preset, weights, measure)
    return next(each for each in FOUND.rows if (each.model, each.preset, each.format, each.measure) == wanted)


def lines(use: str | None = None) -> list[list[str]]:
    """Cells of the rows of figures on the page, in its order."""
    cells = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
    at = PAGE[: PAGE.index("\n## Figures that constants were fitted to")].count("\n| `")
    return {"judge": cells[:at], "fit": cells[at:]}.get(use or "", cells)


def test_every_row_names_a_preset_a_model_a_format_and_a_source() -> None:
    assert len(FOUND.rows) >= 40
    assert len({each.preset for each in FOUND.rows}) >= 12
    for each in FOUND.rows:
        assert each.preset in PRESETS.names()
        assert each.model in models.library.names()
    assert {each.format for each in FOUND.rows} == FOUND.formats.keys()
    steps = [step for beside in FOUND.beside for step in beside.steps]
    assert {each.source for each in (*FOUND.rows, *steps)} == FOUND.sources.keys()
    classed = Counter(preset for presets in FOUND.classes.values() for preset in presets)
    assert set(classed.values()) == {1}
    assert {FOUND.class_of(each) for each in FOUND.rows} == AIMS.keys()


def test_no_figure_is_given_twice() -> None:
    conditions = [each.model_dump(exclude={"value", "use", "hardware"}) for each in FOUND.rows]
    assert all(conditions.count(one) == 1 for one in conditions)


def test_two_lines_are_compared_with_figures_of_five_devices_and_more() -> None:
    """Weights of an 8B, 7.504e9 numbers of 2 bytes, at the 1.008 TB/s of an RTX 4090: at most 67.2 tokens/s."""
    compared = two_lines(FOUND)
    assert len(compared) >= 5
    row, rate = compared["rtx-4090"]
    assert 0.8 * 67.2 < rate < 67.2
    assert all(abs(row.value / rate - 1) < 0.1 for row, rate in compared.values())
    assert (
        f"| rtx-4090 | {row.model} | {row.engine} {row.version} | {row.context:,} | {row.value:g} tokens/s | {rate:.4g}" in PAGE
    )


def test_a_row_without_its_sizes_is_an_error() -> None:
    text = FOUND.rows[0].model_dump(exclude_defaults=True) | {"context": 0}
    with pytest.raises(ValueError, match="decode: expected context"):
        Row(**text)


def test_times_of_an_engine_beside_the_preset_are_what_they_were_derived_from() -> None:
    """A layer of Qwen3-30B-A3B reads 8 experts of 3 x 2048 x 768 numbers of 2 bytes; five of its kernels are in the graph."""
    (vllm,) = FOUND.beside
    preset = find(vllm.preset)
    known, achievable = preset.kernel, preset.achievable
    assert known is not None
    assert achievable is not None
    launches = 2 * known.t0["matmul"].value + 3 * known.t0["other"].value
    fused = 109.21e6 - 8 * 3 * 2048 * 768 * 2 / (1.555 * achievable.value["1"]) - launches  # ps; 1.555 TB/s: bytes/ps
    wanted = known.t0["other"].value + fused
    assert {step.t0["dispatch"] for step in vllm.steps} == {f"{wanted / 1e6:.1f} us"}
    small = Row(**{**vllm.rows(FOUND)[0].model_dump(), "model": "qwen3-0.6b", "value": 4.2})
    assert vllm.steps[-1].host == f"{1e3 * (measured(small) - seconds(FOUND, small)):.1f} ms"


def test_times_of_an_engine_explain_what_its_mixture_takes_beside_the_preset() -> None:
    """Alone 21 % too fast; with the kernels of routing, and host times of two dense models, the published time is enclosed."""
    (vllm,) = FOUND.beside
    each = vllm.rows(FOUND)[0]
    times = [seconds(FOUND, each, {"model": "kernel", "t0": step.t0}, step.host) for step in vllm.steps]
    alone, routing, least, most = seconds(FOUND, each), *times
    assert routing == pytest.approx(alone + 48 * 25.4e-6, abs=1e-9), "48 layers"
    assert least == pytest.approx(routing + 0.59e-3, abs=1e-9)
    assert alone < least < measured(each) < most
    assert f"| {each.value:g} ms | {1e3 * alone:.2f} ms, -21 % | {1e3 * routing:.2f} ms, " in PAGE


def test_constants_that_rows_were_fitted_to_are_of_their_engine() -> None:
    for each in FOUND.rows:
        if each.use == "fit":
            assert each.engine in {software.name for software in find(each.preset).software}, each
    for name in PRESETS.names():
        preset = find(name)
        keys = {key.removeprefix("kernel.") for key, _ in preset.figures()} | {"t0"}
        for software in preset.software:
            assert set(software.constants) <= keys


def test_the_page_has_each_figure_once_as_published() -> None:
    of_table = [(f"`{each.preset}`", each.model, f"{each.value:,g}") for each in FOUND.rows]
    of_page = [(cells[0], cells[1], cells[7].split()[0]) for cells in lines()]
    assert Counter(of_page) == Counter(of_table)
    assert len(lines("fit")) == sum(each.use == "fit" for each in FOUND.rows)


@pytest.mark.parametrize(
    ("preset", "weights", "measure"),
    [("a100-80g-sxm", "bf16", "decode"), ("apple-m2", "q8_0, float", "decode"), ("l40s", "fp8, KV fp8", "throughput")],
)
def test_rows_of_the_page_are_what_the_simulation_gives(preset: str, weights: str, measure: str) -> None:
    each = row(preset, weights, measure)
    found = Compared(each, seconds(FOUND, each), measured(each))
    wanted = (f"`{preset}`", weights, measure, f"{each.value:,g}")
    (cells,) = [cells for cells in lines() if (cells[0], cells[2], cells[4], cells[7].split()[0]) == wanted]
    assert cells[8].split()[0] == shown(found)
    assert cells[9] == f"{100 * found.error:+.0f} %"


def test_medians_are_those_of_the_rows_that_judge_and_within_the_aims_of_decode() -> None:
    errors: dict[str, list[float]] = {name: [] for name in AIMS}
    for title, body in re.findall(r"^## (Decode.*|TTFT.*)\n\n((?:\|.*\n)+)", PAGE, re.MULTILINE):
        errors[title[0].lower() + title[1:] if title != LONE_PROMPTS else title] += [
            abs(float(line.split(" | ")[9].removesuffix(" %"))) for line in body.splitlines() if line.startswith("| `")
        ]
    for name, aim in AIMS.items():
        (summary,) = re.findall(rf"^\| {name} \|(.*)\|$", PAGE, re.MULTILINE)
        cells = [cell.strip() for cell in summary.split("|")]
        assert int(cells[0]) == len(errors[name])
        assert float(cells[2].removesuffix(" %")) == pytest.approx(median(errors[name]), abs=1)
        assert name == LONE_PROMPTS or median(errors[name]) <= 100 * aim


@pytest.mark.parametrize("each", [each for each in FOUND.rows if each.use == "fit"], ids=lambda each: each.preset)
def test_constants_reproduce_the_figures_that_they_were_fitted_to(each: Row) -> None:
    assert seconds(FOUND, each) == pytest.approx(measured(each), rel=0.025)


def test_the_readme_and_the_guide_agree_with_the_page() -> None:
    summary = [line for line in PAGE.splitlines() if line.startswith(("| decode on", "| TTFT of"))]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(summary) == 4
    assert all(line in readme for line in summary)
    guide = " ".join((ROOT / "docs/guides/machines.md").read_text(encoding="utf-8").split())
    server, desktop, edge, prompts = (line.split(" | ")[3] for line in summary)
    assert f"decode is within {server} (median) on server GPUs, {desktop} on desktop GPUs and {edge} on edge devices" in guide
    assert f"a median error of {prompts}." in guide


@pytest.mark.parametrize(
    ("preset", "weights", "bytes_read"),
    [
        ("apple-m2", "bf16", 2 * (BLOCKS + HEAD)),
        ("a100-80g-sxm", "bf16", 2 * (BLOCKS + HEAD)),
        ("rtx-5090", "q4_0", (BLOCKS * 9 // 2 + HEAD * 105 // 16) // 8),
    ],
)
def test_no_figure_moves_its_weights_faster_than_the_memory(preset: str, weights: str, bytes_read: int) -> None:
    """Weights of 3.7 GB and more stay in no cache. Bytes over bandwidth are under the roofline, and that under the figure."""
    each = row(preset, weights)
    bandwidth = find(preset).bandwidth.value
    assert bandwidth is not None
    at_least, bound = bytes_read / bandwidth, seconds(FOUND, each, "roofline")
    assert at_least <= bound <= measured(each)
    assert bound < 1.05 * at_least


#: Format of llama-2-7b in gpt-fast, and its README's tokens/s with the bandwidth in GB/s, on one A100.
GPT_FAST: dict[str, tuple[dict[str, Any], float, float]] = {
    "bf16": ({}, 104.9, 1397.31),
    "int8": ({"weights": {"default": "int8", "embedding": "bf16"}, "group": 4096, "scale": 2}, 155.58, 1069.20),
    "int4 g32": ({"weights": {"default": "int4", "embedding": "bf16"}, "group": 32, "scale": 4}, 196.80, 862.69),
}


@pytest.mark.parametrize("name", GPT_FAST)
def test_bandwidths_of_gpt_fast_are_those_of_all_weights(name: str) -> None:
    """gpt-fast multiplies tokens/s by the bytes of all weights, with the embedding, of which a step reads one row.

    Its tokens/s are the mean of five runs and its bandwidth that of the last one, which differ by up to 1.2 % (bf16).
    """
    formats, speed, bandwidth = GPT_FAST[name]
    written = {"model": {"config": "llama-2-7b"}, "mapping": {"formats": formats}}
    ops = op_graphs(from_dict(written))[1][False, False]
    read = int(ops.costs(5)[QUANTITIES.index("weight")].sum())
    counted = read + (32000 - 1) * 4096 * 2
    assert row("a100-80g-sxm", name).value == speed
    assert bandwidth * 1e9 / counted == pytest.approx(speed, rel={"bf16": 0.012, "int8": 0.0003, "int4 g32": 0.002}[name])


@pytest.mark.slow
def test_no_figure_beats_the_roofline() -> None:
    for each in FOUND.rows:
        assert seconds(FOUND, each, "roofline") <= measured(each), each


@pytest.mark.slow
def test_the_page_is_what_the_command_writes() -> None:
    written = "\n".join(page(FOUND, compare(FOUND))).rstrip() + "\n"
    assert PAGE.partition(BY_HAND)[0] == written
