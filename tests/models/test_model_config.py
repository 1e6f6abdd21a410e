"""The model that a config names, and one clear line for anything that names none."""

from __future__ import annotations

import json
import os

import pytest

from models import config as model_config
from models.config import dtype_of, names, notes, resolve
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
    assert "not a usable path" in error_of("a" * 5000)


@pytest.mark.parametrize("name", ["a" * 5000, "a/" * 2500, "./" + "a/" * 2000, "owner/" + "a" * 200, "a" * 250])
def test_a_name_of_absurd_length_is_shortened(name):
    assert len(error_of(name)) < 500


def test_a_device_or_a_pipe(tmp_path):
    assert error_of("/dev/zero") == "/dev/zero: expected a config.json, found no regular file"
    os.mkfifo(tmp_path / "config.json")
    assert "found no regular file" in error_of(tmp_path)


def test_a_file_that_is_too_large(tmp_path):
    path = write(tmp_path / "config.json", json.dumps(LLAMA) + " " * 2**20)
    assert error_of(path) == f"{path}: larger than 1048576 bytes"


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


def test_a_hub_id_without_transformers(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(model_config, "import_module", fail)
    assert "needs transformers (pip install transformers)" in error_of("someone/model")


def test_a_hub_id_that_is_not_available(monkeypatch):
    class Hub:
        @staticmethod
        def fetch(model_id):
            raise InputError(f"model config {model_id!r}: not available from the Hugging Face hub")

    monkeypatch.setattr(model_config, "import_module", lambda _: Hub)
    assert "Hugging Face hub" in error_of("someone/no-such-model")


def test_a_hub_id(monkeypatch):
    class Hub:
        @staticmethod
        def fetch(_):
            return dict(LLAMA)

    monkeypatch.setattr(model_config, "import_module", lambda _: Hub)
    assert resolve("someone/model").data["model_type"] == "llama"


def test_dtypes(tmp_path):
    config = resolve(str(write(tmp_path / "config.json", LLAMA)))
    assert dtype_of(config, None) == "float32"
    assert dtype_of(config, "float16") == "float16"
    assert dtype_of(resolve("llama-3.2-1b"), None) == "bfloat16"
    with pytest.raises(InputError, match=r"unknown model dtype 'bfloat'.*did you mean 'bfloat16'"):
        dtype_of(config, "bfloat")
