"""The `measure-psf` verb: writes a table with the sizes of PSFs, which networks are given as conditions. It starts no Ray."""

import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import pydantic

from gampen_ray.commands.registry import verb
from gampen_ray.config.base import Advanced, Needs, config_class, replace
from gampen_ray.errors import UserError
from gampen_ray.messages import counted

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from gampen_ray.model.images import ImagePreprocessing

logger = logging.getLogger(__name__)

_PSF_FILE = "psf_file"


@config_class
class MeasurePsfConfig:
    """Measure the sizes of PSFs, by images of them, as columns of a table that `infer --catalog` gives to the network."""

    psfs: str
    """Images of PSFs or stars: a folder or s3:// prefix of FITS and .npy files, with subfolders, or one file. Each is on the
    pixels of the cutouts, sky-subtracted, with the star within a few pixels of the middle, of any flux; best 43 pixels or more
    along a side, as light within 20 pixels of the star counts."""
    output: str
    """Table to write, with the columns psf_fwhm_arcsec, psf_r50_arcsec, psf_r80_arcsec and psf_r95_arcsec: a local path or s3://
    URI that ends in .csv, .ecsv, .fits or .parquet."""
    bundle: str = ""
    """Model bundle that will be given the sizes (or the run folder that holds it): a folder, s3:// URI or builtin:NAME. PSFs of
    another pixel scale are measured on the bundle's pixels, to which `infer` resamples the cutouts. Empty: on their own."""
    catalog: str = ""
    """Table of galaxies, to which the columns are added: CSV, ECSV, VOTable, ASCII, FITS, Parquet or a folder of it. Empty: the
    table has a row for each image."""
    psf_column: Annotated[str, Needs("catalog", unless="")] = _PSF_FILE
    """Catalogue column with the name of each galaxy's PSF below `psfs`; not needed where there is one image, which then is that
    of all galaxies."""
    id_column: Annotated[str, Needs("catalog", unless="")] = "object_id"
    """Catalogue column with the identifier, which is kept as text where the file does not state its type."""
    pixel_scale_arcsec: float | None = pydantic.Field(default=None, gt=0)
    """Pixel scale of the images, arcsec; left out: by the headers."""
    hdu: Annotated[int | None, Advanced()] = pydantic.Field(default=None, ge=0)
    """Index of the HDU with the PSF; left out: the only one that is named PSF, or the only image of the file."""
    headers: Annotated[Literal["check", "ignore"], Advanced()] = "check"
    """check: images whose header contradicts pixel_scale_arcsec by 1 % are refused; ignore: what is given here counts alone."""


def _then(run: Mapping[str, str]) -> str:
    if run["catalog"] == "''":
        return f"measure-psf --psfs {run['psfs']} --catalog GALAXIES --psf-column COLUMN --output TABLE"
    bundle = "BUNDLE" if run["bundle"] == "''" else run["bundle"]
    return f"infer --bundle {bundle} --dataset CUTOUTS --catalog {run['output']} --output CATALOG"


@verb("measure-psf", positional="psfs", then=_then)
def measure_psf(config: MeasurePsfConfig) -> "pa.Table":
    """Measure PSFs and return the table that was written.

    An image that cannot be measured is left out with a warning; in a catalogue, its galaxies' sizes are null.

    Raises
    ------
    UserError
        If no image can be measured, a pixel scale is unknown or contradictory, the catalogue names files that are not there or
        has columns of these names, or the output is another file.
    """
    from gampen_ray import storage
    from gampen_ray.config import ReaderConfig
    from gampen_ray.data.catalog_writing import check_suffix, write_catalog
    from gampen_ray.inference.psf_files import measure_files

    names = ("psfs", "output", "bundle", "catalog")
    config = replace(config, **{name: storage.absolute(uri) for name in names if (uri := getattr(config, name))})
    check_suffix("output", config.output)
    _check_output(config.output)
    wanted = _wanted(config)
    reader = ReaderConfig(hdu=config.hdu, headers=config.headers, pixel_scale_arcsec=config.pixel_scale_arcsec)
    table = _table(wanted, measure_files(wanted.uris, reader, _images(config)))
    write_catalog(config.output, table)
    _log_sizes(config, table)
    return table


class _Wanted(NamedTuple):
    """The files to measure, and whose PSFs they hold."""

    uris: list[str]
    rows: "pa.Table"
    """Those of the output, without sizes."""
    file_N: "np.ndarray"
    """Index of each row's file."""
    keep: bool
    """Whether rows without sizes are kept."""


