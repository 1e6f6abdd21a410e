"""The plan of a calibration: small models whose shapes leave no two causes that always go together.

Within one model bytes, FLOPs and results of all products grow together; across these the ratio of query to KV heads, the
size of a head, k, n and the vocabulary vary apart from each other. Nothing that is published has these shapes: a model that
one wants to know about was not in its own calibration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from models.config import ModelConfig


def _llama(
    name: str, hidden: int, inter: int, heads: int, kv_heads: int, head_dim: int, vocabulary: int, layers: int,
    model_type: str = "llama",
) -> ModelConfig:  # fmt: skip
    data: dict[str, Any] = {
        "model_type": model_type, "hidden_size": hidden, "intermediate_size": inter, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocabulary, "num_hidden_layers": layers,
        "max_position_embeddings": 32768, "tie_word_embeddings": True, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    }  # fmt: skip
    return ModelConfig(name=name, data=data)


#: hidden, intermediate, heads, KV heads, head size, vocabulary; ratios of heads are 4, 2, 6, 3, 1. Qwen 2 has biases, Qwen 3
#: norms of heads. The numbers of layers differ, so that a cost per op can be told from a cost per step.
CALIBRATION = (
    _llama("calibration-512", 512, 1408, 8, 2, 64, 16384, layers=14),
    _llama("calibration-1024", 1024, 3328, 16, 8, 64, 49664, layers=6, model_type="qwen3"),
    _llama("calibration-1536", 1536, 8448, 12, 2, 128, 180224, layers=2, model_type="qwen2"),
    _llama("calibration-2304", 2304, 6144, 18, 6, 128, 32768, layers=3),
    _llama("calibration-1280", 1280, 3840, 20, 20, 64, 65536, layers=2),
)
LARGER = (_llama("calibration-3072", 3072, 9216, 24, 3, 128, 157696, layers=2),)
LARGEST = (_llama("calibration-5120", 5120, 15360, 40, 8, 128, 32768, layers=2),)


@dataclass(frozen=True, slots=True)
class Point:
    """One kind of step: model is a number in the plan (unseen ones come last), context counts the tokens before."""

    model: int
    batch: int
    context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Models and shapes to measure.

    models: with steps that the profile is fitted to. unseen: models that are measured in the same rounds and that it is not
    fitted to, but judged by. seconds: after which no further round begins, if `least` are done. stream: seconds of one run.
    """

    name: str
    models: tuple[ModelConfig, ...] = CALIBRATION
    unseen: tuple[ModelConfig, ...] = ()
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    rounds: int
    least: int = 4
    seconds: float
    stream: float
    seed: int = field(default=1)

    def points(self) -> list[Point]:
        """All steps of a round. Contexts differ a little by model, so that no two shapes are multiples.

        Unseen models have a short context and a long one, other than those of the calibration but not beyond.
        """
        few = (2 * self.contexts[0], self.contexts[-1] * 4 // 5)
        return [
            Point(number, batch, context + 8 * number)
            for number in range(len(self.models) + len(self.unseen))
            for batch in self.batches
            for context in (self.contexts if number < len(self.models) else few)
        ]


#: About two minutes, and about twelve, on a small machine.
QUICK = Plan(name="quick", batches=(1, 2, 4), contexts=(16, 700, 3000), rounds=10, seconds=90, stream=0.1)
FULL = Plan(
    name="full", models=(*CALIBRATION, *LARGER), batches=(1, 2, 4, 8), contexts=(16, 300, 1500, 4000, 8000), rounds=20,
    seconds=700, stream=0.3,
)  # fmt: skip

#: The same for a GPU, which has more memory and is filled by more sequences.
GPU = (*CALIBRATION, *LARGER, *LARGEST)
GPU_QUICK = Plan(
    name="quick", models=GPU, batches=(1, 8, 32), contexts=(16, 200, 1000, 3000), rounds=10, seconds=90, stream=0.03
)  # fmt: skip
GPU_FULL = Plan(
    name="full", models=GPU, batches=(1, 2, 4, 8, 16, 32), contexts=(16, 200, 1000, 3000, 8000), rounds=20, seconds=600,
    stream=0.1,
)  # fmt: skip


def plan_for(device: str, *, quick: bool) -> Plan:
    """The plan for a device."""
    if device == "cuda":
        return GPU_QUICK if quick else GPU_FULL
    return QUICK if quick else FULL
