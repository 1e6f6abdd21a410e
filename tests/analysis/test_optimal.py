"""The optimum of graphs whose best schedule is known."""

from __future__ import annotations

import pytest

pytest.importorskip("ortools")

from sim.analysis.bounds import bounds
from sim.analysis.optimal import Optimum, optimum
from tests.analysis.machine import run
from tests.analysis.test_breakdown import chain, kv_block
from tests.graphs import GraphBuilder


def best(log, rules, arbiter: str = "fifo") -> Optimum:
    return optimum(log, rules, arbiter, time_limit=20)


def test_list_scheduling_is_beaten():
    b = GraphBuilder()
    for flops in (1, 1, 2):
        b.add("norm", flops=flops)
    log, rules = run(b.graph(), engines=2)
    assert log.makespan == 3  # 1 and 1 side by side, then 2 alone; 2 beside 1 + 1 takes 2
    assert best(log, rules) == Optimum(best=2, bound=2)
    assert best(log, rules).sentence(3) == "this schedule is 50.0% above the optimum of 2 ps"


def test_order_of_transfers_matters():
    b = GraphBuilder()
    b.add("short", flops=1, weight=4)
    b.add("long", flops=8, weight=4)
    log, rules = run(b.graph(), execution="blocking", engines=2)
    assert log.makespan == 16  # 4 + 4 + 8; the other way round 4 + 8 and 4 + 4 + 1
    assert best(log, rules).best == 12


@pytest.mark.parametrize(("execution", "expected"), [("blocking", 2 * (3 + 4)), ("stream", 4 + 4), ("prefetch", 3 + 4 + 4)])
def test_executions(execution, expected):
    log, rules = run(chain({"flops": 4, "weight": 3}, repeat=2), execution=execution, engines=1)
    assert best(log, rules) == Optimum(best=expected, bound=expected)
    assert log.makespan == expected
    assert best(log, rules).sentence(expected).startswith("this schedule is optimal")


@pytest.mark.parametrize(
    ("execution", "expected"), [("blocking", 2 * (3 + 4)), ("stream", 2 * (2 + 3)), ("prefetch", 3 + 4 + 4)]
)
def test_a_launch_is_before_the_load(execution, expected):
    """2 of the 4 ps of compute are the launch."""
    log, rules = run(chain({"flops": 4, "weight": 3}, repeat=2), execution=execution, engines=1, launch=2)
    assert best(log, rules) == Optimum(best=expected, bound=expected)
    assert log.makespan == expected


def test_latency_port_and_arrival():
    log, rules = run(chain({"flops": 4, "weight": 3}), execution="blocking", latency=2, cap=(1, 2), requests=[(1, 5)])
    assert best(log, rules).best == 5 + 2 + 6 + 4 == log.makespan


@pytest.mark.parametrize("dependency", ["known", "sampled"])
def test_tokens_wait_for_each_other(dependency):
    log, rules = run(kv_block(), dependency=dependency, requests=[(2, 0)], engines=4)
    found = best(log, rules)
    assert found.proved
    assert bounds(log, rules).lower <= found.best <= log.makespan
    # known: k_proj 10, store 2, load 3, scores 4. sampled: two steps of max(load 3, k_proj 10) + scores 4.
    assert found.best == {"known": 10 + 2 + 3 + 4, "sampled": 28}[dependency]


def test_inputs_of_a_later_step():
    """Two tokens of a chain take twice as long as one, however many engines there are."""
    log, rules = run(chain({"flops": 5}, {"flops": 7}, {"flops": 2}), engines=2, requests=[(2, 0)])
    assert best(log, rules) == Optimum(best=28, bound=28)


def test_times_are_scaled_exactly():
    log, rules = run(chain({"flops": 4_000_000_000, "weight": 6_000_000_000}), execution="blocking")
    assert best(log, rules).best == 10_000_000_000


def test_unsupported_functions_are_refused():
    log, rules = run(chain({"flops": 4, "weight": 3}), execution="blocking", arbiter="processor_sharing")
    assert (
        best(log, rules, "processor_sharing").sentence(7).startswith("no optimum: the optimum is for a channel that serves one")
    )
    log, rules = run(chain({"flops": 4, "weight": 3}), sram=3)
    assert "SRAM" in best(log, rules).unsupported
    log, rules = run(chain({"flops": 4, "weight": 3}), channels=2)
    assert "one channel" in best(log, rules).unsupported
    log, rules = run(chain({"flops": 1}), requests=[(6_000, 0)])
    assert "too many" in best(log, rules).unsupported


def test_unproved_says_between_what():
    assert Optimum(best=110, bound=100).sentence(120).startswith("this schedule is at most 20.0% above the optimum")
