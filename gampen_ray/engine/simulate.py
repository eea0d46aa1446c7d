"""The `simulate` verb: ranges of galaxies are rendered and written by Ray Data tasks, one shard per split and range."""

import dataclasses
import functools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray.data

from gampen_ray import storage
from gampen_ray.config import SimulateConfig
from gampen_ray.config.base import to_dict
from gampen_ray.data import shards
from gampen_ray.data.splits import assign_splits
from gampen_ray.engine.cluster import task_cpus
from gampen_ray.engine.session import ray_session
from gampen_ray.progress import Progress
from gampen_ray.provenance import claim_output, content_fingerprint
from gampen_ray.simulation.galaxies import SURVEYS, TARGETS
from gampen_ray.simulation.galaxies import simulate as simulate_galaxies

__all__ = ["simulate"]

logger = logging.getLogger(__name__)

_CPUS_PER_TASK = 1.0


def simulate(config: SimulateConfig) -> None:
    """Simulate galaxies as a dataset of cutout shards.

    A complete dataset with the same settings is left as it is; an unfinished one is completed. Which galaxies are made does not
    depend on ``galaxies_per_shard`` or the resources.

    Raises
    ------
    UserError
        If the output holds something else.
    """
    config = dataclasses.replace(config, output=storage.absolute(config.output))
    claim_output(config.output, config, {})
    if storage.exists(storage.join(config.output, shards.DATASET_JSON)):
        logger.info("%s is complete; nothing to do", config.output)
        return
    there = set(storage.list_files(config.output, ".parquet"))
    parts = range(-(-config.num_galaxies // config.galaxies_per_shard))
    todo = [part for part in parts if not _expected_shards(config, part) <= there]
    info = dataset_info(config)
    with Progress("simulate", config.num_galaxies, "galaxies") as progress:
        if done := config.num_galaxies - sum(len(_indices(config, part)) for part in todo):
            progress.advance(done, "already there")
        if todo:
            with ray_session():
                for count in _run(config, info, todo):
                    progress.advance(count)
    splits, counts = np.unique(assign_splits(np.arange(config.num_galaxies), config.split), return_counts=True)
    num_rows = dict.fromkeys(shards.SPLITS, 0) | dict(zip(splits.tolist(), counts.tolist(), strict=True))
    shards.write_dataset_info(config.output, dataclasses.replace(info, num_rows=num_rows))
    logger.info("wrote %s: %s", config.output, ", ".join(f"{count:,} {split}" for split, count in num_rows.items()))


def dataset_info(config: SimulateConfig) -> shards.DatasetInfo:
    """Return the metadata of the dataset that a config makes, without its row counts."""
    survey = SURVEYS[config.survey]
    settings = _settings(config)
    content = {name: value for name, value in settings.items() if name != "galaxies_per_shard"}
    return shards.DatasetInfo(
        bands=(survey.band,),
        cutout_size=config.cutout_size,
        pixel_scale_arcsec=survey.pixel_scale_arcsec,
        zero_point_mag=survey.zero_point_mag,
        flux_unit=survey.flux_unit,
        survey=survey.name,
        target_units=dict(zip(TARGETS, ("", "arcsec", survey.flux_unit), strict=True)),
        fingerprint=content_fingerprint(content, np.arange(config.num_galaxies)),
        source=settings,
    )


def simulate_part(config: SimulateConfig, info: shards.DatasetInfo, part: int) -> int:
    """Render one range of galaxies, write its shards and return how many galaxies it has."""
    indices = _indices(config, part)
    columns = simulate_galaxies(config, indices.start, indices.stop)
    split_of_galaxy = assign_splits(columns["object_id"], config.split)
    for split in np.unique(split_of_galaxy).tolist():
        rows = {name: values[split_of_galaxy == split] for name, values in columns.items()}
        shards.write_shard(shards.part_uri(config.output, split, part), rows, info)
    return len(indices)


def _run(config: SimulateConfig, info: shards.DatasetInfo, parts: list[int]) -> Iterator[int]:
    """Yield the number of galaxies of each part when it is written."""
    # One block, and so one task, per part.
    work = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts)).map(
        functools.partial(_task, config=config, info=info),
        compute=ray.data.TaskPoolStrategy(size=config.resources.num_workers or None),
        num_cpus=task_cpus(config.resources, _CPUS_PER_TASK),
    )
    for result in work.iter_rows():
        yield result["num_galaxies"]


def _task(unit: dict[str, int], *, config: SimulateConfig, info: shards.DatasetInfo) -> dict[str, int]:
    return {"num_galaxies": simulate_part(config, info, unit["part"])}


def _indices(config: SimulateConfig, part: int) -> range:
    start = part * config.galaxies_per_shard
    return range(start, min(start + config.galaxies_per_shard, config.num_galaxies))


def _expected_shards(config: SimulateConfig, part: int) -> set[str]:
    splits = np.unique(assign_splits(np.array(_indices(config, part)), config.split))
    return {shards.part_uri(config.output, split, part) for split in splits.tolist()}


def _settings(config: SimulateConfig) -> dict[str, Any]:
    return {name: value for name, value in to_dict(config).items() if name not in ("output", "resources")}
