"""The plan of a job on tiles: which sources are cut from which tile, as a Parquet table partitioned by tile.

A catalogue of any size passes through in two rounds of units. `assign_batch` gives each source of a batch its tile, and writes
the batch sorted by tile; `merge_part` gathers the sources of a run of neighbouring tiles from all batches. Names and content
of their files depend on the input alone. Nobody holds more than a batch, or the sources of one part.

A plan is a folder: ``plan.json``, written last; ``part-*.parquet``, in which each row group has sources of one tile; and
``quarantine/part-*.parquet`` for the sources that have none, with reasons. Shape legend: N sources.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from gampen_ray import documents, storage
from gampen_ray.data import catalogs, positions, shards
from gampen_ray.data.catalog_formats import parquet_files, scalar_table
from gampen_ray.data.packing import PlannedRows
from gampen_ray.data.tiles.assignment import Assigned, assign
from gampen_ray.data.tiles.footprint import Footprint, Selection
from gampen_ray.data.tiles.units import PLAN_JSON, group_rows, written_units
from gampen_ray.data.validation import validate_rows
from gampen_ray.errors import UserError

__all__ = [
    "BATCH_ROWS",
    "PART_ROWS",
    "TILE",
    "UNIT_ROWS",
    "Batch",
    "Part",
    "Planning",
    "assign_batch",
    "assigned",
    "batches",
    "finish",
    "merge_part",
    "parts",
    "plan_locally",
    "read_summary",
    "sampled",
    "selected",
    "unassigned",
]

pc: Any = pyarrow.compute
UNASSIGNED = "unassigned"
"""Beginning of the names of the files of sources without a tile."""
TILE = "tile"
"""Column with the name of the tile; ``x`` and ``y`` are the place in it, pixels."""
_NUMBER = "gampen_ray:tile"
_ASSIGNED = "assigned"
BATCH_ROWS, PART_ROWS, UNIT_ROWS = 1 << 18, 1 << 17, 8192
"""Sources that are assigned together, that a part has, and that a worker cuts together."""
_NOT_ASKED_FOR = "in a tile that is not in the sample"
_SAMPLE_BATCHES = 16
_OWN = ("object_id", "ra", "dec", TILE, "x", "y")
# Row groups of a batch, of which a part reads those that may hold its tiles.
_GROUP_ROWS = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planning:
    """What a plan is made of; small enough to send to every task.

    Parameters
    ----------
    footprint
        URI of the footprint.
    bands
        Bands that each source must have.
    size
        Side of the cutouts, pixels.
    output
        Folder of the plan.
    max_beyond
        Pixels by which a cutout may reach over the edge of its tile.
    align
        Whether tiles are used whose bands lie on different grids.
    id_column, ra_column, dec_column, position_unit
        Of the catalogue; see `gampen_ray.config.inputs.CatalogConfig`.
    columns, optional
        Other columns of the catalogue that are kept; the latter where they are there.
    quarantine
        Folder of the sources without a tile; empty: that of the plan.
    every
        Whether all other columns of the catalogue are kept.
    only
        Numbers of the tiles of a sample, whose plan leaves out all sources of other tiles and those without; None: all tiles.
    """

    footprint: str
    bands: tuple[str, ...]
    size: int
    output: str
    max_beyond: int = 0
    align: bool = False
    id_column: str = "object_id"
    ra_column: str = ""
    dec_column: str = ""
    position_unit: positions.PositionUnit = "auto"
    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    quarantine: str = ""
    every: bool = False
    only: tuple[int, ...] | None = None

    def quarantine_uri(self, name: str) -> str:
        """Return the URI of a file of sources without a tile."""
        return storage.join(self.quarantine or storage.join(self.output, shards.QUARANTINE), f"{UNASSIGNED}-{name}")

    @property
    def selection(self) -> Selection:
        """The tiles, which a process reads once."""
        return selected(self.footprint, self.bands, self.align)

    def reads(self, column: str) -> bool:
        """Return whether a column of the catalogue is used: it may have a thousand."""
        own = {self.id_column, self.ra_column, self.dec_column, *self.columns, *self.optional}
        usual = {name for pair in positions.USUAL_NAMES for name in pair}
        return self.every or column in own or column.lower() in usual.union(self.selection.footprint.info.primary_columns)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some rows of a catalogue: row groups ``start`` to ``stop`` of a Parquet file, or the rows themselves."""

    index: int
    num_rows: int
    uri: str = ""
    start: int = 0
    stop: int = 0
    rows: PlannedRows | None = None

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"part-{self.index:06d}.parquet"

    def read(self, keep: Callable[[str], bool]) -> pa.Table:
        """Return those of its scalar columns that are wanted, by name."""
        if self.rows is not None:
            return self.rows.table
        with storage.explained(self.uri, "damaged: "), storage.open_input(self.uri) as source:
            return scalar_table(source, keep=keep, groups=range(self.start, self.stop))


