"""Configs of the verbs whose functions still lie in `gampen_ray.engine`."""

from typing import Annotated, Literal

import pydantic

from gampen_ray.config.base import Needs, config_class, default
from gampen_ray.config.parts import ActorResources, SplitConfig, TaskResources


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
    resources: TaskResources = default(TaskResources)
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
    pattern: Annotated[str, Needs("catalog", "")] = "*.fits*"
    """Without a catalogue: which files below `images` are taken."""
    targets: tuple[str, ...] = ()
    """Catalogue columns that are targets in physical units; if any, the dataset is split into train, val and test. GaMPEN's
    labels are understood: ln_X and custom_logit_X become the physical X (custom_logit_bt: bulge_to_total, ln_R_e_asec:
    effective_radius_arcsec, ln_total_flux_adus: flux)."""
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
    split: Annotated[SplitConfig, Needs("targets", unless=()), Needs("split_slug", "")] = default(SplitConfig)
    """Train, val and test shares, used where there are targets."""
    split_slug: Annotated[str, Needs("targets", unless=())] = ""
    """Take the splits from the tables splits/SLUG-train.csv, -devel.csv (val) and -test.csv below `images`, e.g. balanced-dev2
    or sky-dev; rows in none of them are quarantined. Empty: by `split`."""
    resources: TaskResources = default(TaskResources)
    """What the job asks of Ray."""


@config_class
class InferConfig:
    """Predict the posterior of every galaxy of a dataset with Monte Carlo dropout; writes a catalogue."""

    bundle: str
    """Model bundle (or the run folder that holds it): a folder or s3:// URI."""
    dataset: str
    """What to predict: a dataset of cutout shards, a folder of FITS cutouts, or a GaMPEN data folder; local or s3:// URI."""
    output: str
    """Folder to create: catalog/, quarantine/ and manifest.json."""
    split: Literal["", "train", "val", "test"] = ""
    """Predict this split alone; empty: all rows."""
    num_passes: int = pydantic.Field(default=32, ge=1)
    """Monte Carlo dropout passes per galaxy."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of the dropout masks; a galaxy's posterior depends on (bundle, num_passes, seed) alone."""
    batch_size: int = pydantic.Field(default=0, ge=0)
    """Galaxies per forward pass, which changes no result. 0: as many as fit the device."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the network behind the spatial transformer. auto: bfloat16 on a GPU that has it, else float32."""
    galaxies_per_file: int = pydantic.Field(default=4096, ge=1)
    """Galaxies per catalogue file at most, the unit of work that a killed job repeats; a file never spans two input shards, and
    small inputs are cut finer."""
    posterior: Literal["summary", "mixture"] = "summary"
    """Store the summary columns alone, or also the whole mixture (`evaluate` needs it)."""
    mode_centred: bool = False
    """Add the credible intervals centred on the mode, as GaMPEN has them: columns T_mode_lo68, T_mode_hi68 and so on."""
    catalog_format: Literal["parquet", "hats", "gampen"] = "parquet"
    """hats: also write hats/, the catalogue partitioned on the sky as LSDB reads it, of all galaxies with a position (needs
    `pip install "gampen_ray[hats]"`). gampen: also write gampen/inf_1.csv to inf_K.csv, one draw of each pass, and
    gampen/summary.csv with GaMPEN's columns; the mixture is stored then in any case."""
    gampen_magnitudes: Annotated[bool, Needs("catalog_format", "gampen")] = False
    """Catalogue format gampen only: magnitudes with GaMPEN's factor of 2.512 and zero point of 27, not 2.5 and the bundle's."""
    estimate: bool = False
    """Only measure: predict for 30 s, write nothing, and tell galaxies/s, hours, GPU-hours and size of the output."""
    estimate_workers: Annotated[int, Needs("estimate", True)] = pydantic.Field(default=0, ge=0)
    """Workers of the cluster that the estimate is for; 0: those of this one."""
    resources: ActorResources = default(ActorResources)
    """What the job asks of Ray."""


@config_class
class CropConfig:
    """Write the spatial transformer's crop of every FITS cutout of a folder as FITS, with its flux and WCS carried through."""

    bundle: str
    """Model bundle (or the run folder that holds it) with a spatial transformer: a folder or s3:// URI."""
    images: str
    """Folder or s3:// prefix of FITS cutouts, with subfolders; a GaMPEN data folder is one. They must have the bundle's pixel
    scale and flux unit."""
    output: str
    """Folder to create: the crops under the files' names below `images`, quarantine/ and manifest.json."""
    pattern: str = "*.fits*"
    """Which files below `images` are taken."""
    hdu: int | None = pydantic.Field(default=None, ge=0)
    """Index of the image HDU; left out: the first one that holds an image."""
    nan_policy: Literal["quarantine", "zero", "median"] = "quarantine"
    """What becomes of a cutout with non-finite pixels: quarantine, or the pixels become zero or the image's median, also in
    the crop. An image without any finite pixel is always quarantined."""
    crop_size: int = pydantic.Field(default=0, ge=0)
    """Side of the written crops, pixels: the same part of the sky on a finer or coarser grid. 0: as the network sees them."""
    oversampling: int = pydantic.Field(default=0, ge=0, le=64)
    """Each pixel is the mean of this many bilinear samples a side. 1: the network's own samples, which on a grid coarser than
    the file's change the flux of a star by some percent. 0: 4 where the crop's pixels are larger than the file's, else 1."""
    batch_size: int = pydantic.Field(default=64, ge=1)
    """Files read, cropped and written at a time by one worker."""
    resources: ActorResources = default(ActorResources)
    """What the job asks of Ray."""
