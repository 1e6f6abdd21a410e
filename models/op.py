"""One operation of a decode step, and the costs that are counted for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.experts import Experts

IntArray = npt.NDArray[np.int64]

#: Costs counted for each op. `flops` are those of matrix products (two per multiply-add); `vector_ops` are elements
#: touched by all other work; the rest are bytes by class. `act_*` reach DRAM only if activations are off chip.
QUANTITIES = ("flops", "vector_ops", "weight", "kv_read", "kv_write", "act_read", "act_write", "state_read", "state_write")

#: Kind of the op that goes through the new tokens with the state of a layer.
SCAN = "scan"

#: Kinds of ops of layers with a state: with the window of past inputs, with the recurrent part of the state, and others.
WINDOW, GATES = "conv_window", "gates"
OF_STATE = (WINDOW, SCAN, GATES)

#: Kind of the op that mixes the streams of a residual that has several.
HYPER = "hyper_connection"

#: Exponents of (B, Q, N). Every cost of a decoder is a sum of these: nothing is more than linear in the batch and the
#: context, and only attention within the new tokens is quadratic in Q.
MONOMIALS = (
    (0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 0, 1), (0, 1, 1),
    (1, 0, 0), (1, 1, 0), (1, 2, 0), (1, 0, 1), (1, 1, 1),
)  # fmt: skip

#: One coefficient per monomial, then two for each mask of the graph (see `models.graph`).
Polynomial = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation.

    kind: its usual name (`norm`, `q_proj`, `scores`, ...), or its aten name if it has none.
    path: module path that issued it, e.g. `model.layers.0.self_attn.q_proj`.
    layer: index of the decoder layer, -1 outside of layers.
    part: distinguishes ops of one kind and path (`q` and `k` of rope), else empty.
    heads: number of attention heads the op can be split over (of a KV load: heads of the cache), 0 if it is not per head.
    kv_heads: heads of the cache that an op with heads attends to (1 of a latent one), 0 if that is not known.
    splits: number of parts along the keys, each computed, and its part of the cache loaded, separately; 1 if not split.
    dtype: torch's name of the compute type, e.g. `bfloat16`.
    shape: the result's dimensions, as text in B, Q and N.
    inputs: indices of the ops whose results it needs, ascending, all smaller than its own.
    costs: for each of `QUANTITIES`, an index into `OpGraph.polynomials`.
    experts: for an op that reads only the weights of the experts that its tokens choose, else None. Its polynomial of
        `weight` counts every choice of every token.
    weights: format in memory of a matrix that it reads, a name of `models.formats.Formats`; empty if as captured.
    several: for a kernel that serves all members of a step, the op of members that feed in several tokens; None: the same.
    device: the simulated device that it runs on.
    own: it works on the tokens of the sequences of its device alone, where devices have sequences of their own.
    """

    kind: str
    path: str
    layer: int
    part: str = ""
    heads: int = 0
    kv_heads: int = 0
    splits: int = 1
    dtype: str
    shape: tuple[str, ...] = ()
    inputs: tuple[int, ...] = ()
    costs: tuple[int, ...]
    experts: Experts | None = None
    weights: str = ""
    several: Op | None = None
    device: int = 0
    own: bool = False

    def with_cost(self, quantity: int, polynomial: int) -> Op:
        """The op with another cost. quantity: index in `QUANTITIES`. polynomial: index in `OpGraph.polynomials`."""
        return replace(self, costs=(*self.costs[:quantity], polynomial, *self.costs[quantity + 1 :]))
