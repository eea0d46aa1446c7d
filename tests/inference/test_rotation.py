import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle
from gampen_ray.inference.rotation import RotationStability, rotation_stability
from gampen_ray.model.network import Network
from gampen_ray.posterior.calibration import Calibration
from tests.networks import SIZE, bundle, galaxies

SIGMA = 0.5


class Reading(nn.Module):
    """A layer whose first output is a function of the image."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        outputs_NP = torch.zeros(len(x_NCHW), 5)
        outputs_NP[:, 0], outputs_NP[:, 2:4] = self.function(x_NCHW), 2 * math.log(SIGMA)
        return outputs_NP


def reads(function) -> Network:
    """A network whose first mean is a function of the image; the other is 0, and both have the standard deviation `SIGMA`."""
    network = bundle().network
    network.transformer, network.stem, network.tail = None, nn.Sequential(Reading(function)), nn.Sequential(nn.Identity())
    return network


def reading(function) -> Bundle:
    """A bundle whose network sees the pixels as they are."""
    model = bundle()
    # asinh(x) = x to float32 for small pixels
    images = dataclasses.replace(model.images, softening=1.0)
    return dataclasses.replace(model, network=reads(function), images=images, calibration=Calibration.constant(np.ones(2)))


def ramp(count: int = 3) -> np.ndarray:
    """Planes of slope 1e-4, 2e-4, ... along x: turned by an angle, they rise along the direction of that angle."""
    x = np.arange(SIZE) - (SIZE - 1) / 2
    slope = 1e-4 * (1 + np.arange(count))[:, None, None, None]
    return (slope * np.broadcast_to(x, (1, 1, SIZE, SIZE))).astype(np.float32)


def test_precision_is_the_one_asked_for() -> None:
    cutouts = galaxies(2)["image"]
    whole, half = (
        rotation_stability(bundle(), cutouts, num_angles=2, num_passes=2, precision=p) for p in ("float32", "bfloat16")
    )
    assert 0 < np.abs(half.mean_NAD - whole.mean_NAD).max() < 0.05


def test_off_centre_pixel_sees_a_plane_turn_as_a_cosine() -> None:
    # The pixel lies at (4.5, 2.5) from the centre of 20 x 20 pixels.
    model = reading(lambda x: 1e3 * x[:, 0, 12, 14])
    found = rotation_stability(model, ramp(), num_angles=12, num_passes=1)
    angle = np.radians(found.angle_A)
    expected = 0.1 * np.array([1, 2, 3])[:, None] * (4.5 * np.cos(angle) + 2.5 * np.sin(angle))
    np.testing.assert_allclose(found.mean_NAD[..., 0], expected, atol=1e-4)
    np.testing.assert_allclose(found.std_NAD, SIGMA, rtol=1e-6)
    np.testing.assert_allclose(found.deviation()[..., 0], expected / SIGMA, atol=1e-3)
    # A cosine's root mean square is its amplitude over the square root of 2.
    amplitude = 0.1 * math.hypot(4.5, 2.5) * np.array([1, 2, 3])
    np.testing.assert_allclose(found.scatter()[:, 0], amplitude / math.sqrt(2) / SIGMA, rtol=1e-3)
    np.testing.assert_allclose(found.scatter()[:, 1], 0, atol=1e-6)
    # Within one standard deviation of the value at angle 0: counted by hand.
    inside = np.abs(expected[:, 1:] - expected[:, :1]) < SIGMA
    assert 0.2 < inside.mean() < 0.8
    np.testing.assert_allclose(found.share_inside(), [inside.mean(), 1])
    # Physical medians belong to the same posteriors.
    flux = model.targets.targets[0].physical(found.mean_NAD[..., 0])
    np.testing.assert_allclose(found.median_NAD[..., 0], flux, rtol=1e-6)


def test_isotropic_network_has_no_scatter_at_quarter_turns() -> None:
    images = galaxies(5)["image"]
    found = rotation_stability(reading(lambda x: x.square().mean((1, 2, 3))), images, num_angles=4, num_passes=1)
    np.testing.assert_allclose(found.scatter(), 0, atol=1e-5)
    assert found.share_inside().tolist() == [1, 1]


def test_round_galaxies_turn_into_themselves() -> None:
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    image = np.exp(-(x**2 + y**2) / 2 / 2.0**2).astype(np.float32)[None, None]
    model = bundle()
    found = rotation_stability(model, image, num_angles=16, num_passes=4)
    assert (found.scatter() < 0.05).all()
    assert (found.share_inside() == 1).all()
    # The same network responds to the rotation of a galaxy that is not round.
    oblong = np.exp(-(x**2 + 9 * y**2) / 2 / 4.0**2).astype(np.float32)[None, None]
    assert (rotation_stability(model, oblong, num_angles=16, num_passes=4).scatter() > found.scatter()).all()


def test_angle_zero_is_the_prediction_of_the_bundle() -> None:
    model, images = bundle(), galaxies(3, seed=4)["image"]
    found = rotation_stability(model, images, num_angles=3, num_passes=4, seed=7, batch_size=2)
    posterior = model.predict(images, num_passes=4, seed=7)
    assert found.angle_A.tolist() == [0, 120, 240]
    np.testing.assert_allclose(found.mean_NAD[:, 0], posterior.standardised_mean(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.median_NAD[:, 0], posterior.quantile(0.5), rtol=1e-5)
    draws = posterior.standardised_sample(100_000, seed=1)
    np.testing.assert_allclose(found.std_NAD[:, 0], draws.std(1), rtol=0.02)
    np.testing.assert_allclose(
        found.interval_N2D.transpose(1, 0, 2), np.quantile(draws, [0.15865, 0.84135], axis=1), atol=0.02 * draws.std()
    )


def test_larger_cutouts_bring_real_sky_into_the_corners() -> None:
    # Beyond the network's input lies a bright border, which a corner pixel sees at 45 degrees and not at 0 and 90.
    images = np.zeros((1, 1, 40, 40), np.float32)
    images[..., :8, :] = images[..., -8:, :] = images[..., :8] = images[..., -8:] = 1e-3
    found = rotation_stability(reading(lambda x: 1e3 * x[:, 0, 0, 0]), images, num_angles=8, num_passes=1)
    np.testing.assert_allclose(found.mean_NAD[0, :, 0], [0, 1, 0, 1, 0, 1, 0, 1], atol=0.02)


def test_scatter_is_in_units_of_the_predicted_uncertainty() -> None:
    mean_NAD = np.array([[[0.0, 1.0], [2.0, 1.0]]])
    std_NAD = np.array([[[0.5, 1.0], [1.5, 3.0]]])
    found = RotationStability(
        angle_A=np.array([0.0, 180.0]),
        median_NAD=mean_NAD,
        mean_NAD=mean_NAD,
        std_NAD=std_NAD,
        interval_N2D=np.array([[[-0.5, 0.0], [0.5, 2.0]]]),
    )
    assert found.deviation().tolist() == [[[-1, 0], [1, 0]]]
    assert found.scatter().tolist() == [[1, 0]]
    assert found.share_inside().tolist() == [0, 1]


def test_images_that_cannot_be_rotated_are_refused() -> None:
    images = galaxies(2)["image"]
    with pytest.raises(UserError, match=r"num_angles: 1 rotates nothing; give at least 2"):
        rotation_stability(bundle(), images, num_angles=1)
    with pytest.raises(UserError, match=r"images: 20 x 18 pixels cannot be turned; crop the cutouts to squares"):
        rotation_stability(bundle(), images[..., 1:-1])
    with pytest.raises(UserError, match=r"images: shape \(20, 20\) does not fit"):
        rotation_stability(bundle(), images[0, 0])
    images[1, 0, 3, 3] = np.nan
    with pytest.raises(UserError, match=r"images: 1 have non-finite pixels, the first is number 1"):
        rotation_stability(bundle(), images)
