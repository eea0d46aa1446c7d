"""Pan-STARRS1 3pi stacks: skycells, compressed to asinh magnitudes (BSOFTEN, BOFFSET), made linear as they are read
(IPP, "asinh compression"; outerspace.stsci.edu, "PS1 stack images" and "PS1 pixel flags").

The zero point is 25 + 2.5 log10(EXPTIME). Weights are variances. Projection cells overlap.
"""

from gampen_ray.data.tiles.preset import Plane, TileSurvey, register_tiles

_STEM = "rings.v3.skycell.{tile:[0-9]+[.][0-9]+}.stk.{band:[a-z]}.unconv"
_FLAGS = {"FLAT": 1, "DARK": 2, "BLANK": 3, "CTE": 4, "SAT": 5, "LOW": 6, "SUSPECT": 7, "CR": 8, "SPIKE": 9, "GHOST": 10}
_FLAGS |= {"DETECTOR": 0, "STREAK": 11, "STARCORE": 12, "CONV.BAD": 13, "CONV.POOR": 14}

register_tiles(
    TileSurvey(
        name="ps1",
        about="Pan-STARRS1 DR1 and DR2, stack skycells",
        image=Plane(files=(f"{_STEM}.fits*",)),
        noise=Plane(files=(f"{_STEM}.wt.fits*",)),
        mask=Plane(files=(f"{_STEM}.mask.fits*",)),
        planes=_FLAGS,
        bad_planes=("DETECTOR", "FLAT", "DARK", "BLANK", "SAT", "LOW", "CONV.BAD"),
        primary_columns=("primarydetection", "detectprimary"),
        unverified=("files .wt hold the variance in the square of the linear unit",),
    )
)
