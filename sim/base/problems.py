"""Validation errors in the words of a YAML file: the place, the expected value and the found one."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from sim.base.documents import Document, KeyPath, Place, dotted
from sim.base.errors import nearest
from sim.base.quantities import show
from sim.base.section import COUNT, IDENTIFIER, LINE, LINES, NAME, ONE, TABLE, Choice, Section, Short

M = TypeVar("M", bound=Section)

#: Similarity of two words from which one may be a misspelling of the other, though they are keys of different sections.
ALIKE = 0.8


@dataclass(frozen=True, slots=True)
class Problem:
    """One error. absent: it is about a key that is missing."""

    place: Place
    path: KeyPath
    message: str
    absent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """Words for errors of one model that the model itself does not hold.

    at: path of the model's section in the document. unions: paths, from there, where one value or a table may be written;
    `ANY` stands for the number of an item.
    words: expected values by path and kind of error, patterns: by regular expression.
    """

    root: type[BaseModel]
    at: KeyPath = ()
    unions: Sequence[KeyPath] = ()
    words: Mapping[tuple[KeyPath, str], str] = field(default_factory=dict)
    patterns: Mapping[str, str] = field(default_factory=dict)


def validated(
    document: Document, model: type[M], at: KeyPath = (), context: Mapping[str, Any] | None = None,
    unions: Sequence[KeyPath] = (),
) -> M:  # fmt: skip
    """The section at a path of a document. context: for validators. unions: as in `Wording`.

    Raises InputError for the first error in it.
    """
    try:
        return model.model_validate(document.find(at)[0].plain(), context=context)
    except ValidationError as error:
        raise_first(list(translate(error.errors(include_url=False), document, Wording(root=model, at=at, unions=unions))))
        raise  # unreachable: every detail is a problem


def raise_first(problems: list[Problem]) -> None:
    """Raise InputError for the first problem in reading order, and say how many more there are.

    Overrides come after the file, and missing keys after all others: most often one is there, but misspelled.
    """
    if not problems:
        return
    first, *others = sorted(problems, key=lambda p: (p.absent, p.place.line or sys.maxsize, p.place.column))
    more = f" (and {len(others)} more {'errors' if len(others) > 1 else 'error'})" if others else ""
    where = f"{dotted(first.path)}: " if first.path else ""
    raise first.place.error(f"{where}{first.message}{more}")


def one_of(valid: Collection[str], found: object) -> str:
    hint = nearest(found, valid) if isinstance(found, str) else ""
    return f"expected one of {', '.join(sorted(valid))}, found {show(found)}{hint}"


class OneOf(AfterValidator):
    """A validator for a field: a text must be one of some names."""

    def __init__(self, valid: Collection[str]) -> None:
        def check(name: str) -> str:
            if name not in valid:
                raise ValueError(one_of(valid, name))
            return name

        super().__init__(check)


def translate(details: list[ErrorDetails], document: Document, wording: Wording) -> Iterator[Problem]:
    """Translate the errors of pydantic."""
    for detail in details:
        kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
        inner, is_key = _way(detail["loc"], kind, wording.unions)
        path = wording.at + inner
        place = document.place(path, key=is_key)
        if kind == "too_short" and any(_within(other["loc"], detail["loc"]) for other in details):
            continue  # pydantic counts only the valid items; the others have errors of their own
        if kind == "missing":
            yield Problem(document.place(path[:-1], key=True), path[:-1], f"the key {path[-1]!r} is missing", True)
        elif kind == "extra_forbidden":
            valid = list(_fields(wording.root, inner[:-1]))
            key = str(path[-1])
            hint = (
                nearest(key, get_close_matches(key, valid, n=1, cutoff=ALIKE))
                or _longer_or_shorter(key, valid)
                or _elsewhere(wording, [key])
                or nearest(key, valid)
                or _elsewhere(wording, _alike(wording, key))
            )
            message = f"unknown key {show(path[-1])}{hint}; valid: {', '.join(valid)}"
            yield Problem(document.place(path, key=True), path[:-1], message)
        elif (inner, kind) in wording.words:
            yield Problem(place, document.find(path)[1], f"expected {wording.words[inner, kind]}, found {show(found)}")
        elif kind == "literal_error":
            valid = re.findall(r"'([^']*)'", context["expected"])
            yield Problem(place, path, one_of(valid, found) + _of_another(wording, inner, found))
        elif kind == "value_error":
            yield Problem(place, document.find(path)[1], str(context["error"]))
        else:
            expected = _EXPECTED.get(kind, detail["msg"])
            if kind == "string_pattern_mismatch":
                of_pattern = {**_PATTERNS, **wording.patterns}
                expected = of_pattern.get(context["pattern"], "a text that matches {pattern}")
            expected = expected.format(range=_range(wording.root, inner), **context)
            if kind == "too_short" and context["min_length"] > 1:
                expected = f"at least {context['min_length']} items"
            if kind == "model_type":
                expected = _mapping(_section(wording.root, inner), found) if inner else "a mapping"
            subject = "as key " if is_key else ""
            yield Problem(place, document.find(path)[1], f"expected {subject}{expected}, found {show(found)}")


def _within(inner: Sequence[int | str], outer: Sequence[int | str]) -> bool:
    """Whether a path of pydantic leads into what another one leads to."""
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _longer_or_shorter(key: str, valid: Sequence[str]) -> str:
    """The hint that a key lacks words of a valid one, or has more of them: `prefix` for `prefix_cache`."""
    found = [name for name in valid if name.startswith(f"{key}_") or key.startswith(f"{name}_")]
    return f" (did you mean {found[0]!r}?)" if len(found) == 1 else ""


def _elsewhere(wording: Wording, keys: Sequence[str]) -> str:
    """The hint that a key is one of other sections: of the whole document's, with the whole path to write."""
    found = sorted(
        {dotted(path) for path in _paths(wording.root, ()) if path[-1] in keys}, key=lambda way: (way.count("."), way)
    )
    return f" (did you mean {' or '.join(found[:3])}?)" if found and not wording.at else ""


