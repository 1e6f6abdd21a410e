"""The real Perfetto UI opens a trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.render.trace import write
from tests.render.trace.logs import decoder, run
from tests.tools.perfetto_ui import screenshot


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pftrace", "pftrace.gz", "json"])
def test_the_ui_shows_a_trace(tmp_path: Path, suffix: str) -> None:
    trace, picture = tmp_path / f"toy.{suffix}", tmp_path / "toy.png"
    write(run(decoder()), trace, metadata={"scenario": "toy"})
    try:
        seen = screenshot(trace, picture, size=(1600, 1600))
    except LookupError as missing:
        pytest.skip(str(missing))
    assert seen["dialog"] == ""
    assert seen["errors"] == []
    assert picture.read_bytes().startswith(b"\x89PNG")
    if suffix != "json":  # Chrome's format knows no nested tracks
        shown = "\n".join(seen["tracks"])
        for title in ("engine 0", "engine 3", "GB/s delivered", "channel", "token 0", "token 1"):
            assert title in shown
