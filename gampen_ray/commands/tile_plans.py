"""Footprints as input: the sources of a catalogue are assigned to tiles on Ray (`gampen_ray.data.tiles.planning`)."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gampen_ray.config import ActorResources, CatalogConfig, SourcesConfig, TaskResources
from gampen_ray.config.base import fields, given
from gampen_ray.errors import UserError

if TYPE_CHECKING:
    from gampen_ray.commands.crop import CropConfig
    from gampen_ray.commands.infer import InferConfig
    from gampen_ray.data.carried import Carried
    from gampen_ray.data.sources import Source, Unit
    from gampen_ray.data.tiles.planning import Batch, Part, Planning
    from gampen_ray.inference.bundle import Bundle
    from gampen_ray.run_folder import RunFolder

__all__ = [
    "PLAN",
    "carried_columns",
    "catalog_identity",
    "check_catalog",
    "make_plan",
    "num_sources",
    "planned_units",
    "sampled_units",
    "tile_source",
]

PLAN = "plan"
"""Folder of an unfinished job on tiles: which sources are cut from which tile."""

# Of a catalogue's fields those that say something of sources on tiles.
_FIELDS = ("catalog", "id_column", "ra_column", "dec_column", "position_unit", "reader.nan_policy", "reader")
_CPUS_PER_TASK = 1.0


def check_catalog(config: SourcesConfig, *allowed: str) -> None:
    """Raise a `UserError` unless a config has a catalogue, and no field, but those allowed, that says how files of cutouts are
    found and read."""
    if not config.catalog:
        raise UserError("catalog: is missing; with a footprint, give a table of sources with identifiers and positions")
    names = {name for name in given(config) if name.partition(".")[0] in fields(CatalogConfig)}
    if others := sorted(names - {*_FIELDS, *allowed}):
        raise UserError(f"{others[0]}: has no effect with a footprint, whose survey says how its tiles are read; leave it out")


def catalog_identity(uri: str) -> str:
    """Return a hash of names, sizes and times or ETags of a catalogue's files."""
    from gampen_ray.data.catalog_formats import format_of, parquet_files
    from gampen_ray.run_folder import files_identity

    return files_identity(parquet_files(uri) if format_of(uri) == "parquet" else [uri])


def num_sources(config: SourcesConfig) -> int:
    """Return the number of rows of a catalogue, which are counted no further than one process would predict them."""
    from gampen_ray.data.tiles.planning import batches
    from gampen_ray.engine.units import MOST_LOCAL_ROWS

    total = 0
    for batch in batches(config.catalog, config.id_column):
        total += batch.num_rows
        if total > MOST_LOCAL_ROWS:
            break
    return total


def make_plan(catalog: str, planning: "Planning", resources: TaskResources | ActorResources, unit_rows: int) -> dict[str, Any]:
    """Make a plan, or finish one that was interrupted, and return what its file says."""
    from gampen_ray import storage
    from gampen_ray.data.tiles import planning as plans
    from gampen_ray.engine.units import run_units

    uri = storage.join(planning.output, plans.PLAN_JSON)
    if storage.exists(uri):
        return plans.read_summary(planning.output)
    job: dict[str, Any] = {"noun": "sources", "resources": resources, "cpus_per_task": _CPUS_PER_TASK}
    batches = list(plans.batches(catalog, planning.id_column))
    done = plans.assigned(planning)
    counts = list(done.values())

    def receive(found: dict[int, int], _: Any) -> str:
        counts.append(found)
        return ""

    todo = [batch for batch in batches if batch.name not in done]
    total = sum(batch.num_rows for batch in batches)
    assign = functools.partial(_assign, planning=planning)
    run_units("assign to tiles", todo, lambda _: assign, total=total, receive=receive, **job)
    parts = plans.parts(counts)
    total = sum(part.num_rows for part in parts)
    merge = functools.partial(_merge, planning=planning, unit_rows=unit_rows)
    run_units("group by tile", parts, lambda _: merge, total=total, **job)
    return plans.finish(planning)


def _assign(batch: "Batch", *, planning: "Planning") -> dict[int, int]:
    from gampen_ray.data.tiles.planning import assign_batch

    return assign_batch(batch, planning)


def _merge(part: "Part", *, planning: "Planning", unit_rows: int) -> None:
    from gampen_ray.data.tiles.planning import merge_part

    merge_part(part, planning, unit_rows)


