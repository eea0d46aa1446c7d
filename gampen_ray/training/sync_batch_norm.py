"""Batch normalisation with the statistics of all workers, also on CPUs, for which torch has none.

Shape legend: N galaxies, C channels, H x W pixels.
"""

import torch
import torch.distributed.nn.functional as distributed
from torch import nn


def synchronise(network: nn.Module) -> nn.Module:
    """Replace the batch normalisation layers of a network in place by synchronised ones of the same weights and statistics."""
    if next(network.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.__class__ = _SyncBatchNorm
    return network


class _SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of all workers' galaxies, which may be unequally many."""

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Return normalised activations."""
        if not self.training:
            return super().forward(x_NCHW)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        axes = (0, 2, 3)
        count = x_NCHW.new_tensor([x_NCHW.numel() // x_NCHW.shape[1]])
        total = distributed.all_reduce(torch.cat([x_NCHW.sum(axes), count]))
        mean_C, n = total[:-1] / total[-1], total[-1].detach()
        deviation_NCHW = x_NCHW - mean_C[:, None, None]
        variance_C = distributed.all_reduce(deviation_NCHW.square().sum(axes)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(variance_C * n / (n - 1), self.momentum)
        scale_C = self.weight * torch.rsqrt(variance_C + self.eps)
        return deviation_NCHW * scale_C[:, None, None] + self.bias[:, None, None]
