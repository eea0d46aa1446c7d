"""DESI Legacy Imaging Surveys: bricks of 3,600 x 3,600 pixels (legacysurvey.org, DR9 and DR10, "files").

Nanomaggies, 0.262 arcsec. Bit 0 of the mask, NPRIMARY, is where another brick is primary: no fault of a pixel. Bits of the DR10
are those of DR9 and the i band's. In DR9 and DR10 bricks at Dec 32.375 deg lie in both ``north`` and ``south``, which are
different reductions: the tiles are to be of one of them.
"""

from gampen_ray.data.tiles.preset import Plane, TileSurvey, register_tiles

_NAMES = ("NPRIMARY", "BRIGHT", "SATUR_G", "SATUR_R", "SATUR_Z", "ALLMASK_G", "ALLMASK_R", "ALLMASK_Z", "WISEM1", "WISEM2")
_NAMES += ("BAILOUT", "MEDIUM", "GALAXY", "CLUSTER", "SATUR_I", "ALLMASK_I", "SUB_BLOB")

register_tiles(
    TileSurvey(
        name="legacy",
        about="DESI Legacy Imaging Surveys DR8 to DR10, bricks",
        image=Plane(files=("legacysurvey-{tile}-image-{band}.fits*",)),
        noise=Plane(files=("legacysurvey-{tile}-invvar-{band}.fits*",)),
        noise_kind="inverse_variance",
        mask=Plane(files=("legacysurvey-{tile}-maskbits.fits*",)),
        planes={name: bit for bit, name in enumerate(_NAMES)},
        bad_planes=("SATUR_G", "SATUR_R", "SATUR_Z", "SATUR_I", "BAILOUT"),
        psf=Plane(files=("legacysurvey-{tile}-psfsize-{band}.fits*",)),
        zero_point_mag=22.5,
        primary_columns=("brick_primary",),
        overlap="bricks overlap: the one in which the source is farthest from an edge, as a brick's primary area is central",
    )
)
