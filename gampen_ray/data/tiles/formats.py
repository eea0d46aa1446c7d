"""Which code reads a tile's file: by the end of its name FITS or ASDF."""

from types import ModuleType

from gampen_ray.data.tiles import asdf_files, fits_files

__all__ = ["format_of"]


def format_of(path: str) -> ModuleType:
    """Return the module whose `chosen_hdu` and `rows_of` read a file, opened by `gampen_ray.data.tiles.fits_files.opened`."""
    return asdf_files if path.lower().endswith(".asdf") else fits_files
