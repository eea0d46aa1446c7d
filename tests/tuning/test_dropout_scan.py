import dataclasses
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from gampen_ray.commands.scan_dropout import scan_dropout
from gampen_ray.config import FineTuneConfig, NetworkConfig, ScanDropoutConfig, TrainConfig, TrainResources
from gampen_ray.config.base import to_dict
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle
from gampen_ray.model.network import Network
from gampen_ray.posterior.calibration import Calibration, coverage
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.worker import one_sweep
from gampen_ray.tuning.dropout_scan import (
    SCAN,
    ScannedRate,
    rates,
    read_scan,
    scan,
    scanned_run,
    shortlisted,
    trained_config,
    with_rate,
)
from tests.networks import NETWORK, bundle, dataset, train_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return dataset(str(tmp_path_factory.mktemp("data") / "d"), {"train": 20, "val": 60})


def config(data: str, **changes: object) -> ScanDropoutConfig:
    return ScanDropoutConfig(bundle="b", dataset=data, output="o", **changes)


def trained_bundle() -> Bundle:
    """Return an untrained bundle that says how it was trained: with 4 passes and seed 3, in another place."""
    train = dataclasses.replace(train_config("elsewhere", "there"), seed=3)
    return dataclasses.replace(bundle(), provenance={"train": to_dict(train)})


def test_scan_is_what_a_bundle_with_that_rate_predicts(data: str) -> None:
    model = trained_bundle()
    run = scanned_run(trained_config(config(data), model), model)
    worker = LocalWorker.read(run)
    found = list(scan(worker, run, model.network, [0.05, 0.4]))
    batches = list(one_sweep(worker, "val"))
    x, z = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ("cutout_NCHW", "target_ND"))
    truths_ND = model.targets.physical(z.astype(np.float64))
    for row in found:
        backbone = dataclasses.replace(NETWORK.backbone, dropout_rate=row.rate)
        network = Network(dataclasses.replace(NETWORK, backbone=backbone), channels=1, size=20, num_targets=2)
        network.load_state_dict(model.network.state_dict())
        changed = dataclasses.replace(model, network=network, calibration=Calibration.constant(np.ones(2)))
        posterior = changed.predict(x, num_passes=4, seed=3)
        expected = coverage(posterior, truths_ND)
        assert row.coverage == [dataclasses.asdict(one) for one in expected]
        single = [one for one in expected if one.target != "joint"]
        assert row.calibration_error == pytest.approx(np.mean([abs(one.coverage - one.level) for one in single]))
        log_density = posterior.standardised_log_prob(model.targets.standardise(truths_ND)[:, None])
        assert row.val_nll == pytest.approx(-log_density.mean(), rel=1e-6)
    assert found[0].val_nll != found[1].val_nll
    # The bundle's own network is left as it was.
    assert {layer.p for layer in model.network.modules() if isinstance(layer, nn.Dropout)} == {0.05}


def test_without_ray_rates_are_scanned_and_the_best_is_trained(
    data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    trained_bundle().save(str(tmp_path / "b"))
    wanted = ScanDropoutConfig(
        bundle=str(tmp_path / "b"),
        dataset=data,
        output=str(tmp_path / "o"),
        rates=(0.1, 0.3),
        shortlist=1,
        resources=TrainResources(engine="local"),
    )
    chosen = scan_dropout(wanted)
    scanned = read_scan(str(tmp_path / "o" / SCAN))
    assert [row.rate for row in scanned] == [0.1, 0.3]
    assert chosen.config.backbone.dropout_rate == shortlisted(scanned, 1)[0]
    assert "starting Ray" not in caplog.text
    assert scan_dropout(wanted).provenance == chosen.provenance
    assert caplog.messages[-1].endswith("is complete; nothing to do")


def test_rates_are_those_of_the_config() -> None:
    assert rates(config("d", num_rates=3)) == pytest.approx([1e-4, np.sqrt(3e-5), 0.3])
    assert rates(config("d", num_rates=2, lowest_rate=0.1, highest_rate=0.2)) == pytest.approx([0.1, 0.2])
    assert rates(config("d", rates=(0.2, 0.1))) == [0.1, 0.2]


def test_shortlist_has_the_rates_of_best_coverage_first() -> None:
    scanned = [
        ScannedRate(rate=rate, coverage=[], calibration_error=error, val_nll=nll)
        for rate, error, nll in [(0.001, 0.03, 1.0), (0.01, 0.01, 2.0), (0.1, 0.01, 1.0), (0.3, 0.2, 0.0)]
    ]
    assert shortlisted(scanned, 3) == [0.1, 0.01, 0.001]


def test_the_bundle_is_trained_anew_as_it_was(data: str) -> None:
    model = trained_bundle()
    trained = trained_config(config(data), model)
    was = dataclasses.replace(train_config(data, "o"), seed=3)
    assert trained == was
    resources = TrainResources(num_workers=3)
    study = trained_config(config(data, mlflow="m", resources=resources), model)
    assert study == dataclasses.replace(was, mlflow="m", resources=resources)
    anew = with_rate(trained, 0.2, "o/1")
    assert (anew.network.backbone.dropout_rate, anew.output) == (0.2, "o/1")
    assert with_rate(anew, NETWORK.backbone.dropout_rate, "o") == trained
    tuned = dataclasses.replace(was, network=NetworkConfig(), fine_tune=FineTuneConfig(bundle="b"))
    assert with_rate(tuned, 0.2, "o") == dataclasses.replace(tuned, fine_tune=FineTuneConfig(bundle="b", dropout_rate=0.2))
    with pytest.raises(UserError, match="bundle: b does not say how it was trained"):
        trained_config(config(data), bundle())


def test_what_cannot_be_scanned_is_told_before(data: str, tmp_path: Path) -> None:
    model = bundle()
    backbone = dataclasses.replace(NETWORK.backbone, classifier=(), dropout_placement="classifier")
    with pytest.raises(UserError, match="bundle: its network has no dropout layer; give one with"):
        scanned_run(train_config(data, "o"), bundle(dataclasses.replace(NETWORK, backbone=backbone)))
    for counts, message in [
        ({"train": 20}, "has no galaxies in split 'val'"),
        ({"all": 20, "val": 3}, "lacks the bundle's target 'flux'; give the one it was trained on"),
    ]:
        with pytest.raises(UserError, match=message):
            scanned_run(train_config(dataset(str(tmp_path / next(iter(counts))), counts), "o"), model)
    two_bands = dataclasses.replace(model, images=dataclasses.replace(model.images, bands=("g", "r"), channels=2))
    with pytest.raises(UserError, match="has bands r, and the bundle was trained on g, r; give a dataset with these"):
        scanned_run(train_config(data, "o"), two_bands)


def test_a_bundle_of_an_earlier_version_can_be_scanned(data: str) -> None:
    trained = to_dict(TrainConfig(dataset="elsewhere", output="there"))
    old = trained["optimizer"]
    old["clip_norm"], old["accumulate"] = old.pop("max_grad_norm"), old.pop("gradient_accumulation_steps")
    trained["network"]["likelihood"] = "mse"
    trained["resources"] = {"num_workers": 2, "gpus_per_worker": 1.0}
    found = trained_config(config(data), dataclasses.replace(bundle(), provenance={"train": trained}))
    assert (found.optimizer.max_grad_norm, found.network.likelihood, found.resources.num_workers) == (5.0, "unit_variance", 0)
