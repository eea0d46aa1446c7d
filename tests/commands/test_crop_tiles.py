"""Crops from the tiles of a footprint: those of stored cutouts of the same pixels, under safe names; interruption."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from gampen_ray.commands import crop_tiles
from gampen_ray.commands.crop import CropConfig, crop
from gampen_ray.commands.crop_tiles import file_name
from gampen_ray.config import ActorResources, ReaderConfig
from gampen_ray.data.tiles import surveys
from gampen_ray.data.tiles.cutting import first_pixels
from gampen_ray.errors import UserError
from gampen_ray.inference.flags import Flag
from tests.data.tiles.layouts import LAYOUTS, Sky, tile_cards, write_sky
from tests.data.tiles.test_aligning import cards, positions, write_tile
from tests.data.tiles.test_surveys import made_footprint
from tests.networks import SIZE, bundle

IDS = ["../up", "/etc/passwd", ".hidden", "a/b", "a%2Fb", "Ä name", "x" * 251, "NGC 1+2"]
"""Identifiers of sources in the middle."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sky]:
    root = tmp_path_factory.mktemp("inputs")
    sky = write_sky(root / "tiles", LAYOUTS["legacy"])
    made_footprint(root / "tiles", root / "footprint", surveys.TILE_SURVEYS["legacy"])
    bundle().save(str(root / "model"))
    ids = [f"s{i}" for i in range(len(sky.ra_N))] + ["nowhere"]
    middle = len(sky.ra_N) // 2
    ids[middle : middle + len(IDS)] = IDS
    columns = {"object_id": ids, "ra": np.append(sky.ra_N, 10), "dec": np.append(sky.dec_N, 10)}
    pq.write_table(pa.table(columns), root / "catalog.parquet")
    return root, sky


def config(root: Path, output: Path, **fields: Any) -> CropConfig:
    uris = {"bundle": str(root / "model"), "images": str(root / "footprint"), "catalog": str(root / "catalog.parquet")}
    usual = {"resources": ActorResources(engine="local"), "reader": ReaderConfig(nan_policy="zero")}
    return CropConfig(**{**uris, "output": str(output), **usual, **fields})


@pytest.fixture(scope="module")
def whole(inputs: tuple[Path, Sky]) -> tuple[Path, dict[str, Any]]:
    """The output of an unbroken job, and its manifest."""
    root, _ = inputs
    return root / "whole", crop(config(root, root / "whole"))


def content(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for kind in ("crops", "quarantine")
        for path in sorted((output / kind).rglob("*"))
        if path.is_file()
    }


