"""One config class per verb of the command line."""

import dataclasses
from typing import Literal

import pydantic

from gampen_ray.config.parts import (
    CalibrationConfig,
    ImagesConfig,
    NetworkConfig,
    OptimizerConfig,
    ResourcesConfig,
    SplitConfig,
    TargetConfig,
    config_class,
    default,
    default_targets,
)


@config_class
class SimulateConfig:
    """Simulate bulge + disk galaxies with known parameters as a dataset of cutout shards (GalSim)."""

    output: str
    """Dataset to create: a folder or s3:// URI."""
    survey: Literal["hsc-g", "hsc-r", "hsc-i", "kids-r"] = "kids-r"
    """Survey preset: pixel scale, zero point, PSF and sky noise."""
    num_galaxies: int = pydantic.Field(default=10_000, ge=1)
    """Number of galaxies over all splits."""
    cutout_size: int = pydantic.Field(default=64, ge=16)
    """Side of the square cutouts, pixels."""
    neighbour_fraction: float = pydantic.Field(default=0.2, ge=0, le=1)
    """Share of cutouts that contain a second, unrelated galaxy."""
    galaxies_per_shard: int = pydantic.Field(default=1_000, ge=1)
    """Galaxies simulated by one task; does not change any galaxy."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed; a galaxy depends on (seed, its index) alone."""
    split: SplitConfig = default(SplitConfig)
    """Train, val and test shares."""
    resources: ResourcesConfig = default(ResourcesConfig)
    """What the job asks of Ray."""


@config_class
class IngestConfig:
    """Turn FITS cutouts and a catalogue into a dataset of cutout shards; unusable files are quarantined with a reason."""

    images: str
    """Folder or s3:// prefix of FITS cutouts, or a GaMPEN data folder (info.csv and cutouts/)."""
    output: str
    """Dataset to create: a folder or s3:// URI."""
    catalog: str = ""
    """CSV, FITS or Parquet table with one row per cutout; empty: GaMPEN's info.csv if there, else the files alone."""
    id_column: str = "object_id"
    """Catalogue column with the unique identifier; without a catalogue the file name's stem is the identifier."""
    file_column: str = "file_name"
    """Catalogue column with the file's name below `images`."""
    pattern: str = "*.fits*"
    """Without a catalogue: which files below `images` are taken."""
    targets: tuple[str, ...] = ()
    """Catalogue columns that are targets in physical units; if any, the dataset is split into train, val and test."""
    hdu: int | None = None
    """Index of the image HDU; left out: the first one that holds an image."""
    nan_policy: Literal["quarantine", "zero", "median"] = "quarantine"
    """What becomes of a cutout with non-finite pixels: quarantine, or the pixels become zero or the image's median.
    An image without any finite pixel is always quarantined."""
    cutout_size: int = pydantic.Field(default=64, ge=1)
    """Side of the stored cutouts, pixels: larger images are cropped and smaller ones zero-padded about the centre."""
    bands: tuple[str, ...] = ("unknown",)
    """Name of the band."""
    pixel_scale_arcsec: float | None = pydantic.Field(default=None, gt=0)
    """Pixel scale, arcsec; left out: unknown."""
    zero_point_mag: float | None = None
    """AB magnitude of one unit of flux; left out: unknown."""
    flux_unit: str = ""
    """Unit of the pixels; empty: unknown."""
    survey: str = ""
    """Name of the survey, kept as metadata."""
    galaxies_per_shard: int = pydantic.Field(default=1_000, ge=1)
    """Galaxies per Parquet file."""
    split: SplitConfig = default(SplitConfig)
    """Train, val and test shares, used where there are targets."""
    resources: ResourcesConfig = default(ResourcesConfig)
    """What the job asks of Ray."""


@config_class
class TrainConfig:
    """Train a network on a dataset with targets; writes a run folder with the model bundle in it."""

    dataset: str
    """Dataset with the splits train and val: a folder or s3:// URI."""
    output: str
    """Run folder: holds bundle/, history.json and checkpoints. An unfinished run with the same config goes on."""
    targets: dict[str, TargetConfig] = dataclasses.field(default_factory=default_targets)
    """Target columns and their transforms."""
    images: ImagesConfig = default(ImagesConfig)
    """From cutouts to network inputs."""
    network: NetworkConfig = default(NetworkConfig)
    """The network."""
    optimizer: OptimizerConfig = default(OptimizerConfig)
    """How the weights are fitted."""
    calibration: CalibrationConfig = default(CalibrationConfig)
    """Post-hoc calibration."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of initial weights, shuffling, augmentation and dropout."""
    resources: ResourcesConfig = default(ResourcesConfig)
    """What the job asks of Ray."""


@config_class
class InferConfig:
    """Predict the posterior of every galaxy of a dataset with Monte Carlo dropout; writes a catalogue."""

    bundle: str
    """Model bundle (or the run folder that holds it): a folder or s3:// URI."""
    dataset: str
    """Dataset to predict: a folder or s3:// URI."""
    output: str
    """Folder to create: catalog/, quarantine/ and manifest.json."""
    split: Literal["", "train", "val", "test"] = ""
    """Predict this split alone; empty: all rows."""
    num_passes: int = pydantic.Field(default=32, ge=1)
    """Monte Carlo dropout passes per galaxy."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of the dropout masks; a galaxy's posterior depends on (bundle, num_passes, seed) alone."""
    batch_size: int = pydantic.Field(default=256, ge=1)
    """Galaxies per forward pass."""
    posterior: Literal["summary", "mixture"] = "summary"
    """Store the summary columns alone, or also the whole mixture (`evaluate` needs it)."""
    resources: ResourcesConfig = default(ResourcesConfig)
    """What the job asks of Ray."""


@config_class
class EvaluateConfig:
    """Compare a catalogue with the true values in its dataset: accuracy and coverage, before and after calibration."""

    catalog: str
    """Output folder of `infer`, made with `--posterior mixture`."""
    output: str
    """Folder to create: evaluation.json."""


@config_class
class ReportConfig:
    """Write one self-contained HTML page about a trained model and its evaluated catalogue."""

    evaluation: str
    """Output folder of `evaluate`."""
    output: str
    """HTML file to write."""
    num_examples: int = pydantic.Field(default=6, ge=1)
    """Galaxies shown with their crop and posterior."""


@config_class
class DemoConfig:
    """Simulate, train, infer, evaluate and report, in minutes on a laptop."""

    output: str = "demo"
    """Folder to create."""
    num_galaxies: int = pydantic.Field(default=20_000, ge=200)
    """Simulated galaxies: 60 % to train, 20 % to validate, 20 % to test."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of simulation, training and inference."""
