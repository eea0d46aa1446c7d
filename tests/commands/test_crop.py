"""Crops: on Ray and without it, folders, interruption, and what the output may hold."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from gampen_ray.commands import crop as crop_verb
from gampen_ray.commands.crop import CropConfig, crop
from gampen_ray.config import ActorResources, ReaderConfig
from gampen_ray.engine import units
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import load_bundle
from gampen_ray.inference.crops import Cropper
from tests.networks import bundle, galaxies


@pytest.fixture
def config(tmp_path: Path) -> CropConfig:
    """A GaMPEN folder: seven good files, one of them in a folder of its own, and three bad ones."""
    bundle().save(str(tmp_path / "model"))
    folder = tmp_path / "images" / "cutouts"
    (folder / "deep").mkdir(parents=True)
    for i, image in enumerate(galaxies(7)["image"]):
        fits.PrimaryHDU(image[0]).writeto(folder / ("deep" if i == 6 else "") / f"g{i}.fits")
    (folder / "h.fits").write_text("no image")
    (folder / "n.fits").write_bytes((folder / "g1.fits").read_bytes()[:4000])
    fits.PrimaryHDU(np.full((20, 20), np.nan, np.float32)).writeto(folder / "nan.fits")
    (tmp_path / "images" / "info.csv").write_text("file_name\ng0.fits\n")
    paths = {name: str(tmp_path / folder) for name, folder in (("bundle", "model"), ("images", "images"), ("output", "out"))}
    return CropConfig(**paths, batch_size=4, resources=ActorResources(engine="local"))


def _written(output: str) -> dict[str, int]:
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in Path(output).rglob("*.fits")}


@pytest.mark.ray
def test_every_file_has_a_crop_of_its_name_or_a_reason(ray_local: None, config: CropConfig) -> None:
    manifest = crop(dataclasses.replace(config, resources=ActorResources(num_workers=1)))
    assert (manifest["num_crops"], manifest["num_quarantined"]) == (7, 3)
    names = [f"cutouts/g{i}.fits" for i in range(6)] + ["cutouts/deep/g6.fits"]
    assert set(_written(config.output)) == set(names)
    digest = manifest["inputs"]["bundle"]
    contents = [(Path(config.images) / name).read_bytes() for name in names]
    for name, expected in zip(names, Cropper(load_bundle(config.bundle), digest)(names, contents), strict=True):
        assert isinstance(expected, bytes)
        with fits.open(Path(config.output) / name) as there:
            assert there[0].header["GRBUNDLE"] == digest
            np.testing.assert_allclose(there[0].data, fits.HDUList.fromstring(expected)[0].data, rtol=1e-4, atol=1e-4)
    reasons = {row["object_id"]: row for row in pq.read_table(f"{config.output}/quarantine").to_pylist()}
    assert reasons.keys() == {"h", "n", "nan"}
    assert reasons["h"]["source"] == f"{config.images}/cutouts/h.fits"
    assert reasons["nan"]["reason"].startswith("all pixels are without a value")
    assert "truncated" in reasons["n"]["reason"]


def test_interrupted_job_is_continued_and_a_finished_one_is_left(
    config: CropConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = crop(config)
    # As a run leaves it that was killed in its second batch, of g3, g4, g5 and h.
    (Path(config.output) / "manifest.json").unlink()
    (Path(config.output) / "cutouts" / "g4.fits").unlink()
    before = _written(config.output)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert crop(config)["num_crops"] == whole["num_crops"]
    # What was there before does not count for the rate.
    assert next(line for line in caplog.messages if line.startswith("crop: ")) == "crop: 9/10 files"
    after = _written(config.output)
    assert {name for name in after if after[name] != before.get(name)} == {"cutouts/g4.fits"}
    monkeypatch.setattr(units, "run_units", None)
    assert crop(config)["num_quarantined"] == 3
    assert _written(config.output) == after
    with pytest.raises(UserError, match=r"another crop_size \(0, not 30\); nothing was changed: give a new folder"):
        crop(dataclasses.replace(config, crop_size=30))
    # Other pixels in a file of the same name, and one more file.
    g0, g1 = (Path(config.images) / "cutouts" / f"g{i}.fits" for i in (0, 1))
    content = g0.read_bytes()
    g0.write_bytes(g1.read_bytes())
    with pytest.raises(UserError, match="holds a run on another images; nothing was changed"):
        crop(config)
    g0.write_bytes(content)
    (Path(config.images) / "new.fits").write_text("")
    with pytest.raises(UserError, match="holds a run on another images; nothing was changed"):
        crop(config)


def test_a_job_may_be_continued_with_other_batches_from_another_folder(config: CropConfig, tmp_path: Path) -> None:
    crop(config)
    # As a run leaves it that was killed when all but one batch were done: what is in quarantine stays there.
    (Path(config.output) / "manifest.json").unlink()
    for name in ("g2", "g3", "deep/g6"):
        (Path(config.output) / "cutouts" / f"{name}.fits").unlink()
    (tmp_path / "images").rename(tmp_path / "moved")
    manifest = crop(dataclasses.replace(config, images=str(tmp_path / "moved"), batch_size=1))
    assert (manifest["num_crops"], manifest["num_quarantined"]) == (7, 3)
    assert sorted(row["object_id"] for row in pq.read_table(f"{config.output}/quarantine").to_pylist()) == ["h", "n", "nan"]


def test_mistakes_are_refused_before_anything_is_written(config: CropConfig) -> None:
    for changes, message in (
        ({"images": f"{config.images}/none"}, "images: no folder"),
        ({"pattern": "*.jpg"}, r"images: none of the 11 files below .* matches the pattern '\*.jpg'"),
        ({"output": f"{config.images}/crops"}, "output: .* lies in the folder of the images"),
        ({"output": config.bundle}, "already holds other files"),
        ({"bundle": config.images}, "bundle: .* holds no bundle.json"),
        ({"crop_size": 1}, "crop_size: a crop of 1 pixel"),
    ):
        with pytest.raises(UserError, match=message):
            crop(dataclasses.replace(config, **changes))
    assert not Path(config.output).exists()


def test_a_crop_without_a_valid_name_is_in_quarantine(config: CropConfig, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    for name in ("g", "x" * 251):
        np.save(folder / f"{name}.npy", galaxies(1)["image"][0])
    manifest = crop(dataclasses.replace(config, images=str(folder), pattern="*.npy"))
    assert (manifest["num_crops"], manifest["num_quarantined"]) == (1, 1)
    (row,) = pq.read_table(f"{config.output}/quarantine").to_pylist()
    assert row["object_id"] == "x" * 251
    assert row["reason"] == "its crop has no valid name: a part of more than 255 bytes, more than 1,024 in all, or a NUL"


def test_no_crop_is_the_folder_of_others() -> None:
    names = {"a.fits", "b/c.fits", "a.fits/d.fits", "b/c.fits/x/e.fits", "bb/c.fits"}
    assert crop_verb._files_and_folders(names) == ["a.fits", "b/c.fits"]


def test_nothing_usable_is_one_error_and_leaves_nothing(config: CropConfig) -> None:
    with pytest.raises(UserError, match=r"none of the 10 files .*\(9 files\), here for .*/cutouts/deep/g6.fits: no HDU 3"):
        crop(dataclasses.replace(config, reader=ReaderConfig(hdu=3)))
    assert not [path for path in Path(config.output).rglob("*") if path.is_file()]
