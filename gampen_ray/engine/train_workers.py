"""Training with Ray: Ray Train runs `gampen_ray.training` in workers, Ray Data feeds them, and the driver shows their progress.

Exceptions reach the driver through callbacks in Ray Train's controller, and what is shown through a queue. Controller and queue
stay on the driver's node, so that they survive the loss of any other node. Checkpoints are ours (`training.checkpoints`): a
training resumes from them on Ray or without it.
"""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer, prepare_model
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import nn

from gampen_ray import storage
from gampen_ray.config import TrainConfig
from gampen_ray.engine.cluster import LONGEST_WAIT_S, can_autoscale
from gampen_ray.engine.feed import read_chunks
from gampen_ray.engine.meeting import torch_config
from gampen_ray.engine.resources import MAX_FAILURES, Workers
from gampen_ray.engine.session import known_cause
from gampen_ray.errors import UserError
from gampen_ray.training.batches import Batch, Sweep, chunks_of, stream
from gampen_ray.training.checkpoints import CHECKPOINTS
from gampen_ray.training.execute import execute
from gampen_ray.training.group import GroupWorker
from gampen_ray.training.run import Run
from gampen_ray.training.shown import shown

# Until workers that have their resources must run: two that import torch on a busy laptop take more than Ray's minute.
_START_S = 180


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
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=None if local else filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=2),
            callbacks=[Callbacks()],
        ),
    )
    with (
        _patience(config),
        _keyboard_interrupt(),
        shown(run, workers.count) as receive,
        _received(messages, receive),
    ):
        trainer.fit()


def driver_queue() -> Queue:
    """Return a queue on the driver's node, where Ray Train's controller is too: it outlives every other node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


class Callbacks(UserCallback):
    """Handling of the workers' exceptions in Ray Train's controller.

    Ray Train's failure policy does not distinguish exceptions: it would retry after a user's mistake as often as after the
    death of a node. An exception in the controller, however, ends the training at once. Nor may a worker return its mistake
    instead of raising it: the others would wait for it forever.
    """

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


class RayWorker(GroupWorker):
    """A worker inside Ray Train, which Ray Data feeds.

    Parameters
    ----------
    run
        The training.
    messages
        Queue that the driver reads.
    """

    def __init__(self, run: Run, messages: Queue) -> None:
        context = ray.train.get_context()
        super().__init__(
            run,
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            device=ray.train.torch.get_device(),
            send=functools.partial(send, messages),
        )

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network in DistributedDataParallel if there are several workers."""
        return prepare_model(network)

    def stream(self, sweeps: Sequence[Sweep]) -> Iterator[Iterator[Batch]]:
        """Yield an iterator of this worker's batches for each sweep; see `gampen_ray.training.worker.Worker.stream`."""
        chunks = chunks_of(sweeps, self.orders)
        rows = read_chunks(self._run.info, self._run.columns, chunks, gpu=self.device.type == "cuda")
        return stream(sweeps, self.orders, rows, self.device)


@contextlib.contextmanager
def _received(messages: Queue, receive: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Pass the workers' messages on while the driver waits for the end of the training."""
    done = threading.Event()

    def work() -> None:
        last = False
        while True:
            try:
                receive(messages.get_nowait())
            except Empty:
                if last:
                    return
                last = done.wait(0.5)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        messages.shutdown()


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
