"""Runs beside this process by the pools of studies: replicas and repeats are the same as here."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from sim.base.errors import InputError, SimError
from sim.runs.apart import Apart
from sim.runs.repeats import measure, numbers
from sim.runs.run import run
from sim.study.cluster import LOCAL, Cluster
from sim.study.pool import Here, InOrder, Pool, Processes
from tests.runs.test_apart import TOGETHER, assert_equal, scenario
from tests.tools.command import call

REQUESTS = [{"prompt": 9 + i, "tokens": 2 + i % 3, "arrival": f"{7 * i} us"} for i in range(7)]


def processes() -> Pool:
    return Processes(2)


def cluster() -> Pool:
    pytest.importorskip("distributed")
    return Cluster(LOCAL, 2)


@pytest.mark.parametrize("make", [processes, pytest.param(cluster, marks=pytest.mark.slow)])
def test_replicas_and_repeats_are_the_same_anywhere(make: Callable[[], Pool]) -> None:
    given = scenario(3, {"sequences": REQUESTS})
    arrivals = {"process": "poisson", "rate": "9000/s"}
    random = scenario(2, {"generate": {"count": 5, "arrivals": arrivals, "prompt": 9, "tokens": 2}})
    with InOrder(make) as beside:
        assert_equal(run(given, apart=TOGETHER), run(given, apart=Apart(beside, 0)))
        assert list(measure(random, 3, numbers, beside=beside)) == list(measure(random, 3, numbers))


def twice(number: int) -> int:
    if number < 0:
        raise InputError("expected a number, 0 or more")
    if number == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def test_results_come_in_order_and_errors_as_they_are() -> None:
    asked = list[int]()

    def numbered() -> Iterator[int]:
        for number in range(50):
            asked.append(number)
            yield number

    with InOrder(Here) as here:
        found = here(twice, numbered())
        assert (next(found), len(asked)) == (0, 2)  # the rest is made when it is wanted
        assert list(found) == list(range(2, 100, 2))
    with InOrder(processes) as beside:
        assert list(beside(twice, range(9))) == list(range(0, 18, 2))
        with pytest.raises(InputError, match="0 or more"):
            list(beside(twice, [1, -1]))
        with pytest.raises(SimError, match="was killed: it may have lacked memory"):
            list(beside(twice, [99]))


def test_the_command_says_what_is_one_run() -> None:
    few = ["--no-trace", "--set", "workload.generate.count=3", "--set", "model.layers=1"]
    nothing = "error: --jobs: expected --repeats, or a scenario with replicas (mapping.parallel.data)\n"
    assert call(["run", "parallel", "-j", "2"]).stderr == nothing
    name = "h100_llama_8b_replicas_4_prefix_aware"
    one = f"{name}: replicas are simulated together: the router prefix_aware looks at what each of them has to do\n"
    assert call(["run", name, "-j", "2", *few]).stderr == one
    both = "error: --jobs: expected only without --cluster ADDRESS, whose workers are those of the cluster\n"
    assert call(["run", "parallel", "--repeats", "2", "--cluster", "tcp://nowhere:1", "-j", "2"]).stderr == both
