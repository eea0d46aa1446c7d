"""Kilo-Degree Survey: sci, wei and msk files of a tile and band (kids.strw.leidenuniv.nl, DR4 and DR5, "format").

Pixels are fractions of the flux of magnitude 0. Mask: Pulecenella's flags (DR1, "masking"); halos around stars cover much of
the survey and do not spoil pixels. Tiles overlap, and only the multi-band catalogue is free of repetitions.
"""

from gampen_ray.data.tiles.preset import Plane, TileSurvey, register_tiles

_STEM = "KiDS_DR{version:[0-9.]+}_{tile:[0-9.]+_-?[0-9.]+}_{band:[a-z][0-9]?}_"
_FLAGS = ("READOUT_SPIKE", "SATURATION", "SPIKE", "HALO_1", "HALO_2", "HALO_3", "BAD", "MANUAL")

register_tiles(
    TileSurvey(
        name="kids",
        about="KiDS DR3 to DR5, coadds of a tile",
        image=Plane(files=(f"{_STEM}sci.fits*",)),
        noise=Plane(files=(f"{_STEM}wei.fits*",)),
        noise_kind="relative",
        mask=Plane(files=(f"{_STEM}msk.fits*",)),
        planes={name: bit for bit, name in enumerate(_FLAGS)},
        bad_planes=("SATURATION", "BAD", "MANUAL"),
        zero_point_mag=0.0,
        unverified=("zero point 0 of every coadd, but real tiles agree", "unit of the weights: they are not used as noise"),
    )
)
