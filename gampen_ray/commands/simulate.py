"""The `simulate` verb: Ray tasks render ranges of galaxies, and write one shard per split and range."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from gampen_ray.commands.registry import verb
from gampen_ray.config import SplitConfig, TaskResources
from gampen_ray.config.base import Advanced, Needs, config_class, default, replace, to_dict
from gampen_ray.config.parts import GALAXIES_PER_FILE
from gampen_ray.config.scene import MasksConfig, NeighboursConfig, NoiseConfig, SceneConfig
from gampen_ray.errors import UserError
from gampen_ray.messages import counted

if TYPE_CHECKING:
    from gampen_ray.simulation.background import Background
    from gampen_ray.simulation.dataset import Part, Simulated
    from gampen_ray.simulation.inputs import Inputs
    from gampen_ray.simulation.surveys import Survey

__all__ = ["SimulateConfig", "simulate"]

logger = logging.getLogger(__name__)

_CPUS_PER_TASK = 1.0
# Headers round the scales of pixels.
_SAME_SCALE = 0.01


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
    background: str = ""
    """Footprint (`gampen-ray footprint`) to whose pixels the galaxies are added: noise, sky, neighbours and the PSF's width are
    the survey's own, and so is the pixel scale; empty: all is simulated."""
    band: Annotated[str, Needs("background", unless="")] = ""
    """Band of the background; empty: that of the survey preset."""
    scene: SceneConfig = default(SceneConfig)
    """What the cutouts hold."""
    galaxies_per_shard: Annotated[int, Advanced()] = pydantic.Field(default=GALAXIES_PER_FILE, ge=1)
    """Galaxies simulated by one task, without effect on any galaxy."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed; a galaxy depends on the seed and its index alone."""
    split: SplitConfig = default(SplitConfig)
    """Train, val and test fractions."""
    resources: TaskResources = default(TaskResources)
    """Resources requested from Ray."""

    def __post_init__(self) -> None:
        if self.background:
            _check_scene(self.scene)


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
    from gampen_ray.data import shard_index, shards
    from gampen_ray.engine.units import run_units
    from gampen_ray.provenance import content_fingerprint
    from gampen_ray.run_folder import RunFolder
    from gampen_ray.simulation import dataset
    from gampen_ray.simulation.galaxies import radius_range
    from gampen_ray.simulation.inputs import read_inputs
    from gampen_ray.simulation.surveys import SURVEYS

    config = replace(config, output=storage.absolute(config.output))
    survey, inputs, fingerprints = SURVEYS[config.survey], read_inputs(config.scene), {}
    galaxies: Mapping[int, Any] = {-1: range(config.num_galaxies)}
    make: Callable[[Part], Simulated] = functools.partial(_simulated, config=config, survey=survey, inputs=inputs)
    if config.background:
        config = replace(config, background=storage.absolute(config.background))
        survey, background, fingerprints = _background(config, survey, inputs)
        galaxies, make = background.tiles(config.num_galaxies), functools.partial(_injected, background=background)
    radius_range(survey, config.scene.galaxies, config.cutout_size * survey.pixel_scale_arcsec)
    fingerprints |= inputs.fingerprints
    settings = {name: value for name, value in to_dict(config).items() if name not in ("output", "resources")}
    info = dataset.dataset_info(survey, config.split, settings, fingerprints)
    # Its name is in the config; the numbers behind it are the user's to change.
    contents = {"survey preset": content_fingerprint(dataclasses.asdict(survey)), **fingerprints}
    parts = dataset.dataset_parts(galaxies, config.galaxies_per_shard)
    work = f"{counted(config.num_galaxies, 'galaxy', 'galaxies')} in {counted(len(parts), 'task')}"
    with RunFolder.open(config.output, "simulate", config, contents, complete=shards.DATASET_JSON, work=work) as folder:
        if folder.is_complete:
            logger.info("%s is complete; nothing to do", config.output)
            return
        there = set(storage.list_files(config.output, ".parquet"))
        write = functools.partial(dataset.write_part, output=config.output, split=config.split, info=info, simulate=make)
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
        info = dataset.without_lost(config.output, config.split, info)
        shard_index.write_index(config.output, info)
        shards.write_dataset_info(config.output, info)
    logger.info("wrote %s: %s", config.output, ", ".join(f"{count:,} {split}" for split, count in info.num_rows.items()))
    if info.num_quarantined:
        logger.warning("%s of %s galaxies found no place and are in quarantine", info.num_quarantined, config.num_galaxies)


def _check_scene(scene: SceneConfig) -> None:
    """Raise a ValueError for a field of the scene that the background decides."""
    photons, companions, fill = scene.noise.photons, scene.neighbours.companions, scene.masks.fill
    left = {
        "scene.noise": (scene.noise, NoiseConfig(photons=photons), "photons"),
        "scene.neighbours": (scene.neighbours, NeighboursConfig(companions=companions), "companions"),
        "scene.masks": (scene.masks, MasksConfig(fill=fill), "fill"),
    }
    for name, (given, usual, kept) in left.items():
        if given != usual:
            raise ValueError(f"{name}: the background brings what it states; with one, leave out all of it but {kept}")


def _background(config: SimulateConfig, survey: "Survey", inputs: "Inputs") -> "tuple[Survey, Background, dict[str, str]]":
    """Return the survey on the pixels of the background, the background, and the fingerprint of its index."""
    from gampen_ray.data.tiles.footprint import Footprint
    from gampen_ray.simulation.background import Background, survey_on

    try:
        footprint, band = Footprint(config.background), config.band or survey.band
    except UserError as error:
        # Here, the footprint is the background.
        raise UserError(str(error).replace("dataset:", "background:", 1)) from None
    if band not in footprint.info.bands:
        there = ", ".join(footprint.info.bands)
        raise UserError(f"band: no tile of {config.background} has {band}; there are {there}")
    preset, survey = survey, survey_on(survey, footprint, band)
    if abs(survey.pixel_scale_arcsec / preset.pixel_scale_arcsec - 1) > _SAME_SCALE:
        logger.warning(
            "pixels of %.4g arcsec, those of the background; the survey preset %s has %.4g",
            survey.pixel_scale_arcsec,
            preset.name,
            preset.pixel_scale_arcsec,
        )
    background = Background(
        footprint=config.background,
        band=band,
        survey=survey,
        scene=config.scene,
        inputs=inputs,
        size=config.cutout_size,
        seed=config.seed,
    )
    return survey, background, {"background": footprint.info.fingerprint}


def _simulated(part: "Part", *, config: SimulateConfig, survey: "Survey", inputs: "Inputs") -> "Simulated":
    from gampen_ray.simulation.dataset import Simulated
    from gampen_ray.simulation.scene import simulate

    common: dict[str, Any] = {"cutout_size": config.cutout_size, "seed": config.seed, "inputs": inputs}
    start, stop = part.galaxies[0], part.galaxies[-1] + 1
    return Simulated(simulate(survey, config.scene, start=start, stop=stop, **common), {})


def _injected(part: "Part", *, background: "Background") -> "Simulated":
    return background.simulate(part.tile, [int(index) for index in part.galaxies])
