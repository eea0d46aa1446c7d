"""The presets of surveys, a file each, registered in `gampen_ray.data.tiles.preset.TILE_SURVEYS` by the import of this package.

Facts are from the releases' own descriptions, named in each file; ``unverified`` lists those that could not be checked.
"""

from gampen_ray.data.tiles.preset import TILE_SURVEYS
from gampen_ray.data.tiles.surveys import des, euclid, hsc, hst, jwst, kids, legacy, ps1, roman, rubin, sdss

__all__ = ["TILE_SURVEYS", "des", "euclid", "hsc", "hst", "jwst", "kids", "legacy", "ps1", "roman", "rubin", "sdss"]
