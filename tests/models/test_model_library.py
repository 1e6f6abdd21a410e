"""Source of a graph: shipped, cached or captured; and imports that it must not need."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import pytest

from models import library
from models.config import CAPTURE_VERSION, names, resolve
from models.graph import ModelGraph
from models.library import CACHE_VARIABLE, GRAPHS, encode, load, shipped_path
from sim.base.errors import InputError

TINY = {
    "model_type": "llama", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "dtype": "float32",
}  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return str(path)


@pytest.fixture
def captures(monkeypatch):
    """Counts the captures, and makes them cheap: the shipped graph under the tiny model's name."""
    made = []

    class Capture:
        @staticmethod
        def capture(config, dtype, mla, on_progress=None):
            made.append(config.name)
            for done in (1, 2) if on_progress else ():
                on_progress(done, 2)
            result = {}
            for granularity in ("op", "aten"):
                data = load("llama-3.2-1b", granularity=granularity).to_json()
                data["provenance"] = {
                    "config": config.digest, "granularity": granularity, "capture": str(CAPTURE_VERSION),
                    "transformers": library._version("transformers"),
                }  # fmt: skip
                result[granularity] = ModelGraph.from_json({**data, "name": config.name, "dtype": dtype})
            return result

    monkeypatch.setattr(library, "import_module", lambda _: Capture)
    return made


def test_a_shipped_graph_needs_no_torch_and_little_time():
    code = (
        "import sys, time; from models.library import load; start = time.process_time(); "
        "graph = load('llama-3.2-1b'); print(time.process_time() - start); "
        "assert graph.layers == 16; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.06


def test_an_error_about_the_config_needs_no_torch():
    code = (
        "import sys; from models.library import load; from sim.base.errors import InputError\n"
        "try: load('lama-3.2-1b')\nexcept InputError: pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_captured_graph_is_kept(cache, tiny, captures):
    first = load(tiny)
    assert load(tiny) == first
    assert load(tiny, granularity="aten") != first
    assert captures == ["tiny"]
    assert len(list(cache.iterdir())) == 2


def test_a_shipped_graph_of_other_transformers_is_not_of_the_code_here(cache, captures, monkeypatch):
    shipped = load("llama-3.2-3b", dtype="bfloat16")
    monkeypatch.setattr(library, "_version", lambda _: shipped.provenance["transformers"])
    assert load("llama-3.2-3b", dtype="bfloat16", installed=True) == shipped
    assert not captures
    monkeypatch.setattr(library, "_version", lambda _: "another")
    assert load("llama-3.2-3b", dtype="bfloat16", installed=True).provenance["transformers"] == "another"
    assert load("llama-3.2-3b", dtype="bfloat16", installed=True) != shipped
    assert captures == ["llama-3.2-3b"]
    assert load("llama-3.2-3b", dtype="bfloat16") == shipped


def test_another_dtype_or_config_is_another_graph(cache, tiny, captures, tmp_path):
    load(tiny)
    assert load(tiny, dtype="float16").dtype == "float16"
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**TINY, "hidden_size": 64}))
    load(str(other))
    assert captures == ["tiny", "tiny", "other"]


def test_a_damaged_cache_is_replaced(cache, tiny, captures):
    expected = load(tiny)
    for damage in (b"", b"no gzip", gzip.compress(b"{}"), gzip.compress(b"[1]"), gzip.compress(b'{"variants": [1]}')):
        for path in cache.iterdir():
            path.write_bytes(damage)
        assert load(tiny) == expected
    assert len(captures) == 6
    for path in cache.iterdir():  # flipped bits, which raise an error of zlib's own
        content = path.read_bytes()
        path.write_bytes(content[:60] + bytes(byte ^ 255 for byte in content[60:]))
    assert load(tiny) == expected
    assert len(captures) == 7


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, tiny, captures):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv(CACHE_VARIABLE, str(blocked))
    assert load(tiny).name == "tiny"


def test_an_interrupted_write_leaves_nothing(cache, tiny, captures, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(tiny)
    assert list(cache.iterdir()) == []


def test_a_capture_without_torch(cache, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "models.capture", None)  # so that importing it fails
    with pytest.raises(InputError, match=r"^capturing 'tiny' as float32 needs torch and transformers \(pip install torch"):
        load(tiny)


def test_a_capture_is_announced_only_on_a_terminal(cache, tiny, captures, monkeypatch, capsys):
    load(tiny)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load(tiny, dtype="float16")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"capturing 'tiny' as float16, once; the graph is kept in {cache}\n\r50 %\r100 %\r\x1b[K"
    load(tiny, dtype="float16")
    assert capsys.readouterr() == ("", "")


def test_an_unknown_granularity(tiny):
    with pytest.raises(InputError, match=r"unknown granularity 'ops'.*did you mean 'op'"):
        load(tiny, granularity="ops")


def test_stored_bytes_are_the_same_for_the_same_graph():
    graph = load("llama-3.2-1b")
    assert encode(graph) == encode(ModelGraph.from_json(json.loads(gzip.decompress(encode(graph)))))


@pytest.mark.parametrize("path", sorted(GRAPHS.glob("*.json.gz")), ids=lambda path: path.name)
def test_every_shipped_graph_fits_its_config(path):
    words = path.name.removesuffix(".json.gz").split(".")
    granularity = "aten" if "aten" in words else "op"
    form = "expanded" if "expanded" in words else "latent"
    name = ".".join(word for word in words if word not in ("aten", "expanded"))
    assert name in names()
    data = json.loads(gzip.decompress(path.read_bytes()))
    assert data["provenance"]["config"] == resolve(name).digest
    assert data["provenance"]["granularity"] == granularity
    assert data["provenance"]["mla"] in (form, "none")
    assert shipped_path(name, granularity, form) == path


def test_in_a_pipe_a_long_capture_has_a_line_each_ten_seconds(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(library.time, "monotonic", lambda: now)
    lines = library._Lines("capturing 'tiny' as float32")
    for done in range(1, 9):
        now += 4  # 104 to 132 s
        lines(done, 8)
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err == "capturing 'tiny' as float32: 37 %\ncapturing 'tiny' as float32: 75 %\n"
