"""The order in which each worker reads galaxies: pure arithmetic, the same on every machine.

The units of a split (runs of row groups) are shuffled in each epoch. Their rows form one sequence, cut into L lanes of equal
length. Galaxy i of the epoch is row i // L of lane i % L; batch t holds galaxies t B to (t + 1) B. Worker r of W gets those
with i % W = r, which are whole lanes because W divides L. Therefore a batch holds the same galaxies for all W that divide the
same L, each worker reads only its own part of the dataset, all workers do equal work, and any batch of any epoch can be reached
without those before it.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from gampen_ray.data.sources import Unit

# Lanes of a dataset that is large enough, the same for 1, 2, 4, 8 and 16 workers.
_LANES = 16
# The units at both ends of a lane are read twice: for it and for its neighbour.
_MIN_UNITS_PER_LANE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive rows of a shuffled unit that belong to one lane.

    Parameters
    ----------
    unit
        The unit.
    lane
        Number of the lane.
    start, stop
        Rows ``start`` to ``stop`` of the shuffled unit.
    seed
        Seed of the shuffle; None: rows as stored.
    """

    unit: Unit
    lane: int
    start: int
    stop: int
    seed: tuple[int, ...] | None

    @property
    def rows(self) -> np.ndarray:
        """Numbers of the rows within the unit, in order."""
        if self.seed is None:
            return np.arange(self.start, self.stop)
        return np.random.default_rng(self.seed).permutation(self.unit.num_rows)[self.start : self.stop]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """The order of one split for one worker.

    Parameters
    ----------
    units
        The split.
    batch_size
        Galaxies in a batch over all workers.
    seed
        Seed of all shuffling. None: rows come as stored, each exactly once, and batches of different workers do not correspond.
    rank, world_size
        Number of this worker and number of workers; every worker must get at least one galaxy of each batch.
    """

    units: Sequence[Unit]
    batch_size: int
    seed: int | None
    rank: int = 0
    world_size: int = 1

    @functools.cached_property
    def num_rows(self) -> int:
        """Galaxies in the split."""
        return sum(unit.num_rows for unit in self.units)

    @functools.cached_property
    def num_lanes(self) -> int:
        """Lanes L of all workers."""
        if self.seed is None:
            return self.world_size
        most = min(_LANES, max(1, len(self.units) // _MIN_UNITS_PER_LANE))
        # 1, 2, 4, 8 or 16
        lanes = 1 << (most.bit_length() - 1)
        return self.world_size * math.ceil(lanes / self.world_size)

    @property
    def lanes(self) -> range:
        """Lanes of this worker."""
        return range(self.rank, self.num_lanes, self.world_size)

    def lane_rows(self, lane: int) -> tuple[int, int]:
        """Return the first and the last + 1 row of a lane in the sequence of all rows."""
        if self.seed is None:
            return lane * self.num_rows // self.num_lanes, (lane + 1) * self.num_rows // self.num_lanes
        rows = self.num_rows // self.num_lanes
        return lane * rows, (lane + 1) * rows

    @functools.cached_property
    def rows_per_batch(self) -> int:
        """Galaxies in a batch over all workers: ``batch_size``, or all galaxies of a smaller shuffled split."""
        if self.seed is None:
            return self.batch_size
        return min(self.batch_size, self.num_rows // self.num_lanes * self.num_lanes)

    @functools.cached_property
    def num_steps(self) -> int:
        """Batches in an epoch. Shuffled rows that do not fill a batch are left out; they differ between epochs."""
        if self.seed is None:
            first, last = self.lane_rows(self.rank)
            return ((last - first - 1) * self.world_size + self.rank) // self.batch_size + 1
        return self.num_rows // self.num_lanes * self.num_lanes // self.rows_per_batch

    @property
    def rows_per_epoch(self) -> int:
        """Galaxies in an epoch over all workers."""
        return self.num_steps * self.rows_per_batch

    def lane_part(self, lane: int, step: int) -> tuple[int, int]:
        """Return the first and the last + 1 row that batch ``step`` takes of a lane, counted from the lane's first."""
        first, last = self.lane_rows(lane)
        bounds = (math.ceil((edge * self.rows_per_batch - lane) / self.num_lanes) for edge in (step, step + 1))
        start, stop = (min(max(0, bound), last - first) for bound in bounds)
        return start, stop

    def positions(self, step: int) -> np.ndarray:
        """Return the index of each of this worker's galaxies in the batch, lane by lane, in order of arrival."""
        return np.concatenate(
            [np.arange(*self.lane_part(lane, step)) * self.num_lanes + lane - step * self.rows_per_batch for lane in self.lanes]
        )

    def chunks(self, epoch: int, first_step: int = 0) -> list[Chunk]:
        """Return the chunks that this worker reads from batch ``first_step`` of an epoch on, in order of need."""
        shuffled = list(range(len(self.units)))
        if self.seed is not None:
            np.random.default_rng((self.seed, epoch)).shuffle(shuffled)
        ends = np.cumsum([self.units[index].num_rows for index in shuffled])
        needed: list[tuple[int, Chunk]] = []
        for lane in self.lanes:
            first, last = self.lane_rows(lane)
            # Read from the first batch's row on, up to the end of the last batch.
            start = first + self.lane_part(lane, first_step)[0]
            stop = first + self.lane_part(lane, self.num_steps - 1)[1]
            needed += [(row - first, chunk) for row, chunk in self._cut(shuffled, ends, epoch, lane, start, min(stop, last))]
        return [chunk for _, chunk in sorted(needed, key=lambda item: (item[0], item[1].lane))]

    def _cut(
        self, shuffled: list[int], ends: np.ndarray, epoch: int, lane: int, start: int, stop: int
    ) -> Iterator[tuple[int, Chunk]]:
        """Yield the chunks of the rows ``start`` to ``stop`` of the sequence of all rows, each with its first row."""
        place = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            index = shuffled[place]
            begin = int(ends[place]) - self.units[index].num_rows
            end = min(stop, int(ends[place]))
            seed = None if self.seed is None else (self.seed, epoch, index)
            yield start, Chunk(unit=self.units[index], lane=lane, start=start - begin, stop=end - begin, seed=seed)
            start, place = end, place + 1
