"""Where images and catalogues come from, and how they are read: the fields that `ingest`, `infer` and `inspect` share."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import pydantic

from gampen_ray.config.base import Advanced, Needs, config_class, default, fields
from gampen_ray.errors import UserError

NanPolicy = Literal["quarantine", "zero", "median", "interpolate"]
_IfSplit = Needs("targets", unless=())
FITS_FILES = "*.fits*"
"""Default pattern of the names of cutouts in a folder."""


@config_class
class SplitConfig:
    """Fractions of the splits; a galaxy's split is a hash of its object_id, the same in every run."""

    train: float = pydantic.Field(default=0.8, gt=0, le=1)
    """Fraction of the training split; the test split is what train and val leave."""
    val: float = pydantic.Field(default=0.1, ge=0, lt=1)
    """Fraction of the validation split."""
    seed: int = 0
    """Another seed gives another partition."""

    def __post_init__(self) -> None:
        if self.train + self.val > 1 + 1e-9:
            raise ValueError(f"train and val are {self.train:g} + {self.val:g}, more than 1; lower one")


@config_class
class ReaderConfig:
    """How image files are read, and metadata common to all of them."""

    format: str = "auto"
    """Format of the files: fits, numpy, hdf5, zarr, parquet, webdataset, numpy_stack (many images in one .npy or .npz), or one
    whose reader your code registers; auto: by each file's content, and for files of many images by their name."""
    hdu: int | None = pydantic.Field(default=None, ge=0)
    """Index of the image HDU; left out: the first one that is named SCI or IMAGE or else is no weight, mask, PSF or the like by
    its name, and has pixels of more than one value; with several bands the cube, or an HDU a band."""
    headers: Literal["check", "ignore"] = "check"
    """check: zero point, pixel scale and band that a file's header gives are taken where they are left out here, and where they
    contradict what is given here (by 0.01 mag, 1 % or name) the files are refused; ignore: what is given here counts alone."""
    mask_planes: tuple[str, ...] = ("NO_DATA",)
    """Planes of the file's mask image, by name, whose pixels have no value; any: all planes. Pixels with zero weight, or
    without a finite variance or error, have none either, nor have those of a plane SAT within 6 pixels of the middle."""
    noise_planes: bool = False
    """Read the standard deviation of each pixel beside the image, from the file's own variance, inverse variance or error
    image; a file without one for each band is quarantined. For `infer` and `crop` the bundle decides."""
    dataset: str = ""
    """Name of the images in a file of many (HDF5, Zarr, NumPy .npz, Parquet); empty: by usual names, or the only one."""
    axes: Literal["auto", "chw", "hwc"] = "auto"
    """In arrays, whether the bands are on the first axis (chw) or the last (hwc); auto: by its length."""
    allow_nonlinear: Annotated[bool, Advanced()] = False
    """Accept pictures of 8 bits a pixel, which are stretched for display: radii and fluxes mean something only to a model that
    was trained on such pictures."""
    bands: tuple[str, ...] = pydantic.Field(default=("unknown",), min_length=1)
    """Names of the bands, in the order of the image's axis of bands; an image of one band is two-dimensional. Where files name
    their bands (several HDUs, a file a band, Multimodal Universe), those are taken in this order. Left out: one band, by the
    headers."""
    nan_policy: str = "quarantine"
    """Treatment of pixels without a value (not finite, 1e20 or more, masked, a sentinel such as -999, or a border of one
    value): quarantine the cutout, or replace them with zero, the median of the band, or a mean of the pixels around them
    (interpolate; a hole of more than 8 pixels across is quarantined). One word for all bands, or one for each by name:
    g=zero,r=interpolate. A band without any value is always quarantined."""
    max_mebibytes: Annotated[int, Advanced()] = pydantic.Field(default=64, ge=1)
    """Largest file, decompressed, and largest image that is read, MiB. A file may take 2 s of processor time and 1.5 GB of
    memory; a larger size than 64 extends both in proportion."""
    zero_point_mag: float | None = None
    """AB magnitude of one unit of flux; left out: by the headers, to whose median all files are converted, or unknown."""
    pixel_scale_arcsec: float | None = pydantic.Field(default=None, gt=0)
    """Pixel scale, arcsec; left out: by the headers, or unknown."""

    def __post_init__(self) -> None:
        if not all(self.bands) or len(set(self.bands)) < len(self.bands):
            raise ValueError(f"bands is {', '.join(map(repr, self.bands))}; give each band once, by its name")
        _policies_by_band(self.nan_policy)

    def nan_policies(self, bands: Sequence[str]) -> tuple[NanPolicy, ...]:
        """Return the policy of each band for pixels without a value.

        Raises
        ------
        UserError
            If policies are given by band, and not for these bands.
        """
        policies = _policies_by_band(self.nan_policy)
        if "" in policies:
            return (policies[""],) * len(bands)
        if policies.keys() != set(bands):
            raise UserError(
                f"reader.nan_policy: is {self.nan_policy!r}, but the bands are {', '.join(bands)}; give one for each"
            )
        return tuple(policies[band] for band in bands)

    def refuse(self, *names: str) -> None:
        """Raise a ValueError if one of these fields, which the bundle determines, is given."""
        for name in names:
            if (value := getattr(self, name)) != getattr(ReaderConfig(), name):
                raise ValueError(f"reader.{name} is {value!r}, but it comes from the bundle; leave it out")


