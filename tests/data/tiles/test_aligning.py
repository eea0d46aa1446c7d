"""Bands on grids of their own: a simulated source keeps flux and place, masks and noise travel along, planes join in order."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from gampen_ray.data.resampling import resampled
from gampen_ray.data.tiles.aligning import AlignedTile
from gampen_ray.data.tiles.cutting import MASKED, Cuts, Tile
from gampen_ray.data.tiles.footprint import Footprint
from gampen_ray.data.tiles.planning import Planning, plan_locally
from gampen_ray.data.tiles.preset import Plane, TileSurvey
from gampen_ray.data.tiles.reading import RESAMPLED, TileReader
from gampen_ray.data.tiles.units import units
from tests.data.tiles.test_surveys import made_footprint

SIZE, WIDTH_ARCSEC, NOISE = 33, 0.4, 0.02
"""Side of the cutouts, pixels; standard deviation of a source, arcsec; that of a pixel's noise, in the planes alone."""
RA, DEC = 359.9999, -1.2
OFFSETS_ARCSEC = np.array([[0.0, 0.0], [7.1, -6.3], [-5.55, 4.87]])
FLUX_gr = np.array([[30.0, 50.0], [100.0, 10.0], [20.0, 20.0]])
SURVEY = TileSurvey(
    name="two-grids",
    image=Plane(files=("{tile}_{band}.fits",), hdus=("SCI",)),
    noise=Plane(hdus=("ERR",)),
    noise_kind="error",
    mask=Plane(hdus=("MASK",)),
    zero_point_mag=27.0,
)
GRIDS = {
    "a fraction of a pixel": (0.2, 0.0, (0.37, -0.22)),
    "turned": (0.2, 30.0, (0.0, 0.0)),
    "finer": (0.11, 0.0, (0.3, 0.1)),
    "coarser": (0.31, 0.0, (-0.4, 0.2)),
    "finer, turned and shifted": (0.13, 30.0, (0.4, 0.3)),
    "coarser, turned and shifted": (0.29, 30.0, (-0.1, 0.45)),
}
"""The second band's grid: pixel scale, arcsec; angle, deg; shift, pixels."""


def cards(side: int, scale_arcsec: float, angle_deg: float = 0.0, shift: tuple[float, float] = (0, 0)) -> fits.Header:
    cos, sin = (scale_arcsec / 3600 * part(math.radians(angle_deg)) for part in (math.cos, math.sin))
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": RA, "CRVAL2": DEC})
    header.update(dict(zip(("CD1_1", "CD1_2", "CD2_1", "CD2_2"), (-cos, sin, sin, cos), strict=True)))
    header.update({f"CRPIX{axis + 1}": (side + 1) / 2 + by for axis, by in enumerate(shift)})
    return header


def positions() -> tuple[np.ndarray, np.ndarray]:
    dec_N = DEC + OFFSETS_ARCSEC[:, 1] / 3600
    return (RA + OFFSETS_ARCSEC[:, 0] / 3600 / np.cos(np.radians(dec_N))) % 360, dec_N


def write_tile(folder: Path, bands: dict[str, fits.Header], side: int = 240, bad: Any = ()) -> Footprint:
    """Write a tile of three sources in some bands, of which the last has pixels without a value."""
    folder.mkdir(exist_ok=True)
    for place, (band, header) in enumerate(bands.items()):
        x_N, y_N = WCS(header).all_world2pix(*positions(), 0)
        sigma = WIDTH_ARCSEC / abs(np.linalg.det(WCS(header).pixel_scale_matrix)) ** 0.5 / 3600
        y_HW, x_HW = np.mgrid[:side, :side]
        image_HW = np.zeros((side, side))
        for x, y, flux in zip(x_N, y_N, FLUX_gr[:, place % 2], strict=True):
            image_HW += flux / (2 * math.pi * sigma**2) * np.exp(-((x_HW - x) ** 2 + (y_HW - y) ** 2) / (2 * sigma**2))
        mask_HW = np.zeros((side, side), np.int16)
        if band == list(bands)[-1]:
            for row, column in bad:
                # A saturated pixel spoils no other if it is masked.
                mask_HW[row, column], image_HW[row, column] = 1, 1e6
        planes = {"SCI": image_HW.astype(np.float32), "ERR": np.full((side, side), NOISE, np.float32), "MASK": mask_HW}
        hdus = [fits.ImageHDU(pixels_HW, header, name=name) for name, pixels_HW in planes.items()]
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(folder / f"t_{band}.fits")
    return made_footprint(folder, folder.with_name("footprint"), SURVEY)


