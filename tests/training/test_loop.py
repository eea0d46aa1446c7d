import math

import numpy as np
import pytest
import torch
from torch import nn

from gampen_ray.config import ImagesConfig, OptimizerConfig
from gampen_ray.errors import UserError
from gampen_ray.model.images import ImagePreprocessing
from gampen_ray.model.network import Network
from gampen_ray.model.targets import TargetSchema
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.loop import Plan, evaluate, fit
from tests.networks import NETWORK, SIZE, TARGETS, galaxies

TRAIN, VAL = galaxies(320, seed=1), galaxies(100, seed=2)


def splits() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    values = {name: np.stack([c[t] for t in TARGETS], axis=1) for name, c in (("train", TRAIN), ("val", VAL))}
    schema = TargetSchema.fit(TARGETS, values["train"], {})
    targets = {name: torch.from_numpy(schema.standardise(v)).float() for name, v in values.items()}
    return {name: (torch.tensor(c["image"]), targets[name]) for name, c in (("train", TRAIN), ("val", VAL))}


def plan(**optimizer: object) -> Plan:
    torch.manual_seed(0)
    config = OptimizerConfig(**({"epochs": 4, "batch_size": 32, "learning_rate": 3e-3} | optimizer))
    return Plan(
        network=Network(NETWORK, channels=1, size=SIZE, num_targets=2),
        images=ImagePreprocessing.fit(ImagesConfig(), ("r",), TRAIN["image"]),
        optimizer=config,
        steps_per_epoch=len(TRAIN["flux"]) // config.batch_size,
        seed=5,
    )


def train(worker: LocalWorker, **optimizer: object) -> tuple[Plan, list[dict[str, float]]]:
    trained = plan(**optimizer)
    return trained, fit(worker, trained)


@pytest.mark.parametrize(
    "optimizer",
    [{}, {"augment": "rotations"}, {"name": "sgd", "learning_rate": 0.02, "nesterov": True}],
    ids=["adamw", "rotations", "sgd"],
)
def test_loss_falls_far_below_that_of_the_prior(optimizer: dict) -> None:
    trained, history = train(LocalWorker(splits(), 32), epochs=8, **optimizer)
    # With mean 0 and unit covariance the loss is D / 2 = 1.
    assert history[-1]["train_loss"] < 0.3
    assert min(row["val_loss"] for row in history) < 0.3
    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert trained.network.tail[-1].out_features == 5


def test_network_ends_with_the_weights_of_least_validation_loss() -> None:
    worker = LocalWorker(splits(), 32)
    trained, history = train(worker, learning_rate=0.05, schedule="constant")
    best = min(row["val_loss"] for row in history)
    assert evaluate(worker, trained.network, trained.images) == pytest.approx(best, rel=1e-6)


class Dies(Exception):
    """The worker's process is gone."""


class DyingWorker(LocalWorker):
    def report(self, metrics: dict[str, float], state: dict) -> None:
        super().report(metrics, state)
        if metrics["epoch"] == 2:
            raise Dies


def test_resumed_run_ends_with_the_weights_of_an_unbroken_one() -> None:
    unbroken, history = train(LocalWorker(splits(), 32))
    dying = DyingWorker(splits(), 32)
    with pytest.raises(Dies):
        train(dying)
    resumed, resumed_history = train(LocalWorker(splits(), 32, state=dying.state))
    assert [row["val_loss"] for row in resumed_history] == [row["val_loss"] for row in history]
    for a, b in zip(unbroken.network.state_dict().values(), resumed.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    _, history = train(LocalWorker(splits(), 32), warmup_fraction=0.25, epochs=4)
    rates = [row["learning_rate"] / 3e-3 for row in history]
    assert rates[0] == pytest.approx(1.0, abs=0.01)
    np.testing.assert_allclose(rates[1:], [0.5 * (1 + math.cos(math.pi * i / 3)) for i in (1, 2, 3)], atol=1e-9)


def test_batch_statistics_are_frozen_after_their_share_of_the_epochs() -> None:
    seen: list[bool] = []
    trained = plan(epochs=4, batch_norm_fraction=0.5)
    layer = next(layer for layer in trained.network.modules() if isinstance(layer, nn.BatchNorm2d))
    layer.register_forward_hook(lambda module, *_: seen.append(module.training) if torch.is_grad_enabled() else None)
    fit(LocalWorker(splits(), 32), trained)
    assert seen == [True] * 20 + [False] * 20


def test_fewer_galaxies_than_a_batch_still_train() -> None:
    few = {name: (x[:10], y[:10]) for name, (x, y) in splits().items()}
    _, history = train(LocalWorker(few, 32))
    assert len(history) == 4
    assert all(math.isfinite(row["val_loss"]) for row in history)


def test_diverged_training_is_stopped_with_a_remedy() -> None:
    broken = splits()
    broken["train"][0][5] = float("nan")
    with pytest.raises(
        UserError, match=r"optimizer\.learning_rate: 0\.003 is too high, the loss of epoch 1 is not finite; lower"
    ):
        train(LocalWorker(broken, 32))
