"""`ingest` from a footprint: sources with labels are cut from tiles and stored, by the same code that `infer` cuts with."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gampen_ray.commands.tile_plans import PLAN, catalog_identity, check_catalog, make_plan
from gampen_ray.config import TilesConfig
from gampen_ray.config.base import fields, to_dict
from gampen_ray.errors import UserError

if TYPE_CHECKING:
    from gampen_ray.commands.ingest import IngestConfig
    from gampen_ray.data.packing import Rows
    from gampen_ray.data.shards import DatasetInfo
    from gampen_ray.data.tiles.reading import TileReader
    from gampen_ray.data.tiles.units import TileUnit
    from gampen_ray.run_folder import RunFolder

__all__ = ["dataset_info", "parts", "read"]

_BATCH_ROWS = 256


def dataset_info(config: "IngestConfig") -> "DatasetInfo":
    """Return the metadata of the dataset, without targets and row counts.

    Raises
    ------
    UserError
        If the config has no catalogue or size, or a field that has no effect with a footprint.
    """
    from gampen_ray.data.agreement import check_flux_unit
    from gampen_ray.data.ingest_plan import content_settings
    from gampen_ray.provenance import content_fingerprint

    check_catalog(config, "reader.bands")
    if not config.cutout_size:
        raise UserError("cutout_size: is missing; with a footprint, give the side of the cutouts, pixels")
    if config.split_slug:
        raise UserError("split_slug: cannot be had with a footprint; leave it out")
    info = _reader(config).info()
    check_flux_unit(config.flux_unit, info)
    tiles = (f"{name} {value}" for name in fields(TilesConfig) if (value := getattr(config, name)))
    fingerprint = content_fingerprint(content_settings(config), [info.fingerprint, catalog_identity(config.catalog), *tiles])
    return dataclasses.replace(info, fingerprint=fingerprint, flux_unit=config.flux_unit, source=to_dict(config))


@dataclasses.dataclass(frozen=True)
class TilePart:
    """Sources of one tile, for the shards of one index."""

    index: int
    unit: "TileUnit"
    refused: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its receipt."""
        return f"part-{self.index:06d}.json"

    @property
    def num_rows(self) -> int:
        """Number of sources."""
        return self.unit.num_rows


def parts(config: "IngestConfig", folder: "RunFolder", info: "DatasetInfo") -> "tuple[DatasetInfo, list[TilePart], int]":
    """Make the plan; return the metadata with the targets, the plan's parts, and the number of sources in quarantine."""
    import numpy as np

    from gampen_ray.data import shards
    from gampen_ray.data.target_columns import convert_targets, wanted_columns
    from gampen_ray.data.tiles import planning as plans
    from gampen_ray.data.tiles import units as tile_units

    planning = plans.Planning(
        footprint=config.images,
        bands=info.bands,
        size=info.cutout_size,
        output=folder.path(PLAN),
        max_beyond=config.max_beyond,
        align=config.align,
        id_column=config.id_column,
        ra_column=config.ra_column,
        dec_column=config.dec_column,
        position_unit=config.position_unit,
        columns=tuple(wanted_columns(config.targets)),
        every=True,
        quarantine=folder.path(shards.QUARANTINE),
    )
    found = make_plan(config.catalog, planning, config.resources, config.galaxies_per_shard)
    made = [TilePart(index, unit) for index, unit in enumerate(tile_units.units(planning.output))]
    if made:
        none = tile_units.read_unit(made[0].unit).slice(0, 0)
        columns = {name: none[name] for name in none.column_names}
        units = convert_targets(config, none, columns, np.empty(0, dtype=object), info.zero_point_mag)
        info = dataclasses.replace(info, target_units=units)
    return info, made, found["num_quarantined"]


def read(part: TilePart, *, config: "IngestConfig", info: "DatasetInfo") -> "Rows":
    """Cut the sources of a part."""
    import numpy as np
    import pyarrow as pa

    from gampen_ray.data import packing, shards
    from gampen_ray.data.splits import assign_splits
    from gampen_ray.data.target_columns import convert_targets
    from gampen_ray.data.tiles.reading import RESAMPLED
    from gampen_ray.data.tiles.units import read_unit

    batches, sizes = zip(*_reader(config).read(part.unit, _BATCH_ROWS, part.refused), strict=True)
    read: dict[str, Any] = {name: np.concatenate([rows[name] for rows in batches]) for name in batches[0]}
    reasons, sources = read.pop("reason").astype(object), read.pop("source")
    units = read_unit(part.unit).schema

    def column(name: str, values: np.ndarray) -> pa.ChunkedArray:
        # Of the type in the plan: integers of which some are missing are numbers with NaN here.
        kind = units.field(name).type if name in units.names else None
        return pa.chunked_array([pa.array(values, kind, from_pandas=kind is not None and pa.types.is_integer(kind))])

    columns: dict[str, Any] = {name: values if name == "image" else column(name, values) for name, values in read.items()}
    labels = [pa.field(name, columns[name].type, metadata=units.field(name).metadata) for name in units.names]
    table = pa.table([columns[field.name] for field in labels], schema=pa.schema(labels))
    convert_targets(config, table, columns, reasons, info.zero_point_mag)
    splits = np.full(len(table), shards.ALL, dtype=object)
    if config.targets:
        splits = assign_splits(read["object_id"], config.split)
    remarks = Counter(filled=int(np.count_nonzero(read["pixels_filled"])), resampled=int(np.count_nonzero(read[RESAMPLED])))
    return packing.Rows(columns, sources, reasons, splits, remarks, sum(sizes))


def _reader(config: "IngestConfig") -> "TileReader":
    from gampen_ray.config import ReaderConfig
    from gampen_ray.data.tiles.footprint import Footprint
    from gampen_ray.data.tiles.reading import TileReader

    bands = config.reader.bands
    if bands == ReaderConfig().bands:
        bands = Footprint(config.images).info.bands
    how: dict[str, Any] = {
        "policies": config.reader.nan_policies(bands),
        "max_beyond": config.max_beyond,
        "align": config.align,
    }
    return TileReader(footprint=config.images, bands=bands, size=config.cutout_size, **how)
