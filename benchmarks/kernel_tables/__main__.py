"""How far predictions of GPU kernels are off on shapes that the fit never saw.

    python -m benchmarks.kernel_tables FOLDER [--write FILE.md]

FOLDER holds the tables that the mapping files beside this one name. Fits to the rows that those name for calibration, and
reports on all others. The plain roofline stands beside it: FLOPs at the datasheet's peak, or bytes at its bandwidth.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from benchmarks.fidelity import public
from benchmarks.pages import put
from sim.base.units import PS_PER_S
from sim.cost.profile import KernelTables, fit, predict, read_tables, write_profile
from sim.cost.profile.samples import SHAPE

HERE = Path(__file__).parent

#: The preset of each device.
PRESET = {"h100_sxm": "h100-sxm", "a100_sxm": "a100-80g-sxm"}

#: FLOP/s in bfloat16 by the datasheets, for the roofline.
PEAK = {"h100_sxm": 989 * 10**12, "a100_sxm": 312 * 10**12}

#: Costs of ops that the tables lack.
OTHERWISE = ("roofline", "kernel")

BATCHES = ((1, 1), (2, 8), (9, 32), (33, 128), (129, 4096))
SIZES = ((0, 4 * 10**6), (4 * 10**6, 40 * 10**6), (40 * 10**6, 200 * 10**6), (200 * 10**6, 10**13))

Mask = npt.NDArray[np.bool_]
Times = npt.NDArray[np.float64]


def page(folder: Path) -> Iterator[str]:
    """The lines of the Markdown page."""
    yield f"""# Kernels of GPUs: predicted against measured

Made by `python -m benchmarks.kernel_tables FOLDER` on {time.strftime("%Y-%m-%d")}. Kernel times are NVIDIA's: AIConfigurator
(github.com/ai-dynamo/aiconfigurator, Apache-2.0), timed through vLLM; the tables are not part of this repository. Profiles are
fitted to matmuls with n, k up to 8192 and contexts up to 8192; all others are *unseen*. Errors are |predicted / measured - 1|
in percent, median and 90th percentile; *bias* is the median with its sign. *Roofline* is the later of bytes at the datasheet's
bandwidth and FLOPs at its peak, on the same rows: a lower bound, not a prediction. *Noise floor* is how far two rows differ
that do the same work: matmuls of m and m + 1 rows from 4 to 8, attention over 4 and 8 tokens.
"""
    yield from published(folder)
    for name, peak in PEAK.items():
        found = read_tables(HERE / f"{name}.yaml", folder)
        profile = fit(found.samples.take(found.calibrate), found.provenance, bandwidth=found.bandwidth, cache=found.cache)
        predicted = predict(profile, found.samples)
        bound = roofline(found, peak)
        known = np.isfinite(predicted)
        yield f"## {found.title}\n\n{found.provenance.source}.\n"
        yield from header("kernels", "rows")
        for kind in profile_kinds(found):
            of_kind = known & (found.samples.kind == kind)
            for label, part in (("calibration", found.calibrate), ("unseen", ~found.calibrate)):
                yield row(f"{kind}, {label}", of_kind & part, predicted, bound, found)
        yield f"\nNoise floor: {'; '.join(noise(found))}.\n\nUnseen, by batch:\n"
        yield from header("kernels", "rows")
        for kind in profile_kinds(found):
            for low, high in BATCHES:
                chosen = known & ~found.calibrate & (found.samples.kind == kind)
                chosen &= (found.samples.rows >= low) & (found.samples.rows <= high)
                batch = str(low) if low == high else f"{low} to {high}"
                yield from [row(f"{kind}, batch {batch}", chosen, predicted, bound, found)] if chosen.any() else []
        yield "\nUnseen, by bytes that the kernel moves:\n"
        yield from header("kernels", "rows")
        moved = found.samples.bytes_read + found.samples.bytes_written
        for kind in profile_kinds(found):
            for low, high in SIZES:
                chosen = known & ~found.calibrate & (found.samples.kind == kind) & (moved >= low) & (moved < high)
                size = f"over {low // 10**6} MB" if high > 10**12 else f"{low // 10**6} to {high // 10**6} MB"
                yield from [row(f"{kind}, {size}", chosen, predicted, bound, found)] if chosen.any() else []
        yield ""


def published(folder: Path) -> Iterator[str]:
    """Figures of engines that others published, beside what profiles with all rows of the tables say of them."""
    yield """## Published figures of engines, by these kernels

The [published figures](fidelity_public.md) in 16 bits of the devices below, by preset and a profile of all rows
(`sim import-kernels --all`, `cost: profiled`), with both values of `otherwise`, which is what the tables lack, and by the
`kernel` costs of the preset. The aim with imported kernels is a median error of 5 % in decode, and 10 % in the time to the
first token. No profile was fitted to these figures; constants of the preset were to those that are marked, which do not count.

