"""What headers say, held against what is stated: for all files before the work, and for each file."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits

from gampen_ray.commands.ingest import ingest
from gampen_ray.config import ReaderConfig, TaskResources
from gampen_ray.config.base import build
from gampen_ray.data import ingest_plan, packing, shards
from gampen_ray.data.sources import open_source
from gampen_ray.errors import UserError
from gampen_ray.model.images import ImagePreprocessing
from tests.data.test_headers import _wcs
from tests.data.test_ingest_plan import _config, _ingested

SIDE = 16


def _write(path: Path, flux: float = 100.0, seed: int = 0, side: int = SIDE, **cards: Any) -> None:
    """Write a round source of a total flux, with noise, in the middle of an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.indices((side, side)) - (side - 1) / 2
    source = np.exp(-(x**2 + y**2) / 8)
    noise = np.random.default_rng(seed).normal(0, 1e-5 * flux, (side, side))
    fits.PrimaryHDU((flux * source / source.sum() + noise).astype(np.float32), fits.Header(cards)).writeto(path)


def _folder(tmp_path: Path, *cards: dict[str, Any]) -> Any:
    for index, some in enumerate(cards):
        _write(tmp_path / "images" / f"f{index}.fits", seed=index, **some)
    return _config(tmp_path, cutout_size=0, reader=ReaderConfig())


def test_what_is_left_out_comes_from_the_headers(tmp_path: Path) -> None:
    config = _folder(tmp_path, {"MAGZERO": 25.0, "FILTER": "HSC-I"} | _wcs(0.168))
    info = ingest_plan.plan(config)[1]
    assert (info.zero_point_mag, info.bands, info.cutout_size) == (25.0, ("i",), SIDE)
    assert info.pixel_scale_arcsec == pytest.approx(0.168)
    ignored = dataclasses.replace(config, reader=ReaderConfig(headers="ignore"))
    info = ingest_plan.plan(ignored)[1]
    assert (info.zero_point_mag, info.bands, info.pixel_scale_arcsec) == (None, ("unknown",), None)


@pytest.mark.parametrize(
    ("stated", "cards", "message"),
    [
        (
            {"zero_point_mag": 27.0},
            {"BUNIT": "nJy", "MAGZERO": 31.4},
            r"reader\.zero_point_mag: 27 is given, but the header of .*f\d\.fits says 31\.4",
        ),
        (
            {"pixel_scale_arcsec": 0.2},
            _wcs(0.262),
            r"reader\.pixel_scale_arcsec: 0\.2 is given, but the header of .* says 0\.262",
        ),
        ({"bands": ("r",)}, {"FILTER": "HSC-G"}, r"reader\.bands: r is given, but the header of .* says g"),
    ],
)
def test_a_contradiction_is_refused_unless_headers_are_ignored(
    stated: dict[str, Any], cards: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = dataclasses.replace(_folder(tmp_path, cards, cards, {}), reader=ReaderConfig(**stated))
    with pytest.raises(UserError, match=message):
        ingest_plan.plan(config)
    ignored = dataclasses.replace(config, reader=ReaderConfig(headers="ignore", **stated))
    _, good, bad = _ingested(ignored)
    assert (len(good), bad) == (3, [])


@pytest.mark.parametrize(
    ("stated", "cards"),
    [
        ({"zero_point_mag": 31.4}, {"BUNIT": "nJy"}),
        ({"zero_point_mag": 0.0}, {"MAGZERO": 0.0}),
        ({"pixel_scale_arcsec": 0.2}, _wcs(0.2015)),
        ({"bands": ("i",)}, {"FILTER": "HSC-I2"}),
        ({"bands": ("mine",)}, {"FILTER": "HSC-I2"}),
    ],
)
def test_what_agrees_is_accepted(stated: dict[str, Any], cards: dict[str, Any], tmp_path: Path) -> None:
    config = dataclasses.replace(_folder(tmp_path, cards), reader=ReaderConfig(**stated))
    info = ingest_plan.plan(config)[1]
    assert {name: getattr(info, name) for name in stated} == stated
    assert not _ingested(config)[2]


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("uJy", r"flux_unit: uJy has the zero point 23\.900, but that of the images is 30; leave it out, or correct one"),
        ("parsec", r"flux_unit: parsec is no unit of a flux; give that of the pixels, such as nJy, or leave it out"),
    ],
)
def test_a_unit_that_the_pixels_cannot_have_is_refused(unit: str, message: str, tmp_path: Path) -> None:
    config = _folder(tmp_path, {"MAGZERO": 30.0})
    assert ingest_plan.plan(dataclasses.replace(config, flux_unit="3.631 nJy"))[1].flux_unit == "3.631 nJy"
    with pytest.raises(UserError, match=message):
        ingest_plan.plan(dataclasses.replace(config, flux_unit=unit))


