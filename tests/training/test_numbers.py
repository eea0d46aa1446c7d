import copy
import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gampen_ray.config import TrainConfig
from gampen_ray.engine.trial import _State
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle
from gampen_ray.inference.flags import Flag
from gampen_ray.inference.predictor import Predictor
from gampen_ray.model.network import Network
from gampen_ray.training import numbers
from gampen_ray.training.execute import execute, trained_bundle
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.loop import fit
from gampen_ray.training.muon import Muon
from gampen_ray.training.numbers import _step, fit_numbers
from gampen_ray.training.run import build_network, prepare
from gampen_ray.training.worker import Plan, one_sweep
from tests.networks import dataset, galaxies, numbers_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return dataset(str(tmp_path_factory.mktemp("data")), {"train": 400, "val": 80})


class Dies(Exception):
    """The worker's process is gone."""


class DyingWorker(LocalWorker):
    alive = 1
    """Reports after which it dies."""

    def report(self, metrics: dict[str, float], state: dict) -> None:
        super().report(metrics, state)
        self.alive -= 1
        if not self.alive:
            raise Dies


def plan(config: TrainConfig) -> tuple[Plan, Network]:
    run = prepare(config)
    network = build_network(run)
    optimizer = config.optimizer
    made = Plan(
        network=network,
        inputs=run.network_inputs,
        numbers=run.numbers,
        number_noise=run.images.number_noise,
        numbers_first=True,
        optimizer=optimizer,
        seed=0,
        report_steps=config.checkpoint_steps,
    )
    return made, network


@pytest.fixture(scope="module")
def unbroken(data: str) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], LocalWorker]:
    """History and weights of a training, and its worker."""
    config = numbers_config(data, "unused", ema_decay=0.5)
    worker = LocalWorker.read(prepare(config))
    made, network = plan(config)
    return fit(worker, made), network.state_dict(), worker


def test_the_loss_falls_on_numbers_and_then_on_images(unbroken: tuple) -> None:
    history, _, _ = unbroken
    assert [row["epoch"] for row in history] == [0, 1, 2]
    # With mean 0 and unit covariance the loss is D / 2 = 1.
    assert history[0]["val_loss"] < 0.3
    assert min(row["val_loss"] for row in history[1:]) < history[0]["val_loss"]
    assert all(math.isfinite(value) for row in history for value in row.values())


@pytest.mark.parametrize("alive", [1, 3], ids=["behind epoch 0", "within epoch 1"])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(alive: int, data: str, unbroken: tuple) -> None:
    history, weights, worker = unbroken
    config = dataclasses.replace(numbers_config(data, "unused", ema_decay=0.5), checkpoint_steps=5)
    dying = DyingWorker(worker.orders, worker._read)
    dying.alive = alive
    with pytest.raises(Dies):
        fit(dying, plan(config)[0])
    assert dying.state is not None
    assert (len(dying.state["history"]), dying.state["step"]) == (1, 5 * (alive - 1))
    made, network = plan(config)
    resumed = fit(LocalWorker(worker.orders, worker._read, state=dying.state), made)
    for name in ("epoch", "train_loss", "val_loss", "learning_rate"):
        assert [row[name] for row in resumed] == [row[name] for row in history]
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0)


def test_one_extreme_image_spoils_nothing(data: str, unbroken: tuple) -> None:
    _, _, worker = unbroken

    def read(unit):
        rows = copy.deepcopy(worker._read(unit))
        if unit.start == 0:
            rows.cutout_NCHW[0, 0, :, ::2] = 3e38
            rows.cutout_NCHW[0, 0, :, 1::2] = -3e38
        return rows

    made, network = plan(numbers_config(data, "unused"))
    with pytest.raises(Exception, match=r"epoch 1, step \d+ is not finite .* object_id"):
        fit(LocalWorker(worker.orders, read), made)
    assert network.merge is not None
    assert all(buffer.isfinite().all() for buffer in network.merge.buffers())


def test_the_crop_lives_and_follows_the_measured_radius(data: str, unbroken: tuple) -> None:
    _, weights, worker = unbroken
    run = prepare(numbers_config(data, "unused"))
    network = trained_bundle(run, weights).network.requires_grad_()
    (batch, *_) = one_sweep(worker, "val")
    inputs = run.network_inputs(batch)
    assert inputs.number_NM is not None
    affine_N23 = network.crop(*inputs)[1]
    scale_N = affine_N23[:, 0, 0]
    assert scale_N.min() >= 12 / 40 * 0.999999
    assert scale_N.max() <= 1.000001
    inside = (scale_N > 0.301) & (scale_N < 0.999)
    assert inside.sum() > 5
    rank = [torch.argsort(torch.argsort(x[inside])).double() for x in (scale_N, inputs.number_NM[:, 0])]
    assert torch.corrcoef(torch.stack(rank))[0, 1] > 0.8
    # No unit is dead: each has a gradient for some galaxy.
    transformer = network.transformer
    assert transformer is not None
    scale_N[inside].sum().backward()
    for layer in transformer.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert layer.weight.grad is not None
            assert (layer.weight.grad.flatten(1).abs().amax(1) > 0).all()


