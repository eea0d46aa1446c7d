import dataclasses
import json
from pathlib import Path

import pytest

from gampen_ray import cli
from gampen_ray.config.base import to_dict
from gampen_ray.inference.card import CARD, describe
from gampen_ray.model.images import Condition
from gampen_ray.model.network import Network
from gampen_ray.posterior.summary import LEVELS
from gampen_ray.training.execute import execute
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.run import prepare
from tests.networks import NETWORK, bundle, card, dataset, train_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose bundle was trained and evaluated."""
    root = tmp_path_factory.mktemp("trained")
    run = prepare(train_config(dataset(str(root / "d"), {"train": 64, "val": 32}), str(root / "run"), epochs=1))
    execute(LocalWorker.read(run), run)
    (root / "run" / "bundle" / CARD).write_text(json.dumps(to_dict(card())))
    return root / "run"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["describe", *arguments]) == 0
    return capsys.readouterr().out


def test_the_card_of_a_trained_bundle(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, str(trained))
    found = describe(str(trained))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "training 1 epoch, seed 0" in lines
    assert "training galaxies 64 train, 32 val" in lines
    assert "dropout rate 0.05, 4 passes" in lines
    low, high = (found["targets"][0][key] for key in ("low", "high"))
    assert f"flux Jy log {low:.4g} {high:.4g}" in lines
    assert f"validation loss {found['metrics']['val_loss']:.4f}" in lines
    seeds = found["metrics"]["seeds"]
    assert f"two seeds of the dropout masks, 4 passes: {seeds['verdict']}: {seeds['worst']}" in " ".join(text.split())
    covered = {(row["target"], row["level"]): row["coverage"] for row in found["metrics"]["coverage"]["calibrated"]}
    cells = (f"{100 * covered[name, level]:.1f}" for name in ("flux", "concentration", "joint") for level in LEVELS.values())
    assert f"calibrated {' '.join(cells)}" in lines
    # The evaluation, from the numbers of `card`.
    assert "magnitude 18-19 67.0 95.0 99.5 70.1 96.0 99.6" in lines
    assert "18-19 1.5 2.25" in lines
    assert "seeing +20 % 70.0 40.0 97.0 % flagged" in lines
    assert "sky +0.3 sigma 50.0 68.0 3.0 % fails" in lines
    assert "* Not for spirals." in lines
    assert max(map(len, text.splitlines())) <= 120


def test_json_is_everything_that_is_known(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(printed(capsys, "--bundle", str(trained), "--format", "json")) == describe(str(trained))


def test_conditions_are_shown_with_range_and_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeing = Condition(name="psf_fwhm_arcsec", low=0.55, high=0.9, mean=0.7)
    images = dataclasses.replace(bundle().images, conditions=(seeing,), zero_point_mag=30.0, pixel_scale_arcsec=0.2)
    config = dataclasses.replace(NETWORK, backbone=dataclasses.replace(NETWORK.backbone, dropout_placement="classifier"))
    # As to_dict of a config whose dataset was simulated.
    made_by = {"survey": "kids-r", "num_galaxies": 100, "scene": {"psf": {"beta": [1.8, 4.765], "stamps": ""}}}
    provenance = {
        "date": "2026-11-29",
        "train": to_dict(train_config("d", "o")),
        "dataset": {"survey": "kids-r", "num_rows": {"train": 90, "val": 10}, "made_by": made_by},
    }
    made = dataclasses.replace(
        bundle(), network=Network.of(config, images, 2), config=config, images=images, provenance=provenance
    )
    made.save(str(tmp_path))
    lines = [" ".join(line.split()) for line in printed(capsys, str(tmp_path)).splitlines()]
    assert "psf_fwhm_arcsec 0.55 0.9 0.7" in lines
    assert "beside the image 0 measured numbers, psf_fwhm_arcsec" in lines
    assert "cutouts 20 x 20 pixels of 0.2 arcsec" in lines
    assert "survey kids-r" in lines
    assert "made with survey kids-r, num_galaxies 100, scene.psf.beta [1.8, 4.765]" in lines


def test_widths_below_the_limit_of_an_unknown_psf_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = card().width_over_limit["psf_known"]
    known = dataclasses.replace(card(), width_over_limit={"psf_known": table, "psf_unknown": table})
    seeing = Condition(name="psf_fwhm_arcsec", low=0.55, high=0.9, mean=0.7)
    config = dataclasses.replace(NETWORK, backbone=dataclasses.replace(NETWORK.backbone, dropout_placement="classifier"))
    for name, conditions, count in (("with", (seeing,), 1), ("without", (), 0)):
        images = dataclasses.replace(bundle().images, conditions=conditions)
        made = dataclasses.replace(bundle(), network=Network.of(config, images, 2), config=config, images=images)
        made.save(str(tmp_path / name))
        (tmp_path / name / CARD).write_text(json.dumps(to_dict(known)))
        assert printed(capsys, str(tmp_path / name)).count("the network is told the PSF's sizes") == count


def test_an_imported_bundle_says_where_it_is_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    provenance = {"imported": {"model": "g.pt"}, "date": "2026-11-29"}
    dataclasses.replace(bundle(), metrics={}, provenance=provenance).save(str(tmp_path))
    text = printed(capsys, str(tmp_path))
    assert "by GaMPEN, imported from g.pt" in text
    assert "validation: none was made" in text
    assert "no evaluation beside the bundle" in text
