"""Rows of a dataset of shards by their identifiers, such as the cutouts of some galaxies of a catalogue.

Shape legend: U identifiers, R rows found.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from gampen_ray import storage
from gampen_ray.data import shard_index, shards

__all__ = ["Found", "RowsById"]

# Its functions are made when it is imported, unseen by a type checker.
pc: Any = pyarrow.compute


class Found(NamedTuple):
    """Rows of one shard.

    Parameters
    ----------
    places
        Whose they are: positions among the identifiers asked for, R.
    rows
        Where they are in ``table``, R.
    table
        The row groups that hold them.
    """

    places: np.ndarray
    rows: np.ndarray
    table: pa.Table


class RowsById:
    """Finds rows by identifier, and reads no other row groups; the identifiers of all rows are read once and kept.

    Parameters
    ----------
    dataset, split
        Dataset of shards, and one of its splits; empty: all rows.

    Raises
    ------
    UserError
        If there is no complete dataset, or no such split.
    """

    def __init__(self, dataset: str, split: str = "") -> None:
        self._dataset, self.info = dataset, shards.read_dataset_info(dataset)
        self._uris = shards.shard_uris(dataset, split)

    def __call__(self, id_U: pa.Array, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Found]:
        """Yield the rows of some identifiers, shard by shard; an identifier may have no row, or several.

        Parameters
        ----------
        id_U
            Different identifiers, of the dataset's type.
        columns, optional
            Columns to read, and those to read if they are there.
        """
        for uri, (ids, group_ends) in zip(self._uris, self._ids, strict=True):
            # Integers compare with integers, texts with texts.
            place_N = pc.index_in(ids, value_set=id_U.cast(ids.type))
            there = np.flatnonzero(place_N.is_valid().to_numpy())
            if not there.size:
                continue
            groups, group_R = np.unique(np.searchsorted(group_ends, there, side="right"), return_inverse=True)
            sizes = np.diff(group_ends, prepend=0)
            before_R = (np.cumsum(sizes[groups]) - sizes[groups])[group_R]
            rows = there - (group_ends - sizes)[groups][group_R] + before_R
            table = shards.read_shard(uri, columns, groups.tolist(), optional=optional)
            yield Found(place_N.take(pa.array(there)).to_numpy(), rows, table)

    @functools.cached_property
    def _ids(self) -> list[tuple[pa.ChunkedArray, np.ndarray]]:
        """The identifiers of each shard, and the ends of its row groups."""

        footers = shard_index.footers(self._dataset, self._uris, self.info)
        ids = storage.read_each(lambda uri: shards.read_shard(uri, ["object_id"])["object_id"], self._uris)
        return [(column, np.cumsum(footer.group_rows)) for column, footer in zip(ids, footers, strict=True)]