def tile_source(
    config: "InferConfig | CropConfig", footprint: str, bundle: "Bundle", carried: "tuple[Carried, ...]" = ()
) -> "Source":
    """Return a footprint as the input of a bundle, with those columns of the catalogue that are kept.

    Raises
    ------
    UserError
        If the bundle does not suit it.
    """
    from gampen_ray.data.cutouts import side_at_scale
    from gampen_ray.data.sources import Source
    from gampen_ray.data.tiles.planning import selected
    from gampen_ray.data.tiles.reading import TileReader

    images = bundle.images
    if images.noise_planes:
        raise UserError(
            f"bundle: {config.bundle} takes noise planes, which are not cut from tiles; give cutouts that have them, not a "
            "footprint"
        )
    scale_arcsec = selected(footprint, images.bands, config.align).pixel_scale_arcsec
    size = side_at_scale(images.size, images.pixel_scale_arcsec, scale_arcsec)
    how: dict[str, Any] = {"policies": config.reader.nan_policies(images.bands), "max_beyond": config.max_beyond}
    names = tuple(column.name for column in carried)
    tiles = TileReader(footprint=footprint, bands=images.bands, size=size, align=config.align, kept=names, **how)
    return Source(info=tiles.info(), reader=config.reader, conditions=images.condition_names, tiles=tiles, carried=carried)


def carried_columns(config: "InferConfig", bundle: "Bundle") -> "tuple[Carried, ...]":
    """Return the columns of the catalogue that are kept, from its first rows."""
    import pyarrow as pa

    from gampen_ray.commands.catalog_files import carry
    from gampen_ray.data.tiles.planning import batches

    if not config.columns:
        return ()
    first = next(batches(config.catalog, config.id_column), None)
    # Without rows, but of Parquet alone: a row group may be large.
    schema = dataclasses.replace(first, stop=first.start).read(bool).schema if first else pa.schema([])
    return carry(config, bundle, schema, config.catalog)


def planned_units(
    config: "InferConfig | CropConfig", folder: "RunFolder", source: "Source", unit_rows: int
) -> "tuple[list[Unit], int, int]":
    """Make the plan; return its units, and of the sources without a tile, which are in quarantine, the number and the `id_sum`.

    Parameters
    ----------
    unit_rows
        Most sources of a unit.

    Raises
    ------
    UserError
        If no source has a tile.
    """
    import pyarrow as pa

    from gampen_ray import storage
    from gampen_ray.catalog.completeness import stored_id_sum
    from gampen_ray.data import quarantine, shards
    from gampen_ray.data.sources import tile_units
    from gampen_ray.data.tiles import planning as plans

    planning = _planning(config, source, folder.path(PLAN), folder.path(shards.QUARANTINE))
    found = make_plan(config.catalog, planning, config.resources, unit_rows)
    if not found["num_sources"]:
        bad = quarantine.read_quarantine(folder.uri)
        for name in (shards.QUARANTINE, PLAN):
            storage.delete(folder.path(name))
        folder.release_claim()
        raise quarantine.nothing_usable(f"catalog: none of the {len(bad):,} sources can be cut from a tile", bad, "sources")
    kind = pa.int64() if found["integer_ids"] else pa.string()
    return tile_units(planning.output), found["num_quarantined"], stored_id_sum(plans.unassigned(planning), kind)


@contextlib.contextmanager
def sampled_units(config: "InferConfig", source: "Source", num_tiles: int) -> "Iterator[tuple[list[Unit], int]]":
    """Return the units of some tiles in random order, and the number of sources of the whole catalogue.

    Their plan lies beside the output while the units are read.

    Raises
    ------
    UserError
        If no source has a tile.
    """
    import numpy as np

    from gampen_ray import storage
    from gampen_ray.data.sources import tile_units
    from gampen_ray.data.tiles import planning as plans

    planning = _planning(config, source, f"{config.output}.estimate")
    batches = list(plans.batches(config.catalog, planning.id_column))
    tiles = plans.sampled(batches, planning, num_tiles)
    if not tiles:
        raise UserError(f"catalog: no source of {config.catalog} can be cut from a tile of {config.dataset}")
    # Of an estimate that was killed.
    storage.delete(planning.output)
    try:
        make_plan(config.catalog, dataclasses.replace(planning, only=tiles), config.resources, config.galaxies_per_file)
        units = tile_units(planning.output)
        order = np.random.default_rng(0).permutation(len(units))
        yield [units[place] for place in order], sum(batch.num_rows for batch in batches)
    finally:
        storage.delete(planning.output)


def _planning(config: "InferConfig | CropConfig", source: "Source", output: str, quarantine: str = "") -> "Planning":
    from gampen_ray.data.tiles.planning import Planning

    assert source.tiles is not None
    return Planning(
        footprint=source.tiles.footprint,
        bands=source.tiles.bands,
        size=source.tiles.size,
        output=output,
        max_beyond=config.max_beyond,
        align=config.align,
        id_column=config.id_column,
        ra_column=config.ra_column,
        dec_column=config.dec_column,
        position_unit=config.position_unit,
        columns=source.tiles.kept,
        optional=source.conditions,
        quarantine=quarantine,
    )
