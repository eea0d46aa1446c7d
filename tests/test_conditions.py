"""Conditions from the columns of a dataset to the columns of a catalogue."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from astropy import units as u
from astropy.io import fits
from astropy.table import Table

from gampen_ray.catalog.prediction import UnitPredictor
from gampen_ray.commands.infer import InferConfig, infer
from gampen_ray.commands.train import train
from gampen_ray.config import ActorResources, FineTuneConfig, TargetConfig, TrainConfig, TrainResources
from gampen_ray.data import shards
from gampen_ray.data.sources import open_source
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, load_bundle
from gampen_ray.inference.flags import Flag
from gampen_ray.inference.pixels import plain_condition
from gampen_ray.inference.predictor import Predictor
from gampen_ray.posterior.calibration import Calibration
from gampen_ray.training.run import prepare
from tests.networks import SIZE, galaxies, numbers_config

NAME = "psf_fwhm_arcsec"
WRONG = {3: np.nan, 5: 9.0, 8: 0.01, 11: -0.7}
"""Conditions of galaxies to predict that are unknown, out of range or impossible."""


def write(root: Path, counts: dict[str, int], wrong: dict[int, float] | None = None, name: str = NAME) -> str:
    """Write a dataset of galaxies with a condition between 0.5 and 1, but for some of the last split."""
    units = {} if shards.ALL in counts else {"flux": "Jy", "concentration": ""}
    info = shards.DatasetInfo(bands=("r",), cutout_size=SIZE, target_units=units, num_rows=counts, fingerprint="f")
    for seed, (split, count) in enumerate(counts.items()):
        value_N = np.random.default_rng(seed).uniform(0.5, 1, count)
        if wrong and split == list(counts)[-1]:
            value_N[list(wrong)] = list(wrong.values())
        shards.write_shard(shards.part_uri(str(root), split, 0), galaxies(count, seed) | {name: value_N}, info)
    shards.write_dataset_info(str(root), info)
    return str(root)


def config(dataset: str, output: Path) -> TrainConfig:
    made = numbers_config(dataset, str(output), epochs=1, numbers_epochs=2)
    return dataclasses.replace(made, conditions=(NAME,), resources=TrainResources(engine="local"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conditions")
    write(folder / "data", {"train": 200, "val": 40})
    write(folder / "new", {shards.ALL: 20}, WRONG)
    write(folder / "without", {shards.ALL: 20}, name="other")
    return folder


@pytest.fixture(scope="module")
def bundle(root: Path) -> Bundle:
    return train(config(str(root / "data"), root / "run"))


def job(root: Path, dataset: str, output: Path, **fields: object) -> InferConfig:
    made = InferConfig(bundle=str(root / "run"), dataset=str(root / dataset), output=str(output), num_passes=4)
    return dataclasses.replace(made, resources=ActorResources(engine="local"), **fields)


def table(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet")))


def test_unknown_conditions_go_to_quarantine_and_unusual_ones_are_flagged(root: Path, bundle: Bundle, tmp_path: Path) -> None:
    (condition,) = bundle.images.conditions
    assert (condition.name, condition.low > 0.5, condition.high < 1) == (NAME, True, True)
    assert condition.mean == pytest.approx(0.75, abs=0.03)
    manifest = infer(job(root, "new", tmp_path / "o"))
    assert (manifest["num_galaxies"], manifest["num_quarantined"]) == (18, 2)
    left = table(tmp_path / "o" / "quarantine").to_pylist()
    assert {row["object_id"]: row["reason"] for row in left} == {
        "3": f"the condition {NAME} is unknown",
        "11": f"{NAME} is -0.7, not a positive size",
    }
    catalog = table(tmp_path / "o" / "catalog").sort_by("object_id")
    stored = shards.read_shard(shards.shard_uris(str(root / "new"))[0])
    kept = ~np.isin(np.arange(20), [3, 11])
    np.testing.assert_array_equal(catalog[NAME].to_numpy(), stored[NAME].to_numpy()[kept])
    outside = catalog["flags"].to_numpy() & Flag.CONDITION_OUT_OF_RANGE.value > 0
    value = catalog[NAME].to_numpy()
    np.testing.assert_array_equal(outside, (value < condition.low) | (value > condition.high))
    assert set(catalog["object_id"].to_numpy()[outside]) >= {5, 8}
    # ... and is what the library predicts.
    images = shards.images(stored)[kept]
    expected = bundle.predict(images, conditions={NAME: value}, num_passes=4)
    np.testing.assert_allclose(catalog["flux_median"].to_numpy(), expected.quantile(0.5)[:, 0], rtol=1e-4)
    another = bundle.predict(images, conditions={NAME: 0.2 + value}, num_passes=4)
    assert not np.allclose(another.mean(), expected.mean(), rtol=1e-4)


def test_a_missing_column_is_refused_by_name_or_marginalised(root: Path, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"^dataset: .*/without has no column {NAME}, .* missing_conditions 'marginalise'"
    ) as error:
        infer(job(root, "without", tmp_path / "o"))
    assert "\n" not in str(error.value)
    for dataset, missing in (("without", range(20)), ("new", [3])):
        source, (unit, *_) = open_source(
            str(root / dataset),
            split="",
            bands=("r",),
            size=SIZE,
            conditions=(NAME,),
            fill_conditions=True,
        )
        predict = UnitPredictor(Predictor(bundle, num_passes=4, seed=0), source, fill_conditions=True)
        rows = predict(unit).rows
        assert rows is not None
        impossible = [11] if dataset == "new" else []
        assert np.flatnonzero(np.array(rows["reason"].to_pylist()) != "").tolist() == impossible
        flagged = rows["flags"].to_numpy() & Flag.CONDITION_MISSING.value > 0
        assert rows["object_id"].to_numpy()[flagged].tolist() == list(missing)
    # Each pass has a condition of its own.
    images, plain = galaxies(4)["image"], dataclasses.replace(bundle, calibration=Calibration.constant(np.ones(2)))
    assert bundle.known_conditions is not None
    drawn_S1J = bundle.known_conditions.drawn(np.full((1, 1), np.nan), 4)
    over = plain.predict(images, conditions={NAME: [0.7, np.nan, np.nan, 0.7]}, num_passes=4)
    for k, value in enumerate(drawn_S1J[:, 0, 0]):
        one = plain.predict(images, conditions={NAME: [0.7, value, value, 0.7]}, num_passes=4)
        torch.testing.assert_close(over.mean_NKD[:, k], one.mean_NKD[:, k], rtol=1e-6, atol=1e-6)
    assert len(np.unique(drawn_S1J)) == 4


def test_wrong_conditions_of_images_are_refused(bundle: Bundle) -> None:
    images = galaxies(4)["image"]
    with pytest.raises(UserError, match=rf"^conditions: {NAME} is missing, and the bundle was trained with {NAME}; give"):
        bundle.predict(images, num_passes=2)
    with pytest.raises(UserError, match=rf"^conditions: {NAME} has the shape \(3,\) for 4 galaxies; give one a galaxy$"):
        bundle.predict(images, conditions={NAME: np.ones(3)}, num_passes=2)


def test_mistakes_are_told_before_training(root: Path, tmp_path: Path) -> None:
    def fails(match: str, dataset: str, **fields: object) -> None:
        with pytest.raises(UserError, match=match):
            prepare(dataclasses.replace(config(dataset, tmp_path / "run"), **fields))

    data = str(root / "data")
    fails(rf"^conditions\.seeing: .*/data has no such column; name one of .*flux, .*{NAME}$", data, conditions=("seeing",))
    fails(r"^conditions: flux is also a target", data, conditions=("flux",))
    # The validation split alone has one that is unknown.
    counts, unknown = {"train": 20, "val": 20}, {2: np.nan}
    dataset = write(tmp_path / "nan", counts, unknown)
    fails(rf"^conditions: {NAME} is not finite for 1 galaxies; fill or remove them$", dataset)


def test_a_column_of_text_is_refused_by_name(tmp_path: Path) -> None:
    images, names = galaxies(4), {"seeing": ["good", "bad", "good", "0.7"]}
    info = shards.DatasetInfo(bands=("r",), cutout_size=SIZE, num_rows={"train": 4, "val": 4}, fingerprint="f")
    for split in info.num_rows:
        shards.write_shard(shards.part_uri(str(tmp_path / "data"), split, 0), images | names, info)
    shards.write_dataset_info(str(tmp_path / "data"), info)
    with pytest.raises(
        UserError, match=r"^conditions\.seeing: the column holds string, not numbers, in .*/data; convert it, or"
    ):
        prepare(dataclasses.replace(config(str(tmp_path / "data"), tmp_path / "run"), conditions=("seeing",)))
    targets = {"seeing": TargetConfig()}
    with pytest.raises(UserError, match=r"^targets\.seeing: the column holds string, not numbers, in .*/data; convert it, or"):
        prepare(dataclasses.replace(config(str(tmp_path / "data"), tmp_path / "run"), targets=targets, conditions=()))

    folder = tmp_path / "folder"
    (folder / "cutouts").mkdir(parents=True)
    for i, image in enumerate(images["image"]):
        fits.writeto(folder / "cutouts" / f"{i}.fits", image[0])
    rows = [f"{i},{i}.fits,{text}" for i, text in enumerate(names["seeing"])]
    (folder / "info.csv").write_text("\n".join(["object_id,file_name,seeing", *rows]))
    for dataset in ("data", "folder"):
        for fill in (False, True):
            with pytest.raises(
                UserError, match=rf"^dataset: .*/{dataset}: the column seeing, .* holds string, not numbers; con"
            ):
                open_source(
                    str(tmp_path / dataset),
                    split="",
                    bands=("r",),
                    size=SIZE,
                    conditions=("seeing",),
                    fill_conditions=fill,
                )


def test_fine_tuning_needs_the_conditions_of_the_bundle(root: Path, bundle: Bundle, tmp_path: Path) -> None:
    def tuned(dataset: str, **fields: object) -> TrainConfig:
        made = numbers_config(dataset, str(tmp_path / "run"))
        given = {name: getattr(made, name) for name in ("dataset", "output", "optimizer", "calibration")}
        return TrainConfig(**given, fine_tune=FineTuneConfig(bundle=str(root / "run")), **fields)

    few = write(tmp_path / "few", {"train": 50, "val": 20})
    (condition,) = prepare(tuned(few)).images.conditions
    # The range is that of the galaxies that it is tuned on.
    value_N = shards.read_shard(shards.shard_uris(few, "train")[0])[NAME].to_numpy()
    assert (condition.name, condition.low, condition.mean) == (NAME, value_N.min(), pytest.approx(value_N.mean()))
    with pytest.raises(
        UserError, match=r"^conditions: .*seeing.*, but fine_tune\.bundle, .*, has .*psf.*; leave conditions out$"
    ):
        prepare(tuned(few, conditions=("seeing",)))
    without = write(tmp_path / "without", {"train": 50, "val": 20}, name="other")
    with pytest.raises(UserError, match=rf"^conditions\.{NAME}: .*/without has no such column"):
        prepare(tuned(without))
    assert load_bundle(str(root / "run")).images == bundle.images


def test_conditions_of_python_users_have_units_and_masks() -> None:
    table = Table({"psf_fwhm_arcsec": [0.7, 0.8]})
    table["psf_fwhm_arcsec"].unit = "arcsec"
    masked = np.ma.masked_array([0.7, 0.8], mask=[False, True])
    for values, expected in (
        (0.7, 0.7),
        ([0.7, 0.8], [0.7, 0.8]),
        (700 * u.mas, 0.7),
        (table["psf_fwhm_arcsec"], [0.7, 0.8]),
        (masked, [0.7, np.nan]),
    ):
        np.testing.assert_allclose(plain_condition("psf_fwhm_arcsec", values), expected)
    table["psf_fwhm_arcsec"].unit = "mas"
    np.testing.assert_allclose(plain_condition("psf_fwhm_arcsec", table["psf_fwhm_arcsec"]), [7e-4, 8e-4])
    for values, match in ((3 * u.kg, "is in kg, which is no arcsec; give"), ("narrow", "holds no numbers; give")):
        with pytest.raises(UserError, match=rf"^conditions: psf_fwhm_arcsec {match}"):
            plain_condition("psf_fwhm_arcsec", values)
