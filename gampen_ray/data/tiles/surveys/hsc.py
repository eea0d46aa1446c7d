"""HSC-SSP coadds: an afw exposure a patch and band (HSC-SSP data release site, "available data"; MMU, ``scripts/hsc``).

HDUs: an empty one, image, mask, variance. The flux of magnitude 0 is FLUXMAG0, nominally at 27.0. The PSF is in the archive
that the exposure's binary tables form, which only LSST's code reads; catalogues have its moments.
"""

from gampen_ray.data.tiles.preset import Plane, TileSurvey, register_tiles

register_tiles(
    TileSurvey(
        name="hsc",
        about="HSC-SSP PDR1 to PDR3, deepCoadd calexp patches",
        image=Plane(files=("calexp-{band}-{tract:[0-9]+}-{patch:[0-9]+,[0-9]+}.fits*",), hdus=("IMAGE", "1")),
        noise=Plane(hdus=("VARIANCE", "3")),
        mask=Plane(hdus=("MASK", "2")),
        bad_planes=("BAD", "SAT", "NO_DATA"),
        primary_columns=("isprimary", "detect_isprimary"),
        overlap="patches and tracts overlap: the one in which the source is farthest from an edge",
    )
)
