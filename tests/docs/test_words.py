"""Docstrings, comments, messages and pages keep to the words of the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.words import CLEAN, ROOT, Text, advice, findings, texts


@pytest.mark.parametrize("path", CLEAN)
def test_words_are_plain(path: str) -> None:
    assert (ROOT / path).exists()
    found = findings([path])
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "What each request got.",
        "Who decodes comes first, then who is prefilled",
        "Of which kind a task is.",
        "Those that wait.",
    ],
)
def test_a_docstring_begins_with_a_noun_or_a_verb(text: str) -> None:
    assert advice(Text(1, text, opens=True))


@pytest.mark.parametrize(
    "text",
    [
        "costs are in doubt",
        "one grant per transfer",
        "there is room for two",
        "the task who waited",
        "the sequence whom it waits for",
        "the caller is told the time",
        "one at a time, for there is one channel",
        "a port that cannot be had",
        "nobody waits",
        "products by weights",
        "the neighbours of a task",
    ],
)
def test_dialect_is_found(text: str) -> None:
    assert advice(Text(1, text))


@pytest.mark.parametrize(
    "text",
    [
        "Metrics of each request; times in ps.",
        "`grants` holds service intervals",
        "users who think before the next request",
        "A person who names a device wants its time.",
        "capacity for two prompts",
        "Time is accounted for to the picosecond.",
    ],
)
def test_plain_words_pass(text: str) -> None:
    assert not advice(Text(1, text, opens=True))


def test_each_kind_of_file_is_read(tmp_path: Path) -> None:
    """Words are found in docstrings, messages, comments, prose and page texts, at their line; names and fences are left out."""
    files = {
        "a.py": '"""Module.\n\nThe room."""\nx = "no room: %d"\nroom = "room"  # room here\n',
        "a.md": "some room\n```text\nroom\n```\n`room`\n",
        "a.js": 'const room = "room"; // a room\nsay(`${room} of room`, "the room");\n',
        "a.yaml": "description: room for one\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    lines = {name: [piece.line for piece in texts(tmp_path / name) if advice(piece)] for name in files}
    assert lines == {"a.py": [3, 4, 5], "a.md": [1], "a.js": [1, 2, 2], "a.yaml": [1]}
