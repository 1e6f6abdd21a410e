"""Tiles by kind, weights that stay on chip in part, and what fits SRAM."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest

import sim
from models.graph import QUANTITIES
from sim.base.errors import InputError
from sim.mapping.lowering import lower
from sim.mapping.settings import ModelMapping
from sim.runs.model import op_graphs
from sim.runs.plan import plan
from sim.scenario import from_dict
from tests.analysis import machine
from tests.graphs import GraphBuilder, llama_block

MODEL = {"config": "llama-3.2-1b", "layers": 2}


def tasks(mapping: ModelMapping) -> dict[str, int]:
    """Tasks of each kind of a hand-made block."""
    graph = lower(llama_block(), mapping)
    return {kind: int(np.count_nonzero(graph.kind == number)) for number, kind in enumerate(graph.kinds)}


def test_one_number_cuts_all_products() -> None:
    found = tasks(ModelMapping(weights="resident", tiles=3))
    assert {found[kind] for kind in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")} == {3}
    assert (found["act"], found["norm"], found["scores"]) == (3, 2, 32)  # an activation is cut along with its inputs


def test_a_table_cuts_by_kind() -> None:
    found = tasks(ModelMapping(weights="resident", tiles={"default": 2, "down_proj": 5, "gate_proj": 4, "up_proj": 4}))
    assert [found[kind] for kind in ("q_proj", "o_proj", "gate_proj", "up_proj", "act", "down_proj")] == [2, 2, 4, 4, 4, 5]


def test_without_a_default_the_others_stay_whole() -> None:
    found = tasks(ModelMapping(weights="resident", tiles={"up_proj": 6}))
    assert (found["up_proj"], found["gate_proj"], found["q_proj"]) == (6, 1, 1)
    assert found["act"] == 1  # its inputs are cut differently: it needs all of both


@pytest.mark.parametrize(
    ("written", "meant"), [("engines", 6), ({"default": "engines", "lm_head": 2}, {"default": 6, "lm_head": 2})]
)
def test_tiles_may_follow_the_engines(written: object, meant: object) -> None:
    def graph(tiles: object) -> list[str]:
        scenario = from_dict({"model": MODEL, "hardware": {"engines": {"count": 6}}, "mapping": {"tiles": tiles}})
        result = sim.run(scenario)
        return [result.log.name(row) for row in range(len(result.log.tasks))]

    assert graph(written) == graph(meant) != graph(1)


def test_a_tile_needs_its_own_tile_of_what_it_follows() -> None:
    build = GraphBuilder()
    gate = build.add("gate_proj", flops=12, weight=12)
    build.add("down_proj", build.add("act", gate, vector_ops=6), flops=12, weight=12)
    graph = lower(build.graph(), ModelMapping(weights="resident", tiles={"gate_proj": 3, "down_proj": 2}))
    needs = {
        graph.name(t): [graph.name(s) for s in graph.inputs[graph.input_start[t] : graph.input_start[t + 1]]] for t in range(8)
    }
    assert [needs[f"act t{i}"] for i in range(3)] == [["gate_proj t0"], ["gate_proj t1"], ["gate_proj t2"]]
    assert needs["down_proj t0"] == needs["down_proj t1"] == ["act t0", "act t1", "act t2"]


@pytest.mark.parametrize("written", [0.4, 0.125, 0.999, 1e-9])
def test_a_share_of_each_products_weights_is_streamed(written: float) -> None:
    """The resident share is rounded down, op by op, so nothing is read twice and nothing is lost."""
    share = Fraction(str(written))
    captured = op_graphs(from_dict({"model": MODEL}))[1][False, False].costs(0)[QUANTITIES.index("weight")].tolist()
    result = sim.run(from_dict({"model": MODEL, "mapping": {"weights": {"resident": written}, "tiles": 3}}))
    assert result.metrics.bytes_read == sum(size - size * share.numerator // share.denominator for size in captured)
    streamed = sim.run(from_dict({"model": MODEL, "mapping": {"tiles": 3}}))
    assert result.metrics.tasks == streamed.metrics.tasks
    assert sum(result.metrics.engine_busy) == sum(streamed.metrics.engine_busy)


def test_a_prompt_whose_embedding_does_not_fit_says_which_chunk_does() -> None:
    """4096 bytes for each token: 9000 of them take 36.864 MB, and 33.6 MB hold 8203."""

    def attempt(chunk: int | None) -> None:
        workload = {"sequences": [{"prompt": 9000, "tokens": 1}], "prefill": {"chunk": chunk}, "batching": "continuous"}
        mapping = {"heads": "fused", "softmax": "online", "tiles": {"lm_head": 16}, "activations": "off_chip"}
        model = {"config": "llama-3.2-1b", "layers": 1}
        sim.run(from_dict({"model": model, "workload": workload, "hardware": {"sram": "33.6 MB"}, "mapping": mapping}))

    message = r"^<dict>: hardware\.sram: embedding needs 36\.864 MB .* a step of 8203 new tokens instead of 9000 would"
    with pytest.raises(InputError, match=message):
        attempt(None)
    attempt(8203)


@pytest.mark.parametrize("execution", ["blocking", "stream", "prefetch"])
def test_less_to_read_never_takes_longer_on_one_engine(execution: str) -> None:
    text = {"model": MODEL, "hardware": {"engines": {"count": 1}, "memory": {"bandwidth": "20 GB/s"}}}
    makespans = [
        sim.run(from_dict({**text, "mapping": {"weights": weights, "execution": execution}})).makespan
        for weights in ("streamed", {"resident": 0.25}, {"resident": 0.5}, {"resident": 0.9}, "resident")
    ]
    assert makespans == sorted(makespans, reverse=True)
    assert len(set(makespans)) == 5


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"tiles": {"lm_haed": 8}},
            r"mapping.tiles.lm_haed: unknown weight matmul 'lm_haed' \(did you mean 'lm_head'\?\); ",
        ),
        ({"tiles": {"norm": 8}}, "unknown weight matmul 'norm'.*; known: down_proj, gate_proj, k_proj, lm_head"),
        ({"tiles": {"q_proj": 8}, "fuse": {"qkv": True}}, "unknown weight matmul 'q_proj' .*'qkv_proj'"),
        ({"tiles": {"lm_head": 0}}, "mapping.tiles.lm_head: expected a number from 1 to 1024, or engines, found 0"),
        ({"tiles": 0}, "mapping.tiles: expected a number from 1 to 1024, or engines, found 0"),
        ({"weights": "risident"}, "mapping.weights: expected one of resident, streamed, found 'risident'"),
        ({"weights": {"resident": 1.5}}, "mapping.weights.resident: expected a number above 0 to below 1, found 1.5"),
        ({"weights": {"residnt": 0.5}}, "mapping.weights: unknown key 'residnt' .did you mean 'resident'"),
    ],
)
def test_impossible_values_are_refused(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sim.run(from_dict({"model": MODEL, "mapping": mapping}))


def test_a_written_graph_says_its_own_bytes() -> None:
    with pytest.raises(InputError, match=r"expected a share only with model\.config"):
        sim.run(from_dict({"model": {"graph": [{"name": "a", "flops": 1}]}, "mapping": {"weights": {"resident": 0.5}}}))


@pytest.mark.parametrize("sram", [8 << 20, 1 << 20, 525_000])
@pytest.mark.parametrize("tiles", [1, {"default": 2, "lm_head": 7}])
def test_the_advised_tiles_fit(sram: int, tiles: int | dict[str, int]) -> None:
    """Both pieces of advice, the number and the table, run; two tiles of what is too large fit, and with one less do not.

    Beside them are the input of the LM head, 2,048 numbers, and the results of a tile of its 128,256 columns.
    """

    def at_once(tiles: int, buffers: int) -> int:
        return buffers * -(-128_256 * 2048 * 2 // tiles) + 2048 * 2 - (-128_256 * 2 // tiles)

    def attempt(tiles: int | dict[str, int]) -> str:
        scenario = from_dict({"model": MODEL, "hardware": {"sram": f"{sram} B"}, "mapping": {"tiles": tiles}})
        try:
            plan(scenario)
        except InputError as error:
            return str(error)
        return ""

    said, before = attempt(tiles), tiles if isinstance(tiles, dict) else {}
    number, table = re.search(r"mapping.tiles of (\d+), or of \{(.*)\}, would fit", said).groups()
    kinds = {kind: int(count) for kind, count in (pair.split(": ") for pair in table.split(", "))}
    assert attempt(int(number)) == attempt({**before, **kinds}) == ""
    fewest = min(tiles for tiles in range(1, 1025) if at_once(tiles, 1) <= sram)
    assert attempt({**before, **kinds, "lm_head": fewest}) == ""
    assert attempt({**before, **kinds, "lm_head": fewest - 1})
    if at_once(1024, 2) > sram:
        assert kinds["lm_head"] == 1024
        assert said.endswith("would fit, one at a time")
    else:
        assert at_once(kinds["lm_head"], 2) <= sram < at_once(kinds["lm_head"] - 1, 2)
        assert said.endswith("would fit twice, so that one is loaded while another is used")


@pytest.mark.parametrize("execution", ["blocking", "stream"])
def test_weights_of_one_task_fit_sram_without_prefetch_too(execution: str) -> None:
    """The LM head in 63 tiles of 8,338,676 bytes at most, beside inputs of 4,096 and results of 4,072 bytes."""

    def attempt(sram: int, tiles: int, weights: str = "streamed") -> None:
        mapping = {"execution": execution, "tiles": tiles, "weights": weights}
        plan(from_dict({"model": MODEL, "hardware": {"sram": f"{sram} B"}, "mapping": mapping}))

    head = 128_256 * 2048 * 2
    attempt(-(-head // 63) + 4096 + 4072, 63)
    with pytest.raises(InputError, match=r"lm_head t\d+ has inputs and results of 8\.168 kB beside 8\.339 MB.*tiles of 126"):
        attempt(-(-head // 63) + 4096 + 4071, 63)
    said = r"lm_head t\d+ needs 8\.339 MB at once, SRAM has 8\.339 MB; mapping\.tiles of 127 would fit twice"
    with pytest.raises(InputError, match=said):
        attempt(-(-head // 63) - 1, 63)
    with pytest.raises(InputError, match=r"SRAM has 1\.024 kB; tiling does not cut it below"):
        attempt(1024, 1)


def test_an_op_that_no_tiling_fits_is_refused() -> None:
    """The LM head of 128,256 x 2,048 numbers of 2 bytes: in 1,024 tiles 513,024 bytes each."""
    with pytest.raises(InputError, match=r"SRAM has 100.000 kB; tiling does not cut it below 513.024 kB"):
        sim.run(from_dict({"model": MODEL, "hardware": {"sram": "100 kB"}}))


WHOLE = 2_471_628_800  # bytes of Llama-3.2-1B in bfloat16: 1,235,814,400 parameters


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "held"), [("resident", WHOLE), ({"resident": 0.4}, WHOLE * 2 // 5)])
@pytest.mark.parametrize("execution", ["stream", "prefetch"])
def test_resident_weights_fit_sram_and_leave_the_rest_to_operands(execution: str, weights: object, held: int) -> None:
    def attempt(sram: int) -> tuple[int, ...] | None:
        mapping = {"weights": weights, "execution": execution, "tiles": 1024}
        scenario = from_dict({"model": {"config": "llama-3.2-1b"}, "hardware": {"sram": f"{sram} B"}, "mapping": mapping})
        return plan(scenario).setup.sram

    assert attempt(held + 600_000) == (600_000,)
    with pytest.raises(InputError, match=r"of resident weights are 1 B more than the .* of SRAM"):
        attempt(held - 1)
    if execution == "prefetch" and weights != "resident":
        with pytest.raises(InputError, match=r"tiling does not cut it below .* \(resident weights hold 988.652 MB more\)"):
            attempt(held + 1000)


def test_the_advised_share_fits() -> None:
    text = {"model": {"config": "llama-3.2-1b"}, "hardware": {"sram": "1 GB"}}
    with pytest.raises(
        InputError, match=r"are 1.472 GB more than the 1.000 GB of SRAM; mapping.weights of \{resident: 0.404\} would"
    ):
        sim.run(from_dict({**text, "mapping": {"weights": "resident"}}))
    mapping = {"weights": {"resident": 0.404}, "execution": "stream"}
    with pytest.raises(InputError, match=r"SRAM has 1\.462 MB; mapping\.tiles of 430, or of .*, would fit twice"):
        sim.run(from_dict({**text, "mapping": mapping}))  # what is left takes smaller tiles of the rest
    mapping["tiles"] = 429
    assert sim.run(from_dict({**text, "mapping": mapping})).makespan > 0


def test_all_experts_are_resident_not_only_those_that_a_step_reads() -> None:
    """Mixtral 8x7B: 46.7 billion parameters, of which a token uses 12.9 billion; 2 bytes each."""
    text = {"model": {"config": "mixtral-8x7b"}, "hardware": {"sram": "30 GB"}, "mapping": {"weights": "resident"}}
    with pytest.raises(InputError, match=r"93.4\d\d GB of resident weights are 63.4\d\d GB more than the 30.000 GB of SRAM"):
        sim.run(from_dict(text))


def test_less_sram_is_less_prefetch() -> None:
    """Four ops in a chain, 10 bytes and 10 of compute each: SRAM for two operands hides a load, SRAM for one does not."""
    build = GraphBuilder()
    last: tuple[int, ...] = ()
    for _ in range(4):
        last = (build.add("q_proj", *last, flops=10, weight=10),)
    ends = [machine.run(build.graph(), engines=2, sram=room)[0].makespan for room in (10, 19, 20, 30, 40, None)]
    assert ends == [80, 80, 50, 50, 50, 50]
