"""Number of passes for a posterior: K Gaussians against one draw from each pass, at equal Monte Carlo precision.

Shape legend: N galaxies, K passes, D targets, P network outputs, C channels, H x W pixels.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from parts import DEVICE, blobs, model
from torch import nn

from gampen_ray.config import gampen_vgg16
from gampen_ray.inference.bundle import Bundle
from gampen_ray.inference.predictor import Predictor
from gampen_ray.model.network import Network
from gampen_ray.posterior.mixture import Mixture

_DRAWS, _BOOTSTRAPS, _GALAXIES = 1_000, 200, 2
_LEVELS = np.array([0.15865, 0.84135])


def equal_precision(shares: tuple[float, ...]) -> dict[str, Any]:
    """Measure both methods with the published network for several epistemic shares of the variance.

    The plain loop runs once. Its passes are used for all shares, with the aleatoric variance set to give each share, and for
    the scatter over seeds, by resampling with replacement.
    """
    bundle = model(gampen_vgg16(), 143)
    images_NCHW = blobs(_GALAXIES, 143)
    mean_NKD, plain_seconds = plain_loop(bundle.network.to(DEVICE), bundle.images(torch.from_numpy(images_NCHW)).to(DEVICE))
    result: dict[str, Any] = {
        "plain_passes": _DRAWS,
        "plain_seconds_per_galaxy": plain_seconds / _GALAXIES,
    }
    for share in shares:
        tril_ND = (mean_NKD.var(1, correction=0) * (1 - share) / share).sqrt()
        count, scatters = enough_passes(bundle, mean_NKD, tril_ND)
        seconds = our_seconds(bundle, images_NCHW, count)
        result[f"epistemic share {share}"] = {
            "passes": count,
            **scatters,
            "seconds_per_galaxy": seconds / _GALAXIES,
            "times_shorter": plain_seconds / seconds,
        }
    return result


def plain_loop(network: Network, x_NCHW: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Run the whole network once for each pass with elementwise dropout and draw once; return the means and the time."""
    means, draws = [], []
    for layer in network.tail:
        layer.train(isinstance(layer, nn.Dropout))
    with torch.inference_mode():
        network(x_NCHW)
        began = time.perf_counter()
        for _ in range(_DRAWS):
            mean_ND, tril_NDD = network.likelihood.components(network(x_NCHW))
            draws.append(torch.distributions.MultivariateNormal(mean_ND, scale_tril=tril_NDD).sample().cpu())
            means.append(mean_ND.cpu())
    np.quantile(torch.stack(draws).numpy(), _LEVELS, axis=0)
    seconds = time.perf_counter() - began
    network.eval()
    return torch.stack(means, 1).double(), seconds


def enough_passes(bundle: Bundle, mean_NKD: torch.Tensor, sigma_ND: torch.Tensor) -> tuple[int, dict[str, float]]:
    """Return the number of passes whose mixture's 68 % bounds scatter no more than those of 1,000 draws, and both scatters."""
    rng = np.random.default_rng(0)
    std_ND = (mean_NKD.var(1, correction=0) + sigma_ND**2).sqrt().numpy()

    def scatter(bounds: Callable[[torch.Tensor], np.ndarray], count: int) -> float:
        drawn = [bounds(mean_NKD[:, rng.integers(_DRAWS, size=count)]) for _ in range(_BOOTSTRAPS)]
        return float(np.sqrt(((np.stack(drawn).std(0) / std_ND[:, None]) ** 2).mean()))

    def of_draws(mean_NKD: torch.Tensor) -> np.ndarray:
        draws_NKD = mean_NKD.numpy() + sigma_ND[:, None].numpy() * rng.standard_normal(mean_NKD.shape)
        return np.quantile(draws_NKD, _LEVELS, axis=1).swapaxes(0, 1)

    def of_mixture(mean_NKD: torch.Tensor) -> np.ndarray:
        tril_NKDD = torch.diag_embed(sigma_ND[:, None].expand_as(mean_NKD))
        return Mixture(mean_NKD, tril_NKDD, bundle.targets).standardised_quantile(_LEVELS)

    plain = scatter(of_draws, _DRAWS)
    for count in range(8, _DRAWS, 8):
        if (ours := scatter(of_mixture, count)) <= plain:
            break
    return count, {"plain_scatter_in_posterior_std": plain, "scatter_in_posterior_std": ours}


def our_seconds(bundle: Bundle, images_NCHW: np.ndarray, num_passes: int) -> float:
    """Return the time to posterior summaries."""
    predict = Predictor(bundle, num_passes=num_passes, seed=0, device=DEVICE)
    # Masks are drawn once.
    predict(images_NCHW)
    began = time.perf_counter()
    predict(images_NCHW).mixture.to_table()
    return time.perf_counter() - began