@dataclasses.dataclass(frozen=True)
class Part:
    """The sources of a run of tiles, ``first`` to ``last`` by number."""

    index: int
    first: int
    last: int
    num_rows: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"part-{self.index:06d}.parquet"


def batches(catalog: str, id_column: str = "object_id", rows: int = BATCH_ROWS) -> Iterator[Batch]:
    """Yield a catalogue in batches of some ``rows``: of Parquet and HATS by their footers, others read whole."""
    if catalogs.format_of(catalog) != "parquet":
        table = catalogs.read_catalog(catalog, (id_column,))
        # As one: whether all are integers.
        if id_column in table.column_names:
            place = table.column_names.index(id_column)
            table = table.set_column(place, pa.field(id_column, (ids := catalogs.to_ids(table[id_column])).type), ids)
        for index, start in enumerate(range(0, len(table), rows)):
            some = table.slice(start, rows)
            yield Batch(index, len(some), storage.absolute(catalog), rows=PlannedRows(some))
        return
    index = 0
    for uri in parquet_files(catalog):
        counts, start = group_rows(uri), 0
        for stop in range(1, len(counts) + 1):
            if stop == len(counts) or sum(counts[start : stop + 1]) > rows:
                yield Batch(index, sum(counts[start:stop]), uri, start, stop)
                index, start = index + 1, stop


