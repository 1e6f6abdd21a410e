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
    the replica that its cache goes to; empty if none is sent. chunks: of the new tokens; if there are several, `tokens` are
    those of one. homes: for each member the device that it is on, where devices have sequences of their own, and sampling: the
    devices that need rows of logits, ascending; empty if all work on the same.
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
    homes: tuple[int, ...] = ()
    sampling: tuple[int, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether it is one sequence that decodes one token: the step that was captured."""
        return self.several == (False,) and self.logits and not self.swap

    def together(self) -> Shape:
        """The shape that stands for the kernels of all steps like this one if one serves all members.

        It matters only whether some of them feed in one token and some several, and which devices have any. A plain shape
        stays so: a lone sequence has its own kernels.
        """
        if self.plain and not self.homes:
            return self
        if self.swap:
            return Shape((False,), logits=False, swap=self.swap, tier=self.tier)
        several = (False, False) if not any(self.several) else (True,) if all(self.several) else (False, True)
        homes = tuple(sorted(set(self.homes)))  # which have any
        return Shape(
            several, logits=self.logits, tokens=self.tokens, chunks=self.chunks, homes=homes, sampling=self.sampling
        )  # fmt: skip

    def at_home(self) -> Shape:
        """This shape where devices have sequences of their own: if it does not say where, all members are on the first."""
        if self.homes:
            return self
        return self._replace(homes=(0,) * len(self.several), sampling=(0,) if self.logits else ())


def template_of(shape: Shape, homes: int = 0) -> Shape:
    """The shape of the template for a step: one member of each sort, in the order in which the step has them.

    If members share a prompt, each of these is followed by one more of each sort: the members that share its prompt.
    homes: devices that have sequences of their own; the template has one of each sort on each of them.
    """
    if shape.swap:
        return Shape((False,), logits=False, swap=shape.swap, tier=shape.tier)
    sorts = tuple(dict.fromkeys(shape.several))
    several, at = sorts * max(1, homes), [home for home in range(homes) for _ in sorts]
    leaders: tuple[int, ...] = ()
    if shape.leaders:
        leaders = (-1,) * len(several) + tuple(leader for leader in range(len(several)) for _ in sorts)
        at += [home for home in at for _ in sorts]
        several += sorts * len(several)
    return Shape(several, logits=shape.logits, leaders=leaders, tokens=shape.tokens, homes=tuple(at))
