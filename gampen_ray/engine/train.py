"""The `train` verb: Ray Data shards feed Ray Train workers, which run `gampen_ray.training`.

Shape legend: N galaxies, C bands, H x W pixels, D targets.
"""

import contextlib
import dataclasses
import io
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.fs
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
from ray.data.iterator import DataIterator
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from ray.util.queue import Empty, Queue
from torch import nn

from gampen_ray import storage
from gampen_ray.config import TrainConfig
from gampen_ray.data import shards
from gampen_ray.engine.resources import Workers, plan_workers
from gampen_ray.engine.session import num_cpus, num_gpus, ray_session
from gampen_ray.errors import UserError
from gampen_ray.posterior.bundle import CHECKSUMS, Bundle, load_bundle
from gampen_ray.progress import Progress
from gampen_ray.provenance import check_output, claim_output
from gampen_ray.training.loop import Batch, State
from gampen_ray.training.run import BUNDLE, Run, execute, prepare

logger = logging.getLogger(__name__)

_RAY_RUN, _STATE = "checkpoints", "state.pt"
# Rows shuffled together by each worker.
_SHUFFLE_ROWS = 4096
# A dataset is kept decoded in the object store if it fills at most this share of it.
_CACHE_SHARE = 0.4


def train(config: TrainConfig) -> Bundle:
    """Train a network and return its bundle, which is written to ``<output>/bundle``.

    An unfinished run of the same config goes on from its last epoch; a finished one is returned as it is.

    Raises
    ------
    UserError
        If the dataset does not fit the config, the output holds another run, or the cluster is too small.
    """
    config = dataclasses.replace(config, dataset=storage.absolute(config.dataset), output=storage.absolute(config.output))
    if config.fine_tune.bundle:
        config = _starting_from(config, storage.absolute(config.fine_tune.bundle))
    run = prepare(config)
    # The bundle to start from is named by its content, wherever it lies.
    owner = _starting_from(config, run.start.digest) if run.start else config
    check_output(config.output, owner, run.inputs)
    if storage.exists(storage.join(config.output, BUNDLE, CHECKSUMS)):
        logger.info("%s is complete; nothing to do", config.output)
        return load_bundle(config.output)
    with ray_session():
        workers = plan_workers(config.resources, num_cpus=num_cpus(), num_gpus=num_gpus())
        if config.optimizer.batch_size % workers.count:
            raise UserError(
                f"optimizer.batch_size: {config.optimizer.batch_size} is no multiple of {workers.count} workers; "
                f"give {config.optimizer.batch_size // workers.count * workers.count or workers.count}"
            )
        for split in ("train", "val"):
            rows = run.info.num_rows[split]
            if rows < workers.count:
                raise UserError(
                    f"dataset: {config.dataset} has {rows} galaxies in split {split!r} for {workers.count} workers; "
                    "lower resources.num_workers or add galaxies"
                )
        claim_output(config.output, owner, run.inputs)
        for line in run.images.conversions(**run.units):
            logger.info(line)
        _fit(run, workers)
    logger.info("wrote %s", storage.join(config.output, BUNDLE))
    return load_bundle(config.output)


def _starting_from(config: TrainConfig, bundle: str) -> TrainConfig:
    return dataclasses.replace(config, fine_tune=dataclasses.replace(config.fine_tune, bundle=bundle))


def _fit(run: Run, workers: Workers) -> None:
    config = run.config
    messages = Queue(actor_options={"num_cpus": 0})
    filesystem, path = storage.filesystem(config.output)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"run": run, "workers": workers, "messages": messages},
        datasets={split: _dataset(run, split) for split in ("train", "val")},
        torch_config=TorchConfig(backend="nccl" if workers.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.count, use_gpu=bool(workers.gpus), resources_per_worker=_resources_per_worker(workers)
        ),
        run_config=RunConfig(
            name=_RAY_RUN,
            storage_path=path,
            storage_filesystem=None if isinstance(filesystem, pyarrow.fs.LocalFileSystem) else filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=2, controller_failure_limit=2),
        ),
    )
    mistakes: list[str] = []
    with _keyboard_interrupt(), _shown(messages, config.optimizer.epochs, mistakes):
        trainer.fit()
    if mistakes:
        raise UserError(mistakes[0])


