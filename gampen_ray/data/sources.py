"""What inference reads, in units of work: a dataset of cutout shards, or cutouts as they lie in a folder.

A unit of shards is a run of row groups of one of them; a unit of files is a part of the plan of an ingest, which is read
as an ingest would read it but not written. Both are cut by rules that look at the input alone, so that every run of a job has
the same units. Shape legend: N galaxies, C bands, H x W pixels.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config import CatalogConfig, CutoutsConfig, ReaderConfig
from gampen_ray.config.base import fields
from gampen_ray.config.parts import GALAXIES_PER_FILE
from gampen_ray.data import file_names, ingest_plan, packing, shard_index, shards, validation
from gampen_ray.data.carried import Carried
from gampen_ray.data.tiles.reading import RESAMPLED, TileReader
from gampen_ray.data.tiles.units import TileUnit
from gampen_ray.data.tiles.units import units as plan_units
from gampen_ray.errors import UserError
from gampen_ray.provenance import content_fingerprint

__all__ = [
    "Source",
    "Unit",
    "check_num_rows",
    "dataset_units",
    "layout_identity",
    "open_source",
    "pinned",
    "shard_units",
    "tile_units",
]

# A small input gets smaller units, to occupy all workers and show progress.
_MIN_UNITS, _MIN_UNIT_ROWS = 256, 64
_COLUMNS = ("object_id", "ra", "dec", "image", "pixels_filled", "core_filled", RESAMPLED, shards.SIDE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """Rows that are read, predicted and written together.

    Parameters
    ----------
    name
        Name of the catalogue file, the same in every run.
    num_rows
        Number of rows.
    uri, start, stop
        Row groups ``start`` to ``stop`` of a shard, or of a plan of sources on tiles; empty for files.
    stamp
        `gampen_ray.data.shards.Footer.stamp` of the shard.
    rows
        Rows of an ingest plan; None for shards.
    refused
        Reasons of rows whose images may not be read, by their numbers in the unit.
    """

    name: str
    num_rows: int
    uri: str = ""
    start: int = 0
    stop: int = 0
    stamp: str = ""
    rows: packing.PlannedRows | None = None
    refused: Mapping[int, str] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where cutouts come from; small enough to send to every task.

    Parameters
    ----------
    info
        Metadata of the dataset; `DatasetInfo.noise_planes` says whether the model is given them.
    reader
        How the files of a folder are read; None for shards.
    conditions
        Names of columns that the model is given beside the image.
    tiles
        How images are cut from the tiles of a footprint; None: they are stored.
    carried
        Columns that the catalogue keeps.
    """

    info: shards.DatasetInfo
    reader: ReaderConfig | None
    conditions: tuple[str, ...] = ()
    tiles: TileReader | None = None
    carried: tuple[Carried, ...] = ()

    def read(self, unit: Unit, num_rows: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield a unit's rows in batches of at most N = ``num_rows``, each with the number of stored bytes read.

        Yields
        ------
        dict
            ``object_id``, ``ra``, ``dec`` if known, ``image`` (N x C x H x W, or N x 2C x H x W with noise planes; zero in a
            row that cannot be predicted), ``reason`` (empty text for a good row), ``source`` (file), ``pixels_filled``,
            ``core_filled``, ``bands_resampled``, ``side_pixels`` (shorter side of what the file gave, pixels), conditions if
            there, and from tiles `gampen_ray.data.tiles.reading.TILE_COLUMNS`; columns that are carried, as Arrow arrays.
        """
        for rows, num_bytes in self._read(unit, num_rows):
            yield rows | {column.name: column.values(rows) for column in self.carried}, num_bytes

    def _read(self, unit: Unit, num_rows: int) -> Iterator[tuple[dict[str, Any], int]]:
        if self.tiles is not None:
            yield from self.tiles.read(TileUnit(unit.uri, unit.start, unit.num_rows), num_rows, unit.refused)
            return
        kept = [column.name for column in self.carried]
        wanted = (*_COLUMNS, *self.conditions, *kept)
        tensors = shards.image_columns(self.info.noise_planes)
        if self.reader is None:
            reasons_N, start = np.array([unit.refused.get(row, "") for row in range(unit.num_rows)], dtype=object), 0
            if (reasons_N != "").all():
                # Reading them may be what must not be done.
                wanted, tensors = tuple(name for name in wanted if name != "image"), ()
            wanted = tuple(dict.fromkeys((*wanted, *tensors)))
            for table, num_bytes in shards.stream_shard(unit.uri, range(unit.start, unit.stop), wanted, num_rows):
                yield self._shard_rows(table, unit.uri, reasons_N[start : start + len(table)]), num_bytes
                start += len(table)
            return
        plan = packing.refused(_planned(unit), unit.refused)
        for start in range(0, len(plan), num_rows):
            table = plan.slice(start, num_rows)
            read = packing.read_rows(table, self.reader, self.info)
            columns = {name: read.columns[name] for name in wanted if name in read.columns}
            columns["object_id"] = _filled(table["object_id"])
            yield _rows(columns, read.reasons, read.sources, kept), read.num_bytes

    def _shard_rows(self, table: pa.Table, uri: str, reason_N: np.ndarray) -> dict[str, Any]:
        if "image" in table.column_names:
            image_NCHW = shards.images(table)
            faults_N = validation.validate_rows({"image": image_NCHW[:, : len(self.info.bands)]})
            reason_N = np.where(reason_N != "", reason_N, faults_N)
        else:
            image_NCHW = np.zeros((len(table), *self.info.planes_shape), np.float32)
        if (bad := reason_N != "").any():
            image_NCHW = image_NCHW.copy()
            image_NCHW[bad] = 0.0
        columns = {name: table[name] for name in table.column_names if name != shards.NOISE} | {"image": image_NCHW}
        return _rows(columns, reason_N, np.full(len(table), uri), [column.name for column in self.carried])


def _rows(columns: dict[str, Any], reason_N: np.ndarray, source_N: np.ndarray, kept: Sequence[str]) -> dict[str, Any]:
    # Those that are kept stay as they are: as NumPy arrays, integers of which some are missing would be rounded.
    rows = {name: values if name in kept else np.asarray(values) for name, values in columns.items()}
    count = len(reason_N)
    unchanged = dict.fromkeys(("pixels_filled", "core_filled", RESAMPLED), np.zeros(count, bool))
    unchanged |= {shards.SIDE: np.full(count, rows["image"].shape[-1], np.int32)}
    return unchanged | rows | {"reason": reason_N.astype(str), "source": source_N.astype(str)}


def open_source(
    dataset: str,
    *,
    split: str,
    bands: tuple[str, ...],
    size: int,
    noise_planes: bool = False,
    catalog: CatalogConfig | None = None,
    pixel_scale_arcsec: float | None = None,
    unit_rows: int = GALAXIES_PER_FILE,
    conditions: tuple[str, ...] = (),
    fill_conditions: bool = False,
    carry: Callable[[pa.Schema], tuple[Carried, ...]] = lambda _: (),
) -> tuple[Source, list[Unit]]:
    """Return a source and its units, in order.

    Parameters
    ----------
    dataset
        Dataset of cutout shards, folder of cutouts, or GaMPEN data folder.
    split
        Split of a dataset of shards; empty: all rows.
    bands, size
        As the model takes them: the files of a folder are read with these.
    noise_planes
        Whether the model takes the noise of each pixel.
    catalog
        Which files of a folder are taken and how they are read; its bands are not used. None: the defaults.
    pixel_scale_arcsec
        Of the model's images: of files with smaller pixels, more than ``size`` are read.
    unit_rows
        Maximum rows of a unit; a larger row group is one unit.
    conditions
        Names of the columns that the model is given beside the image.
    fill_conditions
        Whether the model is given the training galaxies' mean where there is no such column.
    carry
        Returns the columns that the catalogue keeps, from the input's schema.

    Raises
    ------
    UserError
        If there is neither a complete dataset nor a matching file, if a shard is damaged, if a condition is missing or no
        number, or if noise planes are missing.
    """
    catalog = catalog or CatalogConfig()
    check = functools.partial(_check_conditions, dataset, conditions, fill_conditions)
    if not storage.exists(storage.join(dataset, shards.DATASET_JSON)):
        reader = dataclasses.replace(catalog.reader, bands=bands, noise_planes=noise_planes)
        plan, info = _planned_files(dataset, catalog, reader, size, pixel_scale_arcsec)
        check(plan.schema)
        if split:
            raise UserError(
                f"split: {split}, but {dataset} holds cutouts without splits; leave split out, or ingest them first"
            )
        step = _unit_rows(unit_rows, len(plan))
        parts = [(start, plan.slice(start, step)) for start in range(0, len(plan), step)]
        units = [
            Unit(name=f"part-{start:09d}.parquet", num_rows=len(part), rows=packing.PlannedRows(part)) for start, part in parts
        ]
        return Source(info=info, reader=reader, conditions=conditions, carried=carry(plan.schema)), units
    usual = CatalogConfig()
    for name in fields(CatalogConfig):
        if getattr(catalog, name) != getattr(usual, name):
            raise UserError(f"{name}: {dataset} holds shards, whose images are read as `ingest` stored them; leave {name} out")
    info = shards.read_dataset_info(dataset)
    schema = shards.columns(dataset, split, info)
    check(schema)
    if noise_planes:
        shards.require_noise_planes(dataset, info)
    units = dataset_units(dataset, split, info, unit_rows)
    info = dataclasses.replace(info, noise_planes=noise_planes)
    return Source(info=info, reader=None, conditions=conditions, carried=carry(_with_units(schema, info))), units


def _with_units(schema: pa.Schema, info: shards.DatasetInfo) -> pa.Schema:
    # Of the targets alone: shards have no others.
    for place, field in enumerate(schema):
        if unit := info.target_units.get(field.name):
            schema = schema.set(place, field.with_metadata({"unit": unit}))
    return schema


def _check_conditions(dataset: str, conditions: tuple[str, ...], fill: bool, columns: pa.Schema) -> None:
    missing = [name for name in conditions if name not in columns.names]
    if missing and not fill:
        tool = " with `gampen-ray measure-psf`" if missing[0].startswith("psf_") else ""
        raise UserError(
            f"dataset: {dataset} has no column {missing[0]}, which the bundle was trained with; add it{tool}, or give "
            "missing_conditions 'marginalise' for wider posteriors over what the training galaxies have, with a flag"
        )
    for name in (name for name in conditions if name not in missing):
        if not shards.holds_numbers(column := columns.field(name)):
            raise UserError(
                f"dataset: {dataset}: the column {name}, a condition of the bundle, holds {column.type}, not numbers; "
                "convert it"
            )


def _planned_files(
    dataset: str, catalog: CatalogConfig, reader: ReaderConfig, size: int, pixel_scale_arcsec: float | None
) -> tuple[pa.Table, shards.DatasetInfo]:
    """Return the plan of a folder of images, see `gampen_ray.data.ingest_plan.plan`."""
    how = {name: getattr(catalog, name) for name in fields(CatalogConfig)}
    cutouts = CutoutsConfig(**how | {"images": dataset, "cutout_size": size, "reader": reader})
    try:
        return ingest_plan.plan(cutouts, origin="that of the bundle", scale_arcsec=pixel_scale_arcsec)
    except file_names.NoFilesError:
        raise UserError(
            f"dataset: {dataset} holds neither a finished dataset ({shards.DATASET_JSON}) nor files that match the "
            f"pattern {catalog.pattern!r}; make one with `gampen-ray ingest` or `gampen-ray simulate`, or give a folder of "
            "cutouts and the pattern of their names"
        ) from None
    except UserError as error:
        # Here, the folder of images is the dataset.
        raise UserError(re.sub("^images:", "dataset:", str(error))) from None


def layout_identity(dataset: str, units: Sequence[Unit]) -> str:
    """Return a hash of how a dataset's rows are divided among its units."""
    rows = [(unit.name, unit.uri.removeprefix(dataset), unit.start, unit.stop, unit.num_rows) for unit in units]
    return content_fingerprint({"units": rows})


def pinned(dataset: str, units: Iterable[Unit]) -> dict[str, str]:
    """Return the stamp of each shard of a dataset by its name, for `gampen_ray.run_folder.RunFolder`; empty for files."""
    root = storage.absolute(dataset)
    return {unit.uri.removeprefix(root).strip("/"): unit.stamp for unit in units if unit.uri}


def tile_units(plan: str) -> list[Unit]:
    """Return the units of a finished plan of sources on tiles, in order."""
    found = plan_units(plan)
    return [Unit(name=one.name, num_rows=one.num_rows, uri=one.uri, start=one.group, stop=one.group + 1) for one in found]


def check_num_rows(dataset: str, split: str, info: shards.DatasetInfo, units: Iterable[Unit]) -> None:
    """Check that the shards hold as many galaxies as ``dataset.json`` says.

    Raises
    ------
    UserError
        If they do not.
    """
    told = info.num_rows.get(split) if split else sum(info.num_rows.values()) or None
    if told not in (None, there := sum(unit.num_rows for unit in units)):
        raise UserError(
            f"dataset: the shards of {dataset} hold {there:,} galaxies, but {shards.DATASET_JSON} says {told:,}: shards were "
            "added, lost or replaced; restore them, or make the dataset again"
        )


def dataset_units(dataset: str, split: str, info: shards.DatasetInfo, unit_rows: int) -> list[Unit]:
    """Return the units of a dataset of shards, or of one of its splits, in order; see `open_source`."""
    uris = shards.shard_uris(dataset, split)
    footers = shard_index.footers(dataset, uris, info)
    kind = footers[0].id_type
    for uri, footer in zip(uris, footers, strict=True):
        if footer.id_type != kind:
            raise UserError(
                f"{uri}: column object_id is {footer.id_type}, but {kind} in {uris[0]}; make the dataset with ids of one kind"
            )
    rows = _unit_rows(unit_rows, sum(sum(footer.group_rows) for footer in footers))
    return [
        dataclasses.replace(unit, stamp=footer.stamp)
        for i, (uri, footer) in enumerate(zip(uris, footers, strict=True))
        for unit in shard_units(uri, i, footer.group_rows, rows)
    ]


def shard_units(uri: str, index: int, group_rows: list[int], unit_rows: int) -> list[Unit]:
    """Return the units of shard number ``index``: runs of row groups of at most ``unit_rows`` rows, or one larger group."""
    units: list[Unit] = []
    start = 0
    for stop in range(1, len(group_rows) + 1):
        if stop == len(group_rows) or sum(group_rows[start : stop + 1]) > unit_rows:
            name = f"part-{index:06d}-{start:04d}.parquet"
            units.append(Unit(name=name, uri=uri, start=start, stop=stop, num_rows=sum(group_rows[start:stop])))
            start = stop
    return units


def _planned(unit: Unit) -> pa.Table:
    assert unit.rows is not None
    return unit.rows.table


def _unit_rows(asked: int, total: int) -> int:
    return min(asked, max(_MIN_UNIT_ROWS, total // _MIN_UNITS))


def _filled(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace null identifiers; their rows have a reason already."""
    return ids.fill_null(0 if pa.types.is_integer(ids.type) else "")
