"""Building blocks of the sections of a scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema


def integral(value: object) -> object:
    """Convert whole floats to int: YAML reads `1e3` as a float, but it is a valid count."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(integral)]


def real(value: object) -> object:
    """Convert int to float: YAML reads `1` as an int, but it is a valid share."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if abs(value) >= 10**300:
        raise ValueError("expected a number below 1e300, found a larger one")
    return float(value)


#: Validators are built only for the whole `Scenario`: sections are never validated alone, and importing is faster.
COMMON = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True)


def default(written: Any, description: str, **constraints: Any) -> Any:
    """A field whose default is written as in YAML, and validated like it."""
    return Field(default=written, validate_default=True, description=description, **constraints)


#: The two forms of a value, one or a table, as pydantic names them in the location of an error.
ONE, TABLE = "<one>", "<table>"


def form(value: object) -> str:
    """The form of a value, for a discriminator."""
    return TABLE if isinstance(value, (Mapping, BaseModel)) else ONE


#: Ranges of characters that change the direction of the text after them, or break the line.
DIRECTION = r"\u200e\u200f\u2028-\u202e\u2066-\u2069"

#: Ranges of control characters, for a class in a pattern. Printed, they would control the terminal.
CONTROL = rf"\x00-\x1f\x7f-\x9f{DIRECTION}"

#: A text on one line.
LINE = rf"^[^{CONTROL}]*$"

#: A text on several lines, without control characters but tab and newline.
LINES = rf"^[^\x00-\x08\x0b-\x1f\x7f-\x9f{DIRECTION}]*$"

#: Names become parts of file names: no control character, no slash, no leading dot or space, at most 100 characters.
NAME = rf"^[^\s./\\{CONTROL}][^/\\{CONTROL}]{{0,99}}$"


#: Names that stand in expressions.
IDENTIFIER = "^[A-Za-z_][A-Za-z0-9_]{0,60}$"

#: A number from 1, as a text: all keys of a document are.
COUNT = "^[1-9][0-9]{0,5}$"
CountKey = Annotated[str, Field(pattern=COUNT)]

Text = Annotated[str, Field(min_length=1)]

#: A part of a whole, above nothing.
Share = Annotated[float, Field(gt=0, le=1), BeforeValidator(real)]


class Section(BaseModel):
    """A mapping with known keys."""

    model_config = ConfigDict(extra="forbid", **COMMON)


class Short(Section):
    """A mapping that may also be written as the value of one of its keys."""

    #: The key, the types of its value, and the words of errors for the forms that may be written.
    key: ClassVar[str]
    types: ClassVar[tuple[type, ...]]
    expected: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _one_alone(cls, value: object) -> object:
        return {cls.key: value} if isinstance(value, cls.types) and not isinstance(value, bool) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        mapping = handler.resolve_ref_schema(handler(core))
        title, description = mapping.pop("title", cls.__name__), mapping.pop("description", "")
        alone = {k: v for k, v in mapping["properties"][cls.key].items() if k not in ("default", "description", "title")}
        return {"title": title, "description": description, "anyOf": [alone, mapping]}


class Choice(BaseModel):
    """A policy by its name, alone or in a mapping with the options of that policy.

    The options are plain data here; the policy itself reads and checks them.
    """

    model_config = ConfigDict(extra="allow", **COMMON)

    #: The key that holds the name when the choice is written as a mapping.
    key: ClassVar[str] = "name"
    #: Names to offer in an editor.
    examples: ClassVar[tuple[str, ...]] = ()

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of the policy: all keys but the known ones, as plain data."""
        return self.__pydantic_extra__ or {}

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {cls.key: value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _short(self, handler: Callable[[Any], dict[str, Any]]) -> Any:
        written = {k: v for k, v in handler(self).items() if v is not None}
        return written[self.key] if len(written) == 1 else written

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        mapping = handler.resolve_ref_schema(handler(core))
        title, description = mapping.pop("title", cls.__name__), mapping.pop("description", "")
        name = {"type": "string", "minLength": 1, "examples": list(cls.examples)}
        return {"title": title, "description": description, "anyOf": [name, mapping]}
