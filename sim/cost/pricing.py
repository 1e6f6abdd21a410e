"""The time of a launch by a device profile: its timing, held at what the device cannot be faster than.

    measured                    max(scale * time by its timing + per_op, memory / bandwidth, FLOPs / peak)
    prompts, none measured      max(the time of decode attention for one token of each sequence, the same bounds)
    prompts beside decodes      one launch where such were measured, else the launch of each
    small ops, not measured     at least the shortest launch that was measured

The bound is physical: weights and KV cache come over the channel, products need the arithmetic. So a matmul of more rows than
any that was measured costs at least FLOPs / peak, which grows with its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from models.graph import IntArray
from sim.base.quantities import DURATION
from sim.cost.kernel import Kernel, together
from sim.cost.model import Rates
from sim.cost.profile import MATMUL, MIXED, PREFILL, DeviceProfile, Shapes, Timing, outside, time
from sim.cost.profile.forms import Floats, at_rate

#: Formats of the same bytes, whose kernels take as long on GPUs. Reports say where one stands for the other.
ALIKE = {"float16": "bfloat16", "bfloat16": "float16"}


class Pricing:
    """Times of launches by a profile.

    profile: the measurements. machine: rates of the scenario, None if they say nothing of the device. reached: they are those
    that kernels reach, which hold for what is beyond the measurements in place of peaks.
    """

    def __init__(self, profile: DeviceProfile, machine: Rates | None, *, reached: bool = False) -> None:
        self.profile, self.machine, self.reached = profile, machine, reached
        self.shortest = _shortest(profile)
        self.loading = _loading_rate(profile)
        self.mixed = any(timing.kind == MIXED for timing in profile.timings)

    def timing(self, kernel: Kernel) -> Timing | None:
        """Its timing in the format of its weights, of its arithmetic, or in one alike; None if it was not measured."""
        formats = (kernel.stored, kernel.dtype, ALIKE.get(kernel.dtype, ""))
        return next((found for dtype in formats if dtype and (found := self.profile.timing(kernel.kinds, dtype))), None)

    def measured(self, launches: Sequence[Kernel]) -> list[Kernel]:
        """Launches of a call, prompts apart from decodes, with those that the profile has for both together in place of two.

        In each lane the kernels that are not launched have no sequences.
        """
        if not self.mixed:
            return list(launches)
        prompts = [each for each in launches if each.kinds[0] == PREFILL]
        decodes = [each for each in launches if each.kinds[0] != PREFILL]
        if len(prompts) != 1 or len(decodes) != 1:
            return list(launches)
        both = replace(together([*prompts, *decodes]), kinds=(MIXED,))
        if self.timing(both) is None:
            return list(launches)
        mixed = (prompts[0].sequences > 0) & (decodes[0].sequences > 0)
        parts = [replace(each, sequences=np.where(mixed, 0, each.sequences)) for each in launches]
        found = [*parts, replace(both, sequences=np.where(mixed, both.sequences, 0))]
        return [each for each in found if each.sequences.any()]

    def time(self, kernel: Kernel, timing: Timing) -> Floats:
        """Picoseconds of a launch [lane]; none where no sequence is of its sort."""
        held = np.maximum(self._unbound(kernel, timing), self._bound(kernel, timing)[0])
        return held if kernel.sequences.all() else np.where(kernel.sequences > 0, held, 0.0)

    def _unbound(self, kernel: Kernel, timing: Timing) -> Floats:
        step = self.profile.step
        shapes = kernel.shapes
        if _is_guess(kernel, timing):
            shapes = _one_token(kernel) if self._peak(timing, beyond=True) else replace(shapes, rows=kernel.sequences)
        return np.asarray(step.scale * time(timing, shapes) + step.per_op)

    def _bound(self, kernel: Kernel, timing: Timing) -> tuple[Floats, Floats]:
        """Picoseconds below which a launch cannot be [lane], and the part of its arithmetic.

        Beyond the measurements the time to launch comes on top, and rates that the profile does not have are the scenario's.
        """
        shapes, guess = kernel.shapes, _is_guess(kernel, timing)
        known, given = (self._peak(timing, beyond=beyond) for beyond in (False, True))
        loading = at_rate(kernel.memory, self.loading if guess else self.profile.bandwidth)
        computing = at_rate(shapes.flops, known)
        beyond = np.ones(np.shape(shapes.rows), dtype=np.bool_) if guess else shapes.rows > max(timing.rows)
        if beyond.any():
            vector = self.machine.vector_flops if guess and self.machine is not None else None
            more = at_rate(shapes.flops, given) + at_rate(shapes.elements, vector) + self.shortest
            computing = np.where(beyond, more, computing)
        return np.maximum(loading, computing), computing

    def _peak(self, timing: Timing, *, beyond: bool) -> int | None:
        """FLOP/s of an engine. beyond: if the profile does not say, that of the scenario, which measurements overrule."""
        peak = self.profile.flops.get(timing.dtype)
        if (peak is None or self.reached) and beyond and self.machine is not None:
            return self.machine.peak(timing.dtype)
        return peak

    def reasons(self, kernel: Kernel) -> Iterator[str]:
        """Reasons why the time of a launch is no interpolation between measurements."""
        timing = self.timing(kernel)
        if timing is None:
            launch = f", at least the shortest launch, {DURATION.format(self.shortest)}" if self.shortest else ""
            yield "not measured: kernel costs" if self.reached else f"not measured: roofline, a lower bound{launch}"
            return
        if kernel.stored and timing.dtype != kernel.stored:
            yield f"weights in {kernel.stored}: not measured, times are those of {timing.dtype} for as many bytes"
        elif timing.dtype not in (kernel.stored, kernel.dtype):
            yield f"{kernel.dtype} not measured: times are those of {timing.dtype}"
        if _is_guess(kernel, timing):
            yield self._of_prompts(timing)
            return
        yield from map(str, outside(timing, kernel.shapes.take(kernel.sequences > 0)))
        bound, computing = self._bound(kernel, timing)
        if (self._unbound(kernel, timing) < bound).any():
            yield f"held at {'FLOPs / peak' if (computing >= bound).any() else 'bytes / bandwidth'}, below which no device is"

    def _of_prompts(self, timing: Timing) -> str:
        peak = self._peak(timing, beyond=True)
        by = "FLOPs / peak and bytes / bandwidth" if peak else f"the FLOPs of {timing.kind}, as the profile has no `flops`"
        return f"several tokens at once not measured, TTFT is outside of this profile: a bound by {by}"


def _is_guess(kernel: Kernel, timing: Timing) -> bool:
    """Whether attention of prompts has only a timing of decode attention."""
    return kernel.kinds[0] == PREFILL and timing.kind != PREFILL


def _one_token(kernel: Kernel) -> Shapes:
    """Attention of one token of each sequence to as many others: what a launch costs however few tokens it has."""
    shapes, rows = kernel.shapes, np.maximum(kernel.shapes.rows, 1)

    def of_one(amount: IntArray) -> IntArray:
        return np.asarray(amount * kernel.sequences // rows)

    return replace(
        shapes, rows=kernel.sequences, flops=of_one(shapes.flops), elements=of_one(shapes.elements),
        bytes=kernel.memory + of_one(shapes.bytes - kernel.memory),
    )  # fmt: skip


def _shortest(profile: DeviceProfile) -> int:
    """Picoseconds of the shortest launch: the least overhead of a fit, 0 if none has any."""
    overheads = [fit.coefficients.get("overhead", 0) for timing in profile.timings for fit in timing.rows.values()]
    least = min((overhead for overhead in overheads if overhead), default=0)
    return round(profile.step.scale * least + profile.step.per_op) if least else 0


def _loading_rate(profile: DeviceProfile) -> int:
    """Bytes/s that kernels reach: the best of streams, or of matmuls with operands beyond the cache; at most the bandwidth."""
    found = list(profile.read.values())
    if not found:
        for timing in profile.timings:
            if timing.kind == MATMUL:
                rates = [timing.rows[max(timing.rows)].coefficients.get(name) for name in ("bandwidth", "beyond")]
                slope = sum(1 / rate for rate in rates if rate)
                found += [round(1 / slope)] if slope else []
    return min([max(found, default=profile.bandwidth), profile.bandwidth])
