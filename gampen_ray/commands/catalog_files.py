"""The files of `infer`: which columns the catalogue has, what writes a unit of it, and what follows the last unit."""

import functools
import importlib.metadata
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from gampen_ray.commands.infer import InferConfig
    from gampen_ray.data.carried import Carried
    from gampen_ray.data.sources import Source
    from gampen_ray.inference.bundle import Bundle
    from gampen_ray.posterior.prior import Prior

logger = logging.getLogger(__name__)


def carry(config: "InferConfig", bundle: "Bundle", schema: "pa.Schema", where: str) -> "tuple[Carried, ...]":
    """Return those of the columns asked for that the input has, from its schema; a `UserError` names one that nobody has."""
    import pyarrow as pa

    from gampen_ray.catalog.columns import catalog_columns, named_columns
    from gampen_ray.data.carried import carried
    from gampen_ray.data.tiles.reading import TILE_COLUMNS, is_footprint

    named = named_columns(bundle.targets)
    # Those are refused where the columns are made.
    made = [column.name for column in catalog_columns(bundle.targets, pa.int64())]
    # What is known of galaxies from tiles is not known of others, but their table may have it.
    own = {} if is_footprint(config.dataset) else TILE_COLUMNS.keys() & {*schema.names}
    names = [name for name in config.columns if (name not in named or name in own) and name not in made]
    return carried(names, schema, where, named)


def check_columns(config: "InferConfig", bundle: "Bundle", source: "Source", num_rows: int) -> None:
    """Check, before any work, the names of the columns, and that so many rows fit the catalogue's format.

    Raises
    ------
    UserError
        If a name is unknown, or one file cannot hold the catalogue.
    """
    import pyarrow as pa

    from gampen_ray.catalog.parquet import catalog_schema
    from gampen_ray.catalog.single_file import FILES, check_single_file

    which = _columns(config, bundle, source)
    num_passes = config.num_passes if which.pop("store_mixture") else 0
    schema = catalog_schema(bundle.targets, pa.int64(), num_passes, prior=bool(config.prior), **which)
    if config.catalog_format in FILES:
        check_single_file(config.catalog_format, schema, num_rows)


def _columns(config: "InferConfig", bundle: "Bundle", source: "Source") -> dict[str, Any]:
    """Return which columns the catalogue has; see `gampen_ray.catalog.parquet.catalog_table`."""
    from gampen_ray.data.tiles.reading import TILE_COLUMNS

    by_tiles = TILE_COLUMNS if source.tiles else {}
    kept = {column.name for column in source.carried}
    return {
        "store_mixture": config.posterior == "mixture" or config.catalog_format == "gampen",
        "mode_centred": config.mode_centred,
        "conditions": bundle.images.condition_names,
        # A condition has its column already.
        "extra": (
            *(name for name in config.columns if name not in kept),
            *(name for name in by_tiles if name not in bundle.images.condition_names),
        ),
        "carried": source.carried,
    }


def writer(
    config: "InferConfig", bundle: "Bundle", source: "Source", digest: str, prior: "Prior | None", output: str | None
) -> Callable[..., Any]:
    """Return the function that summarises and writes predicted units; ``output`` None: it writes nothing."""
    from gampen_ray.catalog.other_prior import exchange, prior_digest
    from gampen_ray.catalog.prediction import write_unit
    from gampen_ray.gampen.summary_files import write_part

    write_summary = None
    if config.catalog_format == "gampen":
        magnitudes = {"zero_point_mag": bundle.images.zero_point_mag, "gampen_magnitudes": config.gampen_magnitudes}
        write_summary = functools.partial(write_part, output=output, **magnitudes)
    return functools.partial(
        write_unit,
        output=output,
        targets=bundle.targets,
        **_columns(config, bundle, source),
        provenance=(
            ("version", importlib.metadata.version("gampen_ray")),
            ("bundle", digest),
            *((name, str(getattr(config, name))) for name in ("num_passes", "seed", "precision")),
            *([("prior", prior_digest(prior))] if prior else []),
        ),
        exchange=exchange(bundle, prior),
        write_summary=write_summary,
    )


def finish(config: "InferConfig", bundle: "Bundle", num_rows: int, id_sum: int) -> dict[str, Any]:
    """Check that the catalogue holds each input galaxy once, write its other formats, and return counts, flags and crops."""
    from gampen_ray.catalog.completeness import catalog_contents, crop_scales
    from gampen_ray.catalog.hats import write_hats
    from gampen_ray.catalog.single_file import FILES, write_single_file
    from gampen_ray.errors import AGAIN, StorageError
    from gampen_ray.gampen.summary_files import write_files
    from gampen_ray.inference.crop_statistics import CropStatistics
    from gampen_ray.inference.verdicts import crop_verdict

    counts, found, num_repeated, repeated, flags = catalog_contents(config.output)
    if (sum(counts.values()), found) != (num_rows, id_sum):
        raise StorageError(
            f"{config.output} holds {sum(counts.values())} galaxies that are not the {num_rows} of {config.dataset}: its files "
            f"were changed; take out those of other runs, and {AGAIN}"
        )
    if num_repeated:
        logger.warning(
            "%s of %s galaxies repeat the identifier of another in %s, the first is %s",
            *(num_repeated, num_rows, config.catalog or config.dataset, repeated),
        )
    if config.catalog_format == "gampen":
        write_files(config.output, bundle.targets, config.num_passes, config.seed)
    if config.catalog_format in FILES:
        write_single_file(config.output, config.catalog_format, counts["num_galaxies"])
    if config.catalog_format == "hats":
        counts["num_in_hats"] = write_hats(config.output, counts["num_galaxies"])
    if flags.warning:
        logger.warning(flags.warning)
    contents: dict[str, Any] = {**counts, "num_warned": flags.num_warned, "flags": dict(flags.flags)}
    if bundle.network.transformer is not None and counts["num_galaxies"]:
        crop = CropStatistics.of(crop_scales(config.output))
        contents["crop"] = {**crop.to_dict(), **crop_verdict(crop).to_dict()}
    return contents
