"""The `simulate` verb: Ray tasks render ranges of galaxies, and write one shard per split and range."""

import dataclasses
import functools
import logging

import pydantic

from gampen_ray.commands.registry import verb
from gampen_ray.config import SplitConfig, TaskResources
from gampen_ray.config.base import config_class, default, replace, to_dict
from gampen_ray.config.parts import GALAXIES_PER_FILE
from gampen_ray.config.scene import SceneConfig

__all__ = ["SimulateConfig", "simulate"]

logger = logging.getLogger(__name__)

_CPUS_PER_TASK = 1.0


@config_class
class SimulateConfig:
    """Simulate bulge + disk galaxies with known parameters as a dataset of cutout shards (GalSim)."""

    output: str
    """Dataset to create: a folder or s3:// URI."""
    survey: str = "kids-r"
    """Survey preset, which sets pixel scale, zero point, PSF and sky noise: hsc-g, hsc-r, hsc-i, kids-r, or one that your code
    registers."""
    num_galaxies: int = pydantic.Field(default=10_000, ge=1)
    """Number of galaxies over all splits."""
    cutout_size: int = pydantic.Field(default=96, ge=16)
    """Side of the square cutouts, pixels."""
    scene: SceneConfig = default(SceneConfig)
    """What the cutouts hold."""
    galaxies_per_shard: int = pydantic.Field(default=GALAXIES_PER_FILE, ge=1)
    """Galaxies simulated by one task, without effect on any galaxy."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed; a galaxy depends on the seed and its index alone."""
    split: SplitConfig = default(SplitConfig)
    """Train, val and test fractions."""
    resources: TaskResources = default(TaskResources)
    """Resources requested from Ray."""


@verb("simulate", then=lambda run: f"train --dataset {run['output']} --output RUN")
def simulate(config: SimulateConfig) -> None:
    """Simulate galaxies as a dataset of cutout shards, as a coadd would show them.

    A complete dataset with the same settings is left unchanged; an unfinished one is completed. The galaxies do not depend on
    ``galaxies_per_shard`` or the resources.

    Raises
    ------
    UserError
        If there is no such survey, a file that the scene names cannot be used, or the output holds something else.
    """
    from gampen_ray import storage
    from gampen_ray.data import shards
    from gampen_ray.engine.units import run_units
    from gampen_ray.provenance import content_fingerprint
    from gampen_ray.run_folder import RunFolder
    from gampen_ray.simulation import dataset
    from gampen_ray.simulation.galaxies import radius_range
    from gampen_ray.simulation.inputs import read_inputs
    from gampen_ray.simulation.scene import simulate
    from gampen_ray.simulation.surveys import SURVEYS

    survey = SURVEYS[config.survey]
    radius_range(survey, config.scene.galaxies, config.cutout_size * survey.pixel_scale_arcsec)
    inputs = read_inputs(config.scene)
    config = replace(config, output=storage.absolute(config.output))
    settings = {name: value for name, value in to_dict(config).items() if name not in ("output", "resources")}
    info = dataset.dataset_info(survey, config.split, settings, inputs.fingerprints)
    # Its name is in the config; the numbers behind it are the user's to change.
    contents = {"survey preset": content_fingerprint(dataclasses.asdict(survey)), **inputs.fingerprints}
    with RunFolder.open(config.output, "simulate", config, contents, complete=shards.DATASET_JSON) as folder:
        if folder.is_complete:
            logger.info("%s is complete; nothing to do", config.output)
            return
        there = set(storage.list_files(config.output, ".parquet"))
        parts = dataset.dataset_parts(config.num_galaxies, config.galaxies_per_shard)
        common = {"cutout_size": config.cutout_size, "seed": config.seed, "inputs": inputs}
        write = functools.partial(
            dataset.write_part,
            output=config.output,
            split=config.split,
            info=info,
            simulate=functools.partial(simulate, survey, config.scene, **common),
        )
        run_units(
            "simulate",
            [part for part in parts if not dataset.part_shards(part, config.output, config.split).keys() <= there],
            lambda _: write,
            total=config.num_galaxies,
            noun="galaxies",
            resources=config.resources,
            cpus_per_task=_CPUS_PER_TASK,
        )
        folder.check_lock()
        shards.write_dataset_info(config.output, info)
    logger.info("wrote %s: %s", config.output, ", ".join(f"{count:,} {split}" for split, count in info.num_rows.items()))
