"""JWST resampled mosaics (``i2d``): SCI, ERR and others by EXTNAME, in any order (jwst, "science products").

MJy/sr with the area of a pixel in PIXAR_SR. The band is in the header, as a narrow filter may be in the wheel of the pupil.
"""

from gampen_ray.data.tiles.preset import Plane, TileSurvey, register_tiles

register_tiles(
    TileSurvey(
        name="jwst",
        about="JWST stage 3 imaging, i2d mosaics",
        image=Plane(files=("{tile:jw[0-9]+-[a-z0-9-]+_t[0-9]+_[a-z]+}_*_i2d.fits*", "{tile}_i2d.fits*"), hdus=("SCI",)),
        noise=Plane(hdus=("ERR",)),
        noise_kind="error",
        overlap="mosaics are of a field each: the one in which the source is farthest from an edge",
    )
)