def _of_another(wording: Wording, inner: KeyPath, found: object) -> str:
    """The hint that a key of the same name in another section takes this value: `data` for `mapping.parallel.attention`."""
    ways = [
        f"{dotted(path)}: {found}"
        for path in (() if wording.at else _paths(wording.root, ()))
        if path[-1] == inner[-1] and found in _options(_fields(wording.root, path[:-1])[str(path[-1])].annotation)
    ]
    return f" (did you mean {' or '.join(ways)}?)" if ways else ""


def _options(annotation: Any) -> list[object]:
    """The values in an annotation such as `Literal["a", "b"] | None`."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [option for argument in get_args(annotation) for option in _options(argument)]


def _alike(wording: Wording, key: str) -> list[str]:
    """The name of a key of any section that is written almost like this one."""
    return get_close_matches(key, {str(path[-1]) for path in _paths(wording.root, ())}, n=1, cutoff=ALIKE)


def _paths(section: type[BaseModel], at: KeyPath) -> Iterator[KeyPath]:
    """Paths of the keys of a section and of sections in it, other than in lists and tables."""
    for name in section.model_fields:
        yield (*at, name)
        below = _section(section, (name,))
        if below is not None and len(at) < DEEPEST:
            yield from _paths(below, (*at, name))


DEEPEST = 4  # sections within sections that hints look into


def _mapping(section: type[BaseModel] | None, found: object) -> str:
    """The forms in which a section may be written, for an error: with the key that takes what was found, or with all keys."""
    if section is None:
        return "a mapping"
    if issubclass(section, Choice):
        return "a name, or a mapping with a name and options"
    if issubclass(section, Short):
        return section.expected
    fields = section.model_fields
    taking = [name for name in fields if _takes(section, name, found)]
    needed = [name for name in taking if fields[name].is_required()]
    taking = needed or [name for name in taking if name == "preset"] or taking
    if len(taking) == 1:
        return f"a mapping, such as {{{taking[0]}: {found}}}"
    return f"a mapping (keys: {', '.join(fields)})"


def _takes(section: type[BaseModel], name: str, found: object) -> bool:
    """Whether a value of one line may be written for a key of a section."""
    if not isinstance(found, str | int | float):
        return False
    try:
        section.model_validate({name: found})
    except ValidationError as error:
        return all(detail["loc"][:1] != (name,) for detail in error.errors(include_url=False))
    return True


def _way(loc: KeyPath, kind: str, unions: Sequence[KeyPath]) -> tuple[KeyPath, bool]:
    """The path in the document that pydantic's `loc` stands for, and whether the error is about the key there.

    Pydantic puts the tag of a union, and "[key]" for a key, between the keys; an author may have written the same as a
    key, so only what stands where pydantic puts it is left out. The keys of tables are texts, as are their errors.
    """
    is_key = loc[-1:] == ("[key]",) and kind.startswith(("string_", "literal_"))
    path = loc[:-1] if is_key else loc
    for union in unions:
        size = len(union)
        if path[size : size + 1] in ((ONE,), (TABLE,)) and all(a in (b, ANY) for a, b in zip(union, path, strict=False)):
            path = path[:size] + path[size + 1 :]
    return path, is_key


#: The number of any item of a list, in the path of a union.
ANY = "*"

_EXPECTED = {
    "int_type": "a whole number{range}",
    "int_from_float": "a whole number{range}",
    "float_type": "a number{range}",
    "finite_number": "a number{range}",
    "string_type": "a text",
    "string_too_short": "a text that is not empty",
    "string_too_long": "a text of at most {max_length} characters",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "at least one item",
    "too_long": "at most {max_length} items",
    "greater_than": "a number{range}",
    "greater_than_equal": "a number{range}",
    "less_than": "a number{range}",
    "less_than_equal": "a number{range}",
}

_PATTERNS = {
    COUNT: "a whole number from 1 to 999999",
    LINE: "a text on one line, without control characters",
    NAME: "a name of at most 100 characters without slashes, line breaks or a leading dot",
    IDENTIFIER: "a name of at most 61 letters, digits and _ that begins with no digit",
    LINES: "a text without control characters other than tab and newline",
}


def _section(root: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The model of the section at `path`, None if there is none."""
    annotation: Any = root
    for key in path:
        annotation = next(_inside(annotation, key), None)
    return next((each for each in _forms(annotation) if isinstance(each, type) and issubclass(each, BaseModel)), None)


