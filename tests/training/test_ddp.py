"""Two processes of DistributedDataParallel against a plain loop, in float64: what differs is the order of sums."""

import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.multiprocessing
from torch import distributed

from gampen_ray.config import TrainConfig
from gampen_ray.model.images import Inputs
from gampen_ray.training import numbers
from gampen_ray.training.batches import Batch
from gampen_ray.training.group import GroupWorker
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.loop import fit
from gampen_ray.training.run import Run, build_network, prepare
from gampen_ray.training.worker import Plan, State, mapped
from tests.networks import NETWORK, dataset, numbers_config, train_config

# Dropout draws other masks on every worker, and the batch's statistics are its own: running ones are used from the start.
BACKBONE = {"dropout_rate": 0.0}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"normalisation": "none"},
    "batch norm": {"batch_norm_fraction": 0.0},
    # 33 galaxies are 17 on one worker and 16 on the other; 5 parts of either.
    "uneven": {"normalisation": "none", "batch_size": 33, "gradient_accumulation_steps": 5, "ema_decay": 0.9, "beta": 0.5},
    "residual": {"block": "residual", "batch_norm_fraction": 0.0, "batch_size": 47, "max_grad_norm": 0.5},
}


class Forgetful(GroupWorker):
    """A worker without checkpoints: all cases have one run folder."""

    def report(self, metrics: dict[str, float], state: State) -> None:
        """Keep nothing."""

    def restore(self) -> State | None:
        return None


def config(folder: str, case: str) -> TrainConfig:
    settings = dict(CASES[case])
    names = {field.name for field in dataclasses.fields(NETWORK.backbone)}
    backbone = BACKBONE | {name: settings.pop(name) for name in list(settings) if name in names}
    network = dataclasses.replace(NETWORK, backbone=dataclasses.replace(NETWORK.backbone, **backbone))
    made = train_config(f"{folder}/data", f"{folder}/run", epochs=3, **settings)
    return dataclasses.replace(made, network=network, calibration=dataclasses.replace(made.calibration, num_passes=1))


def trained(worker: LocalWorker, config: TrainConfig) -> dict[str, Any]:
    run = prepare(config)
    network = build_network(run).double()

    def inputs(batch: Batch) -> Inputs:
        return Inputs(run.network_inputs(batch).image_NCHW.double())

    plan = Plan(network=network, inputs=inputs, optimizer=config.optimizer, seed=config.seed)
    history = fit(worker, plan)
    return {"losses": [(row["train_loss"], row["val_loss"]) for row in history], "weights": network.state_dict()}


def trained_on_numbers(worker: Callable[[Run], LocalWorker], folder: str) -> dict[str, Any]:
    """Train with all galaxies in each step and without dropout or noise, so that it does not matter which worker has which."""
    made = numbers_config(f"{folder}/data", f"{folder}/run", epochs=0, numbers_epochs=20)
    network = dataclasses.replace(made.network, backbone=dataclasses.replace(made.network.backbone, **BACKBONE))
    run = prepare(dataclasses.replace(made, network=network, calibration=dataclasses.replace(made.calibration, num_passes=1)))
    plan = Plan(
        network=build_network(run),
        inputs=run.network_inputs,
        numbers=run.numbers,
        numbers_first=True,
        optimizer=run.config.optimizer,
        seed=0,
    )
    with mock.patch.object(numbers, "_STEPS", (1, 1)):
        (row,) = fit(worker(run), plan)
    return {"losses": [row["train_loss"], row["val_loss"]], "weights": plan.network.state_dict()}


def process(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)

    def worker(run: Run) -> GroupWorker:
        return Forgetful(run, rank=rank, world_size=2, device=torch.device("cpu"), send=lambda message: None)

    found = {}
    for case in CASES:
        run = prepare(config(folder, case))
        found[case] = trained(worker(run), run.config)
    found["numbers"] = trained_on_numbers(worker, folder)
    computed: list[int] = []
    found["mapped"] = mapped(worker(run), lambda item: computed.append(item) or item**2, range(5))
    found["computed"] = computed
    torch.save(found, Path(folder, f"found{rank}.pt"))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """A dataset, and what each of two processes made of it."""
    folder = tmp_path_factory.mktemp("ddp")
    dataset(str(folder / "data"), {"train": 204, "val": 61}, rows_per_shard=20)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (str(folder), port), nprocs=2)  # type: ignore[attr-defined]
    return str(folder), [torch.load(folder / f"found{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_workers_train_as_a_plain_loop(shared: tuple[str, list[dict[str, Any]]], case: str) -> None:
    folder, (found, _) = shared
    run = prepare(config(folder, case))
    alone = trained(LocalWorker.read(run), run.config)
    torch.testing.assert_close(torch.tensor(found[case]["losses"]), torch.tensor(alone["losses"]), rtol=1e-7, atol=1e-9)
    for name, weights in alone["weights"].items():
        torch.testing.assert_close(found[case]["weights"][name], weights, rtol=1e-6, atol=1e-9)


def test_two_workers_train_on_numbers_as_one(shared: tuple[str, list[dict[str, Any]]]) -> None:
    folder, (first, second) = shared
    assert first["numbers"]["losses"] == second["numbers"]["losses"]
    for name, weights in first["numbers"]["weights"].items():
        torch.testing.assert_close(weights, second["numbers"]["weights"][name], rtol=0, atol=0, msg=name)
    alone = trained_on_numbers(LocalWorker.read, folder)
    # Whitened in float32, with sums in another order.
    assert first["numbers"]["losses"] == pytest.approx(alone["losses"], abs=2e-3)
    # 20 steps of Adam, which would move a weight by up to 0.2.
    for name, weights in alone["weights"].items():
        torch.testing.assert_close(first["numbers"]["weights"][name], weights, rtol=1e-2, atol=1e-2, msg=name)


def test_two_workers_share_items(shared: tuple[str, list[dict[str, Any]]]) -> None:
    _, found = shared
    assert [one["mapped"] for one in found] == [[0, 1, 4, 9, 16]] * 2
    assert [one["computed"] for one in found] == [[0, 2, 4], [1, 3]]
