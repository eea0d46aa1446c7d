"""Bundles inside the package, by the name builtin:NAME."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import gampen_ray
from gampen_ray import cli, storage
from gampen_ray.config import FineTuneConfig
from gampen_ray.config.base import to_dict
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import bundle_digest, load_bundle
from gampen_ray.inference.card import read_card
from gampen_ray.training.run import build_network, prepare
from tests.networks import SIZE, bundle, dataset, galaxies, train_config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of built-in bundles: one that is there, and one that has a recipe alone."""
    monkeypatch.setattr(storage, "BUNDLES", tmp_path / "bundles")
    bundle().save(str(tmp_path / "bundles" / "tiny"))
    (tmp_path / "bundles" / "later").mkdir()
    (tmp_path / "bundles" / "later" / "recipe.toml").touch()
    return tmp_path / "bundles"


def test_a_built_in_bundle_is_that_of_its_folder_and_known_by_its_content(folder: Path) -> None:
    images = galaxies(5)["image"]
    expected = load_bundle(str(folder / "tiny")).predict(images, num_passes=3).mean()
    np.testing.assert_array_equal(gampen_ray.load_bundle("builtin:tiny").predict(images, num_passes=3).mean(), expected)
    assert bundle_digest("builtin:tiny") == bundle_digest(str(folder / "tiny"))
    assert storage.absolute("builtin:tiny/") == "builtin:tiny"


@pytest.mark.parametrize("name", ["tinny", "later", "", ".."])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = f"gampen-ray: error: bundle: builtin:{name}: no such built-in bundle; there are tiny\n"
    assert cli.main(["infer", f"--bundle=builtin:{name}", "--dataset=d", "--output=o"]) == 2
    assert capsys.readouterr().err == expected
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="this package has none, `make models` makes them"):
        load_bundle("builtin:tiny")


def test_fine_tuning_starts_from_a_built_in_bundle(folder: Path, tmp_path: Path) -> None:
    data = dataset(str(tmp_path / "d"), {"train": 20, "val": 10})
    config = train_config(data, str(tmp_path / "run"))
    start = type(config)(
        dataset=data, output=config.output, optimizer=config.optimizer, fine_tune=FineTuneConfig(bundle="builtin:tiny")
    )
    run = prepare(start)
    assert run.inputs["fine_tune.bundle"] == bundle_digest(str(folder / "tiny"))
    for name, weights in build_network(run).state_dict().items():
        np.testing.assert_array_equal(weights, load_bundle("builtin:tiny").network.state_dict()[name])


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[str]:
    """A bundle in the package itself, as Ray's workers, which have no patches, see it."""
    there = storage.BUNDLES / f"test-{tmp_path.name}"
    shutil.rmtree(there, ignore_errors=True)
    try:
        provenance = bundle().provenance | {"train": to_dict(train_config("d", "o"))}
        dataclasses.replace(bundle(), provenance=provenance).save(str(there))
        yield f"builtin:{there.name}"
    finally:
        shutil.rmtree(there)


@pytest.mark.ray
def test_from_cutouts_to_a_report_without_training(ray_local: None, installed: str, tmp_path: Path) -> None:
    data = dataset(str(tmp_path / "d"), {"test": 40})
    catalog, evaluation, page = (str(tmp_path / name) for name in ("catalog", "evaluation", "report.html"))
    manifest = gampen_ray.infer(bundle=installed, dataset=data, output=catalog, num_passes=4, posterior="mixture")
    assert (manifest["num_galaxies"], manifest["config"]["bundle"]) == (40, installed)
    gampen_ray.evaluate(catalog=catalog, output=evaluation)
    gampen_ray.report(evaluation=evaluation, output=page, num_examples=1, num_angles=0)
    assert installed in Path(page).read_text()
    (tmp_path / "cutouts").mkdir()
    fits.writeto(tmp_path / "cutouts" / "g.fits", galaxies(1)["image"][0, 0])
    gampen_ray.crop(bundle=installed, images=str(tmp_path / "cutouts"), output=str(tmp_path / "crops"))
    assert fits.getdata(tmp_path / "crops" / "g.fits").shape == (SIZE, SIZE)


@pytest.mark.parametrize("name", storage.builtin_names())
def test_the_bundles_of_the_package_are_small_and_have_cards(name: str) -> None:
    uri = f"builtin:{name}"
    assert sum(path.stat().st_size for path in (storage.BUNDLES / name).iterdir()) < 5_000_000
    assert load_bundle(uri).images.condition_names
    assert read_card(uri) is not None
