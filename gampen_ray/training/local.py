"""A worker without Ray: one process, whole units in memory."""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn

from gampen_ray.data.sources import Unit
from gampen_ray.training.batches import Batch, Sweep, chunks_of, stream
from gampen_ray.training.order import Order
from gampen_ray.training.reading import Rows, read_unit
from gampen_ray.training.run import Run
from gampen_ray.training.worker import State, T


class LocalWorker:
    """A `gampen_ray.training.worker.Worker` in this process.

    Parameters
    ----------
    orders
        Orders of the splits ``train`` and ``val``.
    read
        Returns the rows of a unit in stored order.
    device
        Device of the network.
    state
        State to resume from.
    """

    rank = 0
    world_size = 1

    def __init__(
        self,
        orders: dict[str, Order],
        read: Callable[[Unit], Rows],
        *,
        device: str | torch.device = "cpu",
        state: State | None = None,
    ) -> None:
        self.device, self.orders, self.state = torch.device(device), orders, state
        self._read = read

    @classmethod
    def read(cls, run: Run) -> "LocalWorker":
        """Return a worker for a run; it keeps every unit that it reads in memory."""
        return cls(run.orders(), functools.cache(functools.partial(read_unit, run.columns)))

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network itself."""
        return network

    def stream(self, sweeps: Sequence[Sweep]) -> Iterator[Iterator[Batch]]:
        """Yield an iterator of batches for each sweep."""
        chunks = ((chunk.lane, self._read(chunk.unit).take(chunk.rows)) for chunk in chunks_of(sweeps, self.orders))
        return stream(sweeps, self.orders, chunks, self.device)

    def gather(self, value: T) -> list[T]:
        """Return a list of this value."""
        return [value]

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Do nothing: there is one worker."""

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Do nothing: there is one worker."""

    def progress(self, epoch: int, galaxies: int, loss: torch.Tensor | None = None) -> None:
        """Do nothing."""

    def phase(self, text: str) -> None:
        """Do nothing."""

    def report(self, metrics: dict[str, float], state: State) -> None:
        """Keep the state."""
        self.state = copy.deepcopy(state)

    def restore(self) -> State | None:
        """Return the last state."""
        return self.state
