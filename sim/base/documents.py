"""YAML 1.2 text as plain data that remembers the line and column of every key and value.

The tree is built from the parse events of ruamel.yaml, which carry the places, and not from its composed nodes: those read
scalars by more than the core schema of YAML 1.2 (there `no` is a text, `2001-01-01` too) and do not know where an alias
stands. An alias shares the node of its anchor, and every node knows how large and how deep it is with all aliases written out,
so that an alias bomb is refused before anything expands.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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

from sim.base.errors import InputError, nearest, nearest_file
from sim.base.files import is_input, siblings
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
        return self.assigned([assignment(text) for text in assignments])

    def assigned(self, assignments: Iterable[Assignment]) -> Document:
        """Apply assignments that were read before, in order. Raises InputError that names the first one that cannot be."""
        root = self.root
        for each in assignments:
            root = _assign(root, each.keys, each.node, each.place, done="")
            _check_size(root.size, root.height, each.place)
        return Document(root, self.source, self.text)

    def replaced(self, path: KeyPath, node: Node) -> Document:
        """The same document with another value at a path of keys."""
        return Document(_assign(self.root, tuple(map(str, path)), node, node.place, done=""), self.source, self.text)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A value for a key: the keys that lead to it, and the place that errors name."""

    keys: tuple[str, ...]
    node: Node
    place: Place


def assignment(text: str) -> Assignment:
    """Read `hardware.memory.bandwidth=50 GB/s`. Raises InputError that names the `--set`."""
    place = Place(f"--set {text}" if len(text) <= 80 else f"--set {text[:77]}...")
    name, equals, value = text.partition("=")
    keys = _names(name.strip())
    if not equals or not all(keys):
        raise place.error("expected KEY.KEY=VALUE, such as hardware.memory.bandwidth='50 GB/s'")
    if len(keys) > MAX_DEPTH:
        raise place.error(f"more than {MAX_DEPTH} levels deep")
    node = _Builder(value, place.source, numbered=False).build() if value.strip() else Node(None, place)
    return Assignment(tuple(keys), node, place)


def joined(base: Node, over: Node) -> Node:
    """A mapping with the keys of both; where both have one, mappings are joined likewise, other values are those of `over`."""
    if not isinstance(base.value, Mapping) or not isinstance(over.value, Mapping):
        return over
    entries = {**base.value, **over.value}
    for key in base.value.keys() & over.value.keys():
        entries[key] = joined(base.value[key], over.value[key])
    node = _collection(entries, over.place, {**base.keys, **over.keys})
    _check_size(node.size, node.height, over.place)
    return node


def without(node: Node, keys: Collection[str]) -> Node:
    """A mapping without some keys; anything else as it is."""
    if not isinstance(node.value, Mapping):
        return node
    left = {key: child for key, child in node.value.items() if key not in keys}
    return _collection(left, node.place, {key: place for key, place in node.keys.items() if key not in keys})


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
            is_input(path)
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{source}: no such file{nearest_file(path.name, siblings(path, ('.yaml', '.yml')))}") from None
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
    return Document(_Builder(text.removeprefix("\ufeff"), source).build(), source, text)


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


