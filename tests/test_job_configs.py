import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gampen_ray.commands.registry import load_verbs
from gampen_ray.config import ImagesConfig, TargetConfig, TrainConfig, TuneConfig, default_search, gampen_vgg16
from gampen_ray.config.base import build, load_toml
from gampen_ray.tuning.space import SearchSpace

FOLDER = Path(__file__).parents[1] / "jobs" / "configs"
# Published with the models: side of the cutout (pixels), dropout rate, learning rate.
PUBLISHED = {
    "gampen_g_0_025": (239, 4e-4, 5e-8),
    "gampen_r_025_050": (143, 2e-4, 5e-8),
    "gampen_i_050_075": (96, 2e-4, 5e-6),
    "gampen_sim_g_0_025": (239, 7e-4, 5e-7),
    "gampen_sim_r_025_050": (143, 7e-4, 5e-7),
    "gampen_sim_i_050_075": (96, 4e-4, 5e-7),
}


def load(name: str) -> TrainConfig:
    """Build a preset as the command line does with its flags for dataset, output and bundle."""
    path = FOLDER / f"{name}.toml"
    values: dict[str, Any] = {"dataset": "d", "output": "o"}
    if "[fine_tune]" in path.read_text():
        values["fine_tune"] = {"bundle": "b"}
    return load_verbs()["train"].configured(values, str(path))


def test_every_preset_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == {
        *PUBLISHED,
        "gampen",
        "gampen_sim",
        "fine_tune",
        "tune",
        "tune_quick",
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_gampen_presets_are_the_published_recipes(name: str) -> None:
    config = load(name)
    size, dropout_rate, learning_rate = PUBLISHED[name]
    published = gampen_vgg16()
    backbone = dataclasses.replace(published.backbone, dropout_rate=dropout_rate)
    assert config.network == dataclasses.replace(published, backbone=backbone)
    assert config.images == ImagesConfig(size=size, softening=1.0, channels=3, sky="none", measure=False)
    optimizer = dataclasses.asdict(config.optimizer)
    assert (optimizer["name"], optimizer["learning_rate"], optimizer["momentum"]) == ("sgd", learning_rate, 0.99)
    assert (optimizer["weight_decay"], optimizer["nesterov"], optimizer["augment"]) == (1e-4, False, "rotations")
    assert (optimizer["schedule"], optimizer["warmup_fraction"], optimizer["max_grad_norm"]) == ("constant", 0.0, 0.0)
    assert (optimizer["epochs"], optimizer["batch_size"]) == (40, 16)
    assert not config.calibration.enabled
    if name.startswith("gampen_sim_"):
        assert not config.fine_tune.bundle
        assert config.targets == {
            "bulge_to_total": TargetConfig(transform="logit", clip=0.0),
            "effective_radius_arcsec": TargetConfig(transform="log"),
            "flux": TargetConfig(transform="log"),
        }
    else:
        assert (config.fine_tune.head, config.fine_tune.freeze, config.fine_tune.learning_rate_decay) == ("keep", (), 1.0)
        assert config.fine_tune.dropout_rate == dropout_rate


def test_fine_tuning_takes_over_all_that_the_bundle_brings() -> None:
    config, untouched = load("fine_tune"), TrainConfig(dataset="d", output="o")
    assert (config.network, config.images, config.targets) == (untouched.network, untouched.images, untouched.targets)
    assert config.fine_tune.learning_rate_decay < 1


def study(name: str) -> TuneConfig:
    return build(TuneConfig, load_toml((FOLDER / f"{name}.toml").read_bytes(), name) | {"dataset": "d", "output": "o"})


def test_a_quick_search_holds_the_config_it_starts_from() -> None:
    quick = study("tune_quick")
    assert set(quick.search) < set(default_search(quick))
    assert SearchSpace.of(quick).start is not None


def test_tuning_writes_out_the_default_search() -> None:
    config = study("tune")
    assert config.search == default_search(config)
    assert config == TuneConfig(dataset="d", output="o", search=config.search)
    assert SearchSpace.of(config) == SearchSpace.of(TuneConfig(dataset="d", output="o"))
