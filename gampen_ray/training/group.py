"""A worker of several, each in a process of its own: PyTorch's process group joins them, and one reports to the driver."""

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gampen_ray.training.checkpoints import Checkpoints
from gampen_ray.training.history import write_history
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.reading import read_unit
from gampen_ray.training.run import Run
from gampen_ray.training.worker import State, T

# Interval between messages of progress.
_PROGRESS_S = 2.0


class GroupWorker(LocalWorker):
    """A `gampen_ray.training.worker.Worker` of several, each in a process of its own.

    Parameters
    ----------
    run
        The training.
    rank, world_size
        Number of this worker, and number of workers. Several are in PyTorch's default process group.
    device
        Device of the network.
    send
        Sends the driver a message; worker 0 alone does. See `gampen_ray.training.shown.Shown`.
    """

    def __init__(
        self, run: Run, *, rank: int, world_size: int, device: torch.device, send: Callable[[dict[str, Any]], None]
    ) -> None:
        super().__init__(run.orders(rank, world_size), functools.partial(read_unit, run.columns), device=device)
        self.rank, self.world_size = rank, world_size
        self._run, self._send, self._checkpoints = run, send if rank == 0 else _nothing, Checkpoints(run)
        self._sent = time.monotonic()
        self._losses: list[torch.Tensor] = []

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network in DistributedDataParallel if there are several workers."""
        return DistributedDataParallel(network) if self.world_size > 1 else network

    def gather(self, value: T) -> list[T]:
        """Return the values of all workers, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Set tensors to their values on worker 0."""
        for tensor in tensors if self.world_size > 1 else ():
            torch.distributed.broadcast(tensor, 0)

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give tensors their means over workers."""
        if self.world_size == 1:
            return
        tensors = list(tensors)
        # One message: a small network has many small tensors, each as slow as one that holds them all.
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, mean in zip(tensors, (flat / self.world_size).split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def progress(self, epoch: int, galaxies: int, loss: torch.Tensor | None = None) -> None:
        """Send a message every few seconds, with the mean loss since the last one."""
        if self.rank != 0:
            return
        if loss is not None:
            self._losses.append(loss.mean())
        if time.monotonic() - self._sent > _PROGRESS_S:
            found = {"loss": float(torch.stack(self._losses).mean())} if self._losses else {}
            self._sent, self._losses = time.monotonic(), []
            self._send({"epoch": epoch, "galaxies": galaxies, **found})

    def phase(self, text: str) -> None:
        """Send the name of what comes next."""
        self._send({"phase": text})

    def report(self, metrics: dict[str, float], state: State) -> None:
        """Write history and checkpoint, and send the metrics (worker 0)."""
        if self.rank != 0:
            return
        self._checkpoints.keep(state)
        if metrics:
            write_history(self._run.config.output, state["history"])
            self._send(metrics)

    def restore(self) -> State | None:
        """Return the state of the last checkpoint."""
        state = self._checkpoints.last()
        if state is not None:
            order = self.orders["train"]
            epochs = state["history"][-1]["epoch"] if state["history"] else 0
            self._send({"restored": int(epochs) * order.rows_per_epoch + state["step"] * order.rows_per_batch})
        return state


def _nothing(message: dict[str, Any]) -> None:
    """Send nothing: worker 0 speaks for all."""
