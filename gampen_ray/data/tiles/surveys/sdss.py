"""SDSS corrected frames: 2,048 x 1,489 pixels of a field and band, sky subtracted, in nanomaggies (data model, "frame").

Masks (``fpM``) are tables of runs of pixels, and PSFs (``psField``) sets of basis images: neither is read.
"""

from gampen_ray.data.tiles.preset import Plane, TileSurvey, register_tiles

register_tiles(
    TileSurvey(
        name="sdss",
        about="SDSS DR8 and later, frames",
        image=Plane(files=("frame-{band:[ugriz]}-{tile:[0-9]+-[0-9]-[0-9]+}.fits*",)),
        zero_point_mag=22.5,
        primary_columns=("primary", "mode_primary"),
        overlap="fields overlap by 128 rows: the one in which the source is farthest from an edge",
    )
)
