"""Batches on a device from chunks of rows, prepared ahead of the computation.

Shape legend: N galaxies, C bands, H x W pixels, D targets, J conditions.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from gampen_ray.training.order import Chunk, Order
from gampen_ray.training.reading import Rows, ahead

# Batches that are prepared ahead.
_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One sweep over a split from batch ``first_step`` on; the epoch is the seed of the training split's shuffle."""

    split: str
    epoch: int = 0
    first_step: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """One worker's share of a batch.

    Parameters
    ----------
    object_id_N
        Identifiers.
    cutout_NCHW, target_ND, condition_NJ
        Pixels in flux units (N x 2C x H x W with noise planes), standardised targets, and conditions, on the worker's device.
    position_N
        Index of each galaxy in the batch over all workers.
    side_N
        Sides of the cutouts before they were zero-padded, pixels.
    total
        Galaxies in the batch over all workers.
    """

    object_id_N: np.ndarray
    cutout_NCHW: torch.Tensor
    target_ND: torch.Tensor
    condition_NJ: torch.Tensor
    position_N: torch.Tensor
    side_N: np.ndarray
    total: int

    def every(self, stride: int, start: int) -> "Batch":
        """Return the galaxies at ``start`` and each ``stride`` galaxies behind."""
        rows = slice(start, None, stride)
        return Batch(
            object_id_N=self.object_id_N[rows],
            cutout_NCHW=self.cutout_NCHW[rows],
            target_ND=self.target_ND[rows],
            condition_NJ=self.condition_NJ[rows],
            position_N=self.position_N[rows],
            side_N=self.side_N[rows],
            total=self.total,
        )


def stream(
    sweeps: Sequence[Sweep], orders: Mapping[str, Order], chunks: Iterator[tuple[int, Rows]], device: torch.device
) -> Iterator[Iterator[Batch]]:
    """Yield an iterator of this worker's batches for each sweep; a thread prepares them ahead.

    Parameters
    ----------
    sweeps
        Sweeps over splits, one after another.
    orders
        This worker's order of each split.
    chunks
        Lane and rows of each chunk of `chunks_of`; a chunk may arrive in several parts.
    device
        Device of the batches.
    """
    numbered = (
        (number, batch)
        for number, sweep in enumerate(sweeps)
        for batch in _batches(orders[sweep.split], sweep.first_step, chunks, device)
    )
    for _, batches in itertools.groupby(ahead(numbered, _AHEAD), key=lambda item: item[0]):
        yield (batch for _, batch in batches)


def chunks_of(sweeps: Iterable[Sweep], orders: Mapping[str, Order]) -> Iterator[Chunk]:
    """Yield the chunks that sweeps over splits read, in order of need."""
    for sweep in sweeps:
        yield from orders[sweep.split].chunks(sweep.epoch, sweep.first_step)


def _batches(order: Order, first_step: int, chunks: Iterator[tuple[int, Rows]], device: torch.device) -> Iterator[Batch]:
    waiting: dict[int, deque[Rows]] = {lane: deque() for lane in order.lanes}
    for step in range(first_step, order.num_steps):
        parts = []
        for lane in order.lanes:
            start, stop = order.lane_part(lane, step)
            while stop > start:
                while not waiting[lane]:
                    came, rows = next(chunks)
                    waiting[came].append(rows)
                rows = waiting[lane].popleft()
                parts.append(rows.take(slice(0, stop - start)))
                if len(rows) > stop - start:
                    waiting[lane].appendleft(rows.take(slice(stop - start, None)))
                start += len(parts[-1])
        rows = Rows.concatenate(parts)
        tensors = {name: torch.from_numpy(getattr(rows, name)) for name in ("cutout_NCHW", "target_ND", "condition_NJ")}
        if device.type == "cuda":
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        yield Batch(
            object_id_N=rows.object_id_N,
            **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()},
            position_N=torch.from_numpy(order.positions(step)),
            side_N=rows.side_N,
            total=order.rows_per_batch,
        )
