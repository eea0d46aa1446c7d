"""Detect images unlike the training images by a Mahalanobis distance in the space of the network's features.

Lee et al. (2018, NeurIPS 31, "A simple unified framework for detecting out-of-distribution samples"), with one class.
Shape legend: N images, M held-out images, F features, C channels, H x W pixels of a feature map.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from gampen_ray.errors import UserError

__all__ = ["OutOfDistribution", "features"]

_QUANTILE = 0.999
# Minimum variance of standardised features in any direction, for few or identical images.
_FLOOR = 1e-6


def features(activations: torch.Tensor) -> np.ndarray:
    """Return the features of images: asinh of the mean, standard deviation and maximum of each channel's map, N x 3C float64.

    Parameters
    ----------
    activations
        Output of `gampen_ray.model.network.Network.prefix`: N x C x H x W, or N x C if it ends after the convolutions.
    """
    maps = activations.float() if activations.ndim == 4 else activations.float()[..., None, None]
    std_NC, mean_NC = torch.std_mean(maps, dim=(2, 3), correction=0)
    # Without the maximum, an empty sky passes for a faint galaxy.
    moments = torch.cat([mean_NC, std_NC, maps.amax((2, 3))], dim=1)
    return torch.asinh(moments.double()).cpu().numpy()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OutOfDistribution:
    """Distribution of the features of the training images, with the threshold for unusual images.

    Parameters
    ----------
    location_F
        Mean.
    whitening_FF
        Matrix that whitens features after their mean is subtracted.
    threshold
        Distance beyond which an image is unusual.
    """

    location_F: np.ndarray
    whitening_FF: np.ndarray
    threshold: float

    def __post_init__(self) -> None:
        shapes, size = [self.location_F.shape, self.whitening_FF.shape], self.location_F.size
        if shapes != [(size,), (size, size)] or not (
            np.isfinite(self.location_F).all() and np.isfinite(self.whitening_FF).all()
        ):
            raise ValueError(f"features of the training images have mean and whitening of shapes {shapes}, or not finite")

    @classmethod
    def fit(cls, features_NF: np.ndarray, held_out_MF: np.ndarray) -> "OutOfDistribution":
        """Fit mean and shrunk covariance to training images, and the threshold to held-out images.

        The threshold is the 99.9 % quantile of the held-out distances; of fewer than a thousand, nearly the largest.

        Raises
        ------
        ValueError
            If a feature is not finite.
        """
        if not (np.isfinite(features_NF).all() and np.isfinite(held_out_MF).all()):
            raise ValueError("features of the training images are not finite")
        location_F, scale_F = features_NF.mean(axis=0), features_NF.std(axis=0)
        # Features of a channel that is dead in all training images are constant.
        scale_F = np.where(scale_F > 0, scale_F, 1.0)
        covariance_FF = shrunk_covariance((features_NF - location_F) / scale_F) + _FLOOR * np.eye(len(scale_F))
        whitening_FF = np.linalg.inv(np.linalg.cholesky(covariance_FF)) / scale_F
        threshold = np.quantile(_length(held_out_MF - location_F, whitening_FF), _QUANTILE)
        return cls(location_F=location_F, whitening_FF=whitening_FF, threshold=float(threshold))

    def distance(self, features_NF: np.ndarray) -> np.ndarray:
        """Return the Mahalanobis distances of images to the training images, N.

        Raises
        ------
        UserError
            If the images have other features.
        """
        if features_NF.shape[1] != len(self.location_F):
            raise UserError(
                f"bundle: its network has {features_NF.shape[1]} features, but the training images have "
                f"{len(self.location_F)}; copy the bundle again"
            )
        return _length(features_NF - self.location_F, self.whitening_FF)

    def unusual(self, features_NF: np.ndarray) -> np.ndarray:
        """Return whether each image is beyond the threshold or has features that are not finite, N."""
        return ~(self.distance(features_NF) <= self.threshold)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return the arrays for a safetensors file; `threshold` is stored beside them."""
        return {"location": torch.from_numpy(self.location_F), "whitening": torch.from_numpy(self.whitening_FF)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], threshold: float) -> "OutOfDistribution":
        """Rebuild from `to_tensors`' arrays.

        Raises
        ------
        ValueError
            If one is missing or not of numbers, or their shapes do not fit.
        """
        kinds = {name: tensor.dtype for name, tensor in tensors.items()}
        if kinds != {"location": torch.float64, "whitening": torch.float64}:
            raise ValueError(f"it holds {', '.join(kinds) or 'nothing'}, not location and whitening in float64")
        return cls(location_F=tensors["location"].numpy(), whitening_FF=tensors["whitening"].numpy(), threshold=threshold)


def shrunk_covariance(centred_NF: np.ndarray) -> np.ndarray:
    """Return the covariance of centred rows, shrunk towards a multiple of the identity.

    The weight minimises the expected squared error (Ledoit & Wolf 2004, J. Multivar. Anal. 88, 365, Lemmas 3.2 to 3.4 and
    equation 14), which makes the result positive definite even for fewer rows than columns.
    """
    count, size = centred_NF.shape
    covariance_FF = centred_NF.T @ centred_NF / count
    target_FF = np.trace(covariance_FF) / size * np.eye(size)
    spread = ((covariance_FF - target_FF) ** 2).sum()
    # Mean squared distance of the rows' outer products from their mean, over the number of rows.
    error = (((centred_NF**2).sum(axis=1) ** 2).mean() - (covariance_FF**2).sum()) / count
    weight = min(error / spread, 1.0) if spread > 0 else 1.0
    return weight * target_FF + (1 - weight) * covariance_FF


def _length(offset_NF: np.ndarray, whitening_FF: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.linalg.norm(offset_NF @ whitening_FF.T, axis=1)
