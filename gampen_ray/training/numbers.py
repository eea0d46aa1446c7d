"""The first part of the training of a network that is given numbers: on the numbers alone, which are measured once.

An epoch on numbers in memory costs a hundredth of one on images, and a million galaxies fit.
Shape legend: N galaxies of this worker, D targets, M numbers.
"""

import copy
import functools
import math
import time
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from gampen_ray.config import OptimizerConfig
from gampen_ray.errors import UserError
from gampen_ray.model.network import Network
from gampen_ray.training.batches import Batch
from gampen_ray.training.muon import Muon
from gampen_ray.training.worker import Plan, Worker

__all__ = ["fit_numbers"]

_BATCH, _STEPS = (512, 2048), (16, 48)
"""Galaxies per step over all workers, enough to keep a core busy with layers as small as these, and least steps an epoch: of
few galaxies, and before a step takes more than the first number of them."""
_NOISE = 0.5
"""Noise that is added to numbers in training, in units of their own, at the highest learning rate; less at lower ones."""
_WHITENED = 50_000
"""Galaxies from which the whitening of the numbers, and the linear part of the means, is learned."""
_WARMUP = 0.05
_SKIPPED = 0.01
"""Largest share of an epoch's steps that may be left out."""
_UNDONE = 3
"""Epochs that may be undone, as more steps were."""
_FAR = 20.0
"""Loss of a galaxy, nats, beyond which its logarithm counts: a truth many sigma away moves the widths no more than one here."""