class _Builder:
    """Builds the tree of one document. numbered: whether lines and columns mean something to the reader."""

    def __init__(self, text: str, source: str, *, numbered: bool = True) -> None:
        self.source, self.numbered = source, numbered
        self.anchors: dict[str, Node | None] = {}  # None while the anchored node is not complete
        self.events: Iterator[Any] = self.parse(text)

    def build(self) -> Node:
        root: Node | None = None
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                if root is not None:
                    raise self.place(event).error("expected one YAML document, found a second")
                if getattr(event, "version", None) not in (None, (1, 2)):
                    raise self.place(event).error("expected YAML 1.2")
            elif isinstance(event, NodeEvent):
                root = self.node(event, 0)
        if root is None:
            raise self.at(0, 0).error("the file is empty")
        return root

    def parse(self, text: str) -> Iterator[Event]:
        """The parse events; whatever stops the parser becomes an InputError."""
        last = self.at(0, 0)
        try:
            for event in YAML(typ="safe", pure=True).parse(text):
                last = self.place(event)
                yield event
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            context = f" ({error.context})" if error.context else ""
            place = self.at(mark.line, mark.column) if mark else last
            raise place.error(f"not valid YAML: {error.problem or 'syntax error'}{context}") from None
        except ReaderError as error:
            before = text[: error.position]
            place = self.at(before.count("\n"), error.position - (before.rfind("\n") + 1))
            raise place.error(f"not valid YAML: {text[error.position]!r} is not allowed") from None
        except Exception as error:  # ruamel.yaml lets bare Python errors out on some broken text, e.g. "\UFFFFFFFF"
            raise last.error(f"not valid YAML after this: {error or type(error).__name__}") from None

    def at(self, line: int, column: int) -> Place:
        return Place(self.source, line + 1, column + 1) if self.numbered else Place(self.source)

    def place(self, event: Event) -> Place:
        return self.at(event.start_mark.line, event.start_mark.column)

    def node(self, event: NodeEvent, depth: int, key: Place | None = None) -> Node:
        """The node that begins with an event, inside of `depth` collections. key: place of the key that it is the value of."""
        place = self.place(event)
        if isinstance(event, AliasEvent):
            return self.alias(event)
        self.refuse_tag(event)
        if isinstance(event, ScalarEvent):
            if key is not None and event.style is None and not event.value:
                place = key  # nothing is written, and the parser says: on the next line
            node = Node(_value(event, place), place)
        else:
            if depth >= MAX_DEPTH:
                raise place.error(f"more than {MAX_DEPTH} levels deep")
            if event.anchor is not None:
                self.anchors[event.anchor] = None
            node = self.collection(place, depth, is_list=isinstance(event, SequenceStartEvent))
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def collection(self, place: Place, depth: int, *, is_list: bool) -> Node:
        """The rest of a list or mapping that has begun."""
        children: list[Node] = []
        keys: dict[str, Place] = {}
        size = height = 1
        while not isinstance(event := next(self.events), (MappingEndEvent, SequenceEndEvent)):
            key = None
            if not is_list:
                key, event = self.key(event, keys), next(self.events)
            child = self.node(event, depth + 1, key)
            children.append(child)
            size, height = size + child.size, max(height, 1 + child.height)
            _check_size(size, height + depth, self.place(event) if isinstance(event, AliasEvent) else child.place)
        return Node(children if is_list else dict(zip(keys, children, strict=True)), place, keys, size, height)

    def key(self, event: NodeEvent, keys: dict[str, Place]) -> Place:
        """Add a key to the places of the keys of its mapping."""
        place, text = self.place(event), getattr(event, "value", "")
        if isinstance(event, AliasEvent):
            self.alias(event)
            raise place.error("expected a text as key, found an alias")
        self.refuse_tag(event)
        if not isinstance(event, ScalarEvent):
            raise place.error("expected a text as key, found a collection")
        _check_text(text, place)
        if text in keys:
            first = f", first on line {keys[text].line}" if keys[text].line else ""
            raise place.error(f"duplicate key {show(text)}{first}")
        if event.anchor is not None:
            self.anchors[event.anchor] = Node(text, place)
        keys[text] = place
        return place

    def alias(self, event: AliasEvent) -> Node:
        if event.anchor not in self.anchors:
            raise self.place(event).error(f"unknown alias *{event.anchor}{nearest(event.anchor, self.anchors)}")
        node = self.anchors[event.anchor]
        if node is None:
            raise self.place(event).error(f"the alias *{event.anchor} is inside of what it stands for")
        return node

    def refuse_tag(self, event: NodeEvent) -> None:
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise self.place(event).error(f"expected a value without a tag, found {show(str(tag))}")


def _value(event: ScalarEvent, place: Place) -> Scalar:
    if event.style is not None:
        _check_text(event.value, place)
        return str(event.value)
    try:
        return scalar(event.value)
    except ValueError as error:
        raise place.error(str(error)) from None


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
        raise place.error(f"{done} is {show(node.value)}, not a mapping; set it as a whole: '{done}={{..., {key}: ...}}'")
    entries = dict(node.value or {})
    _check_text(key, place)
    entries[key] = _assign(entries.get(key, Node(None, place)), tuple(rest), value, place, here)
    keys_at = {key: place, **node.keys} if key not in node.keys else {**node.keys}
    if not rest:
        keys_at[key] = place
    return _collection(entries, node.place, keys_at)
