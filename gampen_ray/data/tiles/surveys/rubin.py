"""Rubin deep coadds of a patch and band, as afw exposures (DP1) and in the format of ``lsst.images`` (DP2): IMAGE, MASK and
VARIANCE by EXTNAME in both (lsst/images, ``_mask.py``; lsst/dp2_lsst_io, "new LSST image format").

nJy, 0.2 arcsec, 3,400 x 3,400 pixels; the variance is infinite where nothing was exposed. Planes are named by MP_ cards or by
MSKN cards. The linear WCS "A" of pixels in the tract is not used. PSFs, constant in a cell, are read by LSST's code alone.
"""

from gampen_ray.data.tiles.preset import Plane, TileSurvey, register_tiles

_PATCH = "{tract:[0-9]+}_{patch:[0-9]+}_{band:[ugrizy]}"

register_tiles(
    TileSurvey(
        name="rubin",
        about="Rubin DP1 and DP2, deep_coadd patches",
        image=Plane(files=(f"deep_coadd_{_PATCH}.fits*", f"deep_coadd_{_PATCH}_*.fits*"), hdus=("IMAGE",)),
        noise=Plane(hdus=("VARIANCE",)),
        mask=Plane(hdus=("MASK",)),
        bad_planes=("BAD", "SAT", "NO_DATA"),
        primary_columns=("detect_isprimary",),
        overlap="patches and tracts overlap: the one in which the source is farthest from an edge",
        unverified=("names of exported files, which a user's butler makes",),
    )
)