def fit_numbers(worker: "Worker", plan: "Plan", train: Iterator[Batch], stream: Iterator[Iterator[Batch]]) -> dict[str, float]:
    """Train ``plan.network`` on numbers alone, in place, to its weights of least validation loss; the same on all workers.

    Galaxies whose numbers are not finite are left out. The result depends on the number of workers.

    Parameters
    ----------
    worker
        This worker's view of the world.
    plan
        The training; its network takes numbers.
    train, stream
        This worker's training galaxies, and an iterator of which the next element are those for validation.

    Returns
    -------
    dict
        train_loss, val_loss, learning_rate (of the last step), galaxies_per_s (of the measurement) and data_wait_fraction.

    Raises
    ------
    UserError
        If losses are not finite in one epoch after another.
    """
    network, config = plan.network.to(worker.device), plan.optimizer
    began = time.perf_counter()
    number_NM, target_ND, waited = _measured(worker, plan, train)
    seconds = time.perf_counter() - began
    held_out = _measured(worker, plan, next(stream))[:2]
    _learn_scales(worker, network, number_NM, target_ND)
    total = sum(worker.gather(len(number_NM)))
    size = max(1, min(total // _STEPS[0], max(_BATCH[0], total // _STEPS[1]), _BATCH[1]) // worker.world_size)
    steps = min(worker.gather(max(1, len(number_NM) // size)))
    schedules = _schedules(worker, network, config, config.numbers_epochs * steps)
    best_loss, best, train_loss, undone = math.inf, copy.deepcopy(network.state_dict()), math.inf, 0
    for epoch in range(config.numbers_epochs):
        loss_S = _epoch(worker, plan, schedules, epoch, (number_NM, target_ND), (steps, size))
        finite_S = loss_S.isfinite()
        if 1 - _mean(worker, finite_S) > _SKIPPED:
            undone += 1
            if undone > min(_UNDONE, config.numbers_epochs - 1):
                raise UserError(
                    f"optimizer.numbers_learning_rate: {config.numbers_learning_rate:g} is too high or the data is bad: the "
                    f"loss of epoch {epoch + 1} on the numbers is not finite; lower it, or look for extreme targets and "
                    "conditions"
                )
            worker.phase(f"epoch {epoch + 1} on the numbers diverged; going on from the best weights")
            # With the lower learning rate of the next epoch.
            network.load_state_dict(best)
            for schedule in schedules:
                schedule.optimizer.state.clear()
            continue
        train_loss = _mean(worker, loss_S[finite_S])
        val_loss = _mean(worker, _losses(network, *held_out))
        if val_loss < best_loss:
            best_loss, best = val_loss, copy.deepcopy(network.state_dict())
    network.load_state_dict(best)
    return {
        "train_loss": train_loss,
        "learning_rate": float(schedules[0].get_last_lr()[0]),
        "galaxies_per_s": total / seconds,
        "data_wait_fraction": waited / seconds,
        "val_loss": best_loss,
    }


def _learn_scales(worker: Worker, network: Network, number_NM: torch.Tensor, target_ND: torch.Tensor) -> None:
    """Learn the whitening of the numbers and the linear part of the means from galaxies of all workers, in place."""
    merge = network.merge
    assert merge is not None
    share = math.ceil(_WHITENED / worker.world_size)
    shares = worker.gather((number_NM[:share].cpu(), target_ND[:share].cpu()))
    first_NM, first_ND = (torch.cat(parts).to(worker.device) for parts in zip(*shares, strict=True))
    merge.fit(first_NM)
    learned = list(merge.buffers())
    if network.base:
        network.base.fit(merge.standard(first_NM), first_ND)
        learned += [weight.detach() for weight in network.base.parameters()]
    # Sums of floating-point numbers may differ between machines.
    worker.broadcast(learned)


def _schedules(
    worker: Worker, network: Network, config: OptimizerConfig, steps: int
) -> list[torch.optim.lr_scheduler.OneCycleLR]:
    """Return the schedules of Muon, for the matrices of the layers that take the numbers, and of AdamW, for all else.

    Posteriors of bright galaxies are as narrow as the optimiser is precise. Muon steps equally far in all directions: errors
    are 0.75 to 0.85 times AdamW's, in half the time.
    """
    layers = [layer for part in network.number_layers for layer in part.modules() if isinstance(layer, nn.Linear)]
    inner = [layer.weight for layer in layers if layer.weight.requires_grad]
    known = {id(weight) for weight in inner}
    outer = [parameter for parameter in network.parameters() if parameter.requires_grad and id(parameter) not in known]
    rate, decay = config.numbers_learning_rate, config.weight_decay
    return [
        torch.optim.lr_scheduler.OneCycleLR(
            kind(weights, lr=rate, weight_decay=decay), rate, steps + 1, pct_start=_WARMUP, cycle_momentum=False
        )
        for kind, weights in ((functools.partial(Muon, worker=worker), inner), (torch.optim.AdamW, outer))
        if weights
    ]


def _epoch(
    worker: Worker,
    plan: Plan,
    schedules: Sequence[torch.optim.lr_scheduler.OneCycleLR],
    epoch: int,
    data: tuple[torch.Tensor, torch.Tensor],
    shape: tuple[int, int],
) -> torch.Tensor:
    """Train on numbers and targets in so many steps of so many of this worker's galaxies, and return the loss of each step."""
    (number_NM, target_ND), (steps, size) = data, shape
    optimizers = [schedule.optimizer for schedule in schedules]
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + epoch * 1009 + worker.rank)
    order_N = torch.randperm(len(number_NM), generator=generator)
    torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))  # dropout and noise
    plan.network.train()
    losses = []
    for step in range(steps):
        rows = order_N[step * size : (step + 1) * size].to(worker.device)
        noise = _NOISE * float(schedules[0].get_last_lr()[0]) / plan.optimizer.numbers_learning_rate
        losses.append(_step(worker, plan, optimizers, (number_NM[rows], target_ND[rows]), noise))
        for schedule in schedules:
            schedule.step()
        worker.progress(0, (epoch * steps + step + 1) * size * worker.world_size, losses[-1])
    return torch.stack(losses)


def _step(
    worker: Worker,
    plan: Plan,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: tuple[torch.Tensor, torch.Tensor],
    noise: float,
) -> torch.Tensor:
    """Take a step on this worker's part of a batch and return its mean loss; none if a gradient is not finite.

    The loss of one galaxy in millions may overflow. Without noise on the numbers, the layers learn the faint galaxies by heart;
    with noise to the end, they are biased for them, as predictions are made without.
    """
    network, config = plan.network, plan.optimizer
    number_NM, target_ND = batch
    noise_NM = noise * plan.number_noise(number_NM) * torch.randn_like(number_NM)
    loss_N = network.likelihood.loss(network.from_numbers(number_NM, noise_NM), target_ND, beta=config.beta)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    torch.where(loss_N > _FAR, _FAR * (1 + (loss_N.clamp(min=_FAR) / _FAR).log()), loss_N).mean().backward()
    trained = [parameter for parameter in network.parameters() if parameter.grad is not None]
    worker.average(parameter.grad for parameter in trained if parameter.grad is not None)
    norm = nn.utils.clip_grad_norm_(trained, config.max_grad_norm or math.inf)
    for optimizer in optimizers:
        if not norm.isfinite():
            optimizer.zero_grad(set_to_none=True)
        optimizer.step()
    return loss_N.detach().mean()


@torch.inference_mode()
def _measured(worker: Worker, plan: Plan, batches: Iterable[Batch]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the numbers and standardised targets of galaxies, and the seconds of waiting for them."""
    numbers, targets, waited, seen = [], [], 0.0, 0
    asked = time.perf_counter()
    for batch in batches:
        waited += time.perf_counter() - asked
        numbers.append(plan.numbers(batch))
        targets.append(batch.target_ND)
        seen += len(batch.target_ND)
        worker.progress(0, seen * worker.world_size)
        asked = time.perf_counter()
    number_NM = torch.cat(numbers)
    usable_N = number_NM.isfinite().all(1)
    return number_NM[usable_N], torch.cat(targets)[usable_N], waited


@torch.inference_mode()
def _losses(network: Network, number_NM: torch.Tensor, target_ND: torch.Tensor) -> torch.Tensor:
    network.eval()
    return network.likelihood.loss(network.from_numbers(number_NM), target_ND)


def _mean(worker: "Worker", value_N: torch.Tensor) -> float:
    sums = worker.gather((float(value_N.double().sum()), len(value_N)))
    return sum(total for total, _ in sums) / sum(count for _, count in sums)