| device | model | engine | what | batch | context or prompt | by these, roofline | by these, kernel | by preset |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"""
    figures, errors, apart = public.table(), dict[tuple[str, bool], list[float]](), list[str]()
    with TemporaryDirectory() as there:
        for name in PEAK:
            found, path = read_tables(HERE / f"{name}.yaml", folder), Path(there) / f"{name}.yaml"
            profile = fit(
                found.samples, found.provenance, bandwidth=found.bandwidth, capacity=found.capacity, cache=found.cache,
                flops=found.flops, near=True,
            )  # fmt: skip
            write_profile(profile, path)
            costs = [{"model": "profiled", "profile": str(path), "otherwise": otherwise} for otherwise in OTHERWISE]
            apart += list(told_apart(figures, PRESET[name], path))
            for row in figures.rows:
                if row.preset == PRESET[name] and row.format == "bf16":
                    took = public.measured(row)
                    each = [public.seconds(figures, row, cost) / took - 1 for cost in (*costs, None)]
                    for otherwise, error in zip(OTHERWISE, each, strict=False):
                        if row.use == "judge":
                            errors.setdefault((otherwise, row.measure in public.PROMPTS), []).append(abs(error))
                    length = f"{row.prompt:,} + {row.tokens:,}" if row.tokens else f"{row.prompt or row.context:,}"
                    cells = [row.preset, row.model, f"{row.engine} {row.version}", row.measure, str(row.batch), length]
                    cells += [f"{100 * error:+.0f} %" for error in each]
                    yield f"| {' | '.join(cells)}{' (fitted)' if row.use == 'fit' else ''} |"
    decode, prompts = (
        " and ".join(f"{100 * np.median(errors[otherwise, of_prompts]):.0f} %" for otherwise in OTHERWISE)
        for of_prompts in (False, True)
    )
    yield f"""
The median errors, with `roofline` and `kernel`, are {decode} in decode, and {prompts} for lone prompts: decode misses its aim,
and so do prompts by `roofline`. The tables have no attention of prompts, and no products of more than 128 rows: these take
FLOPs at the peak, or by `kernel` at the share of it that kernels reach. Ops that are no products are not in the tables either,
and take the shortest launch there, or a launch of the preset. Kernels
are vLLM's: TensorRT-LLM and gpt-fast have their own, and llama.cpp of May 2024 is slower than any of them on an A100. The graph
of mixtures lacks kernels that sort tokens by expert. No figures in 16 bits on an H100 of a model that ships are in the table.

The mixture by the engine whose kernels these are, with the times of that engine which the tables lack
([from other figures](fidelity_public.md#vllm-2025-07-on-a100-80g-sxm-told-apart)), and `otherwise: kernel`:

| device | model | engine | context | by these | {" | ".join(step.name for step in figures.beside[0].steps)} |
| --- | --- | --- | ---: | ---: |{" ---: |" * len(figures.beside[0].steps)}
{chr(10).join(apart)}
"""


def told_apart(figures: public.Table, preset: str, profile: Path) -> Iterator[str]:
    """Rows of engines whose times beside kernels are known, by a profile, without and with these."""
    cost = {"model": "profiled", "profile": str(profile), "otherwise": "kernel"}
    for beside in figures.beside:
        for row in beside.rows(figures) if beside.preset == preset else ():
            each = [public.seconds(figures, row, cost)]
            each += [public.seconds(figures, row, {**cost, "t0": step.t0}, step.host) for step in beside.steps]
            errors = [f"{100 * (time / public.measured(row) - 1):+.0f} %" for time in each]
            yield f"| {' | '.join([row.preset, row.model, f'{row.engine} {row.version}', f'{row.context:,}', *errors])} |"


def noise(found: KernelTables) -> Iterator[str]:
    """How far rows differ that do the same work."""
    samples = found.samples
    rows = zip(*(samples.columns[name].tolist() for name in ("kind", *SHAPE[:7], "duration")), strict=True)
    times = {row[:-1]: row[-1] for row in rows}
    for kind in profile_kinds(found):
        pairs = []
        for (what, m, *shape, context), took in times.items():
            near = (what, m + 1, *shape, context) if kind == "matmul" else (what, m, *shape, 8)
            if what == kind and near in times and (4 <= m < 8 if kind == "matmul" else context == 4):
                pairs.append(abs(took / times[near] - 1))
        known = f"{100 * np.median(pairs):.1f} median, {100 * np.quantile(pairs, 0.9):.1f} p90" if pairs else "not known"
        yield f"{kind} {known}"


def profile_kinds(found: KernelTables) -> list[str]:
    return sorted(set(found.samples.kind), key=lambda kind: (kind != "matmul", kind))


def header(*names: str) -> Iterator[str]:
    columns = [*names, "median", "p90", "bias", "roofline median", "roofline p90"]
    yield f"| {' | '.join(columns)} |\n| --- |{' ---: |' * (len(columns) - 1)}"


def row(
    label: str, chosen: Mask, predicted: npt.NDArray[np.float64], bound: npt.NDArray[np.float64], found: KernelTables
) -> str:
    measured = found.samples.duration[chosen]
    error, plain = predicted[chosen] / measured - 1, np.abs(bound[chosen] / measured - 1)
    size, bias = np.abs(error), np.median(error)
    numbers = [np.median(size), np.quantile(size, 0.9), bias, np.median(plain), np.quantile(plain, 0.9)]
    cells = [f"{100 * x:.1f}" if i != 2 else f"{100 * x:+.1f}" for i, x in enumerate(numbers)]
    return f"| {label} | {int(chosen.sum()):,} | {' | '.join(cells)} |"


def roofline(found: KernelTables, peak: int) -> Times:
    samples = found.samples
    moved = (samples.bytes_read + samples.bytes_written).astype(np.float64)
    bound: Times = np.maximum(moved / found.bandwidth, samples.flops / peak) * PS_PER_S
    return bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="where the tables are")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="write the page there")
    options = parser.parse_args()
    put("\n".join(page(options.folder)), options.write)


if __name__ == "__main__":
    main()
