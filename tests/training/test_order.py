"""Arithmetic over grids of sizes, without a cluster."""

import itertools

import numpy as np
import pytest

from gampen_ray.data.sources import Unit
from gampen_ray.training.order import Order


def units(*num_rows: int) -> list[Unit]:
    return [Unit(name=f"{i}", num_rows=rows, uri=f"shard-{i}", start=0, stop=1) for i, rows in enumerate(num_rows)]


def galaxies_of(order: Order, epoch: int, first_step: int = 0) -> list[dict[int, tuple[str, int]]]:
    """Return for each batch which galaxy (unit, row) is where in it, reading chunks only as they come."""
    chunks = iter(order.chunks(epoch, first_step))
    waiting: dict[int, list[tuple[str, int]]] = {lane: [] for lane in order.lanes}
    steps = []
    for step in range(first_step, order.num_steps):
        found = []
        for lane in order.lanes:
            start, stop = order.lane_part(lane, step)
            while len(waiting[lane]) < stop - start:
                chunk = next(chunks)
                waiting[chunk.lane] += [(chunk.unit.name, int(row)) for row in chunk.rows]
            found += waiting[lane][: stop - start]
            waiting[lane] = waiting[lane][stop - start :]
        positions = order.positions(step)
        assert len(found) == len(positions)
        steps.append(dict(zip(positions.tolist(), found, strict=True)))
    assert list(chunks) == []
    assert not any(waiting.values())
    return steps


SIZES = [(1,), (5,), (100, 60), (7, 3, 9, 1, 4), (64,) * 70, tuple(range(1, 40))]
# Fewer galaxies in a batch than workers are refused before training starts.
GRID = [
    (num_rows, world_size, batch_size)
    for num_rows, world_size, batch_size in itertools.product(SIZES, (1, 2, 3, 5, 8), (1, 2, 7, 32, 100))
    if min(sum(num_rows), batch_size) >= world_size
]


@pytest.mark.parametrize(("num_rows", "world_size", "batch_size"), GRID)
def test_every_worker_has_its_part_of_every_batch(num_rows: tuple[int, ...], world_size: int, batch_size: int) -> None:
    total = sum(num_rows)
    orders = [
        Order(units=units(*num_rows), batch_size=batch_size, seed=3, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    parts = [galaxies_of(order, epoch=1) for order in orders]
    assert len({len(part) for part in parts}) == 1
    size = orders[0].rows_per_batch
    assert size == min(batch_size, size)
    seen = []
    for step in zip(*parts, strict=True):
        assert sorted(itertools.chain(*step)) == list(range(size))
        counts = [len(own) for own in step]
        assert max(counts) - min(counts) <= 1
        assert min(counts) > 0
        seen += [galaxy for own in step for galaxy in own.values()]
    # No galaxy twice, and fewer left out than fill a batch and a row of every lane.
    assert len(set(seen)) == len(seen)
    assert total - len(seen) < size + orders[0].num_lanes


@pytest.mark.parametrize("num_rows", [(64,) * 70, (100,) * 9, tuple(range(1, 40))], ids=str)
@pytest.mark.parametrize("batch_size", [32, 100, 129])
def test_a_batch_is_the_same_for_any_number_of_workers(num_rows: tuple[int, ...], batch_size: int) -> None:
    def all_batches(world_size: int) -> list[dict[int, tuple[str, int]]]:
        orders = [
            Order(units=units(*num_rows), batch_size=batch_size, seed=0, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        return [
            {position: galaxy for own in step for position, galaxy in own.items()}
            for step in zip(*(galaxies_of(order, epoch=4) for order in orders), strict=True)
        ]

    alone = all_batches(1)
    assert all_batches(2) == alone
    if len(num_rows) >= 32:
        assert all_batches(4) == all_batches(8) == alone


@pytest.mark.parametrize("world_size", [1, 2])
def test_any_batch_is_reached_without_those_before(world_size: int) -> None:
    order = Order(units=units(*(50,) * 20), batch_size=64, seed=1, rank=world_size - 1, world_size=world_size)
    whole = galaxies_of(order, epoch=2)
    for first_step in range(order.num_steps):
        assert galaxies_of(order, 2, first_step) == whole[first_step:]
    last = order.chunks(2, order.num_steps - 1)
    assert sum(chunk.stop - chunk.start for chunk in last) == len(order.positions(order.num_steps - 1))


def test_epochs_and_seeds_differ_and_mix_units() -> None:
    order = Order(units=units(*(64,) * 64), batch_size=128, seed=1)
    first, again, second = galaxies_of(order, 1), galaxies_of(order, 1), galaxies_of(order, 2)
    assert first == again
    assert first != second
    assert first != galaxies_of(Order(units=order.units, batch_size=128, seed=2), 1)
    # Each of the 16 lanes is in another unit, or at the seam of two, and takes its rows in random order.
    names = [len({name for name, _ in batch.values()}) for batch in first]
    assert min(names) >= 15
    rows = np.array([row for batch in first for name, row in batch.values() if name == "7"])
    assert abs(np.corrcoef(rows, np.arange(len(rows)))[0, 1]) < 0.5


@pytest.mark.parametrize(("num_rows", "world_size", "batch_size"), GRID)
def test_without_shuffling_every_galaxy_comes_once(num_rows: tuple[int, ...], world_size: int, batch_size: int) -> None:
    seen = []
    for rank in range(world_size):
        order = Order(units=units(*num_rows), batch_size=batch_size, seed=None, rank=rank, world_size=world_size)
        steps = galaxies_of(order, epoch=0)
        assert all(steps)
        seen += [galaxy for step in steps for galaxy in step.values()]
    assert seen == [(f"{i}", row) for i, rows in enumerate(num_rows) for row in range(rows)]
