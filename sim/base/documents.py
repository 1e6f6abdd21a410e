"""YAML 1.2 text as plain data that remembers the line and column of every key and value.

ruamel.yaml turns text into parse events; the tree is built here, for four reasons: positions stay with the values,
scalars are read by the core schema of YAML 1.2 and nothing else (`no` is a text, `2001-01-01` too), duplicate keys are
errors, and a hostile file cannot take more than its share. An alias shares the node of its anchor, and every node
knows how large and how deep it is with all aliases written out, so an alias bomb is refused before anything expands.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from sim.base.errors import InputError, nearest
from sim.base.quantities import show

MAX_BYTES = 2**20
MAX_DEPTH = 50
MAX_NODES = 100_000  # with aliases written out

#: The way to a value: keys of mappings and indices of lists.
KeyPath: TypeAlias = tuple[str | int, ...]
Scalar: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Place:
    """Place of a key or value: a line and column from 1, or a source without lines (a `--set`, a Python dict)."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source

    def error(self, message: str) -> InputError:
        """The one-line error about what is written here."""
        return InputError(" ".join(f"{self}: {message}".splitlines()))


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place. `keys` holds the places of a mapping's keys; `size` and `height` count aliases in full."""

    value: Scalar | Mapping[str, Node] | Sequence[Node]
    place: Place
    keys: Mapping[str, Place] = field(default_factory=dict)
    size: int = 1
    height: int = 1

    def child(self, key: str | int) -> Node | None:
        if isinstance(self.value, Mapping):
            return self.value.get(key) if isinstance(key, str) else None
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            found: Node = self.value[key]
            return found
        return None

    def mapping(self, valid: Collection[str] = ()) -> Mapping[str, Node]:
        """The entries of a mapping; InputError at its place if it is none, or has a key that is not among the valid."""
        if not isinstance(self.value, Mapping):
            raise self.place.error(f"expected a mapping, found {show(self.plain())}")
        for key in self.value if valid else ():
            if key not in valid:
                raise self.keys[key].error(f"unknown key {key!r}{nearest(key, valid)}; valid: {', '.join(valid)}")
        return self.value

    def needed(self, key: str, valid: Collection[str] = ()) -> Node:
        """The value at a key of a mapping; InputError if it is missing."""
        entries = self.mapping(valid)
        if key not in entries:
            raise self.place.error(f"the key {key!r} is missing")
        return entries[key]

    def text(self) -> str:
        """A text that is not empty; InputError at its place for all else."""
        if not isinstance(self.value, str) or not self.value:
            raise self.place.error(f"expected a text, found {show(self.plain())}")
        return self.value

    def plain(self) -> Any:
        """The value as dicts, lists and scalars."""
        if isinstance(self.value, Mapping):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


@dataclass(frozen=True, slots=True)
class Document:
    """A tree of nodes and the text that it was read from (empty for a Python dict)."""

    root: Node
    source: str
    text: str = ""

    def plain(self) -> Any:
        """The document as dicts, lists and scalars."""
        return self.root.plain()

    def find(self, path: KeyPath) -> tuple[Node, KeyPath]:
        """The node at `path`, or its deepest ancestor that is written, with the path that leads there."""
        node = self.root
        for depth, key in enumerate(path):
            below = node.child(key)
            if below is None:
                return node, path[:depth]
            node = below
        return node, path

    def place(self, path: KeyPath, *, key: bool = False) -> Place:
        """Place of the value at `path` (with `key`, of its key); if it is not written, of its deepest ancestor."""
        node, reached = self.find(path)
        if key and reached and isinstance(reached[-1], str):
            parent, _ = self.find(reached[:-1])
            return parent.keys.get(reached[-1], node.place)
        return node.place

    def override(self, assignments: Sequence[str]) -> Document:
        """Apply assignments such as `hardware.memory.bandwidth=50 GB/s`, in order.

        Keys are separated by dots, list items are numbers (`workload.sequences.0.tokens` or `sequences[0].tokens`), the
        value is YAML. Sections that are not written yet are made. Raises InputError that names the `--set`.
        """
        root = self.root
        for text in assignments:
            place = Place(f"--set {text}" if len(text) <= 80 else f"--set {text[:77]}...")
            name, equals, value = text.partition("=")
            keys = _names(name.strip())
            if not equals or not all(keys):
                raise place.error("expected KEY.KEY=VALUE, such as hardware.memory.bandwidth='50 GB/s'")
            if len(keys) > MAX_DEPTH:
                raise place.error(f"more than {MAX_DEPTH} levels deep")
            node = _Builder(place.source, numbered=False).build(value) if value.strip() else Node(None, place)
            root = _assign(root, tuple(keys), node, place, done="")
            _check_size(root.size, root.height, place)
        return Document(root, self.source, self.text)


