"""The table of model types that can be captured, `docs/reference/models.md`: `python -m models.coverage [TYPE...]`.

Every causal model type that transformers knows is captured from its default config, cut to a few layers, each in a process
of its own with a time limit. Without names, all types; with names, the rows of these types are made anew.
"""

# torch and transformers are only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

import json
import multiprocessing
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as _CAUSAL

from models.capture import capture
from models.config import ModelConfig, parts
from models.graph import QUANTITIES, ModelGraph
from models.masks import CHUNKED, ROWS
from models.recording import CHOSEN
from sim.base.errors import InputError

TABLE = Path(__file__).parents[1] / "docs" / "reference" / "models.md"

#: Seconds after which a type is given up.
LIMIT = 300

#: Layers of a small config.
_LAYERS = 4

_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers")

#: Values of keys that a default config leaves open, though its model needs them.
_OPEN = {"num_experts_per_tok": 2, "moe_topk": 2, "num_experts": 8, "n_routed_experts": 8, "n_shared_experts": 1}

#: Keys of the number of experts.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")

#: Errors, by the word that the table has for them.
_REASONS = {
    "own attention": r"attention code of its own|its attention takes|outside of expand_kv",
    "no cache": r"has no KV cache",
    "own cache": r"cache of another kind|argument of its own|is written twice|no list of \d+ decoder layers",
    "reads data": r"meta tensor|data-dependent|nonzero|\.item\(\)",
    "changes with the step": r"ops of the model change|not a polynomial|do not grow",
    "default config": r"rejects the config|ClassValidation|has no attribute|NoneType|get_seq_length|no list of",
}

#: Why types are refused, beside the word.
_WHY = {
    "blt": "groups bytes into patches, whose lengths follow from the text",
    "cpmant": "takes all tokens of a sequence in every step, and leaves out those in its cache",
    "gemma4_assistant": "drafts for another model, whose KV cache it reads",
    "gemma4_unified_assistant": "drafts for another model, whose KV cache it reads",
    "git": "masks a prompt by other ops than later tokens",
    "hrm_text": "runs two stacks of layers several times for a token, with a cache for each time",
    "jetmoe": "sorts the choices of its experts by their values",
    "openai-gpt": "computes all earlier tokens again for each new one",
    "qwen4_exp": "its indexer keeps one key for several tokens",
    "qwen4_exp_text": "its indexer keeps one key for several tokens",
    "reformer": "attends by hashes of values",
    "rwkv": "mixes sequences of a batch that feed in one token each (in transformers 5.23)",
    "xlm": "reads the lengths of its sequences",
    "xlnet": "keeps memories of earlier segments instead of a KV cache",
    "xmod": "chooses adapters by the language of each token",
}

_HEAD = """\
# Model types

Which causal model types of transformers {version} can be captured: {captured} of the {decoders} that decode with a cache
of their own. `python -m models.coverage` makes this table from the default config of each type, with a few layers, and with
values where it leaves open what a model needs. Configs with other sizes of a type that is captured are captured, too.
`sim check` says the whole reason where one is not.

| word | reason |
| --- | --- |
| encoder-decoder | the type is the decoder of an encoder-decoder, which attends to what its encoder made |
| own attention | its code attends in a form that is not recognized |
| own cache | it keeps something else than a KV cache or a state of a fixed size, or not by layer |
| no cache | it decodes without a cache |
| reads data | its code looks at the values of tensors, which a capture does not have |
| changes with the step | it issues other ops, or other costs, than a formula in context, tokens and batch says |
| default config | transformers cannot run the default config of the type |
| own code | its code fails on shapes alone, or when it is called as a decoder is |

| type | captured | a step has, or why not |
| --- | --- | --- |
"""

#: Words of types that are no decoders by themselves.
_OTHERS = ("encoder-decoder", "no cache", "default config")

