"""The galaxies of a catalogue with their true values and other columns, from its dataset or from a table, joined by identifier.

Shape legend: N galaxies, D targets, R rows of the catalogue.
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute

from gampen_ray.catalog.parquet import catalog_names, catalog_parts
from gampen_ray.data import catalogs, shards
from gampen_ray.data.where import Where
from gampen_ray.errors import UserError
from gampen_ray.model.targets import TargetSchema

__all__ = ["Joined", "join"]

# Its functions are made when it is imported, unseen by a type checker.
pc: Any = pyarrow.compute
_ID = "object_id"
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Joined:
    """Galaxies of a catalogue that have true values.

    Parameters
    ----------
    catalog
        ``object_id``, ``ra``, ``dec``, ``crop_scale``, the conditions, and the columns that were asked for.
    truths_ND
        True values, physical, in the same order.
    kept_R
        Which rows of the catalogue's files, in order, these are.
    num_without_truth
        Galaxies left out because no finite true value of them is known.
    """

    catalog: pa.Table
    truths_ND: np.ndarray
    kept_R: np.ndarray
    num_without_truth: int


class _Source(Protocol):
    """Where columns come from beside the catalogue's own files."""

    names: list[str]

    def read(self, names: Iterable[str]) -> pa.Table:
        """Return ``object_id`` and some columns of all rows."""
        ...


class _Dataset:
    def __init__(self, dataset: str, split: str) -> None:
        self.uris = shards.shard_uris(dataset, split)
        pixels = (_ID, "image", shards.NOISE)
        self.names = [name for name in shards.read_shard(self.uris[0], row_groups=()).column_names if name not in pixels]

    def read(self, names: Iterable[str]) -> pa.Table:
        columns = [_ID, *names]
        return pa.concat_tables([shards.read_shard(uri, columns) for uri in self.uris])


class _Table:
    def __init__(self, uri: str, id_column: str) -> None:
        table = catalogs.read_catalog(uri, (id_column,))
        catalogs.require_columns(uri, table, {id_column: "id_column"})
        ids = catalogs.to_ids(table[id_column])
        self._table = table.drop_columns(list({id_column, _ID} & set(table.column_names))).add_column(0, _ID, ids)
        self.uri, self.names = uri, self._table.column_names[1:]

    def read(self, names: Iterable[str]) -> pa.Table:
        return self._table.select([_ID, *names])

    def require(self, targets: TargetSchema) -> None:
        catalogs.require_columns(self.uri, self._table, dict.fromkeys(targets.names, "truth"))
        catalogs.compare_units(self.uri, self._table, {target.name: target.unit for target in targets}, "truth")


