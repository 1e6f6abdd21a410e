"""The machine as data: numbers of engines and channels, and the names by which reports and traces speak of them."""

from __future__ import annotations

from dataclasses import replace

from sim.machine.machine import Device, Machine, one_device
from sim.render.summary import summary
from sim.runs.run import read, run
from sim.scenario.shipped import find_scenario


def test_one_device_has_all_engines_and_channels() -> None:
    machine = one_device(engines=3, channels=2)
    assert machine.engines == 3
    assert machine.engine_names == ["engine 0", "engine 1", "engine 2"]
    assert [(c.name, c.kind, machine.devices[c.device].name) for c in machine.channels] == [
        ("channel 0", "memory", "device"),
        ("channel 1", "memory", "device"),
    ]


def test_engines_are_numbered_through_all_devices() -> None:
    one, two = Device(name="a", engines=range(2)), Device(name="b", engines=range(2, 5))
    assert Machine(devices=(one, two), channels=()).engines == 5
    assert Machine(devices=(one, two), channels=()).engine_names == [
        "a engine 0", "a engine 1", "b engine 0", "b engine 1", "b engine 2",
    ]  # fmt: skip


def test_a_report_has_the_names_of_the_machine() -> None:
    result = run(read(find_scenario("two_tokens_4_engines"), ["hardware.memory.channels.count=2"]))
    machine = result.log.machine
    assert machine == one_device(engines=4, channels=2)
    other = tuple(replace(channel, name=f"HBM {number}") for number, channel in enumerate(machine.channels))
    renamed = replace(result, log=replace(result.log, machine=replace(machine, channels=other)))
    names = [[c["name"] for c in summary(each)["memory"]["channels"]] for each in (result, renamed)]
    assert names == [["channel 0", "channel 1"], ["HBM 0", "HBM 1"]]
