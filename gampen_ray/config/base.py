"""Configs from and to plain values and strict TOML, with mistakes told in one line."""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from typing import Any, TypeVar, dataclass_transform

import pydantic

from gampen_ray.errors import UserError

T = TypeVar("T")
_PYDANTIC = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field, pydantic.Field))
def config_class(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only dataclass that checks its values; field docstrings become help texts."""
    decorate: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_PYDANTIC)
    decorated = decorate(cls)
    # pydantic reads the docstrings of a class's own fields alone.
    for base in cls.__mro__[1:-1]:
        for name, field in base.__pydantic_fields__.items():  # type: ignore[attr-defined]
            inherited = decorated.__pydantic_fields__[name]
            inherited.description = inherited.description or field.description
    return decorated


def default(cls: type[T]) -> T:
    """Return a field whose default is the config ``cls`` with its own defaults."""
    return dataclasses.field(default_factory=cls)


def build(cls: type[T], values: dict[str, Any]) -> T:
    """Build a config from nested plain values.

    Parameters
    ----------
    cls
        One of the config classes of this module.
    values
        Nested dictionary, as TOML or JSON gives it.

    Raises
    ------
    UserError
        For an unknown key, a missing field or a value out of its domain, naming field, value and remedy.
    """
    try:
        return pydantic.TypeAdapter(cls).validate_json(json.dumps(values, default=str))
    except pydantic.ValidationError as error:
        raise UserError(_explain(cls, error.errors()[0])) from None


def to_dict(config: Any) -> dict[str, Any]:
    """Return the nested plain values of a config; ``None`` fields are left out, as TOML has no null."""
    return pydantic.TypeAdapter(type(config)).dump_python(config, mode="json", exclude_none=True)


def load_toml(text: bytes, source: str) -> dict[str, Any]:
    """Parse TOML (UTF-8); a syntax error is a UserError that names ``source``."""
    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not valid TOML: {error}") from None


def to_toml(config: Any) -> str:
    """Return a config as TOML text that `load_toml` and `build` turn into an equal config."""
    lines: list[str] = []
    _emit(to_dict(config), "", lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def fields(cls: type) -> dict[str, Any]:
    """Return pydantic's description of each field: annotation, default, documentation."""
    return cls.__pydantic_fields__  # type: ignore[attr-defined]


def _emit(table: dict[str, Any], prefix: str, lines: list[str]) -> None:
    for key, value in table.items():
        if not isinstance(value, dict):
            # JSON's scalars, strings and arrays are valid TOML.
            lines.append(f"{key} = {json.dumps(value)}")
    for key, value in table.items():
        if isinstance(value, dict):
            lines.append(f"\n[{prefix}{key}]")
            _emit(value, f"{prefix}{key}.", lines)


def _explain(cls: type, error: Any) -> str:
    where = [str(part) for part in error["loc"]]
    name = ".".join(where)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        valid = sorted(fields(_descend(cls, where[:-1])))
        close = difflib.get_close_matches(where[-1], valid, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{name}: unknown field; {hint}valid here: {', '.join(valid)}"
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{name}: required; set it in the TOML file or give --{name}"
    if error["type"] == "value_error":
        return f"{name}: {error['ctx']['error']}".removeprefix(": ")
    if where[-1] in ("int", "constrained-int") or where[-1].startswith("literal"):
        # One branch of a union: the others are as valid.
        name = ".".join(where[:-1])
        return f'{name}: {error["input"]!r} is not allowed: give a positive whole number or "M"'
    return f"{name}: {error['input']!r} is not allowed: {error['msg']}"


def _descend(cls: type, path: list[str]) -> type:
    for part in path:
        cls = typing.get_args(cls)[1] if typing.get_origin(cls) is dict else fields(cls)[part].annotation
        if isinstance(cls, types.UnionType):
            cls = next(arg for arg in typing.get_args(cls) if arg is not type(None))
    return cls