def cut(footprint: Footprint, bands: tuple[str, ...] = ("g", "r"), kind: Any = AlignedTile, **options: int) -> Cuts:
    selection = footprint.select(bands, align=True)
    assert selection.fault(0) == ""
    with kind(selection.files(0), footprint.root, 27.0) as opened:
        return Cuts.joined(list(opened.cut(*selection.grid(0).pixels(*positions()), SIZE, **options)))


@pytest.mark.parametrize("name", GRIDS)
def test_a_source_keeps_its_flux_and_its_place(name: str, tmp_path: Path) -> None:
    footprint = write_tile(tmp_path / "tiles", {"g": cards(240, 0.2), "r": cards(240, *GRIDS[name])})
    assert footprint.select(("g", "r")).fault(0).startswith("bands on different grids: tile t has 240 x 240 pixels of 0.2 arcs")
    cuts, alone = cut(footprint), cut(footprint, ("g",), Tile)
    np.testing.assert_array_equal(cuts.image_NCHW[:, :1], alone.image_NCHW)
    assert list(cuts.reason_N) == [""] * 3
    assert not cuts.masked_share_N.any()
    assert not cuts.off_tile_share_N.any()
    image_NCHW = cuts.image_NCHW.astype(np.float64)
    np.testing.assert_allclose(image_NCHW.sum(axis=(2, 3)), FLUX_gr, rtol=0.01)
    place_S = np.arange(SIZE) - (SIZE - 1) / 2
    for axis, offset_N in ((2, cuts.dx_N), (1, cuts.dy_N)):
        centroid_N = (image_NCHW[:, 1].sum(axis=3 - axis) * place_S).sum(axis=1) / image_NCHW[:, 1].sum(axis=(1, 2))
        np.testing.assert_allclose(centroid_N, offset_N, atol=0.05)
    # The shape too: the first band has the same profile. The larger of two pixels limits what is left of it.
    ratio_N = (FLUX_gr[:, 1] / FLUX_gr[:, 0])[:, None, None]
    peak_N = image_NCHW[:, 1].max(axis=(1, 2))
    assert (np.abs(image_NCHW[:, 1] - ratio_N * image_NCHW[:, 0]).max(axis=(1, 2)) < 0.02 * peak_N).all()
    # That of independent pixels of the new size.
    np.testing.assert_allclose(cuts.sky_noise_NC, [[NOISE, NOISE * 0.2 / GRIDS[name][0]]] * 3, rtol=1e-3)


