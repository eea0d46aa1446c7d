import collections
import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from gampen_ray.config import TargetConfig, TrainConfig
from gampen_ray.data import shards
from gampen_ray.data.cutouts import overlap
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import load_bundle
from gampen_ray.inference.crop_statistics import CropStatistics
from gampen_ray.inference.mc_dropout import Passes, ThinnedNetworks
from gampen_ray.inference.out_of_distribution import features
from gampen_ray.inference.verdicts import crop_verdict
from gampen_ray.posterior.seeds import seed_agreement
from gampen_ray.training.execute import execute, log_verdicts, warn_of_unusable
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.run import prepare, sample_images, training_prior, with_config
from gampen_ray.training.worker import one_sweep
from tests.networks import NETWORK, PLAIN, SIZE, TARGETS, bundle, dataset, galaxies, numbers_config, train_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return dataset(str(tmp_path_factory.mktemp("data") / "d"), {"train": 160, "val": 60})


def trained(config: TrainConfig) -> Path:
    run = prepare(config)
    execute(LocalWorker.read(run), run)
    return Path(config.output)


@pytest.mark.parametrize(
    ("likelihood", "family"), [("unit_variance", "none"), ("diagonal", "affine"), ("full", "scale_shift"), ("full", "scale")]
)
def test_every_likelihood_and_transformer_makes_a_bundle_that_predicts(
    likelihood: str, family: str, data: str, tmp_path: Path
) -> None:
    transformer = dataclasses.replace(NETWORK.spatial_transformer, family=family)
    network = dataclasses.replace(NETWORK, likelihood=likelihood, spatial_transformer=transformer)
    output = trained(dataclasses.replace(train_config(data, str(tmp_path / "run")), network=network))
    bundle = load_bundle(str(output))
    assert bundle.config == network
    posterior = bundle.predict(galaxies(5, seed=3)["image"], num_passes=3)
    assert np.isfinite(posterior.mean()).all()
    assert (posterior.std() > 0).all()
    assert bool((posterior.scale_tril_NKDD[..., 1, 0] != 0).all()) == (likelihood == "full")
    coverage = {(row["target"], row["level"]): row["coverage"] for row in bundle.metrics["coverage"]["calibrated"]}
    # Calibrated on these very galaxies.
    assert coverage["flux", 0.6827] == pytest.approx(0.6827, abs=0.12)


