"""Training with Ray: Ray Train runs `gampen_ray.training` in workers, Ray Data feeds them, and the driver shows their progress.

Epoch metrics and exceptions reach the driver through callbacks in Ray Train's controller; progress within an epoch goes to a
queue directly. Controller and queue stay on the driver's node, so that they survive the loss of any other node.
"""

import contextlib
import io
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer, prepare_model
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import nn

from gampen_ray import storage
from gampen_ray.config import OptimizerConfig, TrainConfig
from gampen_ray.engine.cluster import LONGEST_WAIT_S, can_autoscale
from gampen_ray.engine.feed import read_chunks
from gampen_ray.engine.meeting import torch_config
from gampen_ray.engine.resources import Workers
from gampen_ray.engine.session import known_cause
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import load_bundle
from gampen_ray.messages import counted
from gampen_ray.progress import Phase, Progress
from gampen_ray.training.batches import Batch, Sweep, chunks_of, stream
from gampen_ray.training.execute import execute, trained_bundle
from gampen_ray.training.history import write_history
from gampen_ray.training.run import Run
from gampen_ray.training.tracking import Track, tracking
from gampen_ray.training.worker import State, T

logger = logging.getLogger(__name__)

_RAY_RUN, _STATE, _BEST = "checkpoints", "state.pt", "bundle"
# The part of a training that follows its epochs.
_AFTER = "after"
# Interval between lines of progress.
_PROGRESS_S = 2.0
# Until workers that have their resources must run: two that import torch on a busy laptop take more than Ray's minute.
_START_S = 180
# Failures of workers after which the training resumes from the last checkpoint.
_MAX_FAILURES = 3


def run_workers(run: Run, workers: Workers) -> None:
    """Train with Ray Train workers, which write history and bundle into the run folder.

    Parameters
    ----------
    run
        The training.
    workers
        Their number, and the resources of each.

    Raises
    ------
    UserError
        If MLflow cannot be reached.
    ray.train.TrainingFailedError
        If the training fails; `gampen_ray.engine.session.ray_session` raises the user's mistake that it carries.
    """
    config = run.config
    messages = driver_queue()
    filesystem, path = storage.filesystem(config.output)
    local = storage.is_local(config.output)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"run": run, "workers": workers, "messages": messages},
        torch_config=torch_config("nccl" if workers.gpus else "gloo"),
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
            callbacks=[Callbacks(messages)],
        ),
    )
    with (
        _patience(config),
        _keyboard_interrupt(),
        tracking(run) as track,
        _shown(messages, run, workers.count, track),
    ):
        trainer.fit()


def driver_queue() -> Queue:
    """Return a queue on the driver's node, where Ray Train's controller is too: it outlives every other node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


class Callbacks(UserCallback):
    """Handling of the workers' reports and exceptions in Ray Train's controller.

    Ray Train's failure policy does not distinguish exceptions: it would retry after a user's mistake as often as after the
    death of a node. An exception in the controller, however, ends the training at once. Nor may a worker return its mistake
    instead of raising it: the others would wait for it forever.

    Parameters
    ----------
    messages
        Queue that the driver reads.
    """

    def __init__(self, messages: Queue) -> None:
        self._messages = messages

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Send the metrics of an epoch, whose checkpoint is written, to the driver."""
        if metrics[0]:
            send(self._messages, metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise a worker's `UserError`."""
        for error in worker_exceptions.values():
            if isinstance(known := known_cause(error), UserError):
                raise known


def send(messages: Queue, message: dict[str, Any]) -> None:
    """Put a message into the driver's queue without waiting: a lost message costs a line of progress only."""
    actor: Any = messages.actor
    actor.put.remote(message)


def _train_worker(job: dict[str, Any]) -> None:
    torch.set_num_threads(job["workers"].threads)
    torch.backends.cudnn.benchmark = True
    execute(RayWorker(job["run"], job["messages"]), job["run"])


class RayWorker:
    """A `gampen_ray.training.worker.Worker` inside Ray Train.

    Parameters
    ----------
    run
        The training.
    messages
        Queue that the driver reads.
    """

    def __init__(self, run: Run, messages: Queue) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.orders = run.orders(self.rank, self.world_size)
        self._run, self._messages, self._shown = run, messages, time.monotonic()
        self._losses: list[torch.Tensor] = []

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network in DistributedDataParallel if there are several workers."""
        return prepare_model(network)

    def stream(self, sweeps: Sequence[Sweep]) -> Iterator[Iterator[Batch]]:
        """Yield an iterator of this worker's batches for each sweep; see `gampen_ray.training.worker.Worker.stream`."""
        chunks = chunks_of(sweeps, self.orders)
        run = self._run
        rows = read_chunks(run.info, run.columns, chunks, gpu=self.device.type == "cuda")
        return stream(sweeps, self.orders, rows, self.device)

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
        """Send the driver a progress message every few seconds, with the mean loss since the last one (worker 0)."""
        if self.rank != 0:
            return
        if loss is not None:
            self._losses.append(loss.mean())
        if time.monotonic() - self._shown > _PROGRESS_S:
            found = {"loss": float(torch.stack(self._losses).mean())} if self._losses else {}
            self._shown, self._losses = time.monotonic(), []
            send(self._messages, {"epoch": epoch, "galaxies": galaxies, **found})

    def phase(self, text: str) -> None:
        """Send the driver the name of what comes next (worker 0)."""
        if self.rank == 0:
            send(self._messages, {"phase": text})

    def report(self, metrics: dict[str, float], state: State) -> None:
        """Write the history and a checkpoint (worker 0), and report the metrics.

        The checkpoint holds the state, and the best network so far as a bundle, which is neither calibrated nor evaluated.
        """
        with TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                if metrics:
                    write_history(self._run.config.output, state["history"])
                torch.save({key: value for key, value in state.items() if key != "best_network"}, Path(folder, _STATE))
                trained_bundle(self._run, state["best_network"]).save(str(Path(folder, _BEST)))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint)

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
            epochs = state["history"][-1]["epoch"] if state["history"] else 0
            seen = int(epochs) * order.rows_per_epoch + state["step"] * order.rows_per_batch
            send(self._messages, {"restored": seen})
        return state | {"best_network": best}


