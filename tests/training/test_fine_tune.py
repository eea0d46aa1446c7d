import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gampen_ray import storage
from gampen_ray.config import (
    BackboneConfig,
    CalibrationConfig,
    FineTuneConfig,
    ImagesConfig,
    NetworkConfig,
    OptimizerConfig,
    SpatialTransformerConfig,
    TargetConfig,
    TrainConfig,
    gampen_vgg16,
)
from gampen_ray.config.base import build, to_dict
from gampen_ray.data import shards
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, bundle_digest, load_bundle
from gampen_ray.model.network import Network
from gampen_ray.training.execute import execute
from gampen_ray.training.fine_tune import parameter_groups
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.loop import evaluate
from gampen_ray.training.run import Run, build_network, prepare
from gampen_ray.training.worker import one_sweep
from tests.networks import NETWORK, SIZE, TARGETS, bundle, dataset, galaxies

CONCENTRATION = {"concentration": TargetConfig(transform="logit")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return dataset(str(tmp_path_factory.mktemp("data") / "d"), {"train": 160, "val": 60})


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("start"))
    trained = bundle()
    for name, buffer in trained.network.named_buffers():
        # Running statistics that are not those of a new network.
        if name.endswith("running_mean"):
            buffer += 0.1
    dataclasses.replace(trained, images=dataclasses.replace(trained.images, zero_point_mag=30.0)).save(uri)
    return uri


def config(data: str, start: str, output: str = "nowhere", **fields: object) -> TrainConfig:
    fine_tune = {
        name: fields.pop(name) for name in list(fields) if name in {f.name for f in dataclasses.fields(FineTuneConfig)}
    }
    fields = {
        "optimizer": OptimizerConfig(epochs=2, batch_size=32, learning_rate=3e-3),
        "calibration": CalibrationConfig(num_passes=4),
    } | fields
    return TrainConfig(dataset=data, output=output, fine_tune=FineTuneConfig(bundle=start, **fine_tune), **fields)


def tuned(config: TrainConfig, worker: type[LocalWorker] = LocalWorker, state: dict | None = None) -> Bundle:
    run = prepare(config)
    local = worker.read(run)
    local.state = state
    execute(local, run)
    return load_bundle(config.output)


def val_loss(run: Run) -> float:
    worker = LocalWorker.read(run)
    return evaluate(worker, build_network(run), run.network_inputs, one_sweep(worker, "val"))


def unchanged_blocks(made: Network, given: Network) -> set[str]:
    """Return the blocks whose weights and running statistics are all equal, bit by bit."""
    before = given.blocks()
    return {
        name
        for name, block in made.blocks().items()
        if all(
            torch.equal(a, b)
            for layer, start in zip(block, before[name], strict=True)
            for a, b in zip(layer.state_dict().values(), start.state_dict().values(), strict=True)
        )
    }


def network(config: NetworkConfig, channels: int = 1, size: int = 96) -> Network:
    return Network(config, channels=channels, size=size, num_targets=2)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (NetworkConfig(), "spatial_transformer block1 block2 block3 classifier head"),
        (gampen_vgg16(), "spatial_transformer block1 block2 block3 block4 block5 classifier head"),
        (
            NetworkConfig(
                spatial_transformer=SpatialTransformerConfig(family="none"), backbone=BackboneConfig(plan=(4,), classifier=())
            ),
            "block1 head",
        ),
        (
            dataclasses.replace(NetworkConfig(), backbone=dataclasses.replace(NetworkConfig().backbone, block="residual")),
            "spatial_transformer block1 block2 block3 classifier head",
        ),
    ],
    ids=["compact", "gampen_vgg16", "smallest", "residual"],
)
def test_every_weight_is_in_one_block(config: NetworkConfig, names: str) -> None:
    with torch.device("meta"):
        layers = (made := network(config)).blocks()
    assert " ".join(layers) == names
    in_blocks = [id(p) for block in layers.values() for layer in block for p in layer.parameters()]
    assert sorted(in_blocks) == sorted(id(p) for p in made.parameters())


