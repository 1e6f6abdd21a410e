"""Conversations, as chat data sets have them, read by turns: each answer is a request.

An object has a list of messages with a role and a text, under the names that data sets use: ShareGPT's `conversations` with
`from` and `value`, or `messages` (LMSYS-Chat: `conversation`) with `role` and `content`. Messages before an answer that are
no answers, such as those of the user and the system, are new in its turn; all earlier messages are its history.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from sim.base.errors import InputError
from sim.base.quantities import show
from sim.workload.files import Row
from sim.workload.requests import MAX_CONTEXT, MAX_TOKENS, Request

#: Keys of the list of messages, of the role of a message, and of its text.
_LISTS, _ROLES, _TEXTS = ("conversations", "messages", "conversation"), ("from", "role"), ("value", "content")
#: Roles whose messages are answers of the model.
_ANSWERS = frozenset({"gpt", "assistant", "model", "chatgpt", "bing", "bard", "claude"})


def is_conversation(row: Mapping[str, Any]) -> bool:
    """Whether a row has a list of messages."""
    return _messages(row) is not None


def _messages(row: Mapping[str, Any]) -> list[Any] | None:
    return next((row[key] for key in _LISTS if isinstance(row.get(key), list)), None)


class Conversations:
    """Iterates over the turns of conversations: (0, request), one conversation after another.

    characters_per_token: characters of a text that make one token, rounded up; the length of a text in tokens depends on the
    tokenizer, so there is no default. history: whether earlier messages are fed in again (`prompt`) or are in the KV cache
    already (`context`). ignored: names of keys that are not used, once the first row has been read.
    """

    def __init__(
        self, path: Path, rows: Iterable[Row], characters_per_token: Fraction | None, history: Literal["prompt", "context"]
    ) -> None:  # fmt: skip
        self._path, self._rows, self._characters, self._history = path, rows, characters_per_token, history
        self._line = 0
        self.ignored: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[int, Request]]:
        for number, (line, row) in enumerate(self._rows):
            self._line = line
            messages = _messages(row)
            if messages is None:
                raise self.error(None, f"a list of messages under one of the keys {', '.join(map(repr, _LISTS))}", row)
            if not number:
                self.ignored = tuple(key for key, value in row.items() if value is not messages)
            for request in self._turns(number, messages):
                yield 0, request

    def _turns(self, number: int, messages: list[Any]) -> Iterator[Request]:
        """The requests of a conversation."""
        before = new = 0  # tokens of earlier turns, and of this one
        for message in messages:
            role, tokens = self._message(message)
            if role not in _ANSWERS or not before + new:
                new += tokens
                continue
            cached = before if self._history == "context" and new else 0
            prompt = before + new - cached
            if prompt > MAX_CONTEXT or tokens > MAX_TOKENS:
                raise self.error(None, f"at most {MAX_CONTEXT:,} tokens before an answer and {MAX_TOKENS:,} in it", message)
            yield Request(arrival=0, context=cached, prompt=prompt, tokens=tokens, conversation=number)
            before, new = before + new + tokens, 0

    def _message(self, message: object) -> tuple[str, int]:
        """The role of a message and its length in tokens."""
        fields = message if isinstance(message, dict) else {}
        role = next((fields[key] for key in _ROLES if isinstance(fields.get(key), str)), None)
        text = next((fields[key] for key in _TEXTS if isinstance(fields.get(key), str)), None)
        if role is None or text is None:
            raise self.error(None, "messages with a role ('from' or 'role') and a text ('value' or 'content')", message)
        if self._characters is None:
            raise InputError(
                f"{self._path}:{self._line}: expected the key 'characters_per_token', because lengths are those of texts; "
                "English text has about 4"
            )
        return role.lower(), int(-(-len(text) // self._characters))

    def error(self, what: str | None, expected: str, found: object) -> InputError:
        """The error for a conversation. what: the field, as for rows of columns."""
        of = f" {what}:" if what is not None else ""
        return InputError(f"{self._path}:{self._line}:{of} expected {expected}, found {show(found)}")