def assign_batch(batch: Batch, planning: Planning) -> dict[int, int]:
    """Write the sources of a batch sorted by tile, and those without one to quarantine; return the sources by tile number.

    Raises
    ------
    UserError
        If a column of the catalogue is missing or reserved.
    """
    table, ids, sky, found = _placed(batch, planning)
    reason_N = found.reason_N
    if planning.only is not None:
        reason_N = np.where((reason_N != "") | np.isin(found.tile_N, planning.only), reason_N, _NOT_ASKED_FOR)
    good = np.flatnonzero(reason_N == "")
    good = good[np.argsort(found.tile_N[good], kind="stable")]
    own: dict[str, Any] = {"object_id": ids, "ra": sky.ra_N, "dec": sky.dec_N, TILE: planning.selection.names[found.tile_N]}
    own |= {"x": found.x_N, "y": found.y_N, _NUMBER: found.tile_N.astype(np.int32)}
    others = table.column_names if planning.every else planning.optional
    skipped = {*_OWN, planning.id_column, *planning.columns, *(set(others) - set(table.column_names))}
    kept = [*planning.columns, *(name for name in others if name not in skipped and name.lower() not in _OWN)]
    rows = pa.table(own)
    for name in kept:
        # With its unit.
        rows = rows.append_column(table.schema.field(name), table[name])
    rows = rows.take(pa.array(good))
    bad = np.flatnonzero((reason_N != "") & (planning.only is None))
    uri = planning.quarantine_uri(batch.name)
    missing = 0 if pa.types.is_integer(ids.type) else ""
    texts = ids.fill_null(missing).cast(pa.string()).take(pa.array(bad)).to_pylist()
    if len(bad):
        shards.write_quarantine(uri, object_id=texts, source=[batch.uri] * len(bad), reason=reason_N[bad])
    else:
        storage.delete(uri)
    # Last: it marks the batch as finished.
    _write(storage.join(planning.output, _ASSIGNED, batch.name), [rows], _GROUP_ROWS)
    numbers, counts = np.unique(found.tile_N[good], return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def sampled(some: Sequence[Batch], planning: Planning, count: int) -> tuple[int, ...]:
    """Return the numbers of up to ``count`` tiles in which sources of a catalogue lie, given its batches.

    They are drawn at random, each with the same probability, from the tiles of evenly spaced batches.
    """
    if not some:
        return ()
    places = np.unique(np.linspace(0, len(some) - 1, _SAMPLE_BATCHES).astype(int))
    found = (_placed(some[place], planning)[-1] for place in places)
    tiles = np.unique(np.concatenate([one.tile_N[one.reason_N == ""] for one in found]))
    return tuple(sorted(np.random.default_rng(0).permutation(tiles)[:count].tolist()))


def assigned(planning: Planning) -> dict[str, dict[int, int]]:
    """Return the sources by tile number of each batch that is finished, by its name."""
    found = {}
    for uri in storage.list_files(storage.join(planning.output, _ASSIGNED), ".parquet"):
        with storage.explained(uri, "damaged: "), storage.open_input(uri) as source:
            tile_N = pq.read_table(source, columns=[_NUMBER])[_NUMBER].to_numpy()
        numbers, counts = np.unique(tile_N, return_counts=True)
        found[uri.rpartition("/")[2]] = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    return found


def parts(counts: Iterable[dict[int, int]], rows: int = PART_ROWS) -> list[Part]:
    """Return the parts of a plan, given the sources by tile of all batches: runs of tiles of some ``rows``, or one tile."""
    total: Counter[int] = Counter()
    for one in counts:
        total.update(one)
    found: list[Part] = []
    for tile in sorted(total):
        if found and found[-1].num_rows + total[tile] <= rows:
            found[-1] = dataclasses.replace(found[-1], last=tile, num_rows=found[-1].num_rows + total[tile])
        else:
            found.append(Part(len(found), tile, tile, total[tile]))
    return found


def merge_part(part: Part, planning: Planning, unit_rows: int) -> None:
    """Write the sources of some tiles, in row groups of at most ``unit_rows`` sources of one tile.

    Of sources with one identifier in a tile the first counts; the others go to quarantine.
    """
    tables = [
        piece
        for uri in storage.list_files(storage.join(planning.output, _ASSIGNED), ".parquet")
        for piece in _between(uri, part.first, part.last)
    ]
    table = pa.concat_tables(tables, promote_options="permissive")
    # Stable: in the order of the catalogue within a tile.
    table = table.take(pa.array(np.argsort(table[_NUMBER].to_numpy(), kind="stable"))).combine_chunks()
    assert len(table) == part.num_rows
    tile_N = table[_NUMBER].to_numpy()
    starts = [*np.flatnonzero(np.diff(tile_N, prepend=-1)).tolist(), len(tile_N)]
    reason_N = np.concatenate([validate_rows({"object_id": table["object_id"].slice(a, b - a)}) for a, b in pairwise(starts)])
    bad, uri = table.filter(pa.array(reason_N != "")), planning.quarantine_uri(f"tiles-{part.name}")
    if len(bad):
        ids, source = bad["object_id"].cast(pa.string()).to_pylist(), bad[TILE].to_pylist()
        shards.write_quarantine(uri, object_id=ids, source=source, reason=reason_N[reason_N != ""])
    tiles = (table.slice(a, b - a).filter(pa.array(reason_N[a:b] == "")) for a, b in pairwise(starts))
    groups = [tile.slice(at, unit_rows).drop_columns([_NUMBER]) for tile in tiles for at in range(0, len(tile), unit_rows)]
    _write(storage.join(planning.output, part.name), groups, unit_rows)


def finish(planning: Planning) -> dict[str, Any]:
    """Declare a plan complete whose parts are all written, and return what it says; the sorted batches are deleted."""
    values = dataclasses.asdict(planning) | {"num_sources": sum(unit.num_rows for unit in written_units(planning.output))}
    with storage.open_input(storage.list_files(storage.join(planning.output, _ASSIGNED), ".parquet")[0]) as source:
        values["integer_ids"] = pa.types.is_integer(pq.read_schema(source).field("object_id").type)
    values["num_quarantined"] = sum(rows for uri in unassigned(planning) for rows in group_rows(uri))
    del values["output"], values["quarantine"], values["only"]
    storage.write_json(storage.join(planning.output, PLAN_JSON), values)
    storage.delete(storage.join(planning.output, _ASSIGNED))
    return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Summary:
    __pydantic_config__: ClassVar = documents.LENIENT

    num_sources: int
    num_quarantined: int
    integer_ids: bool


def read_summary(plan: str) -> dict[str, Any]:
    """Return what `finish` said of a finished plan; a `UserError` if the file is damaged."""
    kind = Annotated[dict[str, Any], documents.holds(_Summary)]
    return documents.read(kind, storage.join(plan, PLAN_JSON), "delete it: the plan is finished again")


def unassigned(planning: Planning) -> list[str]:
    """Return the files of the sources without a tile."""
    folder, _, prefix = planning.quarantine_uri("").rpartition("/")
    return [uri for uri in storage.list_files(folder, ".parquet") if uri.rpartition("/")[2].startswith(prefix)]


def plan_locally(
    catalog: str, planning: Planning, *, batch_rows: int = BATCH_ROWS, part_rows: int = PART_ROWS, unit_rows: int = UNIT_ROWS
) -> dict[str, Any]:
    """Make a plan in this process, one batch after the other; the batches of an interrupted attempt are kept."""
    done = assigned(planning)
    for batch in batches(catalog, planning.id_column, batch_rows):
        if batch.name not in done:
            done[batch.name] = assign_batch(batch, planning)
    for part in parts(done.values(), part_rows):
        merge_part(part, planning, unit_rows)
    return finish(planning)


@functools.lru_cache(2)
def selected(footprint: str, bands: tuple[str, ...], align: bool = False) -> Selection:
    """Return the tiles of a footprint in some bands, read once in a process; see `Footprint.select`."""
    return Footprint(footprint).select(bands, align)


def _placed(batch: Batch, planning: Planning) -> tuple[pa.Table, pa.Array, positions.Positions, Assigned]:
    """Return the rows of a batch, their identifiers, their positions, and the tile of each or why it has none."""
    table, selection = batch.read(planning.reads), planning.selection
    catalogs.require_columns("", table, {planning.id_column: "id_column"} | dict.fromkeys(planning.columns, "columns"))
    if reserved := [name for name in planning.columns if name in _OWN]:
        raise UserError(f"columns: {reserved[0]} is a column of every plan; leave it out, or rename it in the catalogue")
    ids = _ids(table[planning.id_column])
    sky = positions.sky_positions(
        table, ra_column=planning.ra_column, dec_column=planning.dec_column, unit=planning.position_unit
    )
    if not sky.columns:
        raise UserError("ra_column: the catalogue has no positions by usual names; give ra_column and dec_column")
    found = assign(sky.ra_N, sky.dec_N, selection, size=planning.size, max_beyond=planning.max_beyond)
    reason_N = np.where(sky.reason_N != "", sky.reason_N, found.reason_N)
    for column in selection.footprint.info.primary_columns:
        if name := next((name for name in table.column_names if name.lower() == column), ""):
            reason_N[(reason_N == "") & ~_true(table[name])] = f"not primary: by the column {name}"
            break
    reason_N[(reason_N == "") & ids.is_null().to_numpy(zero_copy_only=False)] = "object_id is missing"
    return table, ids, sky, found._replace(reason_N=reason_N)


def _between(uri: str, first: int, last: int) -> Iterator[pa.Table]:
    with storage.explained(uri, "damaged: "), storage.open_input(uri) as source:
        file = pq.ParquetFile(source)
        place = file.schema_arrow.names.index(_NUMBER)
        for group in range(file.metadata.num_row_groups):
            statistics = file.metadata.row_group(group).column(place).statistics
            # None: of a batch that has no source on a tile.
            if statistics and statistics.max >= first and statistics.min <= last:
                table = file.read_row_group(group)
                yield table.filter(pc.and_(pc.greater_equal(table[_NUMBER], first), pc.less_equal(table[_NUMBER], last)))


def _write(uri: str, tables: Sequence[pa.Table], group_rows: int) -> None:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, tables[0].schema, compression="zstd", write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=group_rows)
    storage.write_bytes_atomic(uri, sink.getvalue())


def _ids(column: pa.ChunkedArray) -> pa.Array:
    # Texts stay texts, as those of other batches may not be integers.
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = pc.utf8_trim_whitespace(column.cast(pa.string()).combine_chunks())
        return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    return catalogs.to_ids(column)


def _true(column: pa.ChunkedArray) -> np.ndarray:
    # Booleans, numbers (1: primary), or texts of them.
    if pa.types.is_string(column.type):
        return pc.is_in(pc.utf8_lower(column), value_set=pa.array(["true", "t", "1", "yes"])).to_numpy()
    return np.nan_to_num(catalogs.numbers(column)[0]) == 1
