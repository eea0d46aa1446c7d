"""Euclid MER mosaics: background-subtracted images of a tile and band, 0.1 arcsec, 19,200 x 19,200 pixels with a margin of
1 arcmin (IRSA's notebooks of Q1; mwalmsley/bulk-euclid-cutouts).

Several processings of a tile coexist: of each product the newest, by the time in its name, is taken. External bands have the
names of their instruments (``DES-G``). Stamps of the PSF are in the tile's CATALOG-PSF, and not read.
"""

from gampen_ray.data.tiles.preset import Plane, TileSurvey, register_tiles

_END = "_TILE{tile:[0-9]+}-*_{version:[0-9]+T[0-9.]+Z_[0-9.]+}.fits*"

register_tiles(
    TileSurvey(
        name="euclid",
        about="Euclid Q1 and later, MER mosaics",
        image=Plane(files=("EUC_MER_BGSUB-MOSAIC-{band}" + _END,)),
        noise=Plane(files=("EUC_MER_MOSAIC-{band}-RMS" + _END,)),
        noise_kind="error",
        mask=Plane(files=("EUC_MER_MOSAIC-{band}-FLAG" + _END,)),
        planes={"INVALID": 0},
        bad_planes=("INVALID",),
        overlap="a tile's margin is its neighbour's core: the tile in which the source is farthest from an edge",
        unverified=("bit 0 of FLAG as pixels without a value; other bits are not used",),
    )
)
