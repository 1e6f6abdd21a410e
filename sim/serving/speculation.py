"""Speculative decoding: the number of draft tokens that the verification of a step accepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sim.base.kernel import kernel, launch, loaded
from sim.base.philox import four_draws, highest_bits


def accepted(
    acceptance: float | tuple[int, ...], drafts: Sequence[int], *, seed: int, sequences: Sequence[int], steps: Sequence[int]
) -> list[int]:  # fmt: skip
    """Count the drafts of each member of a step that are right before the first wrong one.

    acceptance: as in `Speculative`. drafts: how many each has. sequences: their numbers. steps: how many steps each has
    decoded before.
    """
    if not isinstance(acceptance, float):
        return [min(most, acceptance[step % len(acceptance)]) for most, step in zip(drafts, steps, strict=True)]
    # Draws are keyed by sequence and step, so they do not depend on the other members. The raw stream is compared with an
    # integer threshold: NumPy promises to keep that stream, but not its floats.
    counts = np.array(drafts, dtype=np.int64)
    keys = np.array([(sequence << 32) | step for sequence, step in zip(sequences, steps, strict=True)], dtype=np.int64)
    launch(count_accepted, compiled=loaded())(counts, keys, seed, int(acceptance * 2**53), np.zeros(8, dtype=np.int64))
    return list(counts.tolist())


@kernel
def count_accepted(drafts: Any, keys: Any, seed: int, threshold: int, words: Any) -> None:
    """Replace numbers of drafts, int64 [member], by how many of them are accepted: those before the first wrong one.

    keys: int64 [member], the key of each member's draws beside the seed. A draft is right if the 53 highest bits of its draw
    are below the threshold. words: scratch, int64 [8].
    """
    for member in range(drafts.shape[0]):
        draw, right = 0, True
        while right and draw < drafts[member]:
            if draw % 4 == 0:
                four_draws(words, seed, keys[member], 1 + draw // 4)
            right = highest_bits(words, draw % 4) < threshold
            if right:
                draw += 1
        drafts[member] = draw
