"""GaMPEN's data folder: ``info.csv``, with a column ``file_name``, beside ``cutouts/*.fits``."""

from gampen_ray import storage

__all__ = ["CUTOUTS", "INFO_CSV", "is_gampen_folder"]

INFO_CSV = "info.csv"
CUTOUTS = "cutouts"


def is_gampen_folder(images: str) -> bool:
    """Return whether a folder has the layout of a GaMPEN data folder."""
    return storage.exists(storage.join(images, INFO_CSV)) and storage.exists(storage.join(images, CUTOUTS))
