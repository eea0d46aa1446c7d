import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from gampen_ray.config import OptimizerConfig
from gampen_ray.data.sources import Unit
from gampen_ray.errors import UserError
from gampen_ray.model.images import ImagePreprocessing
from gampen_ray.model.network import Network
from gampen_ray.model.targets import TargetSchema
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.loop import _prepared, evaluate, fit
from gampen_ray.training.order import Order
from gampen_ray.training.reading import Rows
from gampen_ray.training.worker import Plan, one_sweep
from tests.networks import NETWORK, PLAIN, SIZE, TARGETS, galaxies

TRAIN, VAL = galaxies(320, seed=1), galaxies(100, seed=2)
IMAGES = ImagePreprocessing.fit(PLAIN, ("r",), TRAIN["image"])
SCHEMA = TargetSchema.fit(TARGETS, np.stack([TRAIN[t] for t in TARGETS], axis=1), {})
# Without dropout and batch statistics a run does not depend on the number of workers.
INDEPENDENT = {"normalisation": "none", "dropout_rate": 0.0}


def rows(columns: dict[str, np.ndarray]) -> Rows:
    targets_ND = SCHEMA.standardise(np.stack([columns[t] for t in TARGETS], axis=1)).astype(np.float32)
    return Rows(
        object_id_N=columns["object_id"],
        cutout_NCHW=columns["image"],
        target_ND=targets_ND,
        condition_NJ=np.empty((len(targets_ND), 0), np.float32),
        side_N=np.full(len(targets_ND), SIZE),
    )


def worker(
    train: Rows | None = None, batch_size: int = 32, kind: type[LocalWorker] = LocalWorker, state: dict | None = None
) -> LocalWorker:
    """Return a worker on galaxies in memory, in units of 40."""
    splits = {"train": rows(TRAIN) if train is None else train, "val": rows(VAL)}
    orders = {
        split: Order(
            units=[Unit(name=f"{split}-{i}", num_rows=min(40, len(s) - i), uri=split, start=i) for i in range(0, len(s), 40)],
            batch_size=batch_size,
            seed=5 if split == "train" else None,
        )
        for split, s in splits.items()
    }
    return kind(orders, lambda u: splits[u.uri].take(slice(u.start, u.start + u.num_rows)), state=state)


def plan(backbone: dict | None = None, report_steps: int = 0, **optimizer: object) -> Plan:
    torch.manual_seed(0)
    config = (
        NETWORK
        if backbone is None
        else dataclasses.replace(NETWORK, backbone=dataclasses.replace(NETWORK.backbone, **backbone))
    )
    return Plan(
        network=Network(config, channels=1, size=SIZE, num_targets=2),
        inputs=lambda batch: IMAGES.inputs(batch.cutout_NCHW),
        optimizer=OptimizerConfig(**({"epochs": 4, "batch_size": 32, "learning_rate": 3e-3} | optimizer)),
        seed=5,
        report_steps=report_steps,
    )


def train(worker: LocalWorker, **settings: object) -> tuple[Plan, list[dict[str, float]]]:
    trained = plan(**settings)
    return trained, fit(worker, trained)


def head(plan: Plan) -> str:
    """Return the name of the output layer's weights."""
    return f"tail.{len(plan.network.tail) - 1}.weight"


def assert_same_weights(a: Plan, b: Plan, **tolerance: float) -> None:
    for x, y in zip(a.network.state_dict().values(), b.network.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, **({"rtol": 0.0, "atol": 0.0} | tolerance))


@pytest.mark.parametrize(
    "optimizer",
    [
        {},
        {"augment": "rotations"},
        {"name": "sgd", "learning_rate": 0.02, "nesterov": True},
        {"beta": 0.5, "mse_warmup_fraction": 0.25},
        {"ema_decay": 0.9},
        {"precision": "bfloat16"},
    ],
    ids=["adamw", "rotations", "sgd", "beta-nll", "ema", "bfloat16"],
)
def test_loss_falls_far_below_that_of_the_prior(optimizer: dict) -> None:
    trained, history = train(worker(), epochs=8, **optimizer)
    # With mean 0 and unit covariance the loss is D / 2 = 1.
    assert history[-1]["train_loss"] < 0.35
    assert min(row["val_loss"] for row in history) < 0.35
    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert trained.network.tail[-1].out_features == 6


def test_network_ends_with_the_weights_of_least_validation_loss() -> None:
    local = worker()
    trained, history = train(local, learning_rate=0.05, schedule="constant")
    best = min(row["val_loss"] for row in history)
    assert evaluate(local, trained.network, trained.inputs, one_sweep(local, "val")) == pytest.approx(best, rel=1e-6)


