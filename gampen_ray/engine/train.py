"""The `train` verb: Ray Data shards feed Ray Train workers, which run `gampen_ray.training`."""

import contextlib
import io
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from ray.util.queue import Empty, Queue
from torch import nn

from gampen_ray import storage
from gampen_ray.config import TrainConfig
from gampen_ray.config.base import replace
from gampen_ray.engine.cluster import LONGEST_WAIT_S, cluster_workers, grows
from gampen_ray.engine.feed import read_chunks
from gampen_ray.engine.resources import Workers
from gampen_ray.engine.session import ray_session
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import CHECKSUMS, Bundle, load_bundle
from gampen_ray.progress import Progress
from gampen_ray.provenance import check_output, claim_output
from gampen_ray.training.batches import Batch, EpochPart, chunks_of, stream
from gampen_ray.training.loop import State, T
from gampen_ray.training.run import BUNDLE, Run, execute, prepare, trained_bundle
from gampen_ray.training.tracking import Track, check_tracking, tracking

logger = logging.getLogger(__name__)

_RAY_RUN, _STATE, _BEST = "checkpoints", "state.pt", "bundle"
# From one line of progress to the next.
_PROGRESS_S = 5.0
# Of workers, each from the last checkpoint on.
_MAX_FAILURES = 3


def train(config: TrainConfig) -> Bundle:
    """Train a network and return its bundle, which is written to ``<output>/bundle``.

    An unfinished run of the same config goes on from its last epoch; a finished one is returned as it is.

    Raises
    ------
    UserError
        If the dataset does not fit the config, the output holds another run, or the cluster is too small.
    """
    config = replace(config, dataset=storage.absolute(config.dataset), output=storage.absolute(config.output))
    if config.fine_tune.bundle:
        config = _starting_from(config, storage.absolute(config.fine_tune.bundle))
    check_tracking(config.mlflow)
    run = prepare(config)
    # The bundle to start from is named by its content, wherever it lies.
    owner = _starting_from(config, run.start.digest) if run.start else config
    check_output(config.output, owner, run.inputs)
    if storage.exists(storage.join(config.output, BUNDLE, CHECKSUMS)):
        logger.info("%s is complete; nothing to do", config.output)
        return load_bundle(config.output)
    _check_enough(run, config.resources.num_workers)
    with ray_session():
        resources = config.resources
        workers = cluster_workers(resources, least=resources.min_workers or resources.num_workers or 1)
        _check_enough(run, workers.count)
        claim_output(config.output, owner, run.inputs)
        for line in run.images.conversions(**run.units):
            logger.info(line)
        run_workers(run, workers)
    logger.info("wrote %s", storage.join(config.output, BUNDLE))
    return load_bundle(config.output)


def _check_enough(run: Run, num_workers: int) -> None:
    config = run.config
    if config.optimizer.batch_size < num_workers:
        raise UserError(
            f"optimizer.batch_size: {config.optimizer.batch_size} gives not every one of {num_workers} workers a galaxy; "
            "raise it or lower resources.num_workers"
        )
    for split in ("train", "val"):
        rows = run.info.num_rows[split]
        if rows < num_workers:
            raise UserError(
                f"dataset: {config.dataset} has {rows} galaxies in split {split!r} for {num_workers} workers; "
                "lower resources.num_workers or add galaxies"
            )


def _starting_from(config: TrainConfig, bundle: str) -> TrainConfig:
    return replace(config, **{"fine_tune.bundle": bundle})


def run_workers(run: Run, workers: Workers) -> None:
    """Train with Ray Train workers, which write history and bundle into the run folder.

    Raises
    ------
    UserError
        If MLflow cannot be reached, or the training meets a mistake of the user's.
    """
    config = run.config
    messages = Queue(actor_options={"num_cpus": 0})
    filesystem, path = storage.filesystem(config.output)
    local = storage.is_local(config.output)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"run": run, "workers": workers, "messages": messages},
        torch_config=TorchConfig(backend="nccl" if workers.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(config.resources.min_workers, workers.count) if config.resources.min_workers else workers.count,
            use_gpu=bool(workers.gpus),
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": float(workers.gpus)} if workers.gpus else {}),
        ),
        run_config=RunConfig(
            name=_RAY_RUN,
            storage_path=path,
            storage_filesystem=None if local else filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=_MAX_FAILURES, controller_failure_limit=2),
        ),
    )
    mistakes: list[str] = []
    with (
        _patience(config),
        _keyboard_interrupt(),
        tracking(run) as track,
        _shown(messages, run, workers.count, track, mistakes),
    ):
        trainer.fit()
    if mistakes:
        raise UserError(mistakes[0])