def test_files_of_several_zero_points_are_converted_to_one(tmp_path: Path) -> None:
    config = _folder(tmp_path, {"MAGZERO": 25.0}, {"MAGZERO": 27.5}, {"FLUXMAG0": 10**10.8})
    assert ingest_plan.plan(config)[1].zero_point_mag == pytest.approx(27.0)
    _, good, _ = _ingested(config)
    fluxes = [float(good[f"f{index}"]["image"].sum()) for index in range(3)]
    assert fluxes == pytest.approx([100 * 10**0.8, 100 * 10**-0.2, 100], rel=1e-3)


def test_a_file_that_differs_from_the_others_has_a_reason(tmp_path: Path) -> None:
    usual = {"MAGZERO": 27.0, "FILTER": "r"} | _wcs(0.2)
    others = [
        usual | {"MAGZERO": 25.0},
        usual | _wcs(0.3),
        usual | {"FILTER": "g"},
        {"FILTER": "r"} | _wcs(0.2),
        {"MAGZERO": 27.0},
    ]
    config = _folder(tmp_path, *others, *[usual] * 6)
    _, good, bad = _ingested(config)
    # A zero point of its own is converted where none is stated.
    assert sorted(good) == ["f0", "f10", *(f"f{index}" for index in range(5, 10))]
    assert dict(bad) == {
        "f1": "the header gives the pixel scale 0.3, but other files 0.2; reader.headers 'ignore' takes what is stated",
        "f2": "the header gives the band g, not r; reader.headers 'ignore' takes what is stated",
        "f3": "the header gives no zero point, unlike those of other files; state reader.zero_point_mag",
        "f4": "the header gives no pixel scale, unlike those of other files; state reader.pixel_scale_arcsec",
    }
    stated = dataclasses.replace(config, reader=ReaderConfig(zero_point_mag=27.0), output=str(tmp_path / "stated"))
    reason = "the header gives the zero point 25, but reader.zero_point_mag 27; reader.headers 'ignore' takes what is stated"
    assert dict(_ingested(stated)[2])["f0"] == reason


# A model's images: those that the reference galaxy was simulated for.
IMAGES = ImagePreprocessing(
    bands=("r",), size=64, softening=1.0, channels=1, zero_point_mag=30.0, pixel_scale_arcsec=0.2, sky="none"
)


@pytest.mark.parametrize(
    ("cards", "flux", "scale"),
    [
        ({}, 25_119.0, 0.2),
        (_wcs(0.262), 25_119.0, 0.262),
        ({"BUNIT": "nJy", "MAGZERO": 31.4} | _wcs(0.2), 25_119.0 * 10 ** (0.4 * 1.4), 0.2),
        ({"BUNIT": "nanomaggies"} | _wcs(0.1), 25_119.0 * 10 ** (-0.4 * 7.5), 0.1),
    ],
)
def test_inference_converts_by_the_headers(cards: dict[str, Any], flux: float, scale: float, tmp_path: Path) -> None:
    """The reference galaxy (flux 25,119, 0.806 arcsec) has its flux and radius in the model's units."""
    side = round(160 * 0.2 / scale)
    y, x = (np.indices((side, side)) - (side - 1) / 2) * scale
    sigma = 0.806 / np.sqrt(2 * np.log(2))
    pixels = flux * scale**2 / (2 * np.pi * sigma**2) * np.exp(-(x**2 + y**2) / (2 * sigma**2))
    pixels += np.random.default_rng(0).normal(0, 1e-6 * flux, pixels.shape)
    fits.PrimaryHDU(pixels.astype(np.float32), fits.Header(cards)).writeto(tmp_path / "a.fits")
    source, units = open_source(str(tmp_path), split="", bands=("r",), size=IMAGES.size, pixel_scale_arcsec=0.2)
    ((rows, _),) = source.read(units[0], 8)
    given = {name: getattr(source.info, name) for name in ("zero_point_mag", "pixel_scale_arcsec")}
    matched_HW = IMAGES.match(torch.from_numpy(rows["image"]), **given).image_NCHW[0, 0].numpy()
    # Enough pixels were read to fill the network's input.
    assert matched_HW.shape == (64, 64)
    assert matched_HW.sum() == pytest.approx(25_119, rel=2e-3)
    y, x = (np.indices((64, 64)) - 31.5) * 0.2
    inside = np.hypot(x, y) < 0.806
    assert matched_HW[inside].sum() / matched_HW.sum() == pytest.approx(0.5, abs=0.02)