def key_path(text: str) -> KeyPath:
    """The path that `workload.sequences[0].tokens` or `workload.sequences.0.tokens` stands for."""
    return tuple(int(name) if _is_index(name) else name for name in _names(text))


def dotted(path: KeyPath) -> str:
    """A path as errors write it: `workload.sequences[0].tokens`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def _is_index(name: str) -> bool:
    """Whether a name stands for a place in a list. No list is that long, and Python refuses to read longer numbers."""
    return name.isdecimal() and len(name) <= 9


def _names(text: str) -> list[str]:
    return re.sub(r"\[(\d+)\]", r".\1", text).split(".")


def read(path: str | Path) -> Document:
    """Read a YAML file. Raises InputError, with line and column where there are any, for whatever is wrong."""
    path = Path(path)
    source = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise InputError(f"{source}: no such file{nearest(path.name, siblings)}") from None
    except IsADirectoryError:
        raise InputError(f"{source}: expected a YAML file, found a directory") from None
    except PermissionError:
        raise InputError(f"{source}: no permission to read it") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{source!r}: cannot be read: {reason}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{source}: larger than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = error.start - (before.rfind(b"\n") + 1) + 1
        place = Place(source, before.count(b"\n") + 1, column)
        raise place.error(f"not UTF-8: byte 0x{data[error.start]:02x}") from None
    return parse(text, source)


def parse(text: str, source: str = "<string>") -> Document:
    """Read YAML text. Raises InputError at the first thing that is wrong with it."""
    if len(text) > MAX_BYTES:
        raise InputError(f"{source}: larger than {MAX_BYTES} bytes")
    return Document(_Builder(source).build(text.removeprefix("\ufeff")), source, text)


def from_plain(data: object, source: str = "<dict>") -> Document:
    """A document of dicts, lists (or tuples) and scalars. Raises InputError for anything else, and for too much."""
    return Document(_node_of(data, Place(source), MAX_DEPTH), source)


# Scalars by the core schema, YAML 1.2.2 section 10.3.2.
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"(?P<sign>[-+]?)\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def scalar(text: str) -> Scalar:
    """The value of a plain (unquoted) scalar. Raises ValueError for a number of absurd length."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    is_int, is_float = _INT.fullmatch(text), _FLOAT.fullmatch(text)
    if (is_int or is_float) and len(text) > 400:
        raise ValueError(f"a number of {len(text)} characters")
    if is_int:
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if is_float:
        return float(text)
    if special := _SPECIAL.fullmatch(text):
        return float((special["sign"] or "") + text.lstrip("+-.").lower())
    return text


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been read yet."""

    place: Place
    anchor: str | None
    items: list[Node] | None  # None in a mapping
    entries: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, Place] = field(default_factory=dict)
    key: str | None = None
    size: int = 1
    height: int = 1

    def close(self) -> Node:
        return Node(self.entries if self.items is None else self.items, self.place, self.keys, self.size, self.height)


class _Builder:
    """Builds the tree of one document from parse events, without recursion."""

    def __init__(self, source: str, *, numbered: bool = True) -> None:
        self.source = source
        self.numbered = numbered  # whether lines and columns mean something to the reader
        self.anchors: dict[str, Node | None] = {}  # None while the anchored node is not complete
        self.stack: list[_Open] = []
        self.root: Node | None = None

    def build(self, text: str) -> Node:
        start = self.at(0, 0)
        documents = 0
        for event in self.events(text):
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self.place(event).error("expected one YAML document, found a second")
                if getattr(event, "version", None) not in (None, (1, 2)):
                    raise self.place(event).error("expected YAML 1.2")
            elif isinstance(event, NodeEvent):
                self.take(event)
            elif isinstance(event, (MappingEndEvent, SequenceEndEvent)):
                done = self.stack.pop()
                self.add(done.close(), done.anchor)
        if self.root is None:
            raise start.error("the file is empty")
        return self.root

    def events(self, text: str) -> Iterator[Event]:
        """The parse events; whatever stops the parser becomes an InputError."""
        events = iter(YAML(typ="safe", pure=True).parse(text))
        event: Event | None = None
        while True:
            try:
                event = next(events)
            except StopIteration:
                return
            except MarkedYAMLError as error:
                mark = error.problem_mark or error.context_mark
                context = f" ({error.context})" if error.context else ""
                place = self.at(mark.line, mark.column) if mark else self.at(0, 0)
                raise place.error(f"not valid YAML: {error.problem or 'syntax error'}{context}") from None
            except ReaderError as error:
                before = text[: error.position]
                place = self.at(before.count("\n"), error.position - (before.rfind("\n") + 1))
                raise place.error(f"not valid YAML: {text[error.position]!r} is not allowed") from None
            except Exception as error:  # ruamel.yaml lets bare Python errors out on some broken text, e.g. "\UFFFFFFFF"
                place = self.place(event) if event is not None else self.at(0, 0)
                raise place.error(f"not valid YAML after this: {error or type(error).__name__}") from None
            yield event

    def at(self, line: int, column: int) -> Place:
        return Place(self.source, line + 1, column + 1) if self.numbered else Place(self.source)

    def place(self, event: Event) -> Place:
        return self.at(event.start_mark.line, event.start_mark.column)

    def take(self, event: NodeEvent) -> None:
        """Take one node event: an alias, a scalar, or the start of a collection."""
        place = self.place(event)
        parent = self.stack[-1] if self.stack else None
        wants_key = parent is not None and parent.items is None and parent.key is None
        if isinstance(event, AliasEvent):
            if event.anchor not in self.anchors:
                raise place.error(f"unknown alias *{event.anchor}{nearest(event.anchor, self.anchors)}")
            node = self.anchors[event.anchor]
            if node is None:
                raise place.error(f"the alias *{event.anchor} is inside of what it stands for")
            if wants_key:
                raise place.error("expected a text as key, found an alias")
            self.add(node, None, place)
            return
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise place.error(f"expected a value without a tag, found {show(str(tag))}")
        if isinstance(event, ScalarEvent):
            if wants_key:
                assert parent is not None
                self.take_key(parent, event.value, place)
                if event.anchor is not None:
                    self.anchors[event.anchor] = Node(event.value, place)
            else:
                if parent is not None and parent.key is not None and event.style is None and not event.value:
                    place = parent.keys[parent.key]  # nothing is written, and the parser says: on the next line
                self.add(Node(self.read_scalar(event, place), place), event.anchor)
            return
        if wants_key:
            raise place.error("expected a text as key, found a collection")
        if len(self.stack) >= MAX_DEPTH:
            raise place.error(f"more than {MAX_DEPTH} levels deep")
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        self.stack.append(_Open(place, event.anchor, [] if isinstance(event, SequenceStartEvent) else None))

    def take_key(self, parent: _Open, key: str, place: Place) -> None:
        _check_text(key, place)
        if key in parent.keys:
            first = parent.keys[key]
            raise place.error(f"duplicate key {show(key)}" + (f", first on line {first.line}" if first.line else ""))
        parent.key = key
        parent.keys[key] = place

    def read_scalar(self, event: ScalarEvent, place: Place) -> Scalar:
        text: str = event.value
        if event.style is not None:
            _check_text(text, place)
            return text
        try:
            return scalar(text)
        except ValueError as error:
            raise place.error(str(error)) from None

    def add(self, node: Node, anchor: str | None, place: Place | None = None) -> None:
        """Put a complete node where it belongs. `place`: where an alias to it stands, for errors."""
        if anchor is not None:
            self.anchors[anchor] = node
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1]
        if parent.items is not None:
            parent.items.append(node)
        else:
            assert parent.key is not None
            parent.entries[parent.key] = node
            parent.key = None
        parent.size += node.size
        parent.height = max(parent.height, 1 + node.height)
        _check_size(parent.size, parent.height + len(self.stack) - 1, place or node.place)


def _check_text(text: str, place: Place) -> None:
    """Refuse half of a surrogate pair (U+D800 escaped in quotes): it could not be printed or written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise place.error(f"not a text: {show(text)}") from None


