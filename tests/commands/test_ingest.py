"""Ingest through Ray: real cutouts, interruption, and what the output may hold."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from gampen_ray import storage
from gampen_ray.commands.ingest import IngestConfig, ingest
from gampen_ray.config import ReaderConfig
from gampen_ray.data import shards, validation
from gampen_ray.engine import units
from gampen_ray.errors import UserError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

DATA = Path(__file__).parents[3] / "shared" / "data"


def _config(tmp_path: Path, num_files: int = 6, **changes: object) -> IngestConfig:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for index in range(num_files):
        fits.PrimaryHDU(rng.normal(size=(9, 10)).astype(np.float32)).writeto(images / f"f{index}.fits")
    rows = [f"{index},f{index}.fits,{index + 1}.5" for index in range(num_files)]
    (tmp_path / "c.csv").write_text("\n".join(["object_id,file_name,flux", *rows]) + "\n")
    values = {"images": str(images), "catalog": str(tmp_path / "c.csv"), "output": str(tmp_path / "out"), "cutout_size": 8}
    return IngestConfig(**values | {"targets": ("flux",), "galaxies_per_shard": 2} | changes)


@pytest.mark.parametrize(
    ("folder", "pattern", "count"), [("kids", "*fitim.fits", 5), ("sdss", "*fitim.fits", 5), ("sdss_cutouts", "*.fits*", 2)]
)
def test_real_cutouts(tmp_path: Path, folder: str, pattern: str, count: int) -> None:
    if not (DATA / folder).is_dir():
        pytest.skip(f"no real data: {DATA / folder} is not there")
    config = IngestConfig(
        images=str(DATA / folder),
        pattern=pattern,
        output=str(tmp_path / "out"),
        cutout_size=120,
        galaxies_per_shard=2,
        reader=ReaderConfig(bands=("r",)),
    )
    summary = ingest(config)
    assert (summary.num_rows, summary.num_quarantined, summary.reasons) == ({"all": count}, 0, {})
    assert validation.validate_dataset(config.output) == []
    assert len(shards.shard_uris(config.output)) == -(-count // 2)
    tables = [shards.read_shard(uri) for uri in shards.shard_uris(config.output)]
    image_NCHW = np.concatenate([shards.images(table) for table in tables])
    assert (image_NCHW.shape, image_NCHW.dtype) == ((count, 1, 120, 120), np.float32)
    if folder == "sdss_cutouts":
        ids = [key for table in tables for key in table["object_id"].to_pylist()]
        assert sorted(ids) == [
            "587722984439545906-g",
            "587739130813546660-g",
        ]


def test_interrupted_ingest_is_continued_and_a_finished_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    config = _config(tmp_path, output="out")
    whole = ingest(dataclasses.replace(config, output="whole"))
    assert sum(whole.num_rows.values()) == 6

    def killed_in_the_second_part(what: str, parts: list, start: Callable, *, write: Callable, **_: object) -> None:
        for part in parts[:2]:
            write(start(None)(part))
        # The shards are there, the receipt is not.
        storage.delete("out/ingest/part-000001.json")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(units, "run_units", killed_in_the_second_part)
        ingest(config)
    kept = {uri: Path(uri).stat().st_mtime_ns for uri in shards.shard_uris("out") if "part-000000" in uri}
    assert kept
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert ingest(config).num_rows == whole.num_rows
    # What was there before does not count for the rate.
    assert next(line for line in caplog.messages if line.startswith("ingest: ")) == "ingest: 2/6 cutouts"
    assert {uri: Path(uri).stat().st_mtime_ns for uri in kept} == kept
    assert validation.validate_dataset("out") == []
    assert not (tmp_path / "out" / "ingest").exists()
    assert shards.read_dataset_info("out").fingerprint == shards.read_dataset_info("whole").fingerprint
    # Once more: nothing is written.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert ingest(config).num_rows == whole.num_rows
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(UserError, match=r"another cutout_size \(8, not 7\); nothing was changed: give a new folder"):
        ingest(dataclasses.replace(config, cutout_size=7))
    with pytest.raises(UserError, match="already holds other files; nothing was changed"):
        ingest(dataclasses.replace(config, output="images"))
    # Other pixels in a file of the same name.
    fits.PrimaryHDU(np.ones((9, 10), np.float32)).writeto("images/f0.fits", overwrite=True)
    with pytest.raises(UserError, match="holds a run on another images or catalog; nothing was changed"):
        ingest(config)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_nothing_usable_is_one_error_with_the_most_common_reason(tmp_path: Path) -> None:
    config = _config(tmp_path)
    for index in range(6):
        (tmp_path / "images" / f"f{index}.fits").write_text("x" * index)
    with pytest.raises(
        UserError, match=r"none of the 6 rows can be used; .*\(5 rows\), here for .*fits: not a file of a known format"
    ):
        ingest(config)
    assert storage.list_files(config.output) == []


def test_a_fault_of_the_output_reaches_the_user(tmp_path: Path) -> None:
    config = _config(tmp_path, targets=())
    (tmp_path / "out" / "part-000001.parquet" / "in the way").mkdir(parents=True)
    with pytest.raises(UserError, match=r"part-000001.parquet: Is a directory"):
        ingest(config)
    assert not storage.exists(f"{config.output}/dataset.json")
    with pytest.raises(UserError, match="holds a run with another cutout_size"):
        ingest(dataclasses.replace(config, cutout_size=7))
