"""The training algorithm, for one or many workers and independent of the engine.

Shape legend: N galaxies, C bands, H x W pixels, D targets, P outputs.
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gampen_ray.config import OptimizerConfig
from gampen_ray.errors import UserError
from gampen_ray.inference.crop_statistics import CropMonitor, CropSample
from gampen_ray.model.network import Network
from gampen_ray.model.symmetries import AUGMENTATIONS
from gampen_ray.training.batches import Batch, Sweep
from gampen_ray.training.fine_tune import parameter_groups
from gampen_ray.training.numbers import fit_numbers
from gampen_ray.training.worker import Plan, State, ToInputs, Worker

# Steps between two checks of the losses: on a GPU each check waits for all pending work.
_CHECK_STEPS = 50
_KEPT = ("history", "step", "losses", "seconds", "waited", "best_loss", "best_network")
_NAMED = 10


def fit(worker: Worker, plan: Plan) -> list[dict[str, float]]:
    """Train ``plan.network`` in place, to its weights of least validation loss.

    After each epoch, and every ``plan.report_steps`` steps, the state is reported; a resumed run continues from there. Order
    and augmentation depend on (seed, epoch, step), and dropout also on the worker. A resumed run therefore equals an
    uninterrupted one. It also equals a run with another number of workers if there is neither dropout nor a batch statistic of
    a single worker.

    A network that takes numbers (`gampen_ray.model.numbers.Merge`) is first trained on them alone, in epoch 0. Its result
    depends on the number of workers.

    Returns
    -------
    list of dict
        Per epoch: epoch, train_loss (see `gampen_ray.model.likelihoods.Likelihood.loss`), val_loss (negative log-likelihood in
        standardised target space, without constant), learning_rate (the highest of the blocks), galaxies_per_s and
        data_wait_fraction. After epoch 0, with a learned crop, also on validation galaxies: crop_scale_p05, crop_scale_p50 and
        crop_scale_p95 (quantiles of its side over the input's) and crop_dead_fraction (share of dead hidden units).

    Raises
    ------
    UserError
        If a training loss is not finite (the message names the galaxies), or if no validation loss is finite.
    """
    fitting = _Fitting(worker, plan)
    fitting.restore()
    stream = worker.stream(fitting.sweeps())
    for train in stream:
        if fitting.epoch == 0:
            fitting.train_on_numbers(train, stream)
            continue
        fitting.train(train)
        # Not earlier: the next sweep starts where this one ends.
        fitting.validate(next(stream))
    if not math.isfinite(fitting.best_loss):
        raise UserError(
            f"optimizer.learning_rate: {plan.optimizer.learning_rate:g} is too high, no validation loss is finite; lower it"
        )
    plan.network.load_state_dict(fitting.best_network)
    return fitting.history


@torch.inference_mode()
def evaluate(worker: Worker, network: Network, inputs: ToInputs, batches: Iterable[Batch]) -> float:
    """Return the mean loss over the batches of all workers, without dropout.

    Parameters
    ----------
    worker
        This worker's view of the world.
    network
        Network from inputs to raw outputs, N x P; the same on all workers.
    inputs
        Preprocessing.
    batches
        This worker's galaxies.
    """
    network.eval()
    loss = network.likelihood.loss
    losses = torch.cat([loss(network(*inputs(b)), b.target_ND).double().cpu() for b in batches])
    sums = worker.gather((float(losses.sum()), len(losses)))
    return sum(total for total, _ in sums) / sum(count for _, count in sums)


class _Fitting:
    """The state of a run and the steps that change it."""

    def __init__(self, worker: Worker, plan: Plan) -> None:
        self.worker, self.plan, self.config = worker, plan, plan.optimizer
        # channels_last is the faster layout on CPUs (1.3 to 1.8 times in the compact network) and on tensor cores.
        self.network = plan.network.to(worker.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.steps_per_epoch = worker.orders["train"].num_steps
        self.optimizer = make_optimizer(plan)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, _learning_rate_factor(plan, self.steps_per_epoch))
        decay = self.config.ema_decay
        self.on_numbers = plan.numbers_first
        self.average = (
            AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None
        )
        self.model = worker.wrap(_prepared(self.network, self.config, worker))
        self.history: list[dict[str, float]] = []
        self.best_loss, self.best_network = math.inf, copy.deepcopy(self.network.state_dict())
        # Of the current epoch: steps done, mean losses of those checked, seconds, and seconds of waiting for data.
        self.step, self.losses, self.seconds, self.waited = 0, [], 0.0, 0.0
        # Identifiers and losses of the galaxies of each step since the last check.
        self.unchecked: list[tuple[np.ndarray, torch.Tensor]] = []

    def state(self) -> State:
        """Return all that a run needs to resume; randomness depends on the seed and the step alone."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            **{name: getattr(self, name) for name in _KEPT},
        }

    def restore(self) -> None:
        """Resume from the last reported state, if there is one."""
        state = self.worker.restore()
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        for name in _KEPT:
            setattr(self, name, state[name])

    def sweeps(self) -> list[Sweep]:
        """Return the sweeps that remain: over the training split, then the validation split, for each epoch."""
        first = self.epoch
        # With another number of workers an epoch may be one step shorter, but never empty.
        begun = min(self.step, self.steps_per_epoch - 1)
        return [
            sweep
            for epoch in range(first, self.config.epochs + 1)
            for sweep in (Sweep("train", epoch, begun if epoch == first else 0), Sweep("val"))
        ]

    @property
    def epoch(self) -> int:
        """The current epoch; 0: training on numbers alone."""
        return len(self.history) + (0 if self.on_numbers else 1)

    def train(self, batches: Iterator[Batch]) -> None:
        """Train on the rest of an epoch."""
        epoch = self.epoch
        start = time.perf_counter()
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                break
            self._step(epoch, batch)
            if self.plan.report_steps and self.step % self.plan.report_steps == 0 and self.step < self.steps_per_epoch:
                self._check(epoch)
                self.seconds += time.perf_counter() - start
                start = time.perf_counter()
                self.worker.report({}, self.state())
        self._check(epoch)
        self.seconds += time.perf_counter() - start

    def validate(self, batches: Iterator[Batch]) -> None:
        """End an epoch: validate, and report."""
        metrics = {
            "epoch": self.epoch,
            "train_loss": sum(self.losses) / len(self.losses),
            "learning_rate": float(max(self.schedule.get_last_lr())),
            "galaxies_per_s": self.worker.orders["train"].rows_per_epoch / self.seconds,
            "data_wait_fraction": self.waited / self.seconds,
        }
        kept: Network = self.average.module if self.average else self.network  # type: ignore[assignment]
        # Running batch statistics differ between workers: keep those of worker 0.
        self.worker.broadcast(kept.buffers())
        with self._autocast(), CropMonitor(kept) if kept.transformer else contextlib.nullcontext() as monitor:
            metrics["val_loss"] = evaluate(self.worker, kept, self.plan.inputs, batches)
        if monitor:
            metrics |= _crop_metrics(self.worker, monitor)
        self._finish(metrics, kept)

    def train_on_numbers(self, train: Iterator[Batch], stream: Iterator[Iterator[Batch]]) -> None:
        """Do epoch 0: see `gampen_ray.training.numbers.fit_numbers`."""
        metrics = fit_numbers(self.worker, self.plan, train, stream)
        if self.average:
            self.average.module.load_state_dict(self.network.state_dict())
        self._finish({"epoch": 0, **metrics}, self.network)

    def _finish(self, metrics: dict[str, float], kept: Network) -> None:
        """End an epoch: keep its weights if they are the best, and report."""
        self.history.append(metrics)
        if metrics["val_loss"] < self.best_loss:
            self.best_loss, self.best_network = metrics["val_loss"], copy.deepcopy(kept.state_dict())
        self.step, self.losses, self.seconds, self.waited = 0, [], 0.0, 0.0
        self.worker.report(metrics, self.state())

    def _set_modes(self, epoch: int) -> None:
        self.model.train()
        done = (epoch - 1 + self.step / self.steps_per_epoch) / self.config.epochs
        running_statistics = done >= self.config.batch_norm_fraction
        for layer in self.model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (running_statistics or not layer.weight.requires_grad):
                layer.eval()

    def _step(self, epoch: int, batch: Batch) -> None:
        self._set_modes(epoch)
        shared, own = np.random.SeedSequence([self.plan.seed, epoch, self.step]).generate_state(2)
        torch.manual_seed(int(own) + self.worker.rank)  # dropout
        draws_3B = torch.rand(3, batch.total, generator=torch.Generator().manual_seed(int(shared)))
        draws_3N = draws_3B[:, batch.position_N].to(self.worker.device)
        inputs = self.plan.inputs(batch)
        x = AUGMENTATIONS[self.config.augment](inputs.image_NCHW, draws_3N)
        number_NM = inputs.number_NM
        mean_only = epoch <= self.config.mse_warmup_fraction * self.config.epochs
        # Shares of a batch may differ by one galaxy, but every worker needs the same number of parts.
        parts = min(self.config.gradient_accumulation_steps, batch.total // self.worker.world_size)
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        numbers = (None,) * parts if number_NM is None else number_NM.tensor_split(parts)
        for part, (x_part, number_part, y_part) in enumerate(
            zip(x.tensor_split(parts), numbers, batch.target_ND.tensor_split(parts), strict=True), start=1
        ):
            with self._gradients_kept(part < parts):
                with self._autocast():
                    outputs = self.model(x_part) if number_part is None else self.model(x_part, number_part)
                loss_N = self.network.likelihood.loss(outputs, y_part, beta=self.config.beta, mean_only=mean_only)
                # The mean over the batch, once gradients are averaged over workers.
                (loss_N.sum() * self.worker.world_size / batch.total).backward()
                losses.append(loss_N.detach())
        if self.config.max_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.network)
        self.step += 1
        self.unchecked.append((batch.object_id_N, torch.cat(losses)))
        seen = ((epoch - 1) * self.steps_per_epoch + self.step) * batch.total
        self.worker.progress(epoch, seen, self.unchecked[-1][1])
        if len(self.unchecked) == _CHECK_STEPS:
            self._check(epoch)

    def _autocast(self) -> torch.autocast:
        """Return a context in which the network computes in the configured precision."""
        device = self.worker.device.type
        automatic = self.config.precision == "auto" and device == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(device, torch.bfloat16, enabled=automatic or self.config.precision == "bfloat16")

    def _gradients_kept(self, kept: bool) -> contextlib.AbstractContextManager[None]:
        """Return a context that, if ``kept``, accumulates gradients on the worker without averaging them over workers."""
        return self.model.no_sync() if kept and isinstance(self.model, DistributedDataParallel) else contextlib.nullcontext()

    def _check(self, epoch: int) -> None:
        """Check that the losses since the last check are finite on all workers; otherwise all of them raise."""
        if not self.unchecked:
            return
        sums = torch.stack([loss_N.double().sum() for _, loss_N in self.unchecked]).cpu()
        total = self.worker.orders["train"].rows_per_batch
        means = torch.stack(self.worker.gather(sums)).sum(0) / total
        if not means.isfinite().all():
            bad = int((~means.isfinite()).nonzero()[0])
            object_id_N, loss_N = self.unchecked[bad]
            bad_N = ~loss_N.isfinite().cpu().numpy()
            ids = [str(name) for found in self.worker.gather(object_id_N[bad_N]) for name in found]
            named = ", ".join(ids[:_NAMED]) + (f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else "")
            step = self.step - len(self.unchecked) + bad + 1
            raise UserError(
                f"optimizer.learning_rate: {self.config.learning_rate:g} is too high or the data is bad: the loss of epoch "
                f"{epoch}, step {step} is not finite for {len(ids)} of {total} galaxies; lower it, or look at object_id {named}"
            )
        self.losses += means.tolist()
        self.unchecked = []


