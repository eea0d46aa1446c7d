"""JSON documents from files, checked against the types of a dataclass before they are used.

The classes are frozen dataclasses whose annotations say all that a value must be: ``Annotated[float, pydantic.Field(gt=0)]``;
what several fields must fulfil together, ``__post_init__`` checks, with a ValueError.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

import pydantic

from gampen_ray import storage
from gampen_ray.errors import UserError
from gampen_ray.messages import brief

__all__ = ["LENIENT", "STRICT", "Versioned", "holds", "parsed", "read", "refused"]

T = TypeVar("T")
STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""``__pydantic_config__`` of a document that holds nothing but its fields; so do the dataclasses inside it."""
LENIENT = pydantic.ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)
"""``__pydantic_config__`` of a document that may hold more."""


@dataclasses.dataclass(frozen=True)
class Versioned:
    """The version of a document's layout, which decides how the rest is read."""

    __pydantic_config__: ClassVar = LENIENT

    format_version: int


def parsed(kind: type[T], data: bytes | str, where: str, remedy: str) -> T:
    """Return a JSON document as an instance of its class.

    Parameters
    ----------
    kind
        Dataclass with a ``__pydantic_config__``, or any other type that pydantic checks.
    data
        The document.
    where, remedy
        Name of the file and what to do if it is damaged, for the message.

    Raises
    ------
    UserError
        If it is not valid JSON, or a field is missing, unknown or wrong: one line with the field and its value.
    """
    try:
        return _adapter(kind).validate_json(data)
    except pydantic.ValidationError as error:
        raise UserError(f"{where}: {_explained(error.errors(include_url=False)[0])}; {remedy}") from None


def read(kind: Any, uri: str, remedy: str) -> Any:
    """Return the JSON document of a file; see `parsed`."""
    return parsed(kind, storage.read_bytes(uri), f"{uri} is damaged", remedy)


def holds(kind: Any) -> pydantic.AfterValidator:
    """Return the check that a dictionary has at least what a dataclass says; it is kept as it is."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        _adapter(kind).validate_json(json.dumps(value))
        return value

    return pydantic.AfterValidator(check)


@contextlib.contextmanager
def refused(where: str, remedy: str) -> Iterator[None]:
    """Turn the ValueError of a constructor, to which a document's values are given, into a UserError that names the file."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}; {remedy}") from None


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def _explained(error: Any) -> str:
    name, kind = ".".join(map(str, error["loc"])), error["type"]
    if kind == "json_invalid":
        return f"not valid JSON: {error['ctx']['error']}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{name} is missing"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{name}: unknown field"
    message = error["ctx"]["error"] if kind == "value_error" else f"{brief(error['input'])} is not allowed: {error['msg']}"
    return f"{name}: {message}".removeprefix(": ")