def test_blocks_of_the_published_network_are_those_of_vgg16() -> None:
    with torch.device("meta"):
        layers = network(gampen_vgg16()).blocks()
    counts = {name: sum(isinstance(layer, torch.nn.Conv2d) for layer in block) for name, block in layers.items()}
    assert [counts[f"block{i}"] for i in range(1, 6)] == [2, 2, 3, 3, 3]
    assert [layer.out_features for layer in layers["classifier"] if isinstance(layer, torch.nn.Linear)] == [4096, 4096]


def test_learning_rates_fall_from_the_output_to_the_input() -> None:
    made = network(NETWORK, size=SIZE)
    made.tail[-4].requires_grad_(False)
    groups = parameter_groups(made, 0.1, 0.5)
    assert [group["lr"] for group in parameter_groups(network(NETWORK, size=SIZE), 0.1, 1.0)] == [0.1] * 5
    # head, block2, block1, spatial_transformer: the frozen classifier counts as a block behind.
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.025, 0.0125, 0.00625])
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in made.parameters())


def test_learning_rates_reach_the_optimiser(data: str, start: str, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(epochs=1, batch_size=32, schedule="constant", warmup_fraction=0.0, learning_rate=1e-3)
    run = prepare(config(data, start, str(tmp_path / "run"), learning_rate_decay=0.1, optimizer=optimizer))
    worker = LocalWorker.read(run)
    execute(worker, run)
    assert worker.state is not None
    rates = [group["lr"] for group in worker.state["optimizer"]["param_groups"]]
    assert rates == pytest.approx([1e-3, 1e-4, 1e-5, 1e-6, 1e-7])
    assert json.loads((tmp_path / "run" / "history.json").read_text())[0]["learning_rate"] == pytest.approx(1e-3)


def test_a_kept_head_starts_at_the_loss_of_the_bundle(data: str, start: str) -> None:
    run, trained = prepare(config(data, start)), load_bundle(start)
    columns = galaxies(60, seed=1)
    truths = trained.targets.standardise(np.stack([columns[name] for name in TARGETS], axis=1))
    with torch.no_grad():
        outputs = trained.network(trained.images(torch.from_numpy(columns["image"])))
    expected = float(trained.network.likelihood.loss(outputs, torch.from_numpy(truths).float()).mean())
    assert val_loss(run) == pytest.approx(expected, rel=1e-5)
    assert run.targets == trained.targets


def test_a_bundle_replaced_after_the_run_was_prepared_is_refused(data: str, start: str, tmp_path: Path) -> None:
    storage.copy(start, str(tmp_path / "start"))
    run, other = prepare(config(data, str(tmp_path / "start"))), load_bundle(start)
    other.metrics["val_loss"] = 7.0
    other.save(str(tmp_path / "start"))
    with pytest.raises(UserError, match="was replaced while it was in use"):
        build_network(run)


def test_a_replaced_head_is_new_and_all_else_is_the_bundles(data: str, start: str) -> None:
    run, trained = prepare(config(data, start, head="replace", targets=CONCENTRATION)), load_bundle(start)
    made, given = build_network(run).state_dict(), trained.network.state_dict()
    different = [name for name, value in made.items() if not torch.equal(value, given[name])]
    last = len(trained.network.tail) - 1
    assert different == [f"tail.{last}.weight", f"tail.{last}.bias"]
    assert made[f"tail.{last}.weight"].shape == (3, 16)
    # Fitted on the new galaxies.
    assert run.targets.names == ("concentration",)
    assert run.targets.targets[0].location != trained.targets.targets[1].location


def test_frozen_blocks_keep_weights_and_running_statistics(data: str, start: str, tmp_path: Path) -> None:
    freeze = ("spatial_transformer", "block1", "classifier")
    made = tuned(config(data, start, str(tmp_path / "run"), freeze=freeze))
    assert unchanged_blocks(made.network, load_bundle(start).network) == set(freeze)


def test_the_new_bundle_says_where_it_comes_from(data: str, start: str, tmp_path: Path) -> None:
    made = tuned(config(data, start, str(tmp_path / "run"), dropout_rate=0.02))
    given = load_bundle(start)
    origin = made.provenance["fine_tuned_from"]
    assert origin == {"uri": start, "digest": bundle_digest(start), "provenance": given.provenance}
    assert made.config == dataclasses.replace(NETWORK, backbone=dataclasses.replace(NETWORK.backbone, dropout_rate=0.02))
    assert made.images == given.images
    # And can itself be the start of another.
    again = tuned(config(data, str(tmp_path / "run"), str(tmp_path / "again"), head="replace", targets=CONCENTRATION))
    assert again.provenance["fine_tuned_from"]["provenance"]["fine_tuned_from"] == origin


class Dies(Exception):
    """The worker's process is gone."""


class DyingWorker(LocalWorker):
    last: dict

    def report(self, metrics: dict[str, float], state: dict) -> None:
        super().report(metrics, state)
        assert self.state is not None
        DyingWorker.last = self.state
        if metrics["epoch"] == 1:
            raise Dies


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(data: str, start: str, tmp_path: Path) -> None:
    settings = {"freeze": ("block1",), "learning_rate_decay": 0.5, "head": "replace", "targets": CONCENTRATION}
    unbroken = tuned(config(data, start, str(tmp_path / "unbroken"), **settings))
    with pytest.raises(Dies):
        tuned(config(data, start, str(tmp_path / "resumed"), **settings), DyingWorker)
    resumed = tuned(config(data, start, str(tmp_path / "resumed"), **settings), state=DyingWorker.last)
    for a, b in zip(unbroken.network.state_dict().values(), resumed.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def scaled(root: Path, factor: float, **info: object) -> str:
    """Write the galaxies of `data` with their pixels times ``factor``."""
    fields = {"bands": ("i",), "cutout_size": SIZE, "target_units": {"flux": "Jy", "concentration": ""}, "fingerprint": "g"}
    described = shards.DatasetInfo(**(fields | {"num_rows": {"train": 160, "val": 60}} | info))
    for seed, (split, count) in enumerate(described.num_rows.items()):
        columns = galaxies(count, seed)
        columns["image"] = np.repeat(np.float32(factor) * columns["image"], len(described.bands), axis=1)
        shards.write_shard(shards.part_uri(str(root), split, 0), columns, described)
    shards.write_dataset_info(str(root), described)
    return str(root)


def test_cutouts_are_converted_to_the_zero_point_of_the_bundle(data: str, start: str, tmp_path: Path) -> None:
    fainter = scaled(tmp_path / "fainter", 10.0, zero_point_mag=32.5)
    runs = [prepare(config(uri, start)) for uri in (data, fainter)]
    losses = [val_loss(run) for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    made = tuned(config(fainter, start, str(tmp_path / "run")))
    assert (made.images.zero_point_mag, made.images.bands) == (30.0, ("i",))
    image = galaxies(5, seed=3)["image"]
    converted = made.predict(10 * image, num_passes=2, zero_point_mag=32.5).mean()
    np.testing.assert_allclose(converted, made.predict(image, num_passes=2).mean(), rtol=1e-4)


def test_units_that_the_bundle_does_not_know_are_those_of_the_dataset(start: str, tmp_path: Path) -> None:
    run = prepare(config(scaled(tmp_path / "d", 1.0, pixel_scale_arcsec=0.2, zero_point_mag=27.0), start))
    assert (run.images.pixel_scale_arcsec, run.images.zero_point_mag) == (0.2, 30.0)


def test_settings_that_agree_with_the_bundle_are_taken(data: str, start: str) -> None:
    images = load_bundle(start).images
    same = ImagesConfig(size=SIZE, softening=images.softening, channels=1)
    run = prepare(config(data, start, network=NETWORK, images=same, targets=TARGETS))
    assert (run.network, run.targets) == (NETWORK, load_bundle(start).targets)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (
            {"freeze": ("blok1",)},
            r"^fine_tune\.freeze: 'blok1' .*; choose from spatial_transformer, block1, block2, classifier, head$",
        ),
        ({"freeze": ("head",), "head": "replace", "targets": CONCENTRATION}, r"^fine_tune\.freeze: 'head' .*, classifier$"),
        (
            {"freeze": ("spatial_transformer", "block1", "block2", "classifier", "head")},
            r"^fine_tune\.freeze: spatial_transformer, .*, head are all blocks; leave one out to train it$",
        ),
        (
            {"network": gampen_vgg16()},
            r"^network\.backbone\.base: false, but .*, has true; leave it out$",
        ),
        (
            {"images": ImagesConfig(size=16)},
            r"^images\.size: 16, but fine_tune\.bundle, .*, has 20; leave it out$",
        ),
        (
            {"targets": CONCENTRATION},
            r"^targets: concentration and their transforms .* \(flux, concentration\); leave targets out, or",
        ),
        ({"head": "replace"}, r"^targets\.bulge_to_total: .* has no such column"),
        ({"dropout_rate": 0.0}, r"^calibration\.num_passes: 4, but fine_tune\.dropout_rate is 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_contradictions_are_refused(fields: dict, match: str, data: str, start: str) -> None:
    with pytest.raises(UserError, match=match):
        prepare(config(data, start, **fields))


def test_a_dataset_that_does_not_fit_is_refused(start: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^targets\.flux: the unit is 'mJy' in the dataset, but 'Jy' in fine_tune\.bundle; convert"
    ):
        prepare(config(scaled(tmp_path / "unit", 1.0, target_units={"flux": "mJy"}), start))
    with pytest.raises(
        UserError, match=r"^dataset: .*two has 2 bands, but fine_tune\.bundle takes 1 \(r\); give a dataset with 1"
    ):
        prepare(config(scaled(tmp_path / "two", 1.0, bands=("g", "r")), start))
    with pytest.raises(UserError, match=r"^bundle: .*nowhere holds no bundle\.json"):
        prepare(config(scaled(tmp_path / "d", 1.0), str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("name", "value"), [("head", "replace"), ("freeze", ("block1",)), ("learning_rate_decay", 0.5), ("dropout_rate", 0.1)]
)
def test_settings_without_a_bundle_are_refused(name: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^fine_tune\.{name}: .* has no effect without fine_tune\.bundle; leave"):
        build(TrainConfig, {"dataset": "d", "output": "o", "fine_tune": {name: value}})


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (
            {"network": {"likelihood": "scale_mixture", "backbone": {"stem_stride": 2}}},
            r"^network\.backbone\.stem_stride: 2, .* has 1;",
        ),
        ({"network": {"backbone": {"dropout_rate": 2e-3}}}, r"^network\.backbone\.dropout_rate: 0\.002, .* has 0\.05; leave"),
        ({"images": {"softening": 0.0}}, r"^images\.softening: 0\.0, but .*; leave it out$"),
        (
            {"targets": to_dict(TrainConfig(dataset="d", output="o"))["targets"]},
            r"^targets: bulge_to_total, .* leave targets out",
        ),
        (
            {"targets": {"flux": {"transform": "log", "unit": "mJy"}, "concentration": {"transform": "logit"}}},
            r"^targets\.flux\.u",
        ),
    ],
    ids=["stride", "rate", "softening", "targets", "unit"],
)
def test_a_given_default_that_contradicts_the_bundle_is_refused(values: dict, match: str, data: str, start: str) -> None:
    with pytest.raises(UserError, match=match):
        prepare(build(TrainConfig, {"dataset": data, "output": "o", "fine_tune": {"bundle": start}} | values))
    agreeing = {"network": {"likelihood": "scale_mixture", "backbone": {"stem_stride": 1}}, "images": {"size": SIZE}}
    prepare(build(TrainConfig, {"dataset": data, "output": "o", "fine_tune": {"bundle": start}} | agreeing))
