"""Ops on several simulated devices: pipeline stages, and each of the devices that tensor parallelism makes alike.

`staged` gives each stage a range of layers: as many as a scenario says, or equally many. Those that are left over go to stages
before the last, which has the LM head, as in vLLM (`get_pp_indices`): of 62 layers four stages have 15, 16, 16 and 15.

| op                                             | runs on                                                               |
| ---------------------------------------------- | --------------------------------------------------------------------- |
| of a layer                                     | the stage of its layer                                                |
| before the layers, such as the embedding       | the first stage                                                       |
| before the layers, with no weights behind it   | each stage that needs it: the rope table                              |
| after the layers: last norm, LM head           | the last stage                                                        |

Where an op needs a result of another stage, a `p2p` op sends that from the device that has it; once to each stage. The tokens
that are sampled on the last stage go back to the first by way of the host, whose time is that of the scenario.

`unfolded` has the ops of one device once for each of the devices that it stands for. Where tokens go to the devices of their
experts, or come back, an exchange becomes a launch on each device and a transfer to each other one, beginning with the next: so
no two devices begin with the same receiver. Where devices have sequences of their own, one without tokens takes part, too: it
launches an exchange when it has launched the one before. What comes back to a device is part of what is done for its sequences,
so transfers back stand in the order of their distance: first each device's transfer to the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from models.experts import Experts
from models.graph import QUANTITIES, Op, OpGraph
from models.polynomials import Polynomials, zero
from models.rewrites.kernels import Comparison, result_bytes
from models.rewrites.sharding import ACT_WRITE, COMBINE, DISPATCH, EXCHANGES, WEIGHT
from sim.base.errors import ConfigError

#: Kind of the op that sends a result from one device to another.
P2P = "p2p"


def staged(ops: OpGraph, stages: int, layers: Sequence[int] | None = None) -> OpGraph:
    """The op graph in so many pipeline stages. layers: of each stage; None: as many as `layers_of_stages`.

    Raises ConfigError if these are not all layers, or stages would have none.
    """
    if stages == 1:
        return ops
    count = ops.layers()
    if stages > count:
        raise ConfigError("mapping.parallel.pipeline", f"expected at most {count}, one stage for each layer, found {stages}")
    if layers is not None and sum(layers) != count:
        message = f"expected a sum of {count}, the layers of the model, found {' + '.join(map(str, layers))} = {sum(layers)}"
        raise ConfigError("mapping.parallel.layers", message)
    return _Stages(ops, layers_of_stages(count, stages) if layers is None else layers).graph()


def layers_of_stages(layers: int, stages: int) -> list[int]:
    """Layers of each stage: equally many, and one more of those before the last, the later ones first, where some are left."""
    each, left = divmod(layers, stages)
    return [each + (stages - 2 - left < stage < stages - 1) for stage in range(stages)]


def unfolded(ops: OpGraph, copies: int) -> OpGraph:
    """The op graph of all devices, of which `copies` do what each one in the graph does. Copies of an op stand together.

    Experts that are dealt out are others on each of them.
    """
    if copies == 1:
        return ops
    return _Copies(ops, copies).graph()


class _Copies:
    """Collects the ops of all devices. place: [op][copy], the ops here after which that device has its result."""

    def __init__(self, ops: OpGraph, copies: int) -> None:
        self.whole, self.copies = ops, copies
        self.made: list[Op] = []
        self.place: list[list[list[int]]] = []
        self.launches: list[int] = []  # [copy]: of the last exchange
        self.apart = any(op.own for op in ops.ops)

    def graph(self) -> OpGraph:
        for op in self.whole.ops:
            experts = op.experts if op.kind not in EXCHANGES else None
            each = [
                self._add(self._copy(op, copy, experts and replace(experts, first=copy * experts.held)))
                for copy in range(self.copies)
            ]  # fmt: skip
            self.place.append([[at] for at in each])
            if op.kind in EXCHANGES:
                if self.apart:
                    self._follow(each)
                self._exchange(op, each)
                self.launches = each
        return replace(self.whole, ops=tuple(self.made))

    def _add(self, op: Op) -> int:
        self.made.append(op)
        return len(self.made) - 1

    def _copy(self, op: Op, copy: int, experts: Experts | None) -> Op:
        """The op of one of the devices that do the same; of an exchange its launch, which sends nothing."""
        inputs = tuple(sorted(at for j in op.inputs for at in self.place[j][copy]))
        costs = op.costs if op.kind not in EXCHANGES else (op.costs[WEIGHT],) * len(op.costs)
        return replace(op, device=op.device * self.copies + copy, inputs=inputs, costs=costs, experts=experts)

    def _follow(self, launches: list[int]) -> None:
        """Have each launch of an exchange follow that of the one before, which matters where a device has no tokens."""
        for before, at in zip(self.launches, launches, strict=False):
            launch = self.made[at]
            self.made[at] = replace(launch, inputs=tuple(sorted({*launch.inputs, before})))

    def _exchange(self, op: Op, launches: list[int]) -> None:
        """Add the transfers of an exchange, from each device to each other one.

        Tokens go to the device that has the experts, from the one that has the tokens, and back.
        """
        assert op.experts is not None
        pairs = [(source, further) for source in range(self.copies) for further in range(1, self.copies)]
        if self.apart and op.kind == COMBINE:
            pairs.sort(key=lambda pair: pair[1])
        for source, further in pairs:
            target = (source + further) % self.copies
            at, share = (target, source) if op.kind == DISPATCH else (source, target)
            experts = replace(op.experts, first=at * op.experts.held, share=share)
            device = op.device * self.copies + source
            sent = replace(
                op, kind=f"{op.kind}_send", part=f"to {target}", device=device, inputs=(launches[source],), experts=experts
            )
            self.place[-1][target].append(self._add(sent))


class _Stages:
    """Collects the ops of all stages. place: (captured op, stage) -> the index here of its result on that stage."""

    def __init__(self, ops: OpGraph, layers: Sequence[int]) -> None:
        self.captured, self.stages = ops, len(layers)
        self.stage_of = [stage for stage, many in enumerate(layers) for _ in range(many)]  # [layer]
        self.polynomials, self.compare = Polynomials(ops.polynomials), Comparison(ops)
        self.nothing = self.polynomials.number(zero(ops.breaks, ops.masks))
        self.home: list[int] = []  # [captured op]: its stage
        self.anywhere: list[bool] = []  # [captured op]: whether each stage computes it for itself
        self.made: list[Op] = []
        self.place: dict[tuple[int, int], int] = {}
        for op in ops.ops:
            self._find_home(op)

    def graph(self) -> OpGraph:
        for i, home in enumerate(self.home):
            if not self.anywhere[i]:
                self._add(i, home)
        return replace(self.captured, ops=tuple(self.made), polynomials=tuple(self.polynomials))

    def _find_home(self, op: Op) -> None:
        """Note where the next captured op runs."""
        behind_layers = any(self.captured.ops[j].layer >= 0 or self.home[j] for j in op.inputs)
        self.home.append(self.stage_of[op.layer] if op.layer >= 0 else (self.stages - 1) * behind_layers)
        weights = any(map(any, self.captured.polynomials[op.costs[WEIGHT]]))
        self.anywhere.append(op.layer < 0 and not weights and not behind_layers and all(self.anywhere[j] for j in op.inputs))

    def _add(self, i: int, stage: int) -> int:
        """Add a captured op on a stage, behind what it needs there; returns its index."""
        op = self.captured.ops[i]
        inputs = tuple(sorted({self._on(j, stage) for j in op.inputs}))
        self.place[i, stage] = len(self.made)
        self.made.append(replace(op, inputs=inputs, device=stage))
        return len(self.made) - 1

    def _on(self, i: int, stage: int) -> int:
        """The index of the op after which a stage has the result of a captured op."""
        if (i, stage) in self.place:
            return self.place[i, stage]
        return self._add(i, stage) if self.anywhere[i] else self._sent(i, stage)

    def _sent(self, i: int, stage: int) -> int:
        """Add the op that sends a result to another stage; returns its index."""
        op, source = self.captured.ops[i], self.place[i, self.home[i]]
        sent = self.polynomials.number(result_bytes(self.captured, op, self.compare))
        costs = tuple(sent if quantity == ACT_WRITE else self.nothing for quantity in range(len(QUANTITIES)))
        self.place[i, stage] = len(self.made)
        self.made.append(
            Op(
                kind=P2P, path=op.path, part=f"to {stage}", layer=op.layer, dtype=op.dtype, shape=op.shape, inputs=(source,),
                costs=costs, device=self.home[i],
            )
        )  # fmt: skip
        return len(self.made) - 1
