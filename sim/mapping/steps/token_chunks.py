"""Steps in chunks of tokens: collectives of one chunk overlap what another computes.

The new tokens of a step are cut into parts of equal size (`StepLanes.of_chunk`), and each goes through the layers with kernels
of its own. Up to each collective chunks take turns, and a chunk needs nothing of the others but the rows of the KV cache that
earlier ones store: a prompt may be cut, and its later tokens see the earlier ones.

    engine   attention 0   attention 1   MLP 0          MLP 1          attention 0 ..
    link                   all-reduce 0  all-reduce 1   all-reduce 0   all-reduce 1

So does TokenWeave (Gond et al., 2025) with all-reduces, and with exchanges of tokens of experts so do SGLang
(`--enable-two-batch-overlap`) and vLLM (`--enable-dbo`). Each chunk reads the weights again, and of experts those that its own
tokens choose. The LM head runs once, for the rows of all chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from models.graph import QUANTITIES
from models.rewrites import COLLECTIVES, EXCHANGE_SENDS, EXCHANGES, P2P
from sim.mapping.lowering import cache_owners
from sim.mapping.steps.shape import LOGITS
from sim.mapping.steps.stitch import Stitched

KV_READ = QUANTITIES.index("kv_read")

#: Ops between devices, behind which it is the next chunk's turn.
BETWEEN = frozenset((*COLLECTIVES, *EXCHANGES, *EXCHANGE_SENDS, P2P))


def in_chunks(stitched: Stitched, chunks: int) -> Stitched:
    """The op graph of a step whose new tokens are in so many chunks. stitched: of kernels that serve all members."""
    return stitched if chunks == 1 else _Chunks(stitched, chunks).graph()


class _Chunks:
    """Collects the ops. place: [op][chunk], its index here; ops of logits have one. stores: layer -> ops that store its KV."""

    def __init__(self, stitched: Stitched, chunks: int) -> None:
        self.whole, self.ops, self.chunks = stitched, stitched.ops.ops, chunks
        self.owner_of = cache_owners(stitched.ops)
        self.stores: dict[int, list[int]] = {}
        for i, op in enumerate(self.ops):
            if op.kind == "kv_store":
                self.stores.setdefault(op.layer, []).append(i)
        some = (stitched.ops.table != 0).any(axis=(1, 2))  # [polynomial]
        index = stitched.ops.cost_index[KV_READ], stitched.ops.several_index[KV_READ]
        self.reads: list[bool] = (some[index[0]] | some[index[1]]).tolist()
        self.place: list[list[int]] = [[] for _ in self.ops]
        self.copies: list[tuple[int, int]] = []  # (op, chunk)

    def graph(self) -> Stitched:
        for block in self._blocks():
            for chunk in range(1 if self._of_logits(block[0]) else self.chunks):
                for i in block:
                    self.place[i].append(len(self.copies))
                    self.copies.append((i, chunk))
        of = self.whole
        ops = tuple(
            replace(
                self.ops[i],
                part=self.ops[i].part if self._of_logits(i) else f"{self.ops[i].part} chunk {chunk}".strip(),
                inputs=self._inputs(i, chunk),
            )
            for i, chunk in self.copies
        )
        return Stitched(
            replace(of.ops, ops=ops), tuple(of.owner[i] for i, _ in self.copies), tuple(range(len(ops))), of.shape, of.together,
            tuple(chunk for _, chunk in self.copies),
        )  # fmt: skip

    def _of_logits(self, i: int) -> bool:
        return self.whole.owner[i] == LOGITS

    def _blocks(self) -> Iterator[list[int]]:
        """Ops that follow one another, up to and with those between devices; what is for logits alone stands apart."""
        block: list[int] = []
        for i in self._order():
            ends = block and self.ops[block[-1]].kind in BETWEEN and self.ops[i].kind not in BETWEEN
            if block and (ends or self._of_logits(i) != self._of_logits(block[-1])):
                yield block
                block = []
            block.append(i)
        yield block

    def _order(self) -> Iterator[int]:
        """The ops in program order, but loads of the KV cache in front of the first op that reads what they load.

        They need what earlier chunks store in the layer, and may stand in front of a collective that comes before that.
        """
        seen = set[int]()
        for i, op in enumerate(self.ops):
            if op.kind != "kv_load":
                yield from (j for j in op.inputs if self.ops[j].kind == "kv_load" and j not in seen)
                seen |= set(op.inputs)
                yield i
        yield from (i for i, op in enumerate(self.ops) if op.kind == "kv_load" and i not in seen)

    def _inputs(self, i: int, chunk: int) -> tuple[int, ...]:
        """The ops here that an op of a chunk needs: its own, and what earlier chunks store of what it reads."""
        needed = set[int]()
        for j in self.ops[i].inputs:
            each = self.place[j]
            needed |= set(each) if self._of_logits(i) else {each[min(chunk, len(each) - 1)]}
        if self.reads[i]:
            layer = self.owner_of.get(i, self.ops[i].layer)
            needed |= {
                at
                for j in self.stores.get(layer, ())
                if self.ops[j].device == self.ops[i].device
                for at in self.place[j][:chunk]
            }
        return tuple(sorted(needed))
