"""The model that a config names, and one clear line for anything that names none."""

from __future__ import annotations

import io
import json
import os
import sys
import time

import pytest

from models import config as model_config
from models.config import ModelConfig, dtype_of, hub_ids, names, notes, resolve, stated_dtype
from models.decoder import hf_config, make
from sim.base.errors import InputError

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64}


def error_of(config: object) -> str:
    with pytest.raises(InputError) as caught:
        resolve(str(config))
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_shipped_name():
    config = resolve("llama-3.2-1b")
    assert config.name == "llama-3.2-1b"
    assert config.data["hidden_size"] == 2048
    assert not any(key.startswith("_") for key in config.data)


@pytest.mark.parametrize("name", names())
def test_every_shipped_config_names_its_source_and_its_published_parameter_count(name):
    assert notes(name)["_source"].startswith("https://huggingface.co/")
    assert notes(name)["_parameters"] > 10**8
    assert resolve(name).data["model_type"]


def test_a_file_and_its_folder_are_the_same_config(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    path = write(folder / "config.json", LLAMA)
    assert resolve(str(path)) == resolve(str(folder))
    assert resolve(str(path)).name == "my-model"


def test_the_digest_does_not_depend_on_the_order_of_keys(tmp_path):
    a = resolve(str(write(tmp_path / "a.json", LLAMA)))
    b = resolve(str(write(tmp_path / "b.json", dict(reversed(LLAMA.items())))))
    c = resolve(str(write(tmp_path / "c.json", {**LLAMA, "hidden_size": 65})))
    assert a.digest == b.digest != c.digest


def test_an_unknown_name_offers_the_nearest():
    assert "did you mean 'llama-3.2-1b'?" in error_of("llama-3.2-1B-")
    assert "known: " in error_of("nothing like it")


def test_errors_in_json_have_line_and_column(tmp_path):
    path = write(tmp_path / "config.json", '{\n  "model_type": "llama",\n  oops\n}')
    assert f"{path}:3:3: broken JSON" in error_of(path)


def test_json_nested_without_end(tmp_path):
    assert "nested too deeply" in error_of(write(tmp_path / "config.json", "[" * 100_000))


def test_an_encoder_only_model(tmp_path):
    path = write(tmp_path / "config.json", {"model_type": "bert", "architectures": ["BertForMaskedLM"]})
    assert "BertForMaskedLM is not a causal language model (encoder-only" in error_of(path)


def test_an_encoder_decoder(tmp_path):
    data = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
    assert "encoder-decoder" in error_of(write(tmp_path / "config.json", data))


def test_no_model_type(tmp_path):
    assert "no model_type" in error_of(write(tmp_path / "config.json", {"hidden_size": 64}))
    assert "did you mean 'modeltype'?" in error_of(write(tmp_path / "config.json", {"modeltype": "llama"}))


def test_not_an_object(tmp_path):
    assert "expected a JSON object, found list" in error_of(write(tmp_path / "config.json", "[1]"))


def test_an_empty_file(tmp_path):
    assert ":1:1: broken JSON" in error_of(write(tmp_path / "config.json", ""))


def test_not_utf8(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'{"model_type": "ll\xffama"}')
    assert "not UTF-8 (byte 18" in error_of(path)


def test_a_folder_without_config(tmp_path):
    assert "the folder has no config.json" in error_of(tmp_path)


def test_a_missing_file(tmp_path):
    assert "no such file" in error_of(tmp_path / "config.json")


def test_an_unreadable_file(tmp_path, monkeypatch):
    path = write(tmp_path / "config.json", LLAMA)

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    assert "cannot be read: Permission denied" in error_of(path)


def test_a_name_that_no_path_can_have():
    assert "name too long" in error_of("a" * 5000)


@pytest.mark.parametrize("name", ["a" * 5000, "a/" * 2500, "./" + "a/" * 2000, "owner/" + "a" * 200, "a" * 250])
def test_a_name_of_absurd_length_is_shortened(name):
    assert len(error_of(name).partition("; known: ")[0]) < 250  # the names of what ships follow


def test_a_device_or_a_pipe(tmp_path):
    assert error_of("/dev/zero") == "/dev/zero: expected a config.json, found no regular file"
    os.mkfifo(tmp_path / "config.json")
    assert "found no regular file" in error_of(tmp_path)


def test_a_file_of_some_megabytes(tmp_path):
    modules = [f"model.layers.{i}.mlp.experts.{j}.w{k}" for i in range(60) for j in range(256) for k in (1, 2, 3)]
    path = write(tmp_path / "config.json", {**LLAMA, "quantization_config": {"quant_method": "modelopt", "ignore": modules}})
    assert path.stat().st_size > 2**20
    assert resolve(str(path)).digest == resolve(str(write(tmp_path / "plain.json", LLAMA))).digest


def test_a_file_that_is_too_large(tmp_path):
    path = write(tmp_path / "config.json", json.dumps(LLAMA) + " " * 2**24)
    assert error_of(path) == f"{path}: larger than 16777216 bytes"


def test_a_number_of_absurd_length(tmp_path):
    path = write(tmp_path / "config.json", f'{{"model_type": "llama", "vocab_size": {"9" * 5000}}}')
    assert error_of(path) == f"{path}: broken JSON: a number of absurd length"


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer"])
@pytest.mark.parametrize("count", [10_001, 10**12, 1e30, 0, -1])
def test_a_number_of_layers_that_no_model_has(tmp_path, key, count):
    wanted = f"{key}: expected 1 to 10000, found {count}"
    assert wanted in error_of(write(tmp_path / "config.json", {**LLAMA, key: count}))
    assert wanted in error_of(write(tmp_path / "config.json", {**LLAMA, "text_config": {key: count}}))


@pytest.mark.parametrize("key", ["num_attention_heads", "num_key_value_heads", "n_head"])
def test_no_heads(tmp_path, key):
    assert f"{key}: expected at least 1, found 0" in error_of(write(tmp_path / "config.json", {**LLAMA, key: 0}))


def test_a_hub_id_without_its_client(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(model_config, "import_module", fail)
    assert "needs huggingface_hub (pip install huggingface-hub)" in error_of("someone/model")


@pytest.mark.parametrize("model_id", ["meta-llama/Llama-3.2-1B", "META-LLAMA/llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct"])
def test_the_hub_id_of_a_shipped_model_needs_no_network(monkeypatch, model_id):
    monkeypatch.setattr(model_config, "import_module", None)
    assert resolve(model_id) == resolve("llama-3.2-1b")


def test_every_shipped_config_has_a_hub_id():
    assert set(hub_ids().values()) == set(names())


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """The hub's client with an empty cache, and an address that does not respond."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}")
    return tmp_path / "hub"


def test_a_hub_id_without_a_network_fails_soon_and_names_shipped_models_near_it(no_network):
    began = time.monotonic()
    message = error_of("Qwen/Qwen3-8B")
    assert time.monotonic() - began < 10  # the client alone would try for half a minute
    assert message.startswith(
        "model config 'Qwen/Qwen3-8B': not a shipped name, not a file, not available from the Hugging Face hub: "
    )
    assert message.endswith("; near it ship qwen3-0.6b, qwen3.6-27b, qwen3-30b-a3b")
    assert error_of("someone/model").endswith("; `sim list models` shows what ships")


def test_the_code_of_a_repository_is_never_run(no_network, tmp_path, monkeypatch):
    """A config that names code of its own, in the local cache as the hub's client keeps it, and someone who says yes to all."""
    commit, marker = "0123456789abcdef0123456789abcdef01234567", tmp_path / "run"
    repository = no_network / "models--someone--model"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoModel": "own.Model"}
    sizes = {
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "intermediate_size": 64,
    }
    write(folder / "config.json", {**LLAMA, **sizes, "auto_map": own})
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("a question"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    assert make(hf_config(resolve("someone/model"))).config.num_hidden_layers == 1
    write(folder / "config.json", {**LLAMA, "model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": own})
    with pytest.raises(InputError, match=r"unknown model_type 'own' .*; the code of its repository is never run; try"):
        hf_config(resolve("someone/model"))
    assert sys.stdin.read() == "y\n" * 9
    assert not marker.exists()


def test_paths_are_from_the_folder_that_is_given(tmp_path):
    write(tmp_path / "config.json", LLAMA)
    assert resolve("config.json", tmp_path) == resolve(str(tmp_path))
    assert resolve("llama-3.2-1b", tmp_path) == resolve("llama-3.2-1b")
    with pytest.raises(InputError, match=rf"^{tmp_path}/other.json: no such file"):
        resolve("other.json", tmp_path)


def test_a_home_that_nobody_has():
    assert "home directory" in error_of("~nobody-has-this-name/config.json")


@pytest.mark.parametrize("value", [7, [7], "LlamaForCausalLM", {"LlamaForCausalLM": 1}])
def test_architectures_of_another_type(tmp_path, value):
    path = write(tmp_path / "config.json", {**LLAMA, "architectures": value})
    assert error_of(str(path)).startswith(f"{path}: architectures: expected a list of class names, found ")


def test_architectures_may_be_missing(tmp_path):
    for value in (None, []):
        assert resolve(str(write(tmp_path / "config.json", {**LLAMA, "architectures": value}))).data["model_type"] == "llama"


@pytest.mark.parametrize(("keys", "dtype"), [
    ({}, "bfloat16"),  # as checkpoints are
    ({"dtype": "float16"}, "float16"),
    ({"torch_dtype": "float32"}, "float32"),
    ({"dtype": None, "torch_dtype": "torch.float16"}, "float16"),
    ({"dtype": "auto"}, "bfloat16"),
    ({"dtype": "float8_e4m3fn"}, "bfloat16"),  # of stored weights
    ({"text_config": {"dtype": "float16"}}, "float16"),
    ({"dtype": "float32", "text_config": {"torch_dtype": "float16"}}, "float16"),
    ({"thinker_config": {"text_config": {"torch_dtype": "float16"}}}, "float16"),
])  # fmt: skip
def test_dtypes(keys, dtype):
    config = ModelConfig(name="", data={**LLAMA, **keys})
    assert dtype_of(config, None) == dtype
    assert dtype_of(config, "float16") == "float16"
    assert (stated_dtype(config) is None) == (dtype == "bfloat16")


def test_an_unknown_dtype():
    with pytest.raises(InputError, match=r"unknown model dtype 'bfloat'.*did you mean 'bfloat16'"):
        dtype_of(resolve("llama-3.2-1b"), "bfloat")
    with pytest.raises(InputError, match="unknown model dtype 'float64'"):
        dtype_of(ModelConfig(name="", data={"dtype": "float64"}), None)
