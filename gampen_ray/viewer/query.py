"""What a page shows, as the query of its address, which is all the state that the viewer has."""

import dataclasses
import urllib.parse
from typing import Annotated, Any, Literal

import pydantic

from gampen_ray.errors import UserError
from gampen_ray.messages import brief
from gampen_ray.viewer.table import Selection

__all__ = ["GALLERIES", "Query"]

GALLERIES = ("random", "worst", "flagged")
_LONGEST = 4_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query(Selection):
    """A selection of galaxies, and what is shown of it.

    Parameters
    ----------
    page
        Of the table, from 1.
    row
        Galaxy that is shown whole; -1: none.
    gallery
        Which galaxies are shown as images.
    """

    page: pydantic.PositiveInt = 1
    row: Annotated[int, pydantic.Field(ge=-1)] = -1
    gallery: Literal["random", "worst", "flagged"] = "random"

    @property
    def selection(self) -> Selection:
        """Which galaxies, and their order."""
        return Selection(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Selection)})

    @property
    def unsorted(self) -> Selection:
        """Which galaxies, in the order of the files."""
        return dataclasses.replace(self.selection, sort="", descending=False)

    def link(self, anchor: str = "", **changes: Any) -> str:
        """Return the address of another page, relative to this one."""
        changed = dataclasses.asdict(dataclasses.replace(self, **changes))
        query = urllib.parse.urlencode({name: value for name, value in changed.items() if value != _DEFAULTS[name]})
        return f"?{query}" + (f"#{anchor}" if anchor else "")


_DEFAULTS = dataclasses.asdict(Query())
_ADAPTER = pydantic.TypeAdapter(Query)


def parsed(query: str) -> Query:
    """Return what a page's query asks for.

    Raises
    ------
    UserError
        If a value is not allowed, or there is another.
    """
    try:
        pairs = urllib.parse.parse_qsl(query[:_LONGEST], max_num_fields=len(_DEFAULTS), errors="strict")
        if unknown := [name for name, _ in pairs if name not in _DEFAULTS]:
            raise ValueError(f"{brief(unknown[0])} is none of {', '.join(_DEFAULTS)}")
        return _ADAPTER.validate_python({name: value.strip() for name, value in pairs})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{first['loc'][0]}: {brief(first['input'])} is not allowed: {first['msg']}") from None
    except ValueError as error:
        raise UserError(f"address: {error}") from None