def test_grids_that_differ_by_whole_pixels_give_the_same_pixels(tmp_path: Path) -> None:
    footprint = write_tile(tmp_path / "tiles", {"g": cards(240, 0.2), "r": cards(240, 0.2, 0.0, (3, -2))}, bad=[(100, 100)])
    direct, aligned = cut(footprint, ("r",), Tile), cut(footprint)
    np.testing.assert_allclose(aligned.image_NCHW[:, 1:], direct.image_NCHW, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(aligned.masked_share_N, direct.masked_share_N / 2)
    assert np.isnan(direct.image_NCHW).sum() == 1


def test_bands_keep_their_order_whatever_their_grids_and_batches(tmp_path: Path) -> None:
    bands = {band: cards(240, 0.2, 10.0 * (band in "ri")) for band in "grzi"}
    footprint = write_tile(tmp_path / "tiles", bands)
    whole = cut(footprint, ("g", "r", "z", "i"))
    np.testing.assert_array_equal(whole.image_NCHW[:, [0, 2]], cut(footprint, ("g", "z"), Tile).image_NCHW)
    np.testing.assert_array_equal(whole.image_NCHW[:, 1], whole.image_NCHW[:, 3])
    np.testing.assert_array_equal(cut(footprint, ("g", "r", "z", "i"), num_rows=1).image_NCHW, whole.image_NCHW)


@pytest.mark.parametrize("name", ["turned", "finer, turned and shifted"])
def test_a_pixel_without_a_value_takes_all_to_which_it_contributes_and_no_other(name: str, tmp_path: Path) -> None:
    header = cards(240, *GRIDS[name])
    x_N, y_N = WCS(header).all_world2pix(*positions(), 0)
    # 9 pixels from the first source, and on the second.
    bad = [(round(y_N[0]) + 9, round(x_N[0])), (round(y_N[1]), round(x_N[1]))]
    cuts = cut(write_tile(tmp_path / "tiles", {"g": cards(240, 0.2), "r": header}, bad=bad))
    assert list(cuts.reason_N) == ["", MASKED, ""]
    image_NCHW = cuts.image_NCHW
    lost_SS = np.isnan(image_NCHW[0, 1])
    # All within the kernel, 3 of the larger pixels to each side, along the second grid.
    area = (0.2 / GRIDS[name][0]) ** 2
    assert lost_SS.sum() == pytest.approx((6 * max(1, math.sqrt(area))) ** 2 / area, rel=0.2)
    assert cuts.masked_share_N[0] == pytest.approx(lost_SS.sum() / (2 * SIZE**2))
    assert np.nanmax(image_NCHW[0, 1]) < FLUX_gr[0, 1]
    assert not np.isnan(image_NCHW[2]).any()


def test_the_other_band_may_end_before_the_first(tmp_path: Path) -> None:
    # Of the second band, only the pixels from the first source's column on are there.
    header = cards(240, 0.2, 0.0, (0.25, 0.0))
    header["CRPIX1"] -= 116
    cuts = cut(write_tile(tmp_path / "tiles", {"g": cards(240, 0.2), "r": header}))
    assert cuts.off_tile_share_N[0] == pytest.approx((12 / SIZE) / 2, abs=0.5 / SIZE)
    # What lacks neighbours within the kernel, too.
    assert cuts.masked_share_N[0] == pytest.approx((3 / SIZE) / 2, abs=0.5 / SIZE)
    # East is left: the second source is off that band's tile.
    assert list(cuts.reason_N) == ["", MASKED, ""]
    apart = cards(240, 0.2)
    apart["CRVAL1"] -= 0.5
    (tmp_path / "apart").mkdir()
    footprint = write_tile(tmp_path / "apart" / "tiles", {"g": cards(240, 0.2), "r": apart})
    assert footprint.select(("g", "r"), align=True).fault(0).startswith("bands apart on the sky: tile t has")


def test_a_resampled_image_of_noise_keeps_that_of_a_sum() -> None:
    noise_HW = np.random.default_rng(0).normal(size=(160, 160)).astype(np.float32)
    angle = math.radians(30)
    matrix_22 = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    result_SS = resampled(noise_HW, matrix_22, np.array([79.3, 80.1]), 96)
    assert np.isfinite(result_SS).all()
    sums = result_SS.reshape(12, 8, 12, 8).sum(axis=(1, 3))
    assert sums.std() == pytest.approx(8, rel=0.15)
    assert 0.6 < result_SS.std() < 0.95


def test_rows_say_that_they_were_resampled_and_what_the_scale_is(tmp_path: Path) -> None:
    bands = {"g": cards(240, 0.2), "r": cards(240, 0.29, 30.0), "z": cards(240, 0.2)}
    uri = write_tile(tmp_path / "tiles", bands).uri
    ra_N, dec_N = positions()
    pq.write_table(pa.table({"object_id": np.arange(3), "ra": ra_N, "dec": dec_N}), tmp_path / "catalog.parquet")
    for chosen, align, expected in (
        (("r", "g"), True, [True] * 3),
        (("g", "z"), True, [False] * 3),
        (("g", "z"), False, [False] * 3),
    ):
        how: dict[str, Any] = {"footprint": uri, "bands": chosen, "size": SIZE, "align": align}
        planning = Planning(**how, output=str(tmp_path / "-".join((*chosen, str(align)))))
        plan_locally(str(tmp_path / "catalog.parquet"), planning)
        reader = TileReader(**how)
        assert reader.info().pixel_scale_arcsec == pytest.approx(0.29 if chosen[0] == "r" else 0.2)
        ((rows, _),) = reader.read(units(planning.output)[0], 8, {})
        assert list(rows["reason"]) == [""] * 3
        assert (rows[RESAMPLED].tolist()) == expected