@pytest.mark.parametrize(("num_passes", "rate", "verdict"), [(121, 1 / 11, "holds"), (2, 0.1, "fails")])
def test_agreement_of_two_seeds_is_kept_and_told(
    num_passes: int, rate: float, verdict: str, data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = dataclasses.replace(NETWORK.backbone, classifier=(64,), dropout_rate=rate, dropout_placement="classifier")
    config = train_config(data, str(tmp_path / "run"), epochs=6)
    config = dataclasses.replace(
        config,
        network=dataclasses.replace(NETWORK, backbone=backbone),
        calibration=dataclasses.replace(config.calibration, num_passes=num_passes),
    )
    bundle = load_bundle(str(trained(config)))
    seeds = bundle.metrics["seeds"]
    assert (seeds["num_passes"], seeds["num_galaxies"]) == (num_passes, 60)
    caplog.set_level("INFO", logger="gampen_ray")
    log_verdicts(bundle)
    warnings = [r for r in caplog.records if r.levelname == "WARNING" and "verdict on seeds" in r.getMessage()]
    assert seeds["verdict"] == verdict
    assert bool(warnings) == (verdict == "fails")
    assert f"verdict on seeds: {verdict}: two seeds, {num_passes} passes: " in caplog.text
    assert not warnings or re.search(
        r"seeds: fails: two seeds, 2 passes: .*; give .*a dropout rate of at least 0\.5", caplog.text
    )
    # With seeds of which training knew nothing.
    images = galaxies(60, seed=3)["image"]
    first, second = (bundle.predict(images, num_passes=num_passes, seed=seed) for seed in (17, 18))
    assert (seed_agreement(first, second).verdict == "holds") == (verdict == "holds")


def test_bundle_tells_unusual_images(data: str, tmp_path: Path) -> None:
    bundle = load_bundle(str(trained(train_config(data, str(tmp_path / "run"), epochs=4))))
    assert bundle.novelty
    images = galaxies(300, seed=5)["image"]

    def unusual(cutouts: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return bundle.novelty.unusual(features(bundle.network.prefix(bundle.images(torch.from_numpy(cutouts)))[0]))

    assert unusual(images).mean() < 0.1
    assert unusual(1000 * images).all()


@pytest.mark.parametrize("broken", [3, 60])
def test_validation_galaxies_without_a_finite_posterior_are_left_out(
    broken: int, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ids = np.concatenate([shards.read_shard(uri)["object_id"].to_numpy() for uri in shards.shard_uris(data, "val")])
    left = collections.defaultdict(lambda: itertools.chain([True] * broken, itertools.repeat(False)))

    def spoiled(thinned: ThinnedNetworks, images: torch.Tensor, numbers: torch.Tensor | None) -> Passes:
        passes = predicted(thinned, images, numbers)
        outputs_NKP = passes.outputs_NKP.clone()
        outputs_NKP[[next(left[id(thinned)]) for _ in images], 1] = float("nan")
        return dataclasses.replace(passes, outputs_NKP=outputs_NKP)

    predicted = ThinnedNetworks.__call__
    monkeypatch.setattr(ThinnedNetworks, "__call__", spoiled)
    config = train_config(data, str(tmp_path / "run"))
    if broken == 60:
        with pytest.raises(UserError, match=r"none of the 60 galaxies .* trained weights are in .*/uncalibrated$"):
            trained(config)
        assert load_bundle(str(tmp_path / "run" / "uncalibrated")).metrics == {}
        assert not (tmp_path / "run" / "bundle").exists()
        return
    bundle = load_bundle(str(trained(config)))
    assert bundle.metrics["val_without_posterior"] == {"count": 3, "object_id": [str(name) for name in ids[:3]]}
    error = bundle.metrics["coverage"]["calibrated"][0]["error"]
    assert error == pytest.approx(np.sqrt(0.6827 * 0.3173 / 57), rel=1e-3)
    warn_of_unusable(bundle)
    assert re.search(rf"3 validation galaxies have no finite posterior .*: object_id {ids[0]}, {ids[1]}", caplog.text)


def test_the_softening_is_that_of_all_shards(tmp_path: Path) -> None:
    noisy = dataset(str(tmp_path / "noisy"), {"train": 200, "val": 20}, rows_per_shard=10)
    info = shards.read_dataset_info(noisy)
    for uri in shards.shard_uris(noisy, "train")[1:]:
        table = shards.read_shard(uri)
        columns = {name: table[name] for name in table.column_names} | {"image": 10 * shards.images(table)}
        shards.write_shard(uri, columns, info)
    softening = prepare(train_config(noisy, str(tmp_path / "run"))).images.softening
    # The noise of 19 of 20 shards, not of the first.
    assert softening == pytest.approx(1.0, rel=0.2)


def test_padding_of_shards_is_no_part_of_an_image(tmp_path: Path) -> None:
    """Training sees zero-padded cutouts as prediction does: without the zeros."""
    sides = np.resize([SIZE, SIZE - 4, SIZE - 5], 60)
    data = dataset(str(tmp_path / "d"), {"train": 60, "val": 20})
    info = shards.read_dataset_info(data)
    for uri in shards.shard_uris(data, "train"):
        table = shards.read_shard(uri)
        columns = {name: table[name] for name in table.column_names} | {shards.SIDE: sides}
        columns["image"] = np.zeros_like(shards.images(table))
        for image_CHW, given_CHW, side in zip(columns["image"], shards.images(table), sides, strict=True):
            inside = overlap(SIZE, side)[0]
            image_CHW[:, inside, inside] = given_CHW[:, inside, inside]
        shards.write_shard(uri, columns, info)
    run = prepare(numbers_config(data, str(tmp_path / "run")))
    assert (run.images.size, len(sample_images(run.splits["train"]))) == (SIZE, 40)
    # The noise of the images, which is that of `galaxies`.
    assert run.images.softening == pytest.approx(0.1, rel=0.3)
    (batch, *_) = one_sweep(LocalWorker.read(run), "train")
    numbers_NM = run.numbers(batch)
    inputs, plain_NQC = run.inputs_and_plain_numbers(batch)
    torch.testing.assert_close(run.network_inputs(batch), inputs)
    for n, (image_CHW, side) in enumerate(zip(batch.cutout_NCHW, batch.side_N, strict=True)):
        assert side == sides[batch.object_id_N[n]]
        inside = overlap(SIZE, int(side))[0]
        alone_1CHW = image_CHW[None, :, inside, inside]
        image_1CHW, number_1M = run.images.inputs(alone_1CHW)
        torch.testing.assert_close(inputs.image_NCHW[n], image_1CHW[0])
        torch.testing.assert_close(plain_NQC[n], run.images.plain_numbers(alone_1CHW)[0])
        for several_NM in (inputs.number_NM, numbers_NM):
            torch.testing.assert_close(several_NM[n], number_1M[0], rtol=1e-4, atol=1e-4)


def test_the_sample_for_the_softening_is_spread_over_a_split_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gampen_ray.training.run._SAMPLE_IMAGES", 30)
    monkeypatch.setattr("gampen_ray.training.run._SAMPLE_UNITS", 4)
    data = dataset(str(tmp_path / "data"), {"train": 100, "val": 20}, rows_per_shard=10)
    run = prepare(train_config(data, str(tmp_path / "run")))
    # Of 10 shards the first, fourth, seventh and last, 8 rows of each, 30 in all.
    rows = [i for shard in (0, 3, 6, 9) for i in range(10 * shard, 10 * shard + 8)][:30]
    np.testing.assert_array_equal(sample_images(run.splits["train"]), galaxies(100, 0)["image"][rows])


def test_crop_and_verdicts_of_a_training_are_kept(data: str, tmp_path: Path) -> None:
    output = trained(train_config(data, str(tmp_path / "run")))
    last = json.loads((output / "history.json").read_text())[-1]
    assert last["crop_scale_p05"] <= last["crop_scale_p50"] <= last["crop_scale_p95"]
    assert 0 <= last["crop_dead_fraction"] <= 1
    metrics = load_bundle(str(output)).metrics
    assert set(metrics["verdicts"]) == {"training", "crop", "coverage", "seeds"}
    assert metrics["crop"]["num_galaxies"] == 60


def test_the_prior_of_the_training_is_that_of_its_split(data: str, tmp_path: Path) -> None:
    bundle = load_bundle(str(trained(train_config(data, str(tmp_path / "run")))))
    values_ND = np.stack([galaxies(160)[name] for name in TARGETS], axis=1)
    assert bundle.prior
    np.testing.assert_array_equal(bundle.prior.edges[0][[0, -1]], np.log([values_ND[:, 0].min(), values_ND[:, 0].max()]))
    assert np.isfinite(bundle.prior.log_density(values_ND)).all()
    # Of too few galaxies there is none.
    assert training_prior(dataset(str(tmp_path / "few"), {"train": 99, "val": 60}), bundle.targets) is None


@pytest.mark.parametrize(
    ("scale_N", "dead", "warned"), [((0.5, 0.5), 0.0, True), ((0.4, 0.8), 0.05, True), ((0.4, 0.8), 0.0, False)]
)
def test_a_constant_or_partly_dead_crop_is_a_warning(
    scale_N: tuple, dead: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    crop = CropStatistics.of(np.array(scale_N), dead_fraction=dead)
    metrics = {"crop": crop.to_dict(), "verdicts": {"crop": crop_verdict(crop).to_dict()}}
    caplog.set_level("INFO", logger="gampen_ray")
    log_verdicts(dataclasses.replace(bundle(), metrics=metrics))
    (record,) = caplog.records
    assert record.getMessage().startswith("verdict on crop: ")
    assert (record.levelname == "WARNING") == warned


def test_calibration_can_be_switched_off(data: str, tmp_path: Path) -> None:
    config = train_config(data, str(tmp_path / "run"))
    config = dataclasses.replace(config, calibration=dataclasses.replace(config.calibration, enabled=False))
    bundle = load_bundle(str(trained(config)))
    assert bundle.calibration.scale_DB.tolist() == [[1.0], [1.0]]
    assert bundle.metrics["fitted_calibration"]["scale"] != [[1.0], [1.0]]


def test_an_infinite_validation_loss_on_the_way_loses_nothing(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([float("inf"), 0.5])
    monkeypatch.setattr("gampen_ray.training.loop.evaluate", lambda *_: next(losses))
    output = trained(train_config(data, str(tmp_path / "run"), epochs=2))
    history = json.loads((output / "history.json").read_text())
    assert [row["val_loss"] for row in history] == [None, 0.5]
    assert load_bundle(str(output)).metrics["val_loss"] == 0.5


def test_training_that_never_had_a_finite_loss_is_the_users_to_mend(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gampen_ray.training.loop.evaluate", lambda *_: float("nan"))
    with pytest.raises(
        UserError, match=r"optimizer\.learning_rate: 0\.003 is too high, no validation loss is finite; lower it"
    ):
        trained(train_config(data, str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_run_of_another_config_is_the_one_prepared_for_it(data: str, tmp_path: Path) -> None:
    config = train_config(data, str(tmp_path / "run"))
    run = prepare(config)
    backbone = dataclasses.replace(NETWORK.backbone, plan=(8, "M"))
    changed = dataclasses.replace(
        config,
        network=dataclasses.replace(NETWORK, backbone=backbone),
        images=dataclasses.replace(PLAIN, size=16, channels=2),
        output=str(tmp_path / "other"),
    )
    assert with_config(run, changed) == prepare(changed)
    with pytest.raises(UserError, match=r"calibration\.num_passes: 4, but network\.backbone\.dropout_rate is 0"):
        backbone = dataclasses.replace(NETWORK.backbone, dropout_rate=0.0)
        with_config(run, dataclasses.replace(config, network=dataclasses.replace(NETWORK, backbone=backbone)))


def test_mistakes_of_either_split_are_told_before_training(data: str, tmp_path: Path) -> None:
    config = train_config(data, str(tmp_path / "run"))
    backbone = dataclasses.replace(NETWORK.backbone, dropout_rate=0.0)
    with pytest.raises(UserError, match=r"calibration\.num_passes: 4, but network\.backbone\.dropout_rate is 0"):
        prepare(dataclasses.replace(config, network=dataclasses.replace(NETWORK, backbone=backbone)))
    bad = dataset(str(tmp_path / "bad"), {"train": 30, "val": 20})
    columns = galaxies(20, seed=1)
    columns["flux"][3] = -1.0
    shards.write_shard(shards.part_uri(bad, "val", 0), columns, shards.read_dataset_info(bad))
    with pytest.raises(UserError, match=r"split 'val': targets\.flux: 1 of 20 values lie outside the domain"):
        prepare(dataclasses.replace(config, dataset=bad))
    with pytest.raises(UserError, match=r"split 'train': targets\.flux: 30 of 30 values lie outside"):
        prepare(dataclasses.replace(config, dataset=bad, targets=TARGETS | {"flux": TargetConfig(transform="logit")}))
