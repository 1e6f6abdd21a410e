"""Stitching: the op graph of a step, op by op, from the captures of a model."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import NamedTuple

from models.graph import QUANTITIES, Op, OpGraph
from models.polynomials import Polynomials, at_breaks, with_masks, zero
from models.rewrites import EXCHANGE_SENDS, kept_rows
from sim.base.errors import ConfigError
from sim.mapping.lowering import HAND_OVERS
from sim.mapping.steps.captures import Capture, Captures, Role
from sim.mapping.steps.shape import LOGITS, MEMBERS, TOKENS, Shape

#: For a load of a cache or a state: its bytes, and the same bytes written.
_LOADED = {f"{name}_load": (QUANTITIES.index(f"{name}_read"), QUANTITIES.index(f"{name}_write")) for name in ("kv", "state")}


class Stitched(NamedTuple):
    """A graph that was stitched op by op.

    owner: [op], a member, or `TOKENS`, `LOGITS` or `MEMBERS`. segment: [op], ascending: a segment holds the ops of the members,
    one after another, or those of the devices, and then one that all share. together: one kernel serves all members. chunk:
    [op], the chunk of tokens that it works on; empty if there is one. homes: devices that have members of their own, 0 if all
    work on the same. home: [op], that of the only members that it serves, -1 if it serves all, or is a member's.
    """

    ops: OpGraph
    owner: tuple[int, ...]
    segment: tuple[int, ...]
    shape: Shape
    together: bool
    chunk: tuple[int, ...] = ()
    homes: int = 0
    home: tuple[int, ...] = ()


def stitch(captures: Captures, shape: Shape, *, together: bool = False, homes: int = 0) -> Stitched:
    """The op graph of a step of this shape. together: one kernel serves all members, as in `Shape.together`. homes: as in
    `Stitched`; the shape says where members are, unless they are together.

    Raises ConfigError if captures do not correspond.
    """
    return _Stitching(captures, shape, together=together, homes=homes).graph()


def swapped(ops: OpGraph, shape: Shape, *, together: bool = False, layers: Container[int] | None = None) -> Stitched:
    """The op graph of a step that swaps: one transfer a layer and member, of the member's whole cache or state there.

    So is that of a step that sends it to another device. ops: a step with several new tokens, whose loads have no terms of what
    a single one sees. layers: only of these.
    """
    polynomials = Polynomials(ops.polynomials)
    nothing = (polynomials.number(zero(ops.breaks, ops.masks)),) * len(QUANTITIES)
    transfers = []
    kept = kept_rows(ops)
    for op in ops.ops:
        name = op.kind.removesuffix("_load")
        if op.kind in _LOADED and (name, op.layer) in kept and (layers is None or op.layer in layers):
            read, written = _LOADED[op.kind]
            kind = op.kind.replace("load", f"swap_{shape.swap}" if shape.swap in ("out", "in") else shape.swap)
            empty = replace(op, kind=kind, inputs=(), costs=nothing, shape=())
            sent = QUANTITIES.index("act_write")
            quantity = {"out": read, "spill": read, "in": written, "fetch": written, "send": sent}[shape.swap]
            transfers.append(empty.with_cost(quantity, polynomials.number(kept[name, op.layer])))
    members = len(shape.several)
    graph = OpGraph(ops=tuple(transfers * members), polynomials=tuple(polynomials), breaks=ops.breaks, masks=ops.masks)
    owner = tuple(MEMBERS if together else member for member in range(members) for _ in transfers)
    return Stitched(graph, owner, (0,) * len(owner), shape, together)


def _home(op: Op) -> int:
    """The device whose members an op serves alone, -1 if it serves all: transfers of tokens to experts are for those that have
    the tokens, and so is what brings back what experts made of them.
    """
    if op.kind in EXCHANGE_SENDS:
        assert op.experts is not None
        return op.experts.share
    return op.device if op.own else -1


class _Stitching:
    """Collects the ops of one graph.

    Shared ops follow the `spine`, the capture of several sequences. In front of each of them, every member gets the ops that
    stand in front of the same op in its own capture.
    """

    def __init__(self, captures: Captures, shape: Shape, *, together: bool, homes: int) -> None:
        self.shape, self.together, self.homes = shape, together, homes
        self.spine = captures[True, any(shape.several)]
        with_logits = captures[True, True]
        self.logits = {role for i, role in enumerate(with_logits.roles) if with_logits.of_logits[i]}
        alone = {several: captures[False, several] for several in sorted(set(shape.several))}
        self.of_member = [alone[several] for several in shape.several]  # [member]: its capture
        if together:
            self.of_member = [captures.merged if len(alone) > 1 else self.of_member[0]] * max(1, homes)
        self.home_of = range(homes) if together else shape.homes  # [member]
        graphs = [capture.graph for capture in (self.spine, *alone.values())]
        self.breaks = tuple(sorted({b for graph in graphs for b in graph.breaks}))
        self.masks = tuple(dict.fromkeys(mask for graph in graphs for mask in graph.masks))
        self.polynomials = Polynomials()
        self.numbers: dict[tuple[int, int], int] = {}  # (id of a capture's graph, its number of a cost) -> number here
        self.ops: list[Op] = []
        self.owner: list[int] = []
        self.segment: list[int] = []
        self.home: list[int] = []
        self.of_devices: list[tuple[int, int]] = []  # (home, op of the spine) still to be added
        self.shared_ops: dict[Role, int] = {}  # role -> index in `ops`
        self.member_ops: list[dict[Role, int]] = [{} for _ in self.of_member]  # [member]: the same of its own ops

    def graph(self) -> Stitched:
        """Stitch all ops, in program order."""
        before = [self._by_next_shared(capture) for capture in self.of_member]
        for i, role in enumerate(self.spine.roles):
            if self.spine.per_member[i]:
                continue
            self._add_of_members([ops.get(role, []) for ops in before])
            if role in self.logits and not self.shape.logits:
                continue
            home = _home(self.spine.graph.ops[i]) if self.homes else -1
            if home >= 0:
                if self._comes_again(home, self.spine.graph.ops[i]):
                    self._add_of_devices()
                self.of_devices.append((home, i))
            else:
                self._add_of_devices()
                self._add_shared(i)
        self._add_of_members([ops.get(None, []) for ops in before])
        self._add_of_devices()
        graph = OpGraph(ops=tuple(self.ops), polynomials=tuple(self.polynomials), breaks=self.breaks, masks=self.masks)
        # Of kernels for all members those between them may send for one: each stands in a segment of its own.
        owner, of = tuple(self.owner), tuple(self.home)
        segment = tuple(range(len(self.ops)) if self.together and not self.homes else self.segment)
        return Stitched(graph, owner, segment, self.shape, self.together, homes=self.homes, home=of)

    def _by_next_shared(self, capture: Capture) -> dict[Role | None, list[int]]:
        """The ops of a member in its capture, by the role of the next shared op (None: there is none)."""
        result: dict[Role | None, list[int]] = {}
        next_shared: Role | None = None
        for i in reversed(range(len(capture.roles))):
            if capture.per_member[i]:
                result.setdefault(next_shared, []).insert(0, i)
            elif capture.roles[i] in self.spine.index:
                next_shared = capture.roles[i]
        return result

    def _add_of_members(self, each: Sequence[Sequence[int]]) -> None:
        """Add ops of each member, behind those of devices that come before; none if no member has any."""
        if not any(each):
            return
        self._add_of_devices()
        segment = self._next_segment()
        for member, ops in enumerate(each):
            self._add_of_member(member, ops, segment=segment)

    def _comes_again(self, home: int, op: Op) -> bool:
        """Whether a transfer is for a device that had some before those of others: their order is that of their senders."""
        before = [other for other, _ in self.of_devices]
        return op.kind in EXCHANGE_SENDS and home in before and before[-1] != home

    def _add_of_devices(self) -> None:
        """Add the ops that serve the members of one device, which do not depend on those of others, device by device."""
        segment = self._next_segment()
        for home, i in sorted(self.of_devices):
            self._add_shared(i, home=home, segment=segment)
        self.of_devices.clear()

    def _next_segment(self) -> int:
        return self.segment[-1] + 1 if self.segment else 0

    def _add_of_member(self, member: int, ops: Sequence[int], *, segment: int) -> None:
        capture = self.of_member[member]
        for i in ops:
            if self.homes and capture.graph.ops[i].device != self.home_of[member]:
                continue
            self.member_ops[member][capture.roles[i]] = len(self.ops)
            inputs: set[int] = set()
            for j in capture.graph.ops[i].inputs:
                inputs |= self._sources(member, j)
            home = self.home_of[member] if self.homes and self.together else -1
            self._add(capture, i, self._owner(capture.graph.ops[i], member), inputs, segment, home)

    def _owner(self, op: Op, member: int) -> int:
        """The owner of an op that depends on the context: all members, where kernels serve these, but each sends for itself."""
        return MEMBERS if self.together and op.kind not in HAND_OVERS else member

    def _add_shared(self, i: int, *, home: int = -1, segment: int | None = None) -> None:
        """Add an op of the spine. home: it serves the members of this device alone. segment: None: that of the op before."""
        inputs = set()
        for j in self.spine.graph.ops[i].inputs:
            role = self.spine.roles[j]
            if self.spine.per_member[j]:
                there = (member for member in range(len(self.of_member)) if home < 0 or self.home_of[member] == home)
                inputs |= {self._op_of_member(member, role) for member in there}
            else:
                inputs.add(self.shared_ops[role])
        role = self.spine.roles[i]
        self.shared_ops[role] = len(self.ops)
        if segment is None:
            segment = self.segment[-1] if self.segment else 0
        self._add(self.spine, i, LOGITS if role in self.logits else TOKENS, inputs, segment, home)

    def _sources(self, member: int, j: int) -> set[int]:
        """Ops that have the result of op j of a member's capture: its own, the shared one, or the sources of its inputs."""
        capture = self.of_member[member]
        role = capture.roles[j]
        if capture.per_member[j]:
            leader = self.shape.leaders[member] if self.shape.leaders else -1
            loads_shared = leader >= 0 and capture.graph.ops[j].kind == "kv_load"
            return {self.member_ops[each][role] for each in ((member, leader) if loads_shared else (member,))}
        if role in self.shared_ops:
            return {self.shared_ops[role]}
        return {source for k in capture.graph.ops[j].inputs for source in self._sources(member, k)}

    def _op_of_member(self, member: int, role: Role) -> int:
        if role not in self.member_ops[member]:
            graph = self.of_member[member].graph
            raise ConfigError("mapping.granularity", f"a batch of {graph} lacks {role[0]!r} at {role[2]}; expected op")
        return self.member_ops[member][role]

    def _add(self, capture: Capture, i: int, owner: int, inputs: set[int], segment: int, home: int) -> None:
        op = capture.graph.ops[i]
        if self.together and op.kind in HAND_OVERS:  # as much by the costs of several tokens, if it is one
            op = replace(op, costs=(op.several or op).costs, several=None)
        several = op.several and self._renumbered(capture.graph, op.several)
        self.ops.append(replace(self._renumbered(capture.graph, op), inputs=tuple(sorted(inputs)), several=several))
        self.owner.append(owner)
        self.segment.append(segment)
        self.home.append(home)

    def _renumbered(self, graph: OpGraph, op: Op) -> Op:
        """An op of a capture with the numbers that its costs have here."""
        return replace(op, costs=tuple(self._number(graph, cost) for cost in op.costs))

    def _number(self, graph: OpGraph, cost: int) -> int:
        """The number of a capture's polynomial, in the pieces and with the masks of all captures together."""
        key = (id(graph), cost)
        if key not in self.numbers:
            pieces = at_breaks(graph.polynomials[cost], graph.breaks, self.breaks)
            self.numbers[key] = self.polynomials.number(with_masks(pieces, graph.masks, self.masks))
        return self.numbers[key]