def join(
    output: str,
    *,
    dataset: str,
    split: str,
    targets: TargetSchema,
    conditions: Iterable[str],
    columns: Mapping[str, str],
    where: str,
    truth: str,
    id_column: str,
) -> Joined:
    """Join the rows of a catalogue with true values and other columns.

    Parameters
    ----------
    output
        Folder that `infer` made.
    dataset, split
        Dataset of shards that it predicted; an empty text: it was none.
    targets, conditions
        Of the model.
    columns
        Further columns of the catalogue, the table or the dataset, with the config fields that name them.
    where
        Condition on the galaxies; see `gampen_ray.data.where.Where`.
    truth, id_column
        Table of true values and its column of identifiers; an empty text: they are in the dataset.

    Raises
    ------
    UserError
        If identifiers are repeated, a column or every true value is missing, or no galaxy is left.
    """
    condition = Where(where) if where else None
    wanted = dict(columns) | dict.fromkeys(condition.names if condition else (), "where")
    own = list(dict.fromkeys((_ID, "ra", "dec", "crop_scale", *conditions)))
    there = catalog_names(output)
    own += [name for name in wanted if name in there and name not in own]
    catalog = pa.concat_tables(catalog_parts(output, own))
    if pc.count_distinct(catalog[_ID]).as_py() < len(catalog):
        raise UserError(f"catalog: {output} repeats identifiers; make {dataset or 'its input'} again with unique ones")
    sources: list[_Source] = [_Dataset(dataset, split)] if dataset else []
    if truth:
        table = _Table(truth, id_column)
        table.require(targets)
        _check_unique(table, catalog, truth)
        sources.insert(0, table)
    further = {name: field for name, field in wanted.items() if name not in own and name not in targets.names}
    parts = _divided(further, sources, there)
    parts[0] = [*targets.names, *parts[0]]
    for source, names in zip(sources, parts, strict=True):
        found = _matched(catalog[_ID], source, names)
        if isinstance(source, _Dataset) and (lost := found[_ID].null_count):
            raise UserError(
                f"catalog: {output} holds {len(catalog)} galaxies, {len(catalog) - lost} of them in {dataset}; "
                "its dataset was changed: run infer again"
            )
        for name in names:
            catalog = catalog.append_column(name, found[name])
    truths_RD = np.stack([_floats(name, catalog[name]) for name in targets.names], axis=1)
    known_R = np.all(np.isfinite(truths_RD), axis=1)
    num_known = int(known_R.sum())
    if not num_known:
        raise UserError(f"truth: {truth or dataset} has no finite true value of the {len(catalog):,} galaxies of {output}")
    if num_known < len(known_R):
        missing = len(known_R) - num_known
        logger.warning("%s of %s galaxies have no true value, and are left out", f"{missing:,}", f"{len(known_R):,}")
    kept_R = np.logical_and(known_R, condition(catalog)) if condition else known_R
    if not kept_R.any():
        raise UserError(f"where: no galaxy of {num_known:,} fulfils {where!r}; give another condition")
    wanted_names = [name for name in catalog.column_names if name in own or name in columns]
    return Joined(
        catalog=catalog.select(wanted_names).filter(pa.array(kept_R)),
        truths_ND=truths_RD[kept_R],
        kept_R=kept_R,
        num_without_truth=len(known_R) - num_known,
    )


def _divided(wanted: Mapping[str, str], sources: list[_Source], there: Iterable[str]) -> list[list[str]]:
    """Return which of the wanted columns are read from each source, the first that has it."""
    parts: list[list[str]] = [[] for _ in sources]
    for name, field in wanted.items():
        place = next((i for i, source in enumerate(sources) if name in source.names), None)
        if place is None:
            known = dict.fromkeys(name for names in (*(source.names for source in sources), there) for name in names)
            raise UserError(f"{field}: no column {name!r}; there are: {', '.join(known)}")
        parts[place].append(name)
    return parts


def _matched(ids: pa.ChunkedArray, source: _Source, names: list[str]) -> pa.Table:
    """Return the rows of a source in the order of identifiers, null where it has none."""
    try:
        table = source.read(names)
    except (UserError, pa.ArrowInvalid) as error:
        raise UserError(
            f"catalog: its dataset lacks true values, evaluate a catalogue of one that has them, or give truth: {error}"
        ) from None
    ids, others = _alike(ids, table[_ID])
    return table.take(pc.index_in(ids, value_set=others.combine_chunks()))


def _check_unique(table: _Table, catalog: pa.Table, truth: str) -> None:
    ids, others = _alike(catalog[_ID], table.read([])[_ID])
    others = others.filter(pc.is_in(others, value_set=ids.combine_chunks()))
    counts = pc.value_counts(others)
    if len(counts) < len(others):
        repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        raise UserError(
            f"truth: {truth} repeats {len(repeated):,} identifiers, such as {repeated[0].as_py()!r}; keep one row of each"
        )


def _alike(ids: pa.ChunkedArray, others: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return identifiers of one type, integers or texts."""
    return (ids, others) if ids.type == others.type else (ids.cast(pa.string()), others.cast(pa.string()))


def _floats(name: str, column: pa.ChunkedArray) -> np.ndarray:
    try:
        return column.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"truth: the column {name} is {column.type}, not numbers; convert it") from None