def _check_output(output: str) -> None:
    """Raise a `UserError` if the output exists and is another table than this verb writes."""
    from gampen_ray import storage
    from gampen_ray.data.catalogs import read_catalog
    from gampen_ray.inference.psf_sizes import PSF_COLUMNS

    if not storage.exists(output):
        return
    try:
        there = read_catalog(output).column_names
    except UserError:
        there = []
    if not set(PSF_COLUMNS) <= set(there):
        raise UserError(f"output: {output} exists and is no table of PSF sizes; nothing was changed: give another file")


def _wanted(config: MeasurePsfConfig) -> _Wanted:
    import numpy as np
    import pyarrow as pa

    from gampen_ray import storage
    from gampen_ray.data.catalogs import read_catalog, require_columns
    from gampen_ray.data.image_files import image_uris
    from gampen_ray.inference.psf_sizes import PSF_COLUMNS

    if storage.size(config.psfs) is None:
        root, there = config.psfs, functools.partial(image_uris, "psfs", config.psfs, without=config.output)
    else:
        root, there = config.psfs.rpartition("/")[0], lambda: [config.psfs]
    if not config.catalog:
        uris = there()
        names = [uri.removeprefix(storage.join(root, "")) for uri in uris]
        return _Wanted(uris, pa.table({_PSF_FILE: names}), np.arange(len(uris)), keep=False)
    rows = read_catalog(config.catalog, (config.psf_column, config.id_column, "file_name"))
    if taken := [name for name in PSF_COLUMNS if name in rows.column_names]:
        raise UserError(f"catalog: {config.catalog} has {', '.join(taken)} already; rename or remove them")
    if config.psf_column not in rows.column_names and len(uris := there()) == 1:
        return _Wanted(uris, rows, np.zeros(len(rows), int), keep=True)
    require_columns(config.catalog, rows, {config.psf_column: "psf_column"})
    return _named(config, rows, root)


def _named(config: MeasurePsfConfig, rows: "pa.Table", root: str) -> _Wanted:
    """Return the files below a folder that the rows of a catalogue name."""
    import numpy as np

    from gampen_ray import storage
    from gampen_ray.data.file_names import file_uris

    named = file_uris(root, rows[config.psf_column]).combine_chunks().dictionary_encode()
    known = set(storage.list_files(root) if root == config.psfs else [config.psfs])
    found_F = np.array([uri in known for uri in named.dictionary.to_pylist()], bool)
    file_N = named.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    missing_N = file_N < 0
    missing_N[~missing_N] = ~found_F[file_N[~missing_N]]
    if missing_N.any():
        row = int(np.argmax(missing_N))
        raise UserError(
            f"psf_column: {config.psf_column} names no file below {root} for {missing_N.sum():,} of {len(rows):,} rows of "
            f"{config.catalog}, first {rows[config.psf_column][row].as_py()!r} in row {row + 1}; correct it, or take them out"
        )
    return _Wanted(named.dictionary.to_pylist(), rows, file_N, keep=True)


def _images(config: MeasurePsfConfig) -> "ImagePreprocessing | None":
    """Return what the bundle does to images; None: there is no bundle."""
    if not config.bundle:
        return None
    from gampen_ray.inference.bundle import load_bundle

    images = load_bundle(config.bundle).images
    if images.pixel_scale_arcsec is None:
        logger.warning("bundle: its pixel scale is unknown; sizes are measured on the PSFs' own pixels")
    return images


def _table(wanted: _Wanted, sizes_FS: "np.ndarray") -> "pa.Table":
    """Return the rows with the sizes of their PSFs."""
    import numpy as np
    import pyarrow as pa

    from gampen_ray.inference.psf_sizes import PSF_COLUMNS

    sizes_NS = sizes_FS[wanted.file_N]
    table = wanted.rows
    for (name, description), size_N in zip(PSF_COLUMNS.items(), sizes_NS.T, strict=True):
        field = pa.field(name, pa.float64(), metadata={"unit": "arcsec", "description": description})
        table = table.append_column(field, pa.array(size_N, from_pandas=True))
    return table if wanted.keep else table.filter(pa.array(np.isfinite(sizes_NS[:, 0])))


def _log_sizes(config: MeasurePsfConfig, table: "pa.Table") -> None:
    import numpy as np

    from gampen_ray.inference.psf_sizes import PSF_COLUMNS

    medians: list[Any] = [np.nanmedian(table[name].to_numpy()) for name in PSF_COLUMNS]
    logger.info("median FWHM %.3f, r50 %.3f, r80 %.3f, r95 %.3f arcsec", *medians)
    if count := table.columns[-1].null_count:
        logger.warning("%s without sizes, of PSFs that cannot be measured", counted(count, "galaxy", "galaxies"))
    noun = ("galaxy", "galaxies") if config.catalog else ("PSF", "PSFs")
    logger.info("wrote %s: %s", config.output, counted(len(table), *noun))