def _forms(annotation: Any) -> Iterator[Any]:
    """The types in an annotation such as `Annotated[Window, ...] | None`, but not those of what they hold."""
    if get_origin(annotation) in (dict, tuple) or isinstance(annotation, type):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _forms(argument)


def _inside(annotation: Any, key: str | int) -> Iterator[Any]:
    """Annotations of what stands at a key of a value."""
    for form in _forms(annotation):
        if get_origin(form) in (dict, tuple):
            yield get_args(form)[1 if get_origin(form) is dict else 0]
        elif issubclass(form, BaseModel) and key in form.model_fields:
            yield form.model_fields[str(key)].annotation


def _fields(root: type[BaseModel], path: KeyPath) -> dict[str, FieldInfo]:
    section = _section(root, path)
    return dict(section.model_fields) if section is not None else {}


def _range(root: type[BaseModel], path: KeyPath) -> str:
    """The bounds that a field sets, as text: ` from 1 to 4096`. A value in a table has those of the table's values."""
    field = _fields(root, path[:-1]).get(str(path[-1])) if path else None
    if field is None and len(path) > 1:
        field = _fields(root, path[:-2]).get(str(path[-2]))
    low = high = ""
    inside = isinstance(path[-1], int) if path else False  # of a list, whatever a value in its place may be
    for bound in () if field is None else _metadata(_items(field.annotation)) if inside else _bounds(field):
        match bound:
            case Ge(ge=value):
                low = f" from {value}"
            case Gt(gt=value):
                low = f" above {value}"
            case Le(le=value):
                high = f" to {value}"
            case Lt(lt=value):
                high = f" to below {value}"
    return low + high


def _bounds(field: FieldInfo) -> Iterator[Any]:
    yield from field.metadata
    yield from _metadata(field.annotation)


def _items(annotation: Any) -> Any:
    """The type of the items of lists in an annotation, None if it has none."""
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    return next((found for argument in get_args(annotation) if (found := _items(argument)) is not None), None)


def _metadata(annotation: Any) -> Iterator[Any]:
    """Metadata inside an annotation such as `Annotated[int, Ge(1)] | None`."""
    for noted in getattr(annotation, "__metadata__", ()):
        yield from noted.metadata if isinstance(noted, FieldInfo) else (noted,)
    for argument in get_args(annotation):
        yield from _metadata(argument)
