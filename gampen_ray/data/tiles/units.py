"""The units of a finished plan (`gampen_ray.data.tiles.planning`): some sources of one tile each."""

import dataclasses
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from gampen_ray import storage
from gampen_ray.errors import UserError

__all__ = ["PLAN_JSON", "TileUnit", "group_rows", "read_unit", "units", "written_units"]

PLAN_JSON = "plan.json"
"""Name of the file that declares a plan complete."""


@dataclasses.dataclass(frozen=True)
class TileUnit:
    """Some sources of one tile: a row group of a part."""

    uri: str
    group: int
    num_rows: int

    @property
    def name(self) -> str:
        """Name of the unit's files."""
        return f"{self.uri.rpartition('/')[2].removesuffix('.parquet')}-{self.group:05d}.parquet"


def units(plan: str) -> list[TileUnit]:
    """Return the units of a finished plan, in order; a `UserError` if it is not finished."""
    if not storage.exists(storage.join(plan, PLAN_JSON)):
        raise UserError(f"{plan} holds no finished plan ({PLAN_JSON})")
    return list(written_units(plan))


def written_units(plan: str) -> Iterator[TileUnit]:
    """Yield the units of a plan, finished or not, in order."""
    root = storage.absolute(plan)
    for uri in storage.list_files(plan, ".parquet"):
        if uri.rpartition("/")[0] == root:
            yield from (TileUnit(uri, group, rows) for group, rows in enumerate(group_rows(uri)))


def read_unit(unit: TileUnit) -> pa.Table:
    """Return the sources of a unit: ``object_id``, ``ra``, ``dec``, ``tile``, ``x``, ``y``, and the columns that were kept."""
    with storage.explained(unit.uri, "damaged: "), storage.open_input(unit.uri) as source:
        return pq.ParquetFile(source).read_row_group(unit.group)


def group_rows(uri: str) -> list[int]:
    """Return the numbers of rows of a file's row groups."""
    with storage.explained(uri, "damaged: "), storage.open_input(uri) as source:
        metadata = pq.ParquetFile(source).metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