def test_inference_names_the_bundle_where_the_band_is_another(tmp_path: Path) -> None:
    _folder(tmp_path, {"FILTER": "HSC-G"})
    with pytest.raises(UserError, match=r"reader\.bands: r is that of the bundle, but the header of .*f0\.fits says g"):
        open_source(str(tmp_path / "images"), split="", bands=("r",), size=SIDE)


def _catalog(tmp_path: Path, header: str, rows: list[str], **changes: Any) -> Any:
    (tmp_path / "c.csv").write_text("\n".join([header, *rows]) + "\n")
    return _config(tmp_path, cutout_size=0, catalog=str(tmp_path / "c.csv"), reader=ReaderConfig(), **changes)


POINTS = [(150.0 + 0.01 * index, 2.0) for index in range(10)]


def _images_at(tmp_path: Path) -> None:
    for index, (ra, dec) in enumerate(POINTS):
        _write(tmp_path / "images" / f"f{index}.fits", **_wcs(0.2, CRVAL1=ra, CRVAL2=dec, CRPIX1=8.5, CRPIX2=8.5))


def test_positions_that_are_not_the_images_are_refused_beyond_a_share(tmp_path: Path) -> None:
    _images_at(tmp_path)
    good = [f"{index},f{index}.fits,{ra},{dec}" for index, (ra, dec) in enumerate(POINTS)]
    config = _catalog(tmp_path, "object_id,file_name,ra,dec", good)
    assert _ingested(config)[0]["all"] == 10
    shifted = [f"{index},f{index}.fits,{ra},{dec + 60 / 3600}" for index, (ra, dec) in enumerate(POINTS)]
    message = r"catalog: 10 of 10 images looked at show another position than their rows, in the median by 60 arcsec"
    with pytest.raises(UserError, match=message):
        ingest_plan.plan(_catalog(tmp_path, "object_id,file_name,ra,dec", shifted))
    backwards = [f"{index},f{9 - index}.fits,{ra},{dec}" for index, (ra, dec) in enumerate(POINTS)]
    with pytest.raises(UserError, match=r"10 of 10 images looked at .* check file_column and the positions"):
        ingest_plan.plan(_catalog(tmp_path, "object_id,file_name,ra,dec", backwards))
    # Below the share they are counted.
    config = _catalog(tmp_path, "object_id,file_name,ra,dec", [*good[:9], shifted[9]])
    rows, info = ingest_plan.plan(config)
    read = packing.read_rows(rows, config.reader, info)
    assert ("".join(read.reasons), read.remarks["misplaced"]) == ("", 1)


def test_right_ascensions_in_hours_are_recognised_by_the_images(tmp_path: Path) -> None:
    _images_at(tmp_path)
    rows = [f"{index},f{index}.fits,{ra / 15:.9f},{dec}" for index, (ra, dec) in enumerate(POINTS)]
    config = _catalog(tmp_path, "object_id,file_name,ra,dec", rows)
    with pytest.raises(UserError, match="as hours the right ascensions fit: give position_unit 'hour'"):
        ingest_plan.plan(config)
    assert _ingested(dataclasses.replace(config, position_unit="hour"))[1][3]["ra"] == pytest.approx(150.03)
    text = ["0,f0.fits,10:00:00,+02:00:00", "1,f1.fits,400,2.0"]
    _, good, bad = _ingested(_catalog(tmp_path, "object_id,file_name,ra,dec", text, output=str(tmp_path / "t")))
    assert (good[0]["ra"], good[0]["dec"]) == (pytest.approx(150.0), 2.0)
    assert bad == [("1", "ra is 400 deg: not within -180 to 360")]


def test_one_image_is_not_that_of_several_galaxies(tmp_path: Path) -> None:
    _write(tmp_path / "images" / "frame.fits")
    _write(tmp_path / "images" / "own.fits")
    rows = [f"{index},frame.fits" for index in range(19)]
    _, good, bad = _ingested(_catalog(tmp_path, "object_id,file_name", [*rows, "20,own.fits"]))
    assert list(good) == [20]
    assert {reason for _, reason in bad} == {"several rows have the same file: 19 have this one; cut a cutout for each galaxy"}