def _check_size(size: int, height: int, place: Place) -> None:
    if size > MAX_NODES:
        raise place.error(f"more than {MAX_NODES} values, aliases written out")
    if height > MAX_DEPTH + 1:
        raise place.error(f"more than {MAX_DEPTH} levels deep, aliases written out")


def _collection(value: Mapping[str, Node] | list[Node], place: Place, keys: Mapping[str, Place]) -> Node:
    below = list(value.values()) if isinstance(value, Mapping) else value
    size = 1 + sum(n.size for n in below)
    return Node(value, place, keys, size, 1 + max((n.height for n in below), default=0))


def _node_of(data: object, place: Place, levels: int) -> Node:
    if data is None or isinstance(data, (bool, int, float)):
        return Node(data, place)
    if isinstance(data, str):
        _check_text(data, place)
        return Node(data, place)
    if levels == 0:
        raise place.error(f"more than {MAX_DEPTH} levels deep")
    if isinstance(data, Mapping):
        for key in data:
            if not isinstance(key, str):
                raise place.error(f"expected a text as key, found {show(key)}")
        entries = {key: _node_of(value, place, levels - 1) for key, value in data.items()}
        node = _collection(entries, place, dict.fromkeys(entries, place))
    elif isinstance(data, (list, tuple)):
        node = _collection([_node_of(value, place, levels - 1) for value in data], place, {})
    else:
        raise place.error(f"expected plain data, found {type(data).__name__}")
    _check_size(node.size, node.height, place)
    return node


def _assign(node: Node, keys: tuple[str, ...], value: Node, place: Place, done: str) -> Node:
    """A copy of `node` in which `value` stands at `keys`; what is not on the way is shared."""
    if not keys:
        return value
    key, *rest = keys
    here = f"{done}.{key}" if done else key
    if isinstance(node.value, list):
        if not _is_index(key) or int(key) >= len(node.value):
            raise place.error(f"{done} is a list of {len(node.value)}, expected an index below that, found {show(key)}")
        items = list(node.value)
        items[int(key)] = _assign(items[int(key)], tuple(rest), value, place, here)
        return _collection(items, node.place, {})
    if node.value is not None and not isinstance(node.value, Mapping):
        raise place.error(f"{done} is {show(node.value)}, which has nothing inside to set")
    entries = dict(node.value or {})
    _check_text(key, place)
    entries[key] = _assign(entries.get(key, Node(None, place)), tuple(rest), value, place, here)
    keys_at = {key: place, **node.keys} if key not in node.keys else {**node.keys}
    if not rest:
        keys_at[key] = place
    return _collection(entries, node.place, keys_at)
