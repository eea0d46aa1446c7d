"""`make models` in miniature."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gampen_ray import storage
from gampen_ray.commands.registry import load_verbs
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import CHECKSUMS, bundle_digest, load_bundle
from gampen_ray.inference.card import CARD, read_card
from gampen_ray.model.images import Condition, ImagePreprocessing
from gampen_ray.model.network import Network
from tests.networks import bundle

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "models.py"
RECIPE = """
known_failures = ["Everything."]
num_passes = 4
limit_galaxies = 40
shift_galaxies = 10
[simulate]
survey = "kids-r"
num_galaxies = 120
cutout_size = 40
seed = 1
[test]
num_galaxies = 60
seed = 2
[train]
conditions = ["psf_fwhm_arcsec"]
network.backbone = { plan = [8], classifier = [16], numbers_width = 16, dropout_rate = 0.25 }
optimizer = { epochs = 1, numbers_epochs = 1, batch_size = 32 }
calibration.num_passes = 4
"""


@pytest.fixture(scope="module")
def models() -> Any:
    spec = importlib.util.spec_from_file_location("models", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look for the annotations.
    sys.modules["models"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def recipe(models: Any, tmp_path: Path) -> Any:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return models.Recipe.read(tmp_path / "recipe.toml")


@pytest.mark.slow
def test_a_recipe_makes_a_bundle_with_its_card_and_resumes(
    models: Any, recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BUNDLES", tmp_path / "bundles")
    made = models.make(recipe, tmp_path / "work")
    models.install(made, "mini")
    assert bundle_digest("builtin:mini") == bundle_digest(str(made))
    card = read_card("builtin:mini")
    assert card and (card.num_galaxies, card.num_passes, card.known_failures) == (60, 4, ("Everything.",))
    assert card.galaxies == "simulated kids-r galaxies never trained on (seed 2)"
    evaluation = json.loads((tmp_path / "work" / "evaluation" / "evaluation.json").read_bytes())
    (everything,) = card.coverage["all"].values()
    assert [dataclasses.asdict(row) for row in everything] == evaluation["coverage"]["calibrated"]
    installed = load_bundle("builtin:mini")
    assert installed.images.condition_names == ("psf_fwhm_arcsec",)
    assert sum(installed.provenance["dataset"]["num_rows"].values()) == 120
    for path in (tmp_path / "bundles" / "mini").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), f"{path.name} names a folder of this machine"
    # As after a kill just before the last steps.
    stamps = {name: (tmp_path / "work" / name).stat().st_mtime_ns for name in ("data/dataset.json", "run/history.json")}
    (made / CHECKSUMS).unlink()
    (made / CARD).unlink()
    models.make(recipe, tmp_path / "work")
    assert read_card(str(made)) == card
    assert stamps == {name: (tmp_path / "work" / name).stat().st_mtime_ns for name in stamps}


def test_a_bundle_that_is_too_large_is_not_copied(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BUNDLES", tmp_path / "bundles")
    bundle().save(str(tmp_path / "made"))
    monkeypatch.setattr(models, "MAX_BYTES", sum(path.stat().st_size for path in (tmp_path / "made").iterdir()))
    with pytest.raises(UserError, match=r"must stay below 0\.02\d*; lower train\.network in the recipe\.toml of mine"):
        models.install(tmp_path / "made", "mine")
    assert not (tmp_path / "bundles").exists()


def test_a_benchmark_runs_once_for_the_same_bundle_and_arguments(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle().save(str(tmp_path / "made"))
    monkeypatch.setattr(models, "__file__", str(tmp_path / "models.py"))
    made, arguments = str(tmp_path / "made"), {"galaxies": 3}
    (tmp_path / "count.py").write_text("import json, sys, time\nprint(json.dumps([sys.argv[1:], time.time()]))")
    first = models.measured("count", tmp_path, arguments, made)
    assert first[0] == [f"--bundle={tmp_path}/made", "--galaxies=3"]
    assert models.measured("count", tmp_path, arguments, made) == first
    assert models.measured("count", tmp_path, arguments | {"galaxies": 4}, made)[0][1] == "--galaxies=4"
    dataclasses.replace(bundle(), metrics={}).save(str(tmp_path / "made"))
    assert models.measured("count", tmp_path, arguments, made)[1] > first[1]


def test_scale_changes_the_numbers_of_galaxies_alone(recipe: Any) -> None:
    scaled = recipe.scaled(0.1)
    assert (scaled.simulate["num_galaxies"], scaled.test["num_galaxies"], scaled.limit_galaxies) == (12, 6, 4)
    restored = recipe.scaled(0.1).scaled(10)
    assert restored == recipe


def test_the_test_set_has_a_seed_of_its_own(models: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("seed = 2", "seed = 1"))
    with pytest.raises(UserError, match=r"recipe\.toml: test\.seed is that of simulate or left out"):
        models.Recipe.read(tmp_path / "recipe.toml")


@pytest.mark.parametrize("path", sorted(storage.BUNDLES.glob("*/recipe.toml")), ids=lambda path: path.parent.name)
def test_the_recipes_of_the_package_are_valid(models: Any, path: Path) -> None:
    recipe, verbs = models.Recipe.read(path), load_verbs()
    simulated = verbs["simulate"].configured({"output": "o", **recipe.simulate, **recipe.test})
    assert (simulated.survey, simulated.cutout_size) == (path.parent.name, 96)
    config = verbs["train"].configured({"dataset": "d", "output": "o", **recipe.train})
    assert "psf_fwhm_arcsec" in config.conditions
    conditions = tuple(Condition(name=name, low=0.0, high=1.0, mean=0.5) for name in config.conditions)
    images = ImagePreprocessing(bands=("r",), size=96, softening=1.0, channels=1, measure=True, conditions=conditions)
    weights = Network.of(config.network, images, len(config.targets)).state_dict().values()
    # The detector of unusual images takes another megabyte.
    assert sum(weight.nbytes for weight in weights) < models.MAX_BYTES - 1.3e6
