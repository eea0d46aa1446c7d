"""A config as a commented TOML file to fill in: every field with its meaning and default."""

import textwrap
from collections.abc import Mapping
from typing import Any

import pydantic_core

from gampen_ray.config.leaves import Leaf, sections
from gampen_ray.config.toml_text import inline

__all__ = ["template"]

_WIDTH = 118


def template(cls: type, values: Mapping[str, Any]) -> str:
    """Return TOML text with all fields of a config class: those in some nested values are set, the others are comments."""
    lines: list[str] = []
    for section, text, leaves in sections(cls):
        lines += [f"[{section}]"] if section else []
        lines += [*_comment(text.partition("\n\n")[0]), ""]
        for leaf in leaves:
            lines += [*_comment(leaf.description), _field(leaf, values), ""]
    return "\n".join(lines)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), _WIDTH, initial_indent="## ", subsequent_indent="## ")


def _field(leaf: Leaf, values: Any) -> str:
    *path, name = leaf.name.split(".")
    for part in path:
        values = values.get(part, {})
    if name in values:
        return f"{name} = {inline(values[name])}"
    if leaf.default is pydantic_core.PydanticUndefined:
        return f"# {name} =    (required)"
    default = pydantic_core.to_jsonable_python(leaf.default, exclude_none=True)
    return f"# {name} =    (left out)" if default is None else f"# {name} = {inline(default)}"