@contextlib.contextmanager
def _shown(messages: Queue, run: Run, num_workers: int, track: Track) -> Iterator[None]:
    """Show the workers' messages, and track their metrics, while the driver waits for the end of the training."""
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(messages, run, num_workers, track, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        messages.shutdown()


def _show(messages: Queue, run: Run, num_workers: int, track: Track, done: threading.Event) -> None:
    with _Shown(run.config.optimizer, run.orders(0, num_workers)["train"].rows_per_epoch, num_workers) as shown:
        last = False
        while True:
            try:
                message = messages.get_nowait()
            except Empty:
                if last:
                    return
                last = done.wait(0.5)
                continue
            if "val_loss" in message:
                track(message)
            shown(message)


class _Shown:
    """The progress of a training, a counter for each of its parts (measure, train on numbers, train), and its other phases."""

    def __init__(self, config: OptimizerConfig, per_epoch: int, num_workers: int) -> None:
        self._per_epoch, self._num_workers = per_epoch, num_workers
        self._epochs = {"measure": 1, "train on numbers": config.numbers_epochs, "train": config.epochs}
        self._part, self._galaxies, self._open = "", 0, contextlib.ExitStack()

    def __enter__(self) -> "_Shown":
        self._open.enter_context(Phase(f"starting {counted(self._num_workers, 'worker')}"))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __call__(self, message: Mapping[str, Any]) -> None:
        """Show a worker's message."""
        if "phase" in message:
            self._open.close()
            self._part = _AFTER
            self._open.enter_context(Phase(message["phase"]))
        elif "restored" in message:
            # Also after the death of a worker: what followed its last checkpoint is repeated.
            if message["restored"]:
                self._begin("train").skip(int(message["restored"]) - self._galaxies)
                self._galaxies = int(message["restored"])
        elif "val_loss" in message:
            part = "train" if message["epoch"] else "train on numbers"
            epoch = int(message["epoch"]) or self._epochs[part]
            # The metrics of the last epoch may come after the name of the next phase.
            if self._part != _AFTER:
                self._advance(part, epoch * self._per_epoch)
            logger.info("%s: epoch %s/%s, %s", part, epoch, self._epochs[part], _losses(message))
        else:
            numbers = "train on numbers" if "loss" in message else "measure"
            note = f"loss {message['loss']:.3f}" if "loss" in message else ""
            self._advance("train" if message["epoch"] else numbers, int(message["galaxies"]), note)

    def _advance(self, part: str, galaxies: int, note: str = "") -> None:
        # Metrics of an epoch may come after the first progress of the next.
        self._begin(part).advance(max(galaxies - self._galaxies, 0), note)
        self._galaxies = max(galaxies, self._galaxies)

    def _begin(self, part: str) -> Progress:
        """Return the counter of a part, a new one if another part was shown."""
        if part != self._part:
            self._open.close()
            self._part, self._galaxies = part, 0
            progress = Progress(part, self._per_epoch, "galaxies", epochs=self._epochs[part])
            self._progress = self._open.enter_context(progress)
        return self._progress


def _losses(metrics: Mapping[str, float]) -> str:
    text = f"loss {metrics['train_loss']:.3f}, validation {metrics['val_loss']:.3f}"
    if "crop_scale_p05" in metrics:
        text += f", crop {metrics['crop_scale_p05']:.3f} to {metrics['crop_scale_p95']:.3f}"
        if dead := metrics["crop_dead_fraction"]:
            text += f", {dead:.0%} of its units dead"
    return text


@contextlib.contextmanager
def _patience(config: TrainConfig) -> Iterator[None]:
    """Set how long workers may take to start: on a busy machine minutes, or as long as an autoscaler replaces lost nodes."""
    name = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    if name in os.environ:
        yield
        return
    replaced = can_autoscale() and not config.resources.min_workers
    os.environ[name] = str(LONGEST_WAIT_S if replaced else _START_S)
    try:
        yield
    finally:
        del os.environ[name]


@contextlib.contextmanager
def _keyboard_interrupt() -> Iterator[None]:
    """Turn Ctrl-C into a KeyboardInterrupt: the handler that Ray Train installs ends the program with success."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)
