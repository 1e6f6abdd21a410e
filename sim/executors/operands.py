"""SRAM of the operands of a step: how much each takes, and what to write instead where they do not fit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from models.graph import QUANTITIES, IntArray, StepLanes
from sim.base.errors import ConfigError
from sim.base.units import ceil_div, format_bytes
from sim.executors.setup import Setup
from sim.mapping.operands import Operands, operand_bytes, operands_of
from sim.mapping.settings import MOST_SPLITS, MOST_TILES
from sim.mapping.tasks import CACHED_BITS, CLASS_BIT, TaskGraph

KV_READ = CLASS_BIT["kv_read"]
ACTIVATION_BITS = CLASS_BIT["act_read"] | CLASS_BIT["act_write"]
TWICE = " twice, so that one is loaded while another is used"
ONCE = ", one at a time"


def sram_use(setup: Setup, graph: TaskGraph, lanes: StepLanes) -> IntArray:
    """Bytes of SRAM that operands take [operand, lane], in the order of `operands_of`.

    Raises ConfigError if operands that are needed together do not fit, and says what would.
    """
    operands, costs = operands_of(graph), graph.ops.costs_of(lanes)
    size = operand_bytes(graph, operands, costs)
    if setup.sram is not None and size.size:
        device = graph.device[operands.task[operands.first]]  # [group]
        above = operands.in_groups(size) - np.array(setup.sram)[device][:, None]  # [group, lane]
        group, worst = np.unravel_index(above.argmax(), above.shape)
        if above[group, worst] > 0:
            tokens = 1 if lanes.members is None else int(lanes.members.query[:, worst].sum())
            advice = _what_would_fit(graph, operands, int(group), size[:, worst], costs[:, :, worst], setup, tokens)
            resident = setup.resident[device[group]] if setup.resident else 0
            beside = f" (resident weights hold {format_bytes(resident)} more)" if resident else ""
            raise ConfigError("hardware.sram", f"{advice}{beside}")
    return size


def space_of(setup: Setup, device: int) -> str:
    """Bytes of SRAM for operands on a device, as a message says it. SRAM is bounded."""
    assert setup.sram is not None
    of = f" of {setup.machine.devices[device].name}" if setup.devices > 1 else ""
    return f"SRAM{of} has {format_bytes(setup.sram[device])}"


class Costs(NamedTuple):
    """Bytes of the ops of a step, [op]: weights, and on chip inputs and results. products: FLOPs."""

    products: IntArray
    weights: IntArray
    read: IntArray
    written: IntArray


def _costs_of(graph: TaskGraph, costs: IntArray) -> Costs:
    """costs: [quantity, op]. Activations that travel through the channel count as 0."""
    on_chip = not (graph.moves & ACTIVATION_BITS).any()
    products, weights, read, written = (costs[QUANTITIES.index(name)] for name in ("flops", "weight", "act_read", "act_write"))
    return Costs(products, weights, read * on_chip, written * on_chip)


def refuse_large_activations(setup: Setup, graph: TaskGraph, lanes: StepLanes) -> None:
    """Raise ConfigError if operands, inputs and results of a task exceed SRAM together, where activations stay on chip.

    A tile of a weight matmul has all of its input. lanes: one step.
    """
    if setup.sram is None:
        return
    operands, costs = operands_of(graph), graph.ops.costs_of(lanes)[:, :, 0]
    of = _costs_of(graph, costs)
    size = operand_bytes(graph, operands, costs)
    held = np.zeros(len(graph), dtype=np.int64)
    user = np.repeat(np.arange(len(graph)), np.diff(operands.used_start))
    np.add.at(held, user, size[operands.number(len(graph))[operands.used]])
    whole = (graph.head < 0) & (of.weights[graph.op] > 0)
    activations = (np.where(whole, of.read[graph.op], graph.share(of.read)) + graph.share(of.written)) * graph.computes
    space = np.array(setup.sram)[graph.device]  # [task]
    task = int((held + activations - space).argmax())
    if held[task] + activations[task] <= space[task] or not activations[task]:
        return
    sram = int(space[task])
    advice = ["mapping.activations: off_chip would move these through memory"]
    op = int(graph.op[task])
    if graph.ops.ops[op].heads and graph.kind_of(task) != "attention":
        advice.append("softmax: online would keep no scores")
    tiles = _tiles_of(of, op, sram) if whole[task] and of.products[op] and of.read[op] < sram else MOST_TILES + 1
    if tiles <= MOST_TILES:
        advice.append(f"mapping.tiles of {tiles} would fit twice")
    tokens = 1 if lanes.members is None else int(lanes.members.query[:, 0].sum())
    if most := tokens * max(0, sram - int(held[task])) // int(activations[task]) if tokens > 1 else 0:
        advice.append(f"a step of {most} new tokens instead of {tokens} would fit (workload.prefill.chunk)")
    beside = f" beside {format_bytes(int(held[task]))} of operands" if held[task] else ""
    raise ConfigError(
        "hardware.sram",
        f"{graph.name(task)} has inputs and results of {format_bytes(int(activations[task]))}{beside}, "
        f"{space_of(setup, int(graph.device[task]))}; {', '.join(advice)}",
    )


def _at_once(of: Costs, op: int, tiles: int, buffers: int) -> int:
    """Bytes of so many tiles of a weight matmul's weights, of its input, and of the results of a tile."""
    weights, read, written = int(of.weights[op]), int(of.read[op]), int(of.written[op])
    return buffers * ceil_div(weights, tiles) + read + ceil_div(written, tiles)


