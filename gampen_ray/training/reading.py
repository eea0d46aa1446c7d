"""Reading a dataset for training. It imports no torch, so that a reading process starts fast.

Shape legend: N galaxies, C bands, H x W pixels, D targets, J conditions.
"""

import contextlib
import dataclasses
import math
import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

import numpy as np

from gampen_ray.data import shards
from gampen_ray.data.sources import Unit, dataset_units
from gampen_ray.model.targets import TargetSchema

T = TypeVar("T")
# Rows read at once: enough for a worthwhile shuffle, few enough to hold some twenty chunks in memory.
_CHUNK_ROWS, CHUNK_BYTES = 1024, 16 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """What is read of each galaxy.

    Parameters
    ----------
    targets
        Target columns, and how they are standardised.
    conditions
        Columns that the network is given beside the image.
    noise_planes
        Whether the noise of each pixel is read with the image.
    """

    targets: TargetSchema
    conditions: tuple[str, ...] = ()
    noise_planes: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Galaxies of a unit.

    Parameters
    ----------
    object_id_N
        Identifiers, integers or strings.
    cutout_NCHW
        Flux units, float32; N x 2C x H x W with the noise of each pixel.
    target_ND
        Standardised targets, float32.
    condition_NJ
        Numbers that the network takes besides the image, float32.
    side_N
        Sides of the cutouts before they were zero-padded, pixels.
    """

    object_id_N: np.ndarray
    cutout_NCHW: np.ndarray
    target_ND: np.ndarray
    condition_NJ: np.ndarray
    side_N: np.ndarray

    def __len__(self) -> int:
        return len(self.object_id_N)

    def take(self, rows: np.ndarray | slice) -> "Rows":
        """Return some of the rows."""
        return Rows(**{name: values[rows] for name, values in vars(self).items()})

    @staticmethod
    def concatenate(parts: list["Rows"]) -> "Rows":
        """Return the rows of all parts."""
        return Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def split_units(dataset: str, split: str, info: shards.DatasetInfo) -> tuple[Unit, ...]:
    """Return the units of a split, each of which is read at once."""
    chunk_rows = max(1, min(_CHUNK_ROWS, CHUNK_BYTES // (4 * math.prod(info.planes_shape))))
    return tuple(dataset_units(dataset, split, info, chunk_rows))


def read_unit(columns: Columns, unit: Unit) -> Rows:
    """Return the galaxies of a unit with standardised targets, in stored order.

    Raises
    ------
    UserError
        For a damaged or missing shard.
    """
    targets, conditions = columns.targets, columns.conditions
    tensors = shards.image_columns(columns.noise_planes)
    wanted = ["object_id", *tensors, *dict.fromkeys((*targets.names, *conditions))]
    table = shards.read_shard(unit.uri, wanted, row_groups=range(unit.start, unit.stop), optional=[shards.SIDE])
    values_ND, condition_NJ = (
        np.stack([table[name].to_numpy() for name in names], axis=1) if names else np.empty((len(table), 0))
        for names in (targets.names, conditions)
    )
    return Rows(
        object_id_N=table["object_id"].to_numpy(),
        cutout_NCHW=shards.images(table),
        target_ND=targets.standardise(values_ND).astype(np.float32),
        condition_NJ=condition_NJ.astype(np.float32),
        side_N=shards.sides(table),
    )


def ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """Yield the same items; a thread makes up to ``count`` of them in advance. What they raise is raised here."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(count)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None = None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((item, error), timeout=0.1)
                return

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item
    finally:
        stopped.set()
        thread.join()
