"""Contents of blocks of the KV cache, by which requests find those that others have computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from sim.base.units import ceil_div
from sim.workload.requests import Request


class Content(NamedTuple):
    """All tokens up to the end of a block. text: the path of ids that they are, a conversation, or a request; kind: which of
    these. number: of the block.
    """

    kind: str
    text: int
    number: int


@dataclass(slots=True)
class Contents:
    """Contents of blocks of `block` tokens: the same if their tokens, and all before them, are.

    Tokens that a request has in its cache when it comes are its own.
    """

    block: int
    _paths: dict[tuple[int, int], int] = field(default_factory=dict)  # (path before it, id) -> path; 0 is the beginning
    _of: dict[int, tuple[int, ...]] = field(default_factory=dict)  # request -> the path to each id of its prefix

    def of(self, number: int, request: Request, i: int) -> Content:
        """The content of block i of a request."""
        end = (i + 1) * self.block
        if request.context:
            return Content("own", number, i)
        if end <= min(request.prompt, len(request.prefix) * request.prefix_tokens):
            return Content("prefix", self._path(number, request)[ceil_div(end, request.prefix_tokens) - 1], i)
        return Content("own", number, i) if request.conversation < 0 else Content("turns", request.conversation, i)

    def _path(self, number: int, request: Request) -> tuple[int, ...]:
        if number not in self._of:
            path, paths = 0, []
            for each in request.prefix:
                path = self._paths.setdefault((path, each), len(self._paths) + 1)
                paths.append(path)
            self._of[number] = tuple(paths)
        return self._of[number]