def test_averaged_weights_are_the_exponential_mean_of_those_of_all_steps() -> None:
    seen = []

    class Watching(LocalWorker):
        def progress(self, epoch: int, galaxies: int, loss: torch.Tensor) -> None:
            seen.append(trained.network.tail[-1].weight.detach().clone())

    trained = plan(ema_decay=0.8, epochs=1)
    local = worker(kind=Watching)
    fit(local, trained)
    # The first update takes the weights as they are.
    expected = seen[0]
    for weight in seen[1:]:
        expected = 0.8 * expected + 0.2 * weight
    assert local.state is not None
    torch.testing.assert_close(local.state["average"][f"module.{head(trained)}"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(trained.network.tail[-1].weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_only_the_means_are_trained_in_the_warm_up() -> None:
    untrained = plan(epochs=2, mse_warmup_fraction=1 / 2, weight_decay=0.0)
    before = untrained.network.tail[-1].weight.detach().clone()
    states: list[dict] = []

    class Keeping(LocalWorker):
        def report(self, metrics: dict[str, float], state: dict) -> None:
            states.append(copy.deepcopy(state))

    fit(worker(kind=Keeping), untrained)
    first, second = (state["network"][head(untrained)] for state in states)
    assert torch.equal(first[2:], before[2:])
    assert not torch.equal(first[:2], before[:2])
    assert not torch.equal(second[2:], before[2:])


def test_a_batch_in_parts_is_the_same_batch() -> None:
    whole, history = train(worker(), backbone=INDEPENDENT, epochs=1)
    parts, of_parts = train(worker(), backbone=INDEPENDENT, epochs=1, gradient_accumulation_steps=5)
    assert of_parts[0]["train_loss"] == pytest.approx(history[0]["train_loss"], rel=1e-5)
    assert_same_weights(whole, parts, rtol=1e-3, atol=1e-5)


class Dies(Exception):
    """The worker's process is gone."""


class DyingWorker(LocalWorker):
    reports = 0

    def report(self, metrics: dict[str, float], state: dict) -> None:
        super().report(metrics, state)
        self.reports += 1
        if self.reports == 3:
            raise Dies


@pytest.mark.parametrize("report_steps", [0, 4], ids=["behind an epoch", "within an epoch"])
@pytest.mark.parametrize("optimizer", [{}, {"ema_decay": 0.9, "gradient_accumulation_steps": 2}], ids=["default", "averaged"])
def test_resumed_run_ends_with_the_weights_of_an_unbroken_one(report_steps: int, optimizer: dict) -> None:
    unbroken, history = train(worker(), **optimizer)
    dying = worker(kind=DyingWorker)
    with pytest.raises(Dies):
        train(dying, report_steps=report_steps, **optimizer)
    assert dying.state is not None
    # 10 steps an epoch, reported after 4, 8, 10, ...
    assert (len(dying.state["history"]), dying.state["step"]) == ((1, 0) if report_steps else (3, 0))
    resumed, resumed_history = train(worker(state=dying.state), **optimizer)
    assert [row["val_loss"] for row in resumed_history] == [row["val_loss"] for row in history]
    assert [row["train_loss"] for row in resumed_history] == [row["train_loss"] for row in history]
    assert_same_weights(resumed, unbroken)


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    _, history = train(worker(), warmup_fraction=0.25, epochs=4)
    rates = [row["learning_rate"] / 3e-3 for row in history]
    assert rates[0] == pytest.approx(1.0, abs=0.01)
    np.testing.assert_allclose(rates[1:], [0.5 * (1 + math.cos(math.pi * i / 3)) for i in (1, 2, 3)], atol=1e-9)


@pytest.mark.parametrize(("epochs", "fraction", "steps"), [(4, 0.5, 20), (1, 0.6, 6), (2, 0.0, 0), (1, 1.0, 10)])
def test_batch_statistics_are_frozen_after_their_share_of_the_steps(epochs: int, fraction: float, steps: int) -> None:
    seen: list[bool] = []
    trained = plan(epochs=epochs, batch_norm_fraction=fraction)
    layer = next(layer for layer in trained.network.modules() if isinstance(layer, nn.BatchNorm2d))
    layer.register_forward_hook(lambda module, *_: seen.append(module.training) if torch.is_grad_enabled() else None)
    fit(worker(), trained)
    assert seen == [True] * steps + [False] * (10 * epochs - steps)


def test_synchronised_batch_statistics_are_torchs_own_and_refused_on_cpus() -> None:
    with pytest.raises(UserError, match=r"^optimizer\.sync_batch_norm: true, but torch .* on GPUs only .* CPUs; leave it out$"):
        train(worker(), sync_batch_norm=True)
    for asked, number in ((None, 2), (True, 2), (False, 0)):
        one = worker()
        one.device, one.world_size = torch.device("cuda"), 2
        made = _prepared(plan().network, OptimizerConfig(sync_batch_norm=asked), one)
        assert sum(isinstance(layer, nn.SyncBatchNorm) for layer in made.modules()) == number


def test_fewer_galaxies_than_a_batch_still_train() -> None:
    _, history = train(worker(rows(TRAIN).take(slice(0, 10))))
    assert len(history) == 4
    assert all(math.isfinite(row["val_loss"]) for row in history)


def test_a_loss_that_is_not_finite_names_the_galaxies() -> None:
    broken = copy.deepcopy(rows(TRAIN))
    broken.cutout_NCHW[7] = float("nan")
    # A network whose galaxies do not see each other.
    with pytest.raises(
        UserError,
        match=r"^optimizer\.learning_rate: 0\.003 is too high or the data is bad: the loss of epoch 1, step \d+ is not finite "
        rf"for 1 of 32 galaxies; lower it, or look at object_id {TRAIN['object_id'][7]}$",
    ):
        train(worker(broken), backbone=INDEPENDENT)
    with pytest.raises(UserError, match=r"is not finite for 32 of 32 galaxies; .* object_id (\d+, ){9}\d+ and 22 more$"):
        train(worker(broken), backbone={"normalisation": "batch"})