def test_without_epochs_on_images_the_numbers_decide_alone(data: str, tmp_path: Path) -> None:
    config = numbers_config(data, str(tmp_path / "run"), epochs=0, numbers_epochs=20)
    run = prepare(config)
    made = execute(LocalWorker.read(run), run)
    assert made is not None
    (history,) = json.loads((tmp_path / "run" / "history.json").read_bytes())
    assert history["epoch"] == 0
    assert made.metrics["verdicts"]["training"]["verdict"] == "holds"
    images = galaxies(20, seed=5)["image"]
    merge = made.network.merge
    assert merge is not None
    assert not merge.image.weight.any()
    assert np.isfinite(made.predict(images, num_passes=8).mean()).all()


def test_a_network_without_numbers_needs_epochs_on_images(data: str, tmp_path: Path) -> None:
    config = numbers_config(data, str(tmp_path / "run"), epochs=0, numbers_epochs=20)
    config = dataclasses.replace(config, images=dataclasses.replace(config.images, measure=False), conditions=())
    with pytest.raises(UserError, match=r"optimizer\.epochs: 0 trains on numbers alone, and the network is given none"):
        prepare(config)


def test_a_step_whose_gradient_overflows_is_left_out(data: str) -> None:
    made, network = plan(numbers_config(data, "unused"))
    worker = LocalWorker.read(prepare(numbers_config(data, "unused")))
    assert network.merge is not None
    number_NM, target_ND = torch.randn(8, len(network.merge.location_M)), torch.randn(8, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)

    def step() -> bool:
        before = copy.deepcopy(network.state_dict())
        _step(worker, made, [optimizer], (number_NM, target_ND), 0.0)
        assert all(value.isfinite().all() for value in network.state_dict().values())
        return any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())

    assert step()
    target_ND[3] = 1e30
    assert not step()
    target_ND[3] = 0
    assert step()


