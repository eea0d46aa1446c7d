"""Ray Data feed of a training worker: tasks across the cluster read chunks, which arrive in the order of use.

Every task imports this module: its imports must be light.
"""

import functools
import itertools
import math
import pickle
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ExecutionResources

from gampen_ray.data import shards
from gampen_ray.training.order import Chunk
from gampen_ray.training.reading import CHUNK_BYTES, Columns, Rows, ahead, read_unit

# Workers may reserve all CPUs of a cluster; reading must continue beside them.
_CPUS_PER_READ = 0
# Concurrent reading tasks per worker: a core reads 20,000 cutouts of 64 pixels a second.
_READS_PER_CPU_WORKER, _READS_PER_GPU_WORKER = 1, 8
# Tasks of a Ray Data execution. A stalled execution busy-polls a core: beside a CPU worker it must end before it stalls, as it
# does if all that it reads fits into the buffers.
_TASKS_PER_CPU_EXECUTION, _TASKS_PER_GPU_EXECUTION = 8, 4096
# Buffers ahead of a worker: blocks taken from an execution, and bytes of the object store for the others.
_WAITING_BLOCKS, _WAITING_BYTES = 8, 16 * CHUNK_BYTES
_NO_PROGRESS_TIMEOUT_S = 6 * 3600


def read_chunks(
    info: shards.DatasetInfo, columns: Columns, chunks: Iterable[Chunk], *, gpu: bool
) -> Iterator[tuple[int, Rows]]:
    """Yield lane and rows of chunks in order.

    Each worker has Ray Data executions of its own, one after another and across epochs: no worker waits for another's data.
    Beside a GPU the executor is an actor, as the worker's interpreter is busy with the GPU.

    Parameters
    ----------
    info
        Description of the dataset.
    columns
        What is read.
    chunks
        In the order of use.
    gpu
        Whether the worker has a GPU, which needs more prefetching.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=_WAITING_BYTES)
    tasks = _grouped(chunks, CHUNK_BYTES // (4 * math.prod(info.planes_shape)))
    for block in ahead(_blocks(functools.partial(_read, columns=columns), tasks, gpu=gpu), _WAITING_BLOCKS):
        yield from _parts(block, len(columns.targets))


def _blocks(read: Callable[[pa.Table], pa.Table], tasks: Iterator[list[Chunk]], *, gpu: bool) -> Iterator[pa.Table]:
    """Yield what each task read, in order."""
    size = _TASKS_PER_GPU_EXECUTION if gpu else _TASKS_PER_CPU_EXECUTION
    while some := list(itertools.islice(tasks, size)):
        dataset = ray.data.from_items(
            [{"chunks": pickle.dumps(group)} for group in some], override_num_blocks=len(some)
        ).map_batches(
            read,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_CPUS_PER_READ,
            compute=ray.data.TaskPoolStrategy(size=_READS_PER_GPU_WORKER if gpu else _READS_PER_CPU_WORKER),
        )
        iterator = dataset.streaming_split(1)[0] if gpu else dataset.iterator()
        yield from iterator.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)  # type: ignore[arg-type]


def _grouped(chunks: Iterable[Chunk], num_rows: int) -> Iterator[list[Chunk]]:
    """Yield chunks in groups of about ``num_rows`` rows: starting a task costs as much as reading hundreds of rows."""
    group, count = [], 0
    for chunk in chunks:
        group.append(chunk)
        count += chunk.stop - chunk.start
        if count >= num_rows:
            yield group
            group, count = [], 0
    if group:
        yield group


def _read(tasks: pa.Table, *, columns: Columns) -> pa.Table:
    chunks = [chunk for task in tasks["chunks"].to_pylist() for chunk in pickle.loads(task)]
    rows = Rows.concatenate([read_unit(columns, chunk.unit).take(chunk.rows) for chunk in chunks])
    num_rows = [chunk.stop - chunk.start for chunk in chunks]
    return pa.table(
        {
            "chunk": np.repeat(np.arange(len(chunks)), num_rows),
            "lane": np.repeat([chunk.lane for chunk in chunks], num_rows),
            "object_id": rows.object_id_N,
            "side": rows.side_N,
            "image": pa.FixedShapeTensorArray.from_numpy_ndarray(rows.cutout_NCHW),
            "target": pa.FixedShapeTensorArray.from_numpy_ndarray(np.hstack([rows.target_ND, rows.condition_NJ])),
        }
    )


def _parts(block: pa.Table, num_targets: int) -> Iterator[tuple[int, Rows]]:
    """Yield lane and rows of each chunk, or of the part of one that a block holds."""
    lane_N = block["lane"].to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(block["chunk"].to_numpy())) + 1), len(lane_N)]
    numbers = block["target"].combine_chunks().to_numpy_ndarray()
    rows = Rows(
        object_id_N=block["object_id"].to_numpy(),
        cutout_NCHW=shards.images(block),
        target_ND=numbers[:, :num_targets],
        condition_NJ=numbers[:, num_targets:],
        side_N=block["side"].to_numpy(),
    )
    for start, stop in itertools.pairwise(edges):
        yield int(lane_N[start]), rows.take(slice(start, stop))