def _tiles_of(of: Costs, op: int, sram: int) -> int:
    """The number of tiles of a weight matmul, of which two fit beside its input and the results of one."""
    tiles = ceil_div(2 * int(of.weights[op]) + int(of.written[op]), max(sram - int(of.read[op]), 1))
    while tiles <= MOST_TILES and _at_once(of, op, tiles, 2) > sram:  # bytes of a tile are rounded up
        tiles += 1
    return tiles


def _what_would_fit(
    graph: TaskGraph, operands: Operands, largest: int, size: IntArray, costs: IntArray, setup: Setup, tokens: int
) -> str:  # fmt: skip
    """Operands that are needed together and do not fit, and with which tiles, parts of keys or new tokens they would.

    largest: their group. size: [operand], bytes. costs: [quantity, op].
    """
    assert setup.sram is not None
    sram = min(setup.sram[device] for device in np.unique(graph.device).tolist())
    together = int(operands.in_groups(size)[largest])
    task = int(operands.task[operands.first[largest]])
    name = graph.name(int(graph.links.outputs[graph.links.output_start[task]])) if graph.prefetch[task] else graph.name(task)
    if graph.moves[task] & CACHED_BITS:
        name += f" of layer {graph.layer[task]}"
    if np.diff([*operands.first, len(size)])[largest] > 1:
        name += " and what is needed with it"
    has_kv = np.add.reduceat(graph.moves[operands.task] & KV_READ, operands.first) > 0  # [group]
    groups = list(zip(operands.groups(), np.split(size, operands.first[1:]), has_kv.tolist(), strict=True))
    of_weights = [(tasks[0], int(sizes[0])) for tasks, sizes, kv in groups if not kv]
    of_kv = [_parts_of(graph, tasks, sizes, costs) for tasks, sizes, kv in groups if kv and sizes.sum() > sram]
    advice = [*_tiles_that_fit(graph, of_weights, _costs_of(graph, costs), sram, tokens), *_splits_that_fit(of_kv, sram)]
    space = space_of(setup, int(graph.device[task]))
    return f"{name} needs {format_bytes(together)} at once, {space}; {' and '.join(advice)}"


def _tiles_that_fit(graph: TaskGraph, use: list[tuple[int, int]], of: Costs, sram: int, tokens: int) -> list[str]:
    """The number of tiles, of which two fit, or of new tokens with which weights would; nothing if they do.

    use: tasks that load weights, and their bytes.
    """
    tiles: dict[str, int] = {}
    least = 0  # bytes that tiling cannot go below
    for task, size in use:
        op = int(graph.op[task])
        tiled = of.products[op] and graph.head[task] < 0  # only weight matmuls
        smallest = max(ceil_div(int(of.weights[op]), MOST_TILES), 1) if tiled else size
        if tiled and smallest <= sram:
            smallest = _at_once(of, op, MOST_TILES, 1)
        least = max(least, smallest)
        if size > sram or (tiled and _at_once(of, op, int(graph.parts[task]), 1) > sram):
            kind = graph.ops.ops[op].kind
            tiles[kind] = max(tiles.get(kind, 1), _tiles_of(of, op, sram))
    if not tiles:
        return []
    if least > sram:
        advice = f"tiling does not cut it below {format_bytes(least)}"
        if most := tokens * sram // least if tokens > 1 else 0:  # rows of the embedding: one for each new token
            advice += f", a step of {most} new tokens instead of {tokens} would (workload.prefill.chunk)"
        return [advice]
    twice = max(tiles.values()) <= MOST_TILES
    by_kind = ", ".join(f"{kind}: {min(count, MOST_TILES)}" for kind, count in tiles.items())
    advice = f"mapping.tiles of {min(max(tiles.values()), MOST_TILES)}"
    advice += f"{f', or of {{{by_kind}}},' if len(tiles) > 1 else ''} would fit"
    return [advice + (TWICE if twice else ONCE)]


def _parts_of(graph: TaskGraph, tasks: list[int], sizes: IntArray, costs: IntArray) -> tuple[int, int]:
    """Bytes of operands that are needed together: of the KV cache of a head or layer, which can be cut into parts; of others.

    tasks: those that load them. sizes: bytes of each. costs: [quantity, op].
    """
    cache = beside = 0
    for task, size in zip(tasks, sizes.tolist(), strict=True):
        if graph.moves[task] & KV_READ:
            op = int(graph.op[task])
            heads = int(graph.parts[task]) // graph.ops.ops[op].splits
            cache += ceil_div(int(costs[QUANTITIES.index("kv_read"), op]), heads)
        else:
            beside += size
    return cache, beside


def _splits_that_fit(use: list[tuple[int, int]], sram: int) -> list[str]:
    """The number of parts of the keys, of which two fit. use: what does not fit, as `_parts_of` returns it; maybe nothing."""
    if not use:
        return []
    least = max(ceil_div(cache, MOST_SPLITS) + beside for cache, beside in use)
    if least > sram:
        return [f"mapping.kv_splits do not cut it below {format_bytes(least)}"]
    wanted = max(ceil_div(cache, max(sram // 2 - beside, 1)) for cache, beside in use)
    fit = TWICE if wanted <= MOST_SPLITS else ONCE
    return [f"mapping.softmax: online and kv_splits of {min(wanted, MOST_SPLITS)} would fit{fit}"]