_LINE = re.compile(r"\| `([\w.-]+)` \| ([\w -]+) \| (.*) \|")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. result: `captured`, or why not. facts: of a step, or the reason in a line. detail: the error."""

    model_type: str
    result: str
    facts: str = ""
    detail: str = ""


def types() -> tuple[str, ...]:
    """Every causal model type of the installed transformers, in alphabetical order."""
    return tuple(sorted(_CAUSAL))


def small(model_type: str, *, filled: bool = False) -> ModelConfig:
    """The default config of a type as a decoder, with few layers. filled: with values for keys that it leaves open."""
    made = CONFIG_MAPPING[model_type]()
    data = _cut(_filled(made.to_dict()) if filled else made.to_dict(), 2 * _LAYERS if filled else _LAYERS)
    data["model_type"] = model_type
    if hasattr(made, "is_decoder"):
        data["is_decoder"] = True
    return ModelConfig(name=model_type, data=data)


def _filled(data: dict[str, Any]) -> dict[str, Any]:
    """A config, and those nested in it, with values for keys that it leaves open."""
    data = {key: _filled(value) if key.endswith("_config") and _is_config(value) else value for key, value in data.items()}
    heads = data.get("num_attention_heads")
    if isinstance(heads, int):
        data |= {"num_key_value_heads": data.get("num_key_value_heads") or heads}
        data |= {"head_dim": data["hidden_size"] // heads} if data.get("head_dim", 1) is None else {}
    if set(data.get("layer_types") or ()) == {"linear_attention"}:  # a hybrid needs a layer that attends
        data["layer_types"] = ["linear_attention", "full_attention"] * (data["num_hidden_layers"] // 2)
    count = data.get("num_hidden_layers", 0)
    if data.get("layer_types", ()) is None:
        data["layer_types"] = (["conv", "full_attention"] * count)[:count]
    if data.get("attn_layer_indices", ()) is None:
        data["attn_layer_indices"] = list(range(1, count, 2))
    if data.get("rope_parameters") == {}:  # by type of layer
        data["rope_parameters"] = {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in set(data["layer_types"])}
    if isinstance(data.get("attn_config"), dict):
        data["attn_config"] |= {"rope_theta": 10000.0, "clip_qkv": 8.0}
    return data | {key: value for key, value in _OPEN.items() if key in data and data[key] is None}


def _cut(data: dict[str, Any], layers: int) -> dict[str, Any]:
    """A config, and those nested in it, with few layers: of each kind that its lists tell apart the first, or the first few."""
    data = {key: _cut(value, layers) if key.endswith("_config") and _is_config(value) else value for key, value in data.items()}
    key = next((key for key in _COUNTS if isinstance(data.get(key), int)), None)
    if key is None:
        return data
    count = data[key]
    lists = {name: value for name, value in data.items() if isinstance(value, (list, tuple)) and len(value) == count > 1}
    kinds = [json.dumps(kind) for kind in zip(*lists.values(), strict=True)]
    chosen = sorted({kinds.index(kind) for kind in kinds})[:layers]
    shared = data.get("num_kv_shared_layers")
    if shared:  # layers that share the cache of another come last, as many of each kind
        data["num_kv_shared_layers"] = len(chosen)
        chosen += [max(i for i, kind in enumerate(kinds) if kind == kinds[first]) for first in chosen]
    rest = [i for i in range(count) if i not in chosen]
    chosen = sorted([*chosen, *rest[: max(0, min(layers, count) - len(chosen))]])
    for name, value in lists.items():
        data[name] = [value[i] for i in chosen]
    for name, value in data.items():
        if name.startswith("per_layer") and isinstance(value, dict):  # by number of the layer
            of = {int(number): found for number, found in value.items()}  # numbers may be written as `02`
            data[name] = {str(n): of[i] for n, i in enumerate(chosen) if of.get(i) is not None}
    return data | {key: len(chosen) for key in (*_COUNTS, "num_blocks") if data.get(key) == count}


def _is_config(value: Any) -> bool:
    return isinstance(value, dict) and any(key in value for key in ("model_type", *_COUNTS))


def row(model_type: str) -> Row:
    """The line of a type: of its default config, or else of that with values for what it leaves open."""
    made = _row(model_type, filled=False)
    other = _row(model_type, filled=True) if made.result in ("default config", "own code") else made
    return other if other.result == "captured" else made


def _row(model_type: str, *, filled: bool) -> Row:
    try:
        if CONFIG_MAPPING[model_type]().is_encoder_decoder:
            return Row(model_type, "encoder-decoder")
        graph = capture(config := small(model_type, filled=filled))["op"]
    except InputError as error:
        return _refused(model_type, str(error))
    except Exception as error:  # a default config may be refused by its own class
        return _refused(model_type, f"{type(error).__name__}: {error}")
    wrong = wrong_experts(config.data, graph)
    return Row(model_type, wrong or "captured", facts(graph), wrong)


def wrong_experts(data: Mapping[str, Any], graph: ModelGraph) -> str:
    """A word if a config has experts and a step does not choose among as many of them; else empty."""
    mixtures = [part for part in parts(data) if part.get("is_moe") is not False]  # Doge has the number, and no experts
    counts = {part[key] for part in mixtures for key in _EXPERTS if isinstance(part.get(key), int)}
    found = {op.experts.working for op in graph.step().ops if op.experts is not None}
    return "" if not any(count > 1 for count in counts) or found & counts else "wrong experts"


def _refused(model_type: str, text: str) -> Row:
    word = next((word for word, pattern in _REASONS.items() if re.search(pattern, text)), "own code")
    return Row(model_type, word, _WHY.get(model_type, ""), detail=" ".join(text.split())[:300])


def facts(graph: ModelGraph) -> str:
    """Caches and experts of a step, in words: `KV, window 4096, state, 8 of 128 experts`."""
    ops = graph.step().ops
    kinds = {op.kind for op in ops}
    rates = sorted({mask.size for mask in graph.step().masks if mask.kind == ROWS})
    if rates:
        windows = [_of_rows(each, rates) for each in graph.step().breaks]
        windows.append(f"a row for {' or '.join(map(str, rates))} tokens")
    else:
        windows = sorted({f"{kind} {size}" for kind, size in _bounds(graph)})
    windows += [f"chunk {mask.size}" for mask in graph.step().masks if mask.kind == CHUNKED]
    experts = dict.fromkeys(f"{op.experts} experts" for op in ops if op.experts is not None)
    caches = [word for word, kind in (("KV", "kv_load"), ("state", "state_load")) if kind in kinds]
    latent = ["latent KV" if each == "KV" and graph.provenance.get("mla") != "none" else each for each in caches]
    return ", ".join([*latent, *windows, *experts])


def _bounds(graph: ModelGraph) -> Iterator[tuple[str, int]]:
    """The most tokens that layers see, where their loads begin to grow otherwise, and whether they choose them."""
    step = graph.step()
    for op in step.ops:
        pieces = step.polynomials[op.costs[QUANTITIES.index("kv_read")]]
        for at, (before, after) in zip(step.breaks, pairwise(pieces), strict=True):
            if before != after:
                yield "choice of" if op.part == CHOSEN else "window", at + 1


def _of_rows(stop: int, rates: Sequence[int]) -> str:
    """A context at which costs beside compressed rows stop growing: k rows are there, or a window of tokens is full."""
    return f"window {stop + 1}" if stop % rates[0] else f"choice of {stop // rates[0]} rows"


def _work(model_type: str, pipe: Any) -> None:
    pipe.send(row(model_type))


def measured(model_type: str, limit: float = LIMIT) -> Row:
    """The line of a type, made in a process of its own that ends after `limit` seconds."""
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_work, args=(model_type, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(limit) else Row(model_type, "slow", detail=f"over {limit} s")
    except EOFError:
        return Row(model_type, "own code", detail="the process ended")
    finally:
        process.kill()
        process.join()


def rows() -> dict[str, Row]:
    """The lines of the table as it is, by type; none if it is of other transformers."""
    text = TABLE.read_text(encoding="utf-8") if TABLE.exists() else ""
    if f"transformers {version('transformers')} " not in text:
        return {}
    return {line[1]: Row(line[1], line[2], line[3]) for line in _LINE.finditer(text)}


def written(lines: Mapping[str, Row]) -> str:
    """The page with these lines."""
    captured = sum(line.result == "captured" for line in lines.values())
    decoders = sum(line.result not in _OTHERS for line in lines.values())
    head = _HEAD.format(version=version("transformers"), captured=captured, decoders=decoders)
    return head + "".join(f"| `{name}` | {line.result} | {line.facts} |\n" for name, line in sorted(lines.items()))


def main(chosen: Sequence[str]) -> None:
    """Make lines anew, all if none is chosen, and print each."""
    for model_type in chosen or types():
        made = measured(model_type)
        print(f"{made.model_type:24} {made.result:16} {made.facts} {made.detail}", flush=True)
        TABLE.write_text(written(rows() | {model_type: made}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
