"""The local twin of a Ray worker: one process, arrays in memory.

Shape legend: N galaxies, C bands, H x W pixels, D targets.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from gampen_ray.data import shards
from gampen_ray.training.loop import Batch, State
from gampen_ray.training.run import Run, target_values


class LocalWorker:
    """A `gampen_ray.training.loop.Worker` without an engine.

    Parameters
    ----------
    splits
        For ``train`` and ``val``: cutouts (N x C x H x W, flux units) and standardised targets (N x D).
    batch_size
        Galaxies per batch.
    device
        Where the network lives.
    state
        State of an earlier run to go on from.
    """

    rank = 0

    def __init__(
        self, splits: dict[str, Batch], batch_size: int, *, device: str | torch.device = "cpu", state: State | None = None
    ) -> None:
        self.device = torch.device(device)
        self.state = state
        self._splits, self._batch_size = splits, batch_size

    @classmethod
    def read(cls, run: Run) -> "LocalWorker":
        """Return a worker with a run's whole dataset in memory."""
        splits = {}
        for split in ("train", "val"):
            uris = shards.shard_uris(run.config.dataset, split)
            images_NCHW = [shards.images(shards.read_shard(uri, ["image"])) for uri in uris]
            targets_ND = run.targets.standardise(target_values(run.config.dataset, split, run.targets.names, run.info))
            splits[split] = torch.from_numpy(np.concatenate(images_NCHW)), torch.from_numpy(targets_ND).float()
        return cls(splits, run.config.optimizer.batch_size)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network itself."""
        return network

    def batches(self, split: str, epoch: int) -> Iterator[Batch]:
        """Yield batches; the train split shuffled by the epoch, without an incomplete last batch if there is a full one."""
        x, y = self._splits[split]
        order = np.arange(len(y))
        stop = len(y)
        if split == "train":
            order = np.random.default_rng(epoch).permutation(order)
            stop -= stop % self._batch_size if stop >= self._batch_size else 0
        for start in range(0, stop, self._batch_size):
            rows = torch.from_numpy(order[start : start + self._batch_size])
            yield x[rows].to(self.device), y[rows].to(self.device)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values themselves."""
        return values

    def report(self, metrics: dict[str, float], state: State) -> None:
        """Keep the state."""
        self.state = copy.deepcopy(state)

    def restore(self) -> State | None:
        """Return the last state."""
        return self.state