def test_a_tile_is_no_cutout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gampen_ray.data.agreement._MAX_SIDE", 200)
    _write(tmp_path / "images" / "tile.fits", side=201)
    _write(tmp_path / "images" / "own.fits")
    _, good, bad = _ingested(dataclasses.replace(_folder(tmp_path), cutout_size=SIDE))
    assert list(good) == ["own"]
    assert "the image has 201 x 201 pixels: a field of many galaxies" in bad[0][1]


def test_the_size_is_that_of_the_files_and_a_crop_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = _folder(tmp_path)
    for index, side in enumerate((20, 30, 30, 30, 41)):
        _write(tmp_path / "images" / f"s{index}.fits", seed=index, side=side)
    with caplog.at_level(logging.INFO):
        rows, info = ingest_plan.plan(config)
    assert info.cutout_size == 30
    assert "30 pixels, the median of the files' shorter sides, which have 20 to 41; the longest side has 41" in caplog.text
    read = packing.read_rows(rows, config.reader, info)
    assert read.remarks == {"cropped": 1, "padded": 1, "filled": 0, "misplaced": 0}
    assert read.columns["side_pixels"].tolist() == [20, 30, 30, 30, 30]


def test_bands_are_filled_and_refused_one_by_one(tmp_path: Path) -> None:
    reader = ReaderConfig(bands=("g", "r"), nan_policy="median")
    config = dataclasses.replace(_folder(tmp_path), reader=reader)
    cube = (
        np.random.default_rng(0).normal(0, 1, (2, SIDE, SIDE)).astype(np.float32)
        + np.array([0.5, 200], np.float32)[:, None, None]
    )
    cube[0, 3, 4] = np.nan
    (tmp_path / "images").mkdir()
    fits.PrimaryHDU(cube).writeto(tmp_path / "images" / "a.fits")
    cube[1] = 0
    fits.PrimaryHDU(cube).writeto(tmp_path / "images" / "b.fits")
    cube[1] = np.nan
    fits.PrimaryHDU(cube).writeto(tmp_path / "images" / "c.fits")
    _, good, bad = _ingested(config)
    # Not a median over both bands.
    assert good["a"]["image"][0, 3, 4] == np.nanmedian(cube[0])
    reasons = dict(bad)
    assert reasons["b"] == "all pixels of band r have the same value 0"
    assert reasons["c"].startswith("all pixels of band r are without a value: NaN")
    quarantined = dataclasses.replace(config, reader=ReaderConfig(bands=("g", "r")), output=str(tmp_path / "q"))
    assert dict(_ingested(quarantined)[2])["a"].startswith("1 of 512 pixels of band g are without a value: NaN")


def test_each_band_has_its_own_policy_for_pixels_without_a_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader = ReaderConfig(bands=("g", "r"), nan_policy="r=median,g=zero")
    config = dataclasses.replace(_folder(tmp_path), reader=reader, resources=TaskResources(engine="local"))
    cube = np.random.default_rng(0).normal(5, 1, (2, SIDE, SIDE)).astype(np.float32)
    cube[1, 3, 4] = np.nan
    (tmp_path / "images").mkdir()
    fits.PrimaryHDU(cube).writeto(tmp_path / "images" / "a.fits")
    cube[0, 5, 6] = np.nan
    fits.PrimaryHDU(cube).writeto(tmp_path / "images" / "b.fits")
    ingest(config)
    pixels_NCHW = shards.images(shards.read_shard(shards.part_uri(config.output, shards.ALL, 0)))
    assert (pixels_NCHW[:, 1, 3, 4] == np.nanmedian(cube[1])).all()
    assert pixels_NCHW[1, 0, 5, 6] == 0
    assert "2 of 2 cutouts have pixels without a value, which were filled as reader.nan_policy says: g 1, r 2" in caplog.text
    one_kept = ReaderConfig(bands=("g", "r"), nan_policy="r=median,g=quarantine")
    _, good, bad = _ingested(dataclasses.replace(config, reader=one_kept, output=str(tmp_path / "q")))
    assert list(good) == ["a"]
    assert bad[0][1].startswith("1 of 512 pixels of band g are without a value")
    other = ReaderConfig(bands=("g", "r"), nan_policy="g=zero,i=median")
    with pytest.raises(
        UserError, match=r"^reader\.nan_policy: is 'g=zero,i=median', but the bands are g, r; give one for each$"
    ):
        ingest_plan.plan(dataclasses.replace(config, reader=other))


@pytest.mark.parametrize("text", ["zeros", "zero,median", "g=zero,g=median", "g=zero,median", ""])
def test_a_policy_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"nan_policy is .*; give one of quarantine, zero, median, interpolate, or one"):
        build(ReaderConfig, {"nan_policy": text})