def refuse_without_footprint(config: Any, *classes: type) -> None:
    """Raise a `UserError` if a field of some classes, which have an effect with a footprint alone, is given."""
    for cls in classes:
        for name in fields(cls):
            if getattr(config, name) != getattr(cls(), name):
                raise UserError(f"{name}: has an effect with a footprint alone; leave it out")


def _policies_by_band(text: str) -> dict[str, NanPolicy]:
    # By the name of the band; under an empty name, that of all bands.
    policies: dict[str, NanPolicy] = {}
    for part in text.split(","):
        band, _, word = part.strip().rpartition("=")
        policy = next((one for one in get_args(NanPolicy) if one == word), None)
        if policy is None or band in policies or ("," in text and not band):
            words = ", ".join(get_args(NanPolicy))
            raise ValueError(f"nan_policy is {text!r}; give one of {words}, or one for each band, such as g=zero,r=interpolate")
        policies[band] = policy
    return policies


@config_class
class SourcesConfig:
    """A table of galaxies: their identifiers, and where on the sky they are."""

    catalog: str = ""
    """With a footprint: table with one row per galaxy: CSV, ECSV, VOTable, ASCII, FITS, Parquet or a folder of it."""
    id_column: str = "object_id"
    """Catalogue column with the unique identifier; without a catalogue the file name's stem is the identifier."""
    ra_column: str = ""
    """Catalogue column of right ascensions; empty: by usual names (ra, RAJ2000, ALPHA_J2000, coord_ra, ...)."""
    dec_column: str = ""
    """Catalogue column of declinations; give both or none."""
    position_unit: Literal["auto", "deg", "hour", "rad"] = "auto"
    """Unit of positions that are numbers; auto: that of the column, else degrees; hour: right ascensions in hours. Text may be
    sexagesimal."""


@config_class
class CatalogConfig(SourcesConfig):
    """Which image each galaxy has, where on the sky it is, and how images are read."""

    catalog: str = ""
    """Table with one row per cutout: CSV, ECSV, VOTable, ASCII, FITS, Parquet or a folder of it; empty: GaMPEN's info.csv if
    there, else the files alone, or the columns beside the images of a file of many."""
    file_column: str = "file_name"
    """Catalogue column with the file's name in the folder of images. With several bands in a file each: columns file_BAND."""
    file_template: str = ""
    """Name of each row's file in the folder of images, from catalogue columns in braces and wildcards that one file matches:
    "{object_id}-cutout-*.fits"; with {band}, a file a band: "{object_id}_{band}.fits", which needs no catalogue."""
    pattern: Annotated[str, Needs("catalog", "")] = FITS_FILES
    """Without a catalogue: glob pattern of the files in the folder of images. Masks, weights, PSFs and the like beside a
    galaxy's image, by words of their names, are left out."""
    max_misplaced: Annotated[float, Advanced()] = pydantic.Field(default=0.1, ge=0, le=1)
    """Share of images whose centre may be more than 5 pixels, and 1 arcsec, from the catalogue's position by their WCS, of
    those looked at before the work; if more are, nothing is read."""
    reader: ReaderConfig = default(ReaderConfig)
    """How the files are read."""


@config_class
class TilesConfig:
    """How galaxies are cut from the tiles of a footprint."""

    max_beyond: Annotated[int, Advanced()] = pydantic.Field(default=0, ge=0)
    """With a footprint: pixels by which a cutout may reach over the edge of its tile, which reader.nan_policy then fills, with
    a flag; sources nearer to the edge go to quarantine."""
    align: Annotated[bool, Advanced()] = False
    """With a footprint whose tiles have bands on different grids: resample the other bands of each cutout onto the pixels of
    the first band, with a flag. By a Lanczos kernel of order 3, which conserves flux; where a pixel without a value contributes
    there is none either. Left out: such tiles are not used."""


@config_class
class CutoutsConfig(CatalogConfig):
    """Cutouts and their catalogue."""

    images: str
    """Folder or s3:// prefix of cutouts, a file of one or of many (HDF5, Zarr, NumPy, Parquet, HATS, WebDataset) or a folder of
    these, a GaMPEN data folder (info.csv and cutouts/), or a footprint, from whose tiles the catalogue's sources are cut."""
    targets: tuple[str, ...] = ()
    """Catalogue columns of the targets in physical units; with targets, the dataset is split into train, val and test. GaMPEN's
    labels are converted: ln_X and custom_logit_X become the physical X (custom_logit_bt: bulge_to_total, ln_R_e_asec:
    effective_radius_arcsec, ln_total_flux_adus: flux)."""
    cutout_size: int = pydantic.Field(default=0, ge=0)
    """Side of the stored cutouts, pixels: larger images are cropped and smaller ones zero-padded about the centre. 0: that of
    the files, the median of their shorter sides where they differ."""
    flux_unit: str = ""
    """Unit of the pixels; empty: unknown."""
    survey: str = ""
    """Name of the survey, kept as metadata."""
    split: Annotated[SplitConfig, _IfSplit, Needs("split_slug", "")] = default(SplitConfig)
    """Train, val and test fractions, for a dataset with targets."""
    split_slug: Annotated[str, _IfSplit] = ""
    """Take the splits from the tables splits/SLUG-train.csv, -devel.csv (val) and -test.csv below `images`, e.g. balanced-dev2
    or sky-dev; rows in none of them are quarantined. Empty: by `split`."""
