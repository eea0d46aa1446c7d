"""Roman's Level 3 mosaics of skycells, in ASDF files: below ``roman`` the arrays data, err and weight, float32 in MJy/sr
(spacetelescope/rad, ``wfi_mosaic`` 1.0.0 to 2.1.0), compressed with lz4 (spacetelescope/roman_datamodels, ``DataModel.save``).

Names are those of romancal's "multiband associations". The projection is that of meta.wcsinfo, whose x_ref and y_ref count from
0 and whose pixel_scale_ref is in degrees (romancal, ``_l3_wcs.py``, with its test's numbers; ``l3_wcsinfo`` 2.0.0); centre and
s_region are compared. The area of a pixel is that at the image's centre. There is no mask: a pixel of weight 0 has no value.
"""

from gampen_ray.data.tiles.preset import Plane, TileSurvey, register_tiles

register_tiles(
    TileSurvey(
        name="roman",
        about="Roman WFI Level 3, coadd mosaics of skycells",
        # A tile is a skycell in a programme, release and kind of coadd: r00001_p_full_270p65x48y69.
        image=Plane(files=("{tile:r[0-9][a-z0-9_]*}_{band:f[0-9]+}_coadd.asdf",), hdus=("data",)),
        noise=Plane(hdus=("err",)),
        noise_kind="error",
        mask=Plane(hdus=("weight",)),
        bad_planes=(),
        overlap="skycells and mosaics of one visit and of all overlap: the one in which the source is farthest from an edge",
        unverified=(
            "no real mosaic was read: schemas and pipeline of August 2026, which may change",
            "unit of mosaics before wfi_mosaic 1.0.0 where no quantity states it",
            "weight 0 where nothing was exposed; data and err are NaN there by the pipeline's default",
        ),
    )
)
