"""Columns of the input that a catalogue of predictions keeps as they are, with their units and descriptions."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from gampen_ray.errors import UserError

__all__ = ["Carried", "carried"]

_MOST_NAMES = 40


class Carried(NamedTuple):
    """A column of the input.

    Parameters
    ----------
    name, unit, description
        As in the input, in ASCII; the latter two are empty where it has none.
    type
        Of the catalogue's column: texts are strings, and so is what is neither a number nor a truth value.
    """

    name: str
    unit: str
    description: str
    type: pa.DataType

    def values(self, rows: dict[str, Any]) -> pa.ChunkedArray:
        """Return the column's values of some rows, which are given by name; a column that is not there is null.

        Raises
        ------
        UserError
            If they are not of the column's type, as may be in one of several files.
        """
        if self.name not in rows:
            return pa.chunked_array([pa.nulls(len(rows["object_id"]), self.type)])
        values = rows[self.name]
        found = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([pa.array(np.asarray(values))])
        try:
            return found.cast(self.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise UserError(
                f"columns: {self.name} is {found.type} in some rows and {self.type} in others; give it one type"
            ) from None


def carried(names: Iterable[str], schema: pa.Schema, where: str, others: Sequence[str]) -> tuple[Carried, ...]:
    """Return columns of an input by name.

    Parameters
    ----------
    names
        Names of the columns.
    schema
        Of the input; fields may have ``unit`` and ``description`` in their metadata.
    where
        What the input is, for messages.
    others
        Names that are also allowed, for messages.

    Raises
    ------
    UserError
        If there is no such column, or its name is not in ASCII, as FITS needs it.
    """
    # Images are no columns of a catalogue.
    schema = pa.schema([f for f in schema if not (pa.types.is_nested(f.type) or isinstance(f.type, pa.BaseExtensionType))])
    found = []
    for name in names:
        if name not in schema.names:
            there = [field for field in schema.names if ":" not in field]
            close = difflib.get_close_matches(name, [*there, *others], n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            more = ", ..." if len(there) > _MOST_NAMES else ""
            raise UserError(
                f"columns: {where} has no column {name!r}; {hint}its columns: {', '.join(there[:_MOST_NAMES])}{more}; also "
                f"allowed: {', '.join(others)}"
            )
        if not name.isascii() or not name.isprintable():
            raise UserError(f"columns: {name!r} has other letters than those of FITS, ASCII; rename the column")
        field = schema.field(name)
        unit, description = (_ascii((field.metadata or {}).get(key, b"")) for key in (b"unit", b"description"))
        found.append(Carried(name, unit, description or f"column {name} of the input", _plain(field.type)))
    return tuple(found)


def _plain(kind: pa.DataType) -> pa.DataType:
    tests = (pa.types.is_integer, pa.types.is_float32, pa.types.is_float64, pa.types.is_boolean)
    return kind if any(test(kind) for test in tests) and kind != pa.uint64() else pa.string()


def _ascii(text: bytes) -> str:
    return " ".join(text.decode(errors="replace").split()).encode("ascii", "backslashreplace").decode()