def check_device(config: OptimizerConfig, device: str) -> None:
    """Refuse a config that the device (``"cpu"`` or ``"cuda"``) does not support.

    Raises
    ------
    UserError
        If batch statistics are to be synchronised on CPUs, which torch does not support.
    """
    if config.sync_batch_norm and device != "cuda":
        raise UserError(
            "optimizer.sync_batch_norm: true, but torch synchronises batch statistics on GPUs only and this training runs on "
            "CPUs; leave it out"
        )


def _crop_metrics(worker: Worker, monitor: CropMonitor) -> dict[str, float]:
    """Return what `fit` reports about the crops; nothing if there were no galaxies."""
    sample = CropSample.joined(worker.gather(monitor.sample))
    if not len(sample.scale_N):
        return {}
    crop = sample.statistics()
    quantiles = {f"crop_scale_{q}": getattr(crop, f"scale_{q}") for q in ("p05", "p50", "p95")}
    return quantiles | {"crop_dead_fraction": crop.dead_fraction or 0.0}


def _prepared(network: nn.Module, config: OptimizerConfig, worker: Worker) -> nn.Module:
    """Return the network, with synchronised batch statistics and compiled if the config says so."""
    check_device(config, worker.device.type)
    if worker.device.type == "cuda" and config.sync_batch_norm is not False and worker.world_size > 1:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return torch.compile(network) if config.compile else network  # type: ignore[return-value]


def make_optimizer(plan: Plan) -> torch.optim.Optimizer:
    """Return the optimiser of the trainable weights, grouped by block."""
    config = plan.optimizer
    factors = {"spatial_transformer": config.crop_factor}
    if plan.numbers_first:
        factors |= dict.fromkeys(("classifier", "head"), config.trained_factor)
    groups = parameter_groups(plan.network, config.learning_rate, plan.learning_rate_decay, factors)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, weight_decay=config.weight_decay, momentum=config.momentum, nesterov=config.nesterov)


def _learning_rate_factor(plan: Plan, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the factor on the peak learning rate at a step: linear warm-up, then cosine to zero or constant."""
    total = plan.optimizer.epochs * steps_per_epoch
    warmup = plan.optimizer.warmup_fraction * total

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if plan.optimizer.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))

    return factor
