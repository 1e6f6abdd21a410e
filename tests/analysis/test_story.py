"""Stories of tokens and requests, beside hand arithmetic."""

from __future__ import annotations

import json

import pytest

from sim.analysis.parts import COMPUTE, TRANSFER, WAIT_CHANNEL, WAIT_ENGINE, WAIT_SRAM
from sim.analysis.story import NONE, Stories
from tests.analysis.machine import run
from tests.analysis.test_what_if import call
from tests.graphs import GraphBuilder
from tests.tools.command import call as command


def test_a_transfer_waits_behind_those_that_the_channel_serves():
    """A needs 5 ps of the channel, B and C 3 and 2 ps: C waits for 8 ps behind both, and computes until 11."""
    b = GraphBuilder()
    for name, size in (("a", 5), ("b", 3), ("c", 2)):
        b.add(name, flops=1, weight=size)
    log, rules = run(b.graph(), execution="blocking", engines=3)
    (link,) = Stories(log, rules).of(0)
    assert (log.name(link.row), link.begin, log.tasks.end[link.row]) == ("c", 0, 11)
    assert (link.parts[COMPUTE], link.parts[TRANSFER], link.parts[WAIT_CHANNEL]) == (1, 2, 8)
    assert [(log.name(row), ps) for row, ps in link.channel] == [("a", 5), ("b", 3)]
    assert (link.engine, link.source, link.waited) == (NONE, NONE, 8)


def test_a_task_waits_behind_the_one_on_its_engine():
    b = GraphBuilder()
    b.add("a", flops=5)
    b.add("b", flops=2)
    log, rules = run(b.graph(), engines=1)
    (link,) = Stories(log, rules).of(0)
    assert (log.name(link.row), log.name(link.engine), link.parts[WAIT_ENGINE]) == ("b", "a", 5)


def test_a_load_waits_for_space_that_other_operands_hold():
    """A load of 6 B waits until 14: of 8 B, q_proj holds 4 until it ends then, and up_proj 2 until 7."""
    b = GraphBuilder()
    b.add("q_proj", flops=10, weight=4)
    b.add("up_proj", flops=1, weight=2)
    b.add("o_proj", flops=1, weight=6)
    log, rules = run(b.graph(), engines=2, sram=8)
    load, product = Stories(log, rules).of(0)
    assert (load.parts[WAIT_CHANNEL], load.parts[WAIT_SRAM], log.tasks.start[load.row]) == (6, 8, 14)
    assert [log.name(row) for row in load.sram] == ["weight_load q_proj", "weight_load up_proj"]
    assert product.sram == ()


def test_the_terminal_names_what_held_sram():
    bounded = ("--set", "hardware.sram=4 MiB", "--set", "mapping.tiles=32", "--set", "hardware.memory.latency=100 us")
    page = " ".join(
        call(
            "explain",
            "llama_1b_context_256",
            *bounded,
            "--set",
            "model={config: llama-3.2-1b, layers: 1, scope: block}",
            "--token",
            "0.0",
        ).split()
    )
    assert "for space in SRAM, held by weight_load" in page


def test_the_second_token_waits_for_the_store_of_the_first():
    """The first token's store ends at 3.1 ms: 1.6 ms until its key and value are ready, and 1.5 ms by the table."""
    data = json.loads(call("explain", "two_tokens_4_engines", "--token", "0.1", "--json"))["token"]
    load = data["tasks"][0]
    assert (load["name"], load["begin_ps"], load["ready_ps"]) == ("kv_load", 0, 3_100_000_000)
    assert load["breakdown_ps"]["wait_input"] == 3_100_000_000
    assert load["behind"] == {"wait_input": ["token 0's kv_store"]}
    page = call("explain", "two_tokens_4_engines", "--token", "0.1")
    assert "waited 3.100 ms for token 0's kv_store; transfer 1.200 ms" in " ".join(page.split())
    other = call("explain", "two_tokens_8_engines", "--token", "0.1")
    assert "waited 1.500 ms for the channel behind kv_store" in " ".join(other.split())


def test_a_request_in_a_batch_step_by_step():
    """A prompt of 4,096 tokens in eight chunks, whose last gives the first token, then three steps of one token."""
    data = json.loads(call("explain", "prefill_chunks_of_512", "--request", "4", "--json"))["request"]
    assert [(step["query"], step["emitted"]) for step in data["steps"]] == [(512, 0)] * 7 + [(512, 1)] + [(1, 1)] * 3
    assert data["steps"][7]["end_ps"] - data["arrival_ps"] == data["ttft_ps"]
    assert data["steps"][0]["start_ps"] - data["arrival_ps"] == data["queued_ps"] > 0
    page = call("explain", "prefill_chunks_of_512", "--request", "4")
    assert {step["batch"] for step in data["steps"]} == {5}
    assert page.count("512 tokens fed in") == 8
    third = call("explain", "prefill_chunks_of_512", "--token", "4.2", "--json")
    assert json.loads(third)["token"]["end_ps"] == data["steps"][9]["end_ps"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--token", "3"), "--token: expected a sequence and a token such as 0.3, found 3"),
        (("--token", "0.2"), "--token 0.2: no such token; sequence 0 has 0 to 1"),
        (("--token", "1.0"), "--token 1.0: no such sequence; there are 0 to 0"),
        (("--request", "7"), "--request 7: no such sequence; there are 0 to 0"),
    ],
)
def test_what_is_not_there_is_named(arguments: tuple[str, ...], expected: str):
    done = command(["explain", "two_tokens_4_engines", *arguments])
    assert (done.status, done.stderr) == (2, f"error: {expected}\n")


def test_tables_of_causes_keep_tokens_and_kinds_apart():
    page = call("explain", "two_tokens_4_engines", "--no-what-if")
    heads = [line.split()[0] for line in page.splitlines() if line.rstrip().endswith("caused by")]
    assert heads == ["token", "kind", "token", "kind"]
