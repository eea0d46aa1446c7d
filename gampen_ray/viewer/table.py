"""The rows of a catalogue of any size, read from its Parquet files: which of them are wanted, in which order, and their values.

Shape legend: N galaxies, M selected galaxies.
"""

import contextlib
import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from gampen_ray import storage
from gampen_ray.catalog.columns import MIXTURE_MEAN, MIXTURE_TRIL
from gampen_ray.catalog.parquet import CATALOG
from gampen_ray.data.where import Where
from gampen_ray.errors import StorageError, UserError
from gampen_ray.inference.flags import REMARKS, Flag

__all__ = ["ANY", "NONE", "WARNED", "CatalogTable", "Selection"]

# Its functions are made when it is imported, unseen by a type checker.
pc: Any = pyarrow.compute
ANY, WARNED, NONE = "any", "warned", "none"
"""Choices beside the names of flags: galaxies with a flag, with one that warns of a wrong posterior, and without flags."""
# Of columns and of selections that are kept; the one in use is kept in any case.
_KEPT_BYTES, _KEPT_SELECTIONS = 200 << 20, 4
_SAMPLED_FILES = 64
_MIXTURE = (MIXTURE_MEAN, MIXTURE_TRIL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Which galaxies are shown, in which order.

    Parameters
    ----------
    text
        Part of the identifier, whatever its case; empty: all.
    flag
        Name of a flag that they have, or `ANY`, `WARNED` or `NONE`; empty: all.
    where
        Condition on the columns, see `gampen_ray.data.where.Where`; empty: none.
    sort
        Column to sort by, missing values last; empty: in the order of the files.
    descending
        Whether the largest come first.
    """

    text: str = ""
    flag: str = ""
    where: str = ""
    sort: str = ""
    descending: bool = False


class CatalogTable:
    """The rows of a catalogue by number, in the order of its files. Columns are read as they are needed, and some are kept.

    Parameters
    ----------
    output
        Output folder of `infer`.

    Raises
    ------
    UserError
        If it holds no file of a catalogue.
    StorageError
        If a file is damaged.
    """

    def __init__(self, output: str) -> None:
        self._uris = storage.list_files(storage.join(output, CATALOG), ".parquet")
        if not self._uris:
            raise UserError(f"catalog: {output} holds no file of a catalogue; give the output folder of a finished `infer`")
        self._ends = np.cumsum([metadata.num_rows for metadata in storage.read_each(_metadata, self._uris)])
        self.schema: pa.Schema = _metadata(self._uris[0]).schema.to_arrow_schema()
        self._columns: OrderedDict[str, pa.ChunkedArray] = OrderedDict()
        self._selected: OrderedDict[Selection, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @functools.cached_property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets, in order: those whose posterior is summarised."""
        names = set(self.names)
        first = (name.removesuffix("_mean") for name in self.names if name.endswith("_mean"))
        return tuple(name for name in first if {f"{name}_lo68", f"{name}_hi68", f"{name}_median"} <= names)

    @functools.cached_property
    def names(self) -> list[str]:
        """Names of the columns, without the stored mixtures."""
        return [name for name in self.schema.names if name not in _MIXTURE]

    @property
    def has_mixtures(self) -> bool:
        """Whether the whole posteriors are stored."""
        return {*_MIXTURE} <= {*self.schema.names}

    def metadata(self, name: str, key: str) -> str:
        """Return the ``unit`` or the ``description`` of a column; empty: unknown."""
        return (self.schema.field(name).metadata or {}).get(key.encode(), b"").decode()

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of all rows."""
        if name not in self._columns:

            def read(uri: str) -> pa.ChunkedArray:
                return _read(uri, [name])[name]

            chunks = [chunk for part in storage.read_each(read, self._uris) for chunk in part.chunks]
            # Thousands of small pieces would be slow.
            whole = pa.chunked_array(chunks, self.schema.field(name).type).combine_chunks()
            self._columns[name] = pa.chunked_array([whole])
            while len(self._columns) > 1 and sum(column.nbytes for column in self._columns.values()) > _KEPT_BYTES:
                self._columns.popitem(last=False)
        self._columns.move_to_end(name)
        return self._columns[name]

    def select(self, wanted: Selection) -> np.ndarray:
        """Return the numbers of the selected rows in their order, M.

        Raises
        ------
        UserError
            If the condition or a name is none.
        """
        if wanted not in self._selected:
            self._selected[wanted] = self._ordered(wanted)
            if len(self._selected) > _KEPT_SELECTIONS:
                self._selected.popitem(last=False)
        self._selected.move_to_end(wanted)
        return self._selected[wanted]

    def rows(self, row_M: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """Return some rows, in this order; only the files that hold them are read.

        Parameters
        ----------
        row_M
            Numbers of the rows.
        columns
            To read; None: all but the mixtures.
        """
        columns = self.names if columns is None else list(columns)
        file_M = np.searchsorted(self._ends, row_M, side="right")
        files, inverse_M = np.unique(file_M, return_inverse=True)

        def read(file: int) -> pa.Table:
            first = self._ends[file - 1] if file else 0
            return _read(self._uris[file], columns).take(row_M[file_M == file] - first)

        parts = [read(file) for file in files]
        if not parts:
            return self.schema.empty_table().select(columns)
        # The parts hold the rows file by file.
        return pa.concat_tables(parts).take(np.argsort(np.argsort(inverse_M, kind="stable"), kind="stable"))

    def sample(self, row_M: np.ndarray, num_rows: int, seed: int = 0) -> np.ndarray:
        """Return some of the rows in increasing order, so many at most, from a few random files; all if there are no more."""
        file_M = np.searchsorted(self._ends, row_M, side="right")
        files, count_F = np.unique(file_M, return_counts=True)
        order = np.random.default_rng(seed).permutation(len(files))
        # Files until there are enough rows, and no more than can be read while somebody waits.
        enough = 1 + int(np.searchsorted(np.cumsum(count_F[order]), num_rows))
        return np.sort(row_M[np.isin(file_M, files[order[: min(enough, _SAMPLED_FILES)]])])[:num_rows]

    def _ordered(self, wanted: Selection) -> np.ndarray:
        known_N = np.ones(len(self), bool)
        if wanted.text:
            ids = self.column("object_id").cast(pa.string())
            known_N &= pc.match_substring(ids, wanted.text, ignore_case=True).to_numpy()
        if wanted.flag:
            known_N &= _flagged(self.column("flags").to_numpy(), wanted.flag)
        if wanted.where:
            condition = Where(wanted.where)
            if unknown := [name for name in condition.names if name not in self.names]:
                raise UserError(f"where: no column {unknown[0]!r}; there are: {', '.join(self.names)}")
            known_N &= condition({name: self.column(name) for name in condition.names})
        row_M = np.flatnonzero(known_N)
        if not wanted.sort:
            return row_M[::-1] if wanted.descending else row_M
        if wanted.sort not in self.names:
            raise UserError(f"sort: no column {wanted.sort!r}; there are: {', '.join(self.names)}")
        values = self.column(wanted.sort).take(pa.array(row_M))
        keys = [("values", "descending" if wanted.descending else "ascending")]
        order_M = pc.sort_indices(pa.table({"values": values}), sort_keys=keys)
        return row_M[order_M.to_numpy()]


def _flagged(flags_N: np.ndarray, choice: str) -> np.ndarray:
    if choice == NONE:
        return flags_N == 0
    if choice == ANY:
        return flags_N != 0
    if choice == WARNED:
        return (flags_N & ~REMARKS.value) != 0
    if choice not in Flag.__members__:
        raise UserError(f"flag: {choice!r} is none; there are: {', '.join(Flag.__members__)}, {ANY}, {WARNED}, {NONE}")
    return (flags_N & Flag[choice].value) != 0


def _metadata(uri: str) -> pq.FileMetaData:
    with _damage_explained(uri), storage.open_input(uri) as file:
        return pq.read_metadata(file)


def _read(uri: str, columns: Sequence[str]) -> pa.Table:
    with _damage_explained(uri), storage.open_input(uri) as file:
        return pq.ParquetFile(file).read(columns=list(columns), use_threads=False)


@contextlib.contextmanager
def _damage_explained(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri} is damaged or no Parquet: {' '.join(str(error).split())}; restore the file") from None