def test_crops_equal_those_of_stored_cutouts_of_the_same_pixels(
    inputs: tuple[Path, Sky], whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    (root, sky), (output, manifest) = inputs, whole
    crops = sorted((output / "crops").rglob("*.fits"))
    bad = pq.read_table(output / "quarantine").to_pylist()
    assert manifest["num_crops"] == len(crops) > 40
    assert manifest["num_quarantined"] == len(bad)
    assert len(crops) + len(bad) == len(sky.ra_N) + 1
    (tmp_path / "stored").mkdir()
    origins = {}
    for number, path in enumerate(crops):
        header = fits.getheader(path)
        wcs = sky.wcs[header["TILE"]]
        x, y = np.ravel(wcs.all_world2pix([[header["RA"], header["DEC"]]], 0))
        left, first = (int(first_pixels(np.array([at]), SIZE)[0]) for at in (x, y))
        image_HW, bad_HW = sky.pixels[header["TILE"], "r"]
        window = slice(first, first + SIZE), slice(left, left + SIZE)
        place = list(LAYOUTS["legacy"].tiles).index(header["TILE"])
        own = tile_cards(place, 359.9995, -1.2, LAYOUTS["legacy"].scale_arcsec)
        own["CRPIX1"], own["CRPIX2"], own["MAGZERO"] = own["CRPIX1"] - left, own["CRPIX2"] - first, 22.5
        fits.PrimaryHDU(np.where(bad_HW[window], np.nan, image_HW[window]), own).writeto(tmp_path / "stored" / f"{number}.fits")
        origins[number] = left, first
    stored = config(root, tmp_path / "out", images=str(tmp_path / "stored"), catalog="")
    assert crop(stored)["num_crops"] == len(crops)
    corners_42 = [[0, 0], [SIZE, 0], [0, SIZE], [3, 7]]
    filled = 0
    for number, path in enumerate(crops):
        with fits.open(path) as tile, fits.open(tmp_path / "out" / f"{number}.fits") as file:
            np.testing.assert_allclose(tile[0].data, file[0].data, rtol=1e-4, atol=1e-5 * np.abs(file[0].data).max())
            there, expected = tile[0].header, file[0].header
            np.testing.assert_allclose(
                WCS(there).wcs_pix2world(corners_42, 0), WCS(expected).wcs_pix2world(corners_42, 0), atol=1e-9
            )
            assert [there["GRB1"] - expected["GRB1"], there["GRB2"] - expected["GRB2"]] == pytest.approx(
                origins[number], abs=1e-3
            )
            assert there["GRFLAGS"] == expected["GRFLAGS"]
            assert (there["MAGZERO"], there["GRBUNDLE"]) == (22.5, expected["GRBUNDLE"])
            filled += bool(there["GRFLAGS"] & Flag.PIXELS_FILLED)
    assert filled > 0


def test_names_stay_in_their_folder_and_differ(inputs: tuple[Path, Sky], whole: tuple[Path, dict[str, Any]]) -> None:
    (_, sky), (output, _) = inputs, whole
    there = {path.relative_to(output / "crops").parts for path in (output / "crops").rglob("*.fits")}
    assert all(len(parts) == 2 and parts[0] in sky.wcs for parts in there)
    names = {name for _, name in there}
    rows = {row["object_id"]: row["reason"] for row in pq.read_table(output / "quarantine").to_pylist()}
    expected = ["%2E.%2Fup", "%2Fetc%2Fpasswd", "%2Ehidden", "a%2Fb", "a%252Fb", "%C3%84 name", "x" * 251, "NGC 1+2"]
    assert {f"{name}.fits" for name in expected} - names == {f"{'x' * 251}.fits"}
    assert rows["x" * 251].startswith("its crop has no valid name: a part of more than 255 bytes")
    assert rows["nowhere"] == "in no tile of the footprint"
    by_name = {path.name: fits.getheader(path)["OBJECT"] for path in (output / "crops").rglob("*.fits")}
    assert (by_name["a%2Fb.fits"], by_name["%C3%84 name.fits"]) == ("a/b", "%C3%84%20name")
    assert file_name("..", "..") == "crops/%2E./%2E..fits"
    assert not [path for path in output.parent.rglob("*up*.fits") if output not in path.parents]


def test_an_interrupted_job_ends_as_an_unbroken_one_and_a_finished_one_is_left(
    inputs: tuple[Path, Sky], whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root, _), (output, manifest) = inputs, whole
    broken, write, units = tmp_path / "broken", crop_tiles._write, []

    def killed(folder: str, cropped: Any) -> int:
        if len(units) == 2:
            # In the middle of a unit.
            write(folder, (cropped[0], cropped[1][:3]))
            raise KeyboardInterrupt
        units.append(cropped[0].name)
        return write(folder, cropped)

    with monkeypatch.context() as patch:
        patch.setattr(crop_tiles, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            crop(config(root, broken))
    before = {path: path.stat().st_mtime_ns for path in (broken / "crops").rglob("*.fits")}
    patch_units = []
    with monkeypatch.context() as patch:
        patch.setattr(
            crop_tiles, "_write", lambda folder, cropped: patch_units.append(cropped[0].name) or write(folder, cropped)
        )
        found = crop(config(root, broken))
    assert not set(units) & set(patch_units)
    assert len(before) > 3
    assert content(broken) == content(output)
    assert (found["num_crops"], found["num_quarantined"]) == (manifest["num_crops"], manifest["num_quarantined"])
    assert sorted(path.name for path in broken.iterdir() if not path.name.startswith(".")) == sorted(
        ["crops", "manifest.json", "quarantine", "run.json"]
    )
    monkeypatch.setattr(crop_tiles, "crop_all", None)
    assert crop(config(root, broken)) == found
    with pytest.raises(UserError, match="another max_beyond"):
        crop(config(root, broken, max_beyond=3))
    shutil.copy(root / "catalog.parquet", tmp_path / "c.parquet")
    table = pq.read_table(tmp_path / "c.parquet")
    pq.write_table(table.slice(1), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="holds a run on another catalog"):
        crop(config(root, broken, catalog=str(tmp_path / "c.parquet")))


def test_aligned_bands_are_cropped_on_the_grid_of_the_first_with_a_flag(tmp_path: Path) -> None:
    write_tile(tmp_path / "tiles", {"g": cards(240, 0.2), "r": cards(240, 0.15, 30.0)})
    bundle(bands=("g", "r")).save(str(tmp_path / "model"))
    ra_N, dec_N = positions()
    pq.write_table(pa.table({"object_id": [1, 2, 3], "ra": ra_N, "dec": dec_N}), tmp_path / "catalog.parquet")
    with pytest.raises(UserError, match=r"none of the 3 sources can be cut from a tile; .*bands on different grids"):
        crop(config(tmp_path, tmp_path / "out"))
    assert crop(config(tmp_path, tmp_path / "out", align=True))["num_crops"] == 3
    for number in (1, 2, 3):
        crop_CHW, header = fits.getdata(tmp_path / "out" / "crops" / "t" / f"{number}.fits", header=True)
        assert crop_CHW.shape[0] == 2
        assert header["GRFLAGS"] & Flag.RESAMPLED
        # The galaxy is where both bands and the WCS say.
        x, y = np.ravel(WCS(header, naxis=2).all_world2pix([[header["RA"], header["DEC"]]], 0))
        for crop_HW in crop_CHW:
            peak = np.unravel_index(crop_HW.argmax(), crop_HW.shape)
            assert np.abs(np.array(peak) - [y, x]).max() < 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"catalog": ""}, "catalog: is missing; with a footprint"),
        ({"pattern": "*.npy"}, "pattern: has no effect with a footprint"),
        ({"reader": ReaderConfig(hdu=1)}, "reader.hdu: has no effect with a footprint"),
        ({"images": "tiles"}, "catalog: has an effect with a footprint alone; leave it out"),
        ({"images": "tiles", "catalog": "", "align": True}, "align: has an effect with a footprint alone; leave it out"),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], message: str, inputs: tuple[Path, Sky], tmp_path: Path) -> None:
    root, _ = inputs
    if "images" in fields:
        fields = fields | {"images": str(root / fields["images"])}
    with pytest.raises(UserError, match=message):
        crop(config(root, tmp_path / "o", **fields))
    assert not (tmp_path / "o").exists()


def test_another_pixel_scale_is_refused(inputs: tuple[Path, Sky], tmp_path: Path) -> None:
    (root, _), model = inputs, bundle()
    other = dataclasses.replace(model, images=dataclasses.replace(model.images, pixel_scale_arcsec=0.168))
    other.save(str(tmp_path / "model"))
    with pytest.raises(UserError, match=r"has pixels of 0.262 arcsec, the bundle was trained on 0.168; give a bundle or a"):
        crop(config(root, tmp_path / "o", bundle=str(tmp_path / "model")))