def _dataset(run: Run, split: str) -> ray.data.Dataset:
    config = run.config
    uris = shards.shard_uris(config.dataset, split)
    if split == "train":
        # Each worker shuffles a window of rows; so that a window is a mixture, the shards come in random order.
        np.random.default_rng(config.seed).shuffle(uris)
    filesystem, _ = storage.filesystem(config.dataset)
    paths = [storage.filesystem(uri)[1] for uri in uris]
    dataset = ray.data.read_parquet(paths, filesystem=filesystem).select_columns(run.columns)
    rows = run.info.num_rows[split]
    image_bytes = 4 * run.info.cutout_size**2 * len(run.images.bands)
    store = ray.cluster_resources().get("object_store_memory", 0)
    return dataset.materialize() if rows * image_bytes < _CACHE_SHARE * store else dataset


def _train_worker(job: dict[str, Any]) -> None:
    run, workers = job["run"], job["workers"]
    torch.set_num_threads(workers.threads)
    worker = RayWorker(run, workers.count, job["messages"])
    rows = run.info.num_rows["train"] // workers.count
    try:
        execute(worker, run, max(1, rows // worker.batch_size))
    except UserError as error:
        # Every worker comes here at once. Returned, not raised: Ray Train would try the same again.
        job["messages"].put({"mistake": str(error)})


class RayWorker:
    """A `gampen_ray.training.loop.Worker` inside Ray Train.

    Parameters
    ----------
    run
        What is trained.
    world_size
        Number of workers.
    messages
        Where worker 0 puts each epoch's metrics for the driver to show.
    """

    def __init__(self, run: Run, world_size: int, messages: Queue) -> None:
        self.rank = ray.train.get_context().get_world_rank()
        self.device = ray.train.torch.get_device()
        self.batch_size = min(run.config.optimizer.batch_size, run.info.num_rows["train"]) // world_size
        self._run, self._world_size, self._messages = run, world_size, messages

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network in DistributedDataParallel if there are several workers."""
        return prepare_model(network)

    def batches(self, split: str, epoch: int) -> Iterator[Batch]:
        """Yield this worker's share of the split; see `gampen_ray.training.loop.Worker.batches`."""
        shard = ray.train.get_dataset_shard(split)
        assert isinstance(shard, DataIterator)
        training = split == "train"
        for batch in shard.iter_torch_batches(
            batch_size=self.batch_size,
            drop_last=training,
            local_shuffle_buffer_size=_SHUFFLE_ROWS if training else None,
            local_shuffle_seed=self._run.config.seed + epoch if training else None,
            device=self.device,
        ):
            values_ND = np.stack([batch[name].cpu().numpy() for name in self._run.targets.names], axis=1)
            targets_ND = torch.from_numpy(self._run.targets.standardise(values_ND)).float()
            yield batch["image"], targets_ND.to(self.device)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of all workers, concatenated along the first axis."""
        if self._world_size == 1:
            return values
        gathered: list[Any] = [None] * self._world_size
        torch.distributed.all_gather_object(gathered, values.cpu())
        return torch.cat(gathered).to(values.device)

    def report(self, metrics: dict[str, float], state: State) -> None:
        """Write a checkpoint (worker 0) and tell the driver."""
        with TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                torch.save(state, Path(folder, _STATE))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint)
        if self.rank == 0:
            self._messages.put(metrics)

    def restore(self) -> State | None:
        """Return the state of the last checkpoint."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return torch.load(io.BytesIO(Path(folder, _STATE).read_bytes()), map_location="cpu", weights_only=True)


def _resources_per_worker(workers: Workers) -> dict[str, float]:
    resources = {"CPU": workers.cpus}
    return resources | {"GPU": float(workers.gpus)} if workers.gpus else resources


@contextlib.contextmanager
def _shown(messages: Queue, epochs: int, mistakes: list[str]) -> Iterator[None]:
    """Show the epochs that worker 0 reports while the driver waits for the end of the training; collect the user's mistakes."""
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(messages, epochs, mistakes, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        messages.shutdown()


def _show(messages: Queue, epochs: int, mistakes: list[str], done: threading.Event) -> None:
    with Progress("train", epochs, "epochs") as progress:
        shown = 0
        while True:
            last = done.wait(0.5)
            try:
                metrics = messages.get_nowait()
            except Empty:
                if last:
                    return
                continue
            if "mistake" in metrics:
                mistakes.append(metrics["mistake"])
                continue
            note = f"loss {metrics['train_loss']:.3f}, validation {metrics['val_loss']:.3f}, "
            progress.advance(int(metrics["epoch"]) - shown, note + f"{metrics['galaxies_per_s']:,.0f} galaxies/s", always=True)
            shown = int(metrics["epoch"])


@contextlib.contextmanager
def _keyboard_interrupt() -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt: Ray Train sets a handler of its own, which ends the program as if all were well."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)
