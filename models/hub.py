"""Fetch a config from the Hugging Face hub (or its local cache)."""

from __future__ import annotations

from logging import ERROR
from typing import Any

from huggingface_hub.utils import logging
from transformers import AutoConfig

from sim.base.errors import InputError


def fetch(model_id: str) -> dict[str, Any]:
    """The config of `owner/name` as a dictionary. Raises InputError if there is no such model, or no network."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(ERROR)  # it logs each retry; the error below reports them all
    try:
        config = AutoConfig.from_pretrained(model_id)
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"model config {model_id!r}: not a shipped name, not a file, not available from the Hugging Face hub: {reason}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    data: dict[str, Any] = config.to_dict()
    # Fields that the library adds would change the digest with its version.
    return {key: value for key, value in data.items() if key not in {"transformers_version", "_name_or_path"}}
