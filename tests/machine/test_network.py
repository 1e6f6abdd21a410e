"""Links between devices, and those that a transfer crosses, by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest

from sim.machine.network import Network, grid, has_cycle


def names(network: Network, source: int, target: int) -> list[str]:
    """The links from a simulated device to another, as `device name`."""
    ports = [network.ports[i] for i in network.paths[source * network.count + target]]
    return [f"{port.device} {port.name}" for port in ports]


def of(topology, count, each=None, island=None, *, folded=False) -> Network:
    return Network(count=count, each=each or count, island=island or count, topology=topology, folded=folded)


def test_a_switch_has_a_link_out_and_a_link_in_of_each_device():
    assert names(of("switch", 4), 1, 3) == ["1 link", "3 link in"]
    assert [(port.device, port.name) for port in of("switch", 2).ports] == [
        (0, "link"), (0, "link in"), (1, "link"), (1, "link in"),
    ]  # fmt: skip


def test_all_to_all_has_a_link_for_each_pair():
    network = of("all_to_all", 4)
    assert names(network, 2, 0) == ["2 link to 0"]
    assert len(network.ports) == network.most == 4 * 3


def test_a_ring_goes_the_shorter_way_and_forward_where_both_are_equal():
    assert names(of("ring", 5), 0, 2) == ["0 link to 1", "1 link to 2"]
    assert names(of("ring", 5), 0, 3) == ["0 link to 4", "4 link to 3"]
    assert names(of("ring", 4), 3, 1) == ["3 link to 0", "0 link to 1"]
    assert len(of("ring", 5).ports) == 10


def test_a_mesh_goes_along_the_row_and_then_along_the_column():
    """Two rows of three, numbered around: 0 1 2 / 5 4 3."""
    assert grid(6) == [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0)]
    assert names(of("mesh", 6), 0, 3) == ["0 link to 1", "1 link to 2", "2 link to 3"]
    assert names(of("mesh", 6), 3, 0) == ["3 link to 4", "4 link to 5", "5 link to 0"]
    assert len(of("mesh", 6).ports) == 2 * (2 * 2 + 3)


@pytest.mark.parametrize("devices", range(1, 40))
def test_numbers_of_a_mesh_go_around(devices):
    places = grid(devices)
    assert len(set(places)) == devices
    if has_cycle(devices):
        for (row, column), (to_row, to_column) in pairwise([*places, places[0]]):
            assert abs(row - to_row) + abs(column - to_column) == 1
    else:
        assert devices % 2 or len({column for _, column in places}) == 1


def test_islands_are_connected_like_the_topology_says_and_by_a_network():
    network = of("ring", 8, island=4)
    assert names(network, 5, 4) == ["5 link to 4"]
    assert names(network, 4, 7) == ["4 link to 7"]
    assert names(network, 1, 6) == ["1 network", "6 network in"]
    assert [port.kind for port in network.ports] == ["link"] * 16 + ["network"] * 16


def test_one_device_of_a_stage_stands_for_all():
    """Two stages of four devices: what goes to any device of the second comes in at the one that is simulated."""
    network = of("switch", 8, each=4, folded=True)
    assert list(network.simulated) == [0, 4]
    assert names(network, 0, 2) == ["0 link", "0 link in"]
    assert names(network, 0, 4) == names(network, 0, 6) == ["0 link", "1 link in"]
    assert names(of("all_to_all", 4, folded=True), 0, 3) == ["0 link to 3"]


def test_one_device_alone_has_a_link_that_carries_all():
    assert of("switch", 8, folded=True).plain
    assert of("ring", 8, folded=True).plain
    assert not of("all_to_all", 8, folded=True).plain
    assert not of("switch", 8).plain
