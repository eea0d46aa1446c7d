"""Dark Energy Survey DR2: tiles of SCI, MSK and WGT in one file, whose WCS may carry PV terms (TPV) (Abbott et al. 2021, ApJS
255, 20; the stacked frames of Euclid's data model for DES).

Images without a subtracted background (``_nobkg``) are taken only where there is no other.
"""

from gampen_ray.data.tiles.preset import Plane, TileSurvey, register_tiles

_STEM = "{tile:DES[0-9]+[+-][0-9]+}_r{version:[0-9]+p[0-9]+}_{band:[A-Za-z]+}"

register_tiles(
    TileSurvey(
        name="des",
        about="DES DR1 and DR2, coadd tiles",
        image=Plane(
            files=(f"{_STEM}.fits*", f"{_STEM}_nobkg.fits*"),
            hdus=("SCI",),
        ),
        noise=Plane(hdus=("WGT",)),
        noise_kind="inverse_variance",
        mask=Plane(hdus=("MSK",)),
        bad_planes=("any",),
        zero_point_mag=30.0,
        unverified=(
            "zero point 30 of every tile",
            "WGT as the inverse variance in the image's unit",
            "meaning of the bits of MSK: all count as bad",
        ),
    )
)
