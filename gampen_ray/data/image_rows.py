"""Which image each galaxy has: a file, a file a band, or a place in a file of many.

The plan of an ingest has a row per galaxy. A catalogue may have 10^7 rows: columns stay in Arrow.
"""

import difflib

import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config import CutoutsConfig, ReaderConfig
from gampen_ray.config.inputs import FITS_FILES
from gampen_ray.data import containers, gampen_folder, readers
from gampen_ray.data.catalog_rows import by_catalog, by_template, names_files, read_catalog
from gampen_ray.data.container_rows import folder_containers, in_containers, one_container
from gampen_ray.data.file_names import NoFilesError, listed_files, matching, stems
from gampen_ray.data.located import Located
from gampen_ray.data.name_templates import band_template
from gampen_ray.errors import UserError

__all__ = ["check_format", "locate"]


def locate(config: CutoutsConfig) -> Located:
    """Return all galaxies with their images.

    Parameters
    ----------
    config
        With absolute URIs.

    Raises
    ------
    UserError
        If a file, folder or column is missing, or images and catalogue do not fit each other.
    """
    images, is_folder = config.images, storage.size(config.images) is None
    if not config.catalog and gampen_folder.is_gampen_folder(images):
        uri = storage.join(images, gampen_folder.INFO_CSV)
        folder = storage.join(images, gampen_folder.CUTOUTS)
        return by_catalog(config, uri, read_catalog(config, uri), folder, gampen=True)
    if not storage.exists(images):
        raise NoFilesError(f"images: no folder {images}")
    check_format(config.reader)
    if many := one_container(config):
        return in_containers(config, many)
    catalog = read_catalog(config, config.catalog) if config.catalog else None
    if catalog and is_folder and names_files(config, catalog):
        return by_catalog(config, config.catalog, catalog, images, gampen=False)
    listing = listed_files(images) if is_folder else [images]
    if many := folder_containers(config, listing):
        return in_containers(config, many)
    if catalog and is_folder:
        raise UserError(
            f"file_column: catalog {config.catalog} has no column {config.file_column!r}; give file_column, or file_template "
            f'such as "{{{config.id_column}}}*.fits"; its columns: {", ".join(catalog.column_names)}'
        )
    if config.targets and not catalog:
        raise UserError(f"targets: {', '.join(config.targets)}: there is no catalogue to read them from; set catalog")
    if config.file_template:
        return by_template(config, listing)
    files = matching(images, config.pattern, listing)
    if is_folder and config.pattern == FITS_FILES and len(config.reader.bands) == 1:
        _refuse_bands(images, files)
    source = pa.chunked_array([pa.array(files, pa.string())])
    if catalog and len(catalog) > 1:
        raise UserError(
            f"images: {images} is one image, but catalog {config.catalog} has {len(catalog):,} rows; give the folder of their "
            "cutouts, one file a row, or cut them out of the image first"
        )
    if catalog:
        return Located(table=catalog, source=source, catalog=config.catalog)
    return Located(table=pa.table({"object_id": stems(source)}), source=source)


def _refuse_bands(images: str, files: list[str]) -> None:
    # The g and the r image of a galaxy are not two galaxies.
    root = storage.join(storage.absolute(images), "")
    template, bands = band_template([uri.removeprefix(root) for uri in files])
    if template:
        raise UserError(
            f"file_template: the files of {images} are one a band by their names, of {', '.join(bands)}; give {template!r}, or "
            "a pattern of those to be read"
        )


def check_format(config: ReaderConfig) -> None:
    """Raise a UserError if no reader and no container has the configured format."""
    known = ("auto", *readers.READERS.names, *containers.CONTAINERS.names)
    if config.format not in known:
        close = difflib.get_close_matches(config.format, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"reader.format: {config.format!r} is unknown; {hint}give one of {', '.join(known)}")
