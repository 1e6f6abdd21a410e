"""Presets: their figures against hand arithmetic, how they complete a scenario, and errors in broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.base.errors import InputError
from sim.machine.presets import PRESETS, find, read_preset
from sim.runs.plan import plan
from sim.runs.run import known_names, read
from sim.scenario import Scenario, from_dict, override, parse

NAMES = PRESETS.names()
LLAMA = {"config": "llama-3.2-1b"}

#: Device, figure, arithmetic from units, clocks (GHz) and pins (Gb/s each), and the tolerance for rounded figures.
ARITHMETIC = [
    ("h100-sxm", "peak.bfloat16", 132 * 4096 * 1.83e9, 0.001),
    ("h100-sxm", "peak.float32", 132 * 128 * 2 * 1.98e9, 0.002),
    ("h100-sxm", "bandwidth", 5120 / 8 * 5.234e9, 0.001),
    ("h200", "bandwidth", 6144 / 8 * 6.25e9, 0.001),
    ("a100-80g-sxm", "peak.bfloat16", 108 * 2048 * 1.41e9, 0.001),
    ("a100-80g-sxm", "peak.float32", 108 * 64 * 2 * 1.41e9, 0.001),
    ("a100-80g-sxm", "bandwidth", 5120 / 8 * 3.186e9, 0.001),
    ("mi300x", "peak.bfloat16", 304 * 2048 * 2.1e9, 0.001),
    ("mi300x", "peak.float32", 304 * 256 * 2.1e9, 0.001),
    ("mi300x", "bandwidth", 8192 / 8 * 5.2e9, 0.01),
    ("l4", "peak.bfloat16", 58 * 1024 * 2.04e9, 0.002),
    ("l4", "peak.float32", 58 * 256 * 2.04e9, 0.001),
    ("l4", "bandwidth", 192 / 8 * 12.5e9, 0.001),
    ("rtx-4090", "peak.bfloat16", 128 * 512 * 2.52e9, 0.001),
    ("rtx-4090", "peak.float32", 128 * 256 * 2.52e9, 0.001),
    ("rtx-4090", "bandwidth", 384 / 8 * 21e9, 0.001),
    ("apple-m1-max", "peak.float32", 32 * 128 * 2 * 1.27e9, 0.01),
    ("apple-m1-max", "bandwidth", 512 / 8 * 6.4e9, 0.03),  # Apple rounds 409.6 GB/s to 400
    ("apple-m2", "peak.float32", 10 * 128 * 2 * 1.398e9, 0.01),
    ("apple-m2", "bandwidth", 128 / 8 * 6.4e9, 0.03),
    ("jetson-agx-orin-64g", "peak.float32", 16 * 128 * 2 * 1.3e9, 0.01),
    ("jetson-agx-orin-64g", "bandwidth", 256 / 8 * 6.4e9, 0.001),
    ("raspberry-pi-5", "peak.float32", 4 * 2 * 4 * 2 * 2.4e9, 0),
    ("raspberry-pi-5", "bandwidth", 32 / 8 * 4.267e9, 0.001),
    ("i9-13900k", "peak.float32", 8 * 2 * 8 * 2 * 5.5e9, 0.01),
    ("i9-13900k", "bandwidth", 128 / 8 * 5.6e9, 0.001),
    ("sifive-x390", "peak.float32", 4 * 64 * 1.5e9, 0),
]


def scenario(hardware: dict[str, object], **others: object) -> Scenario:
    return from_dict({"model": LLAMA, "hardware": hardware, **others}, known=known_names())


@pytest.mark.parametrize(("name", "key", "expected", "tolerance"), ARITHMETIC)
def test_figures_follow_from_units_and_clocks(name: str, key: str, expected: float, tolerance: float) -> None:
    value = dict(find(name).figures())[key].value
    assert abs(value / expected - 1) <= tolerance, f"expected {expected:.4g}, found {value:.4g}, {value / expected - 1:+.2%}"


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_source_and_each_share_is_of_the_whole(name: str) -> None:
    preset = find(name)
    assert all(figure.source for _, figure in preset.figures())
    engines = preset.hardware()["engines"]
    assert engines["count"] == preset.engines.value
    memory = {"memory": {"bandwidth": "50 GB/s"}} if preset.unpublished else {}
    for count in ({}, {"engines": {"count": preset.engines.value}}):
        made = scenario({"preset": name, **memory, **count}).hardware
        for dtype, figure in preset.peak.items():
            all_together = made.engines.count * (made.engines.peak(dtype) or 0)
            assert 0 <= figure.value - all_together < made.engines.count, "together as fast as the device, but for rounding"
    vendor_units = ("generic-npu", "gaudi-3", "trainium2")  # whose float32 products run on matrix engines
    assert name in vendor_units or "float32" not in preset.peak or 2 * preset.vector.value == preset.peak["float32"].value


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_runs_a_block(name: str) -> None:
    bandwidth = {"memory": {"bandwidth": "50 GB/s"}} if find(name).unpublished else {}
    small = scenario({"preset": name, **bandwidth}, workload={"sequences": [{"context": 16}]})
    small = override(small, ["model.layers=1", "model.scope=block"])
    assert len(plan(small).setup.graph)


def test_the_generic_machine_is_that_of_the_defaults() -> None:
    written = scenario({"preset": "generic-npu"}).hardware.model_dump(mode="json")
    assert written == {**scenario({}).hardware.model_dump(mode="json"), "preset": "generic-npu"}


def test_written_keys_hold_and_the_rest_is_the_preset() -> None:
    made = scenario({"preset": "l4", "engines": {"count": 4, "flops": {"int8": "1 TOP/s"}}, "memory": {"latency": "1 us"}})
    engines, memory = made.hardware.engines, made.hardware.memory
    assert (engines.count, engines.peak("int8")) == (4, 10**12)
    assert engines.peak("bfloat16") == 121 * 10**12 // 58, "an engine stays a 58th of the device"
    assert (memory.latency, memory.bandwidth, memory.capacity) == (10**6, 300 * 10**9, 24 * 10**9)


def test_an_override_changes_one_figure_of_the_preset() -> None:
    made = override(scenario({"preset": "l4"}), ["hardware.memory.bandwidth=600 GB/s"])
    assert made.hardware.memory.bandwidth == 600 * 10**9
    assert made.hardware.engines.peak("bfloat16") == 121 * 10**12
    assert override(made, ["hardware.preset=h200"]).hardware.engines.peak("bfloat16") == 989 * 10**12


def test_written_out_it_is_the_same_scenario() -> None:
    made = scenario({"preset": "raspberry-pi-5", "memory": {"achievable": True, "capacity": None}})
    assert from_dict(made.to_dict()) == made


def test_peak_bandwidth_by_roofline_and_the_achievable_one_where_it_is_asked_for() -> None:
    assert scenario({"preset": "raspberry-pi-5"}, cost="roofline").hardware.memory.efficiency is None
    cores = {"preset": "raspberry-pi-5", "engines": {"count": 4}}
    memory = scenario({**cores, "memory": {"achievable": True}}).hardware.memory
    assert memory.efficiency is not None
    delivered = {readers: share * memory.bandwidth / 1e9 for readers, share in memory.efficiency.items()}
    assert delivered == pytest.approx({"1": 9.26, "2": 13.23, "4": 11.59}, rel=1e-3)
    a100 = scenario({"preset": "a100-80g-sxm", "memory": {"achievable": True}}).hardware.memory
    assert a100.efficiency == {"1": 0.781}
    own = scenario({"preset": "a100-80g-sxm", "memory": {"achievable": True, "efficiency": {"2": 0.5}}}).hardware.memory
    assert own.efficiency == {"2": 0.5}, "not mixed with the curve of the preset"


@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        ("{preset: a100}", r"<string>:2:20: hardware\.preset: unknown hardware preset 'a100'.*known: a100-80g-sxm, "),
        ("{preset: 5}", r"<string>:2:20: hardware\.preset: expected a text, found 5"),
        ("{preset: none.yaml}", r"hardware\.preset: none\.yaml: no such file"),
        (
            "{preset: sifive-x390}",
            r"hardware: the bandwidth of preset .* is not published \(.*\): expected the key hardware\.memory\.b",
        ),
        (
            "{preset: generic-npu, memory: {achievable: true}}",
            r"hardware: expected memory\.achievable only where .* preset 'generic-npu' has none",
        ),
        ("{memory: {achievable: true}}", r"hardware: expected memory\.achievable only where .* no preset is named"),
        ("{preset: l4, memory: 5}", r"hardware\.memory: expected a mapping \(keys: bandwidth, .*, capacity\), found 5"),
        ("{preset: l4, engines: {counts: 5}}", r"hardware\.engines: unknown key 'counts' \(did you mean 'count'\?\)"),
    ],
)
def test_one_line_says_what_is_wrong(hardware: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse(f"model: {{config: llama-3.2-1b}}\nhardware: {hardware}", known=known_names())
    assert "\n" not in str(error.value)


BOARD = """
title: a board
sources: {us: measured by us}
engines: {value: 2, source: us}
peak: {bfloat16: {value: 3 TFLOP/s, source: us}}
vector: {value: 1 TOP/s, source: us, unsure: a guess}
bandwidth: {value: 10 GB/s, source: us}
"""


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "board.yaml"
    path.write_text(BOARD)
    made = scenario({"preset": str(path)}).hardware
    assert (made.engines.count, made.engines.peak("bfloat16"), made.memory.bandwidth) == (2, 15 * 10**11, 10**10)


def test_its_path_is_from_the_folder_of_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("machines", "elsewhere"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "machines" / "board.yaml").write_text(BOARD)
    text = "model: {config: llama-3.2-1b}\nhardware: {preset: board.yaml}\n"
    for file, place in (("../machines/mine.yaml", "board.yaml"), ("mine.yaml", "../machines/board.yaml")):
        Path(file).write_text(text.replace("board.yaml", place))
        assert read(file).hardware.engines.count == 2
    Path("mine.yaml").write_text(text)
    with pytest.raises(InputError, match=r"^mine\.yaml:2:20: hardware\.preset: board\.yaml: no such file"):
        read("mine.yaml")


def test_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "board.yaml").write_text(BOARD)
    (tmp_path / "board_maker.py").write_text("from pathlib import Path\nBOARD = Path(__file__).with_name('board.yaml')\n")
    made = tmp_path / "board_maker-1.0.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: board-maker\nVersion: 1.0\n")
    (made / "entry_points.txt").write_text("[decode_sim.hardware_presets]\ntheir-board = board_maker:BOARD\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "their-board" in PRESETS.names()
    assert find("their-board").title == "a board"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("title: a board\n", "", "the key 'title' is missing"),
        ("title", "titel", r"unknown key 'titel' \(did you mean 'title'\?\)"),
        ("value: 2,", "", "engines: the key 'value' is missing"),
        ("value: 2,", "value: 0,", "engines.value: expected a number from 1 to 4096, found 0"),
        ("10 GB/s", "10", "bandwidth.value: expected a bandwidth with its unit"),
        ("source: us, unsure", "source: them, unsure", "vector.source: expected one of us, found 'them'"),
        ("unsure", "unsur", r"vector: unknown key 'unsur' \(did you mean 'unsure'\?\); valid: value, source, derived, unsure"),
        (
            "value: 3 TF",
            "valeu: 3 TF",
            r"peak\.bfloat16: unknown key 'valeu' \(did you mean 'value'\?\).* \(and 1 more error\)",
        ),
        (
            "{value: 10 GB/s, source",
            "{unpublished: why, source",
            "bandwidth: expected the keys 'value' and 'source', or the key 'un",
        ),
        (
            "{value: 10 GB/s, source: us}",
            "{}",
            "bandwidth: expected the keys 'value' and 'source', or the key 'unpublished' alone",
        ),
        ("{us: measured by us}", "us", "sources: expected a mapping, found 'us'"),
        ("a guess", "3", "vector.unsure: expected a text, found 3"),
        ("{bfloat16: {value: 3 TFLOP/s, source: us}}", "3 TFLOP/s", "peak: expected a mapping, found '3 TFLOP/s'"),
        (
            "bandwidth:",
            "achievable: {value: 1.2, source: us}\nbandwidth:",
            "achievable.value: expected a number above 0 to 1, found 1.2",
        ),
        (
            "bandwidth:",
            "achievable: {value: {x: 1}, source: us}\nbandwidth:",
            "achievable.value.x: expected as key a whole number from 1 to 999999, found 'x'",
        ),
    ],
)
def test_errors_in_a_file_have_their_place(before: str, after: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "board.yaml"
    path.write_text(BOARD.replace(before, after))
    with pytest.raises(InputError, match=rf"board\.yaml:\d+:\d+: {message}"):
        read_preset(path, "board")


def test_shipped_scenarios_name_their_machine() -> None:
    from sim.scenario.shipped import find_scenario

    assert read(find_scenario("a100_llama_1b")).hardware.preset == "a100-80g-sxm"


def test_energy_of_a_preset_with_all_figures() -> None:
    """82 pJ a byte in all, 48 of them in DRAM; what is written wins."""
    energy = scenario({"preset": "h100-sxm"}).hardware.energy
    assert energy is not None
    assert (energy.flop, energy.byte, energy.static.device) == (760, {"dram": 48_000, "path": 34_000}, 100_000)
    assert (energy.link, energy.host) == (44_000, 52_000)
    energy = scenario({"preset": "h100-sxm", "energy": {"byte": "50 pJ/B", "static": {"engine": "2 W"}}}).hardware.energy
    assert energy is not None
    assert (energy.byte, energy.static.device, energy.static.engine) == (50_000, 100_000, 2_000)
    assert scenario({"preset": "h100-sxm", "energy": None}).hardware.energy is None


@pytest.mark.parametrize(("name", "dram"), [("a100-80g-sxm", 6.0), ("l4", 7.5), ("l40s", 7.5), ("rtx-4090", 7.25)])
def test_energy_of_dram_alone_is_not_that_of_a_run(name: str, dram: float) -> None:
    """Micron gives pJ a bit; the rest is for the scenario to say."""
    assert scenario({"preset": name}).hardware.energy is None
    energy = scenario({"preset": name, "energy": {"flop": "1 pJ/FLOP", "byte": {"path": "30 pJ/B"}}}).hardware.energy
    assert energy is not None
    assert energy.byte == {"dram": dram * 8000, "path": 30_000}
    with pytest.raises(InputError, match=r"hardware\.energy: the key 'flop' is missing"):
        scenario({"preset": name, "energy": {}})
