"""Mixtures with known parameters for the tests of this folder."""

import numpy as np
import torch

from gampen_ray.model.targets import Target, TargetSchema
from gampen_ray.posterior.mixture import Mixture

torch.set_num_threads(1)

UNITS = {"identity": "mag", "log": "arcsec", "logit": ""}


def schema(*transforms, location=0.3, scale=0.8):
    targets = [
        Target(
            name=f"{transform}_{i}",
            unit=UNITS[transform],
            transform=transform,
            clip_low=0.01,
            clip_high=0.99,
            location=location + 0.1 * i,
            scale=scale + 0.05 * i,
            low=0.0,
            high=1.0,
        )
        for i, transform in enumerate(transforms)
    ]
    return TargetSchema(tuple(targets))


def mixture(*transforms, num_galaxies=20, num_passes=32, spread=0.3, seed=0, location=0.3, scale=0.8):
    """Passes scatter by `spread` about their galaxy's mean, with component sigmas of 0.2 to 0.6 and correlations."""
    rng = np.random.default_rng(seed)
    dims = len(transforms)
    mean = rng.normal(size=(num_galaxies, 1, dims)) + spread * rng.normal(size=(num_galaxies, num_passes, dims))
    tril = np.tril(0.2 * rng.normal(size=(num_galaxies, num_passes, dims, dims)), -1)
    tril[..., range(dims), range(dims)] = rng.uniform(0.2, 0.6, size=(num_galaxies, num_passes, dims))
    return Mixture(torch.from_numpy(mean), torch.from_numpy(tril), schema(*transforms, location=location, scale=scale))


def gaussian(mean_D, covariance_DD, *transforms):
    """One galaxy, K = 1, given in transformed (unstandardised) space."""
    targets = schema(*transforms)
    scale = np.array([t.scale for t in targets])
    mean = (np.asarray(mean_D, dtype=float) - [t.location for t in targets]) / scale
    tril = np.linalg.cholesky(np.asarray(covariance_DD, dtype=float)) / scale[:, None]
    return Mixture(torch.from_numpy(mean[None, None]), torch.from_numpy(tril[None, None]), targets)


def components_1d(transform, means_K, sigmas_K):
    """One galaxy, one target, components given in transformed space."""
    targets = schema(transform)
    target = targets.targets[0]
    mean = (torch.tensor(means_K, dtype=torch.float64) - target.location) / target.scale
    sigma = torch.tensor(sigmas_K, dtype=torch.float64) / target.scale
    return Mixture(mean[None, :, None], sigma[None, :, None, None], targets)
