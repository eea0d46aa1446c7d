"""HST drizzled images (``drz``, ``drc``): SCI and WHT, electrons or electrons per second, with PHOTFLAM and PHOTPLAM
(ACS data handbook, sec. 5.1; drizzlepac, Hubble Advanced Products).

Weights are exposure times or inverse variances, as the run chose. The names of multi-visit mosaics' skycells have the band.
"""

from gampen_ray.data.tiles.preset import Plane, TileSurvey, register_tiles

register_tiles(
    TileSurvey(
        name="hst",
        about="HST drizzled images and Hubble Advanced Products",
        image=Plane(
            files=(
                "hst_{tile:skycell-[a-z0-9]+}_*_{band:f[0-9]+[a-z0-9]+}_*dr*.fits*",
                "{tile}_dr*.fits*",
            ),
            hdus=("SCI", "1"),
        ),
        noise=Plane(hdus=("WHT",)),
        noise_kind="relative",
        overlap="visits overlap: the image in which the source is farthest from an edge",
        unverified=("unit of WHT: it is not used as noise",),
    )
)
