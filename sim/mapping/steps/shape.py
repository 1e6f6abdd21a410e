"""The shape of a step: all that its structure depends on."""

from __future__ import annotations

from typing import Literal, NamedTuple

#: Owners of ops beside the numbers of members: all new tokens, rows of logits, all members in one kernel.
TOKENS, LOGITS, MEMBERS = -1, -2, -3

#: Moves of caches, in steps that do nothing else.
Swap = Literal["", "out", "in", "send", "spill", "fetch"]


class Shape(NamedTuple):
    """All that the structure of a step depends on.

    several: for each member, whether it feeds in more than one token. logits: whether any are wanted.
    leaders: for each member the one that loads the context they share, -1 if it shares none; empty if none share.
    swap: the KV cache of the members moves out of the device's memory or back in, or is sent to another device, and nothing
    else happens; `spill`: what is cold moves to a tier, from the memory or a nearer tier; `fetch`: blocks come back from one.
    tier: over the link to which it moves. draft: it is a step of the draft model. tokens: new tokens of all members, on which
    the algorithm of all-reduces may depend. device: the first one of the replica that it runs on. to: for each member, that of
    the replica that its cache goes to; empty if none is sent. chunks: of the new tokens;
    if there are several, `tokens` are those of one.
    """

    several: tuple[bool, ...]
    logits: bool = True
    leaders: tuple[int, ...] = ()
    swap: Swap = ""
    draft: bool = False
    tokens: int = 1
    device: int = 0
    tier: int = 0
    to: tuple[int, ...] = ()
    chunks: int = 1

    @property
    def plain(self) -> bool:
        """Whether it is one sequence that decodes one token: the step that was captured."""
        return self.several == (False,) and self.logits and not self.swap

    def together(self) -> Shape:
        """The shape that stands for the kernels of all steps like this one if one serves all members.

        It matters only whether some of them feed in one token and some several. A plain shape stays so: a lone sequence has
        its own kernels.
        """
        if self.plain:
            return self
        if self.swap:
            return Shape((False,), logits=False, swap=self.swap, tier=self.tier)
        if not any(self.several):
            several: tuple[bool, ...] = (False, False)
        else:
            several = (True,) if all(self.several) else (False, True)
        return Shape(several, logits=self.logits, tokens=self.tokens, chunks=self.chunks)


def template_of(shape: Shape) -> Shape:
    """The shape of the template for a step: one member of each sort, in the order in which the step has them.

    If members share a prompt, each of these is followed by one more of each sort: the members that share its prompt.
    """
    if shape.swap:
        return Shape((False,), logits=False, swap=shape.swap, tier=shape.tier)
    sorts = tuple(dict.fromkeys(shape.several))
    if not shape.leaders:
        return Shape(sorts, logits=shape.logits, tokens=shape.tokens)
    leaders = [-1] * len(sorts) + [leader for leader in range(len(sorts)) for _ in sorts]
    return Shape(sorts + sorts * len(sorts), logits=shape.logits, leaders=tuple(leaders), tokens=shape.tokens)
