"""Pages of the docs that a benchmark makes: all but their last section, which is written by hand."""

from __future__ import annotations

from pathlib import Path

#: Title of that section.
BY_HAND = "\n## Where it misses"


def put(text: str, path: Path | None) -> None:
    """Write a page there, or print it. What the page there says by hand stays."""
    text = text.rstrip() + "\n"
    if path is None:
        print(text)
        return
    reasons = path.read_text().partition(BY_HAND) if path.exists() else ("", "", "")
    path.write_text(text + "".join(reasons[1:]))