def _train_worker(job: dict[str, Any]) -> None:
    torch.set_num_threads(job["workers"].threads)
    torch.backends.cudnn.benchmark = True
    try:
        execute(RayWorker(job["run"], job["messages"]), job["run"])
    except UserError as error:
        # Every worker comes here at once. Returned, not raised: Ray Train would try the same again.
        job["messages"].put({"mistake": str(error)})


class RayWorker:
    """A `gampen_ray.training.loop.Worker` inside Ray Train.

    Parameters
    ----------
    run
        What is trained.
    messages
        Where worker 0 puts what the driver shows.
    """

    def __init__(self, run: Run, messages: Queue) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.orders = run.orders(self.rank, self.world_size)
        self._run, self._messages, self._shown = run, messages, time.monotonic()

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network in DistributedDataParallel if there are several workers."""
        return prepare_model(network)

    def stream(self, passes: Sequence[EpochPart]) -> Iterator[Iterator[Batch]]:
        """Yield an iterator of this worker's batches for each pass; see `gampen_ray.training.loop.Worker.stream`."""
        chunks = chunks_of(passes, self.orders)
        rows = read_chunks(self._run.info, self._run.targets, chunks, gpu=self.device.type == "cuda")
        return stream(passes, self.orders, rows, self.device)

    def gather(self, value: T) -> list[T]:
        """Return the values of all workers, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give tensors the values that they have on worker 0."""
        for tensor in tensors if self.world_size > 1 else ():
            torch.distributed.broadcast(tensor, 0)

    def progress(self, epoch: int, galaxies: int, loss: torch.Tensor) -> None:
        """Tell the driver how far the run is, now and then (worker 0)."""
        if self.rank == 0 and time.monotonic() - self._shown > _PROGRESS_S:
            self._shown = time.monotonic()
            self._messages.put({"epoch": epoch, "galaxies": galaxies, "loss": float(loss.mean())})

    def report(self, metrics: dict[str, float], state: State) -> None:
        """Write a checkpoint (worker 0) and tell the driver.

        It holds the state, and the best network so far as a bundle, which is neither calibrated nor evaluated.
        """
        with TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                torch.save({key: value for key, value in state.items() if key != "best_network"}, Path(folder, _STATE))
                trained_bundle(self._run, state["best_network"]).save(str(Path(folder, _BEST)))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint)
        if self.rank == 0 and metrics:
            self._messages.put(metrics)

    def restore(self) -> State | None:
        """Return the state of the last checkpoint."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            state = torch.load(io.BytesIO(Path(folder, _STATE).read_bytes()), map_location="cpu", weights_only=True)
            best = load_bundle(str(Path(folder, _BEST))).network.state_dict()
        if self.rank == 0:
            order = self.orders["train"]
            seen = len(state["history"]) * order.rows_per_epoch + state["step"] * order.rows_per_batch
            self._messages.put({"restored": seen})
        return state | {"best_network": best}


@contextlib.contextmanager
def _shown(messages: Queue, run: Run, num_workers: int, track: Track, mistakes: list[str]) -> Iterator[None]:
    """Show what worker 0 tells while the driver waits for the end of the training; collect the user's mistakes."""
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(messages, run, num_workers, track, mistakes, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        messages.shutdown()


def _show(messages: Queue, run: Run, num_workers: int, track: Track, mistakes: list[str], done: threading.Event) -> None:
    epochs, per_epoch = run.config.optimizer.epochs, run.orders(0, num_workers)["train"].rows_per_epoch
    with Progress("train", epochs * per_epoch, "galaxies") as progress:
        shown, last = 0, False
        while True:
            try:
                told = messages.get_nowait()
            except Empty:
                if last:
                    return
                last = done.wait(0.5)
                continue
            if "mistake" in told:
                mistakes.append(told["mistake"])
                continue
            if "restored" in told:
                # Also behind a worker's death: what came after its last checkpoint is done again.
                progress.skip(told["restored"] - shown)
                shown = told["restored"]
                continue
            finished = "val_loss" in told
            galaxies = int(told["epoch"]) * per_epoch if finished else told["galaxies"]
            note = f"epoch {told['epoch']}/{epochs}, "
            if finished:
                track(told)
                note += f"loss {told['train_loss']:.3f}, validation {told['val_loss']:.3f}"
            else:
                note += f"loss {told['loss']:.3f}"
            progress.advance(galaxies - shown, note, always=True)
            shown = galaxies


@contextlib.contextmanager
def _patience(config: TrainConfig) -> Iterator[None]:
    """Let workers wait for nodes in place of lost ones, where such may come, and as many workers as before are needed."""
    name = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    if name in os.environ or config.resources.min_workers or not grows():
        yield
        return
    os.environ[name] = str(LONGEST_WAIT_S)
    try:
        yield
    finally:
        del os.environ[name]


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
