"""The fields of a config class and of its sections, one after the other: for the command line, help and templates."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

import pydantic_core

from gampen_ray.config.base import Advanced, fields

__all__ = ["Leaf", "sections"]


class Leaf(NamedTuple):
    """A field that is not a section: dotted name, annotation, default (`PydanticUndefined` if required), documentation, and
    whether it is `Advanced`."""

    name: str
    annotation: Any
    default: Any
    description: str
    advanced: bool

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is pydantic_core.PydanticUndefined


def sections(cls: type, prefix: str = "", instance: Any = None) -> Iterator[tuple[str, str, list[Leaf]]]:
    """Yield the name, documentation and fields of a config class itself (its name is empty) and of each nested section.

    Required fields come first.
    """
    leaves: list[Leaf] = []
    nested = []
    for name, field in fields(cls).items():
        default = field.get_default(call_default_factory=True) if instance is None else getattr(instance, name)
        if dataclasses.is_dataclass(field.annotation):
            nested.append((typing.cast(type, field.annotation), f"{prefix}{name}.", default))
        else:
            advanced = any(isinstance(one, Advanced) for one in field.metadata)
            leaves.append(Leaf(prefix + name, field.annotation, default, field.description or "", advanced))
    leaves.sort(key=lambda leaf: not leaf.required)
    yield prefix.removesuffix("."), cls.__doc__ or "", leaves
    for section in nested:
        yield from sections(*section)
