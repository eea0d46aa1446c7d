"""What the training algorithm asks of a worker, and the plan that all workers share.

Shape legend: N galaxies, C bands, H x W pixels, D targets, P outputs.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from gampen_ray.config import OptimizerConfig
from gampen_ray.model.images import Inputs
from gampen_ray.model.network import Network
from gampen_ray.training.batches import Batch, Sweep
from gampen_ray.training.order import Order

T = TypeVar("T")
R = TypeVar("R")
ToInputs = Callable[[Batch], Inputs]
"""From galaxies of the dataset to network inputs."""
State = dict[str, Any]


class Worker(Protocol):
    """One worker's view of the world."""

    rank: int
    """Number of this worker, from 0."""
    world_size: int
    """Number of workers."""
    device: torch.device
    """Device of the network."""
    orders: dict[str, Order]
    """This worker's order of the splits ``train`` and ``val``."""

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network as it is called in training: gradients are averaged over workers."""
        ...

    def stream(self, sweeps: Sequence[Sweep]) -> Iterator[Iterator[Batch]]:
        """Yield an iterator of this worker's batches for each sweep; they are read ahead."""
        ...

    def gather(self, value: T) -> list[T]:
        """Return the values of all workers, in the order of their ranks."""
        ...

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give tensors the values that they have on worker 0."""
        ...

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give tensors their means over all workers."""
        ...

    def progress(self, epoch: int, galaxies: int, loss: torch.Tensor | None = None) -> None:
        """Report progress after each step: galaxies seen by all workers in all epochs, and the losses of this batch.

        Epoch 0 is that of the numbers alone: first galaxies are measured, without a loss; then its own epochs are counted.
        """
        ...

    def phase(self, text: str) -> None:
        """Say what comes next, where neither progress nor metrics are reported."""
        ...

    def report(self, metrics: dict[str, float], state: State) -> None:
        """Publish the metrics of an epoch (none between epochs) and save the state for `restore`; called by every worker."""
        ...

    def restore(self) -> State | None:
        """Return the last reported state, or None in a fresh run."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained and how; the same on all workers.

    Parameters
    ----------
    network
        Only the weights that require a gradient are trained.
    inputs
        Returns the network's inputs for a batch.
    numbers
        Returns only the numbers of these inputs.
    number_noise
        Returns the standard deviation of each number from numbers (N x M).
    optimizer
        Settings of the optimiser.
    seed
        Seed of augmentation and dropout.
    learning_rate_decay
        Factor on the learning rate from each block to the one before it.
    report_steps
        Steps between reports within an epoch; 0: report only at its end.
    numbers_first
        Whether the network is trained on the numbers alone first.
    """

    network: Network
    inputs: ToInputs
    numbers: Callable[[Batch], torch.Tensor | None] = lambda batch: None
    number_noise: Callable[[torch.Tensor], torch.Tensor] = torch.zeros_like
    optimizer: OptimizerConfig
    seed: int
    learning_rate_decay: float = 1.0
    report_steps: int = 0
    numbers_first: bool = False


def one_sweep(worker: Worker, split: str) -> Iterator[Batch]:
    """Return the batches of a single sweep over a split."""
    return next(worker.stream([Sweep(split)]))


def mapped(worker: Worker, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return a function's results on all workers, each of which computes a share; all have the same items."""
    shares = worker.gather(list(map(function, items[worker.rank :: worker.world_size])))
    return [shares[i % worker.world_size][i // worker.world_size] for i in range(len(items))]
