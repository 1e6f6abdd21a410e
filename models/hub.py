"""Fetch a config from the Hugging Face hub (or its local cache): one file, which is read as data.

A repository may bring code that its config names (`auto_map`); none of it is fetched.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # they are listed in its documentation
    build_hf_headers,
    disable_progress_bars,
    hf_raise_for_status,
)

from sim.base.errors import InputError

#: Seconds until the hub has to answer: without a network, an error must not take longer.
TIMEOUT = 2


def fetch(model_id: str) -> Path:
    """The path of the config.json of `owner/name` in the local cache, downloaded if it is not there.

    Raises InputError if there is no such model, or no network.
    """
    cached = try_to_load_from_cache(model_id, "config.json")
    if isinstance(cached, str):
        return Path(cached)
    try:
        # The download itself repeats what fails for half a minute, so that one short request goes first.
        url = hf_hub_url(model_id, "config.json")
        hf_raise_for_status(get_session().head(url, headers=build_hf_headers(), timeout=TIMEOUT, follow_redirects=True))
        disable_progress_bars()
        return Path(hf_hub_download(model_id, "config.json"))
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"not available from the Hugging Face hub: {reason}") from error