def test_steps_that_all_overflow_end_the_training(data: str) -> None:
    made, network = plan(numbers_config(data, "unused"))
    worker = LocalWorker.read(prepare(numbers_config(data, "unused")))
    batches = [
        dataclasses.replace(batch, target_ND=torch.full_like(batch.target_ND, 1e30)) for batch in one_sweep(worker, "train")
    ]
    with pytest.raises(
        UserError, match=r"optimizer\.numbers_learning_rate: .* the loss of epoch 3 on the numbers is not finite"
    ):
        fit_numbers(worker, made, iter(batches), iter([iter(batches)]))
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_an_epoch_that_diverges_is_undone(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = numbers_config(data, "unused", numbers_epochs=6)
    made, network = plan(config)
    worker = LocalWorker.read(prepare(config))
    batches, steps = {split: list(one_sweep(worker, split)) for split in ("train", "val")}, itertools.count()

    def diverges(*args: Any) -> torch.Tensor:
        if next(steps) == 20:
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.fill_(math.nan)
        return _step(*args)

    monkeypatch.setattr(numbers, "_step", diverges)
    report = fit_numbers(worker, made, iter(batches["train"]), iter([iter(batches["val"])]))
    assert all(value.isfinite().all() for value in network.state_dict().values())
    monkeypatch.setattr(numbers, "_step", _step)
    other, _ = plan(config)
    unbroken = fit_numbers(worker, other, iter(batches["train"]), iter([iter(batches["val"])]))
    assert report["val_loss"] == pytest.approx(unbroken["val_loss"], abs=0.5)


def test_layers_and_not_the_linear_means_are_given_noisy_numbers(data: str) -> None:
    made, network = plan(config := numbers_config(data, "unused"))
    worker = LocalWorker.read(prepare(config))
    number_NM = torch.cat([made.numbers(batch) for batch in one_sweep(worker, "train")])[:64]
    noise_NM = made.number_noise(number_NM)
    assert 0 < float(noise_NM.min()) < float(noise_NM.max()) < 1
    network.eval()
    # A network that only its linear means tell from zero.
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.fill_(0.1 if name == "base.linear.weight" else 0.0)
        assert torch.equal(network.from_numbers(number_NM, 10 * noise_NM), network.from_numbers(number_NM))
    other, network = plan(config)
    seen: list[torch.Tensor] = []
    assert network.merge is not None
    network.merge.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    _step(worker, other, [torch.optim.SGD(network.parameters(), lr=0.0)], (number_NM, torch.zeros(64, 2)), 0.3)
    scatter = ((seen[0] - number_NM) / noise_NM).std()
    assert float(scatter) == pytest.approx(0.3, rel=0.1)


def test_muon_has_the_matrices_behind_the_numbers_and_adamw_the_rest(data: str) -> None:
    config = numbers_config(data, "unused")
    _, network = plan(config)
    worker = LocalWorker.read(prepare(config))
    muon, adamw = (schedule.optimizer for schedule in numbers._schedules(worker, network, config.optimizer, 10))
    assert isinstance(muon, Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    inner = {names[id(weight)] for group in muon.param_groups for weight in group["params"]}
    outer = {names[id(weight)] for group in adamw.param_groups for weight in group["params"]}
    assert inner | outer == set(names.values())
    assert not inner & outer
    assert {name for name in outer if name.startswith(("base.", "tail.", "transformer."))}
    assert all(name.startswith("stem.") and name.endswith(".weight") for name in inner)
    assert any("embedding" in name for name in inner)


def test_one_truth_far_off_does_not_outweigh_a_batch(data: str) -> None:
    made, network = plan(config := numbers_config(data, "unused", max_grad_norm=0))
    worker = LocalWorker.read(prepare(config))
    assert network.merge is not None
    number_NM, target_ND = torch.randn(64, len(network.merge.location_M)), torch.randn(64, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    norms = []
    for far in (0.0, 1e6):
        target_ND[0] = far
        _step(worker, made, [optimizer], (number_NM, target_ND), 0.0)
        # Of its square it would be 1e10.
        norms.append(max(float(p.grad.norm()) for p in network.parameters() if p.grad is not None))
    assert norms[1] < 100 * norms[0]


def test_epoch_0_counts_in_a_trials_loss_but_not_as_an_epoch(tmp_path: Path) -> None:
    state = _State(str(tmp_path / "state"))
    found = []
    for count in range(4):
        losses = zip((0, 1, 2), (0.3, 0.5, 0.2), strict=True)
        state.keep({"history": [{"epoch": epoch, "val_loss": loss} for epoch, loss in losses][:count]})
        metrics = state.metrics()
        found.append((metrics["epoch"], metrics["val_losses"], metrics.get("val_loss")))
    assert found == [(0, [], None), (0, [], None), (1, [0.3], 0.3), (2, [0.3, 0.2], 0.2)]


@pytest.fixture(scope="module")
def bundle(data: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A trained bundle of a network that is given numbers, whose zero point is known."""
    config = numbers_config(data, str(tmp_path_factory.mktemp("run")), epochs=1, numbers_epochs=20)
    run = prepare(config)
    run = dataclasses.replace(run, images=dataclasses.replace(run.images, zero_point_mag=27.0))
    made = execute(LocalWorker.read(run), run)
    assert made is not None
    return made


def test_another_zero_point_changes_nothing(bundle: Bundle) -> None:
    images = galaxies(20, seed=5)["image"]
    known = bundle.predict(images, num_passes=8, zero_point_mag=27.0)
    doubled = bundle.predict(4 * images, num_passes=8, zero_point_mag=27.0 + 2.5 * math.log10(4))
    assert torch.equal(doubled.mean_NKD, known.mean_NKD)
    assert torch.equal(doubled.scale_tril_NKDD, known.scale_tril_NKDD)
    brighter = bundle.predict(np.float32(10**0.4) * images, num_passes=8, zero_point_mag=28.0)
    torch.testing.assert_close(brighter.mean_NKD, known.mean_NKD, rtol=1e-4, atol=1e-4)
    # Stated wrongly, it changes the fluxes.
    wrong = bundle.predict(images, num_passes=8, zero_point_mag=28.0)
    assert not np.allclose(wrong.mean(), known.mean(), rtol=0.1)


def test_a_level_of_the_sky_that_training_had_not_is_flagged(bundle: Bundle) -> None:
    images, predict = galaxies(20, seed=5)["image"], Predictor(bundle, num_passes=8, seed=0)
    # None, and 1 and 20 sigma of a pixel, where the training galaxies have none.
    flagged = [(predict(images + np.float32(level)).flags_N & Flag.SKY_OUT_OF_RANGE.value) > 0 for level in (0, 0.1, 2.0)]
    # The range is that of 50 validation galaxies.
    assert flagged[0].mean() < 0.2
    assert flagged[1].all()
    assert flagged[2].all()


def test_a_posterior_does_not_depend_on_the_batch(bundle: Bundle) -> None:
    images = galaxies(20, seed=6)["image"]
    one, many = (bundle.predict(images, num_passes=8, batch_size=size) for size in (1, 20))
    torch.testing.assert_close(one.mean_NKD, many.mean_NKD, rtol=1e-4, atol=1e-5)


def test_noise_is_in_proportion_to_the_learning_rate(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = numbers_config(data, "unused", numbers_epochs=6)
    made, _ = plan(config)
    worker = LocalWorker.read(prepare(config))
    batches, seen = {split: list(one_sweep(worker, split)) for split in ("train", "val")}, []

    def watched(*args: Any) -> torch.Tensor:
        seen.append((args[2][0].param_groups[0]["lr"], args[4]))
        return _step(*args)

    monkeypatch.setattr(numbers, "_step", watched)
    fit_numbers(worker, made, iter(batches["train"]), iter([iter(batches["val"])]))
    rate_S, noise_S = np.array(seen).T
    np.testing.assert_allclose(noise_S, numbers._NOISE * rate_S / made.optimizer.numbers_learning_rate)
    assert noise_S.max() > 0.9 * numbers._NOISE
    assert noise_S[-1] < 0.05 * numbers._NOISE
