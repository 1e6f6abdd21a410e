"""Drafting: the steps of the draft model before a step that verifies what they draft.

The draft model has a KV cache of its own. Its first step feeds in what that cache lacks: the last token, which has not been
processed yet; after all drafts were accepted also the last of these; after a prefill the prompt. Each later step feeds in the
draft of the one before it. Of a sequence that is still being prefilled the first step takes in what the last chunk was.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.serving.batch import Batch, Member
from sim.serving.sequence import SequenceState


def draft_steps(
    drafting: Sequence[tuple[SequenceState, int]], prefilling: Sequence[SequenceState], device: int = 0
) -> list[Batch]:
    """The steps of the draft model before a step; the sequences then have these tokens in their cache of the draft model.

    drafting: sequences with the drafts that each wants, some with none. prefilling: sequences in the step that do not decode.
    device: the first one of those that they run on.
    """
    most = max((count for _, count in drafting), default=0)
    steps = [[_first(sequence) for sequence, count in drafting if count]]
    steps[0] += [_behind(sequence) for sequence in prefilling if sequence.cached > sequence.drafted and _drafts_later(sequence)]
    for number in range(1, most):
        steps.append([_next(sequence, number) for sequence, count in drafting if count > number])
    for sequence, count in drafting:
        if count:
            sequence.drafted = sequence.cached + count
    for sequence in prefilling:
        if _drafts_later(sequence):
            sequence.drafted = sequence.cached
    return [Batch(members, draft=True, device=device) for members in steps if members]


def _first(sequence: SequenceState) -> Member:
    query = sequence.cached + 1 - sequence.drafted
    return Member(sequence.number, sequence.drafted, query, sequence.drafted, 1, 0)


def _next(sequence: SequenceState, number: int) -> Member:
    context = sequence.cached + number
    return Member(sequence.number, context, 1, context, 1, 0)


def _behind(sequence: SequenceState) -> Member:
    return Member(sequence.number, sequence.drafted, sequence.cached - sequence.drafted, sequence.drafted, 0, 0)


def _drafts_later(sequence: SequenceState) -> bool:
    """Whether a sequence that is prefilled will draft: after the token from its prompt at least two are missing."""
    return sequence.request.tokens - sequence.generated > 2
