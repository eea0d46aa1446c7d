import dataclasses
import math

import pytest
import torch

from gampen_ray.config import NetworkConfig, SpatialTransformerConfig
from gampen_ray.errors import UserError
from gampen_ray.model.images import Condition, ImagePreprocessing
from gampen_ray.model.network import Network
from gampen_ray.model.spatial_transformer import SpatialTransformer, crop_corners, crop_images, crop_scale
from tests.parity import golden, needs_parity

SMALL = ((4, 5), (4, 3))


def transformer(family: str = "scale", size: int = 33, **fields) -> SpatialTransformer:
    torch.manual_seed(0)
    plain = {"convolutions": SMALL, "downsample": 1, "initial_scale": 1.0, "output_size": 0}
    return SpatialTransformer(SpatialTransformerConfig(family=family, **(plain | fields)), 1, size)


@pytest.mark.parametrize("family", ["scale", "scale_shift", "affine"])
def test_untrained_transformer_is_the_identity(family: str) -> None:
    x = torch.randn(2, 1, 33, 33)
    crops, theta = transformer(family)(x)
    torch.testing.assert_close(crops, x, rtol=0, atol=1e-5)
    torch.testing.assert_close(crop_scale(theta), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("family", ["scale", "scale_shift", "affine"])
def test_half_scale_crops_to_the_central_half(family: str) -> None:
    x = torch.randn(2, 1, 33, 33)
    crops, theta = transformer(family, initial_scale=0.5, output_size=17)(x)
    torch.testing.assert_close(crops, x[..., 8:25, 8:25], rtol=0, atol=1e-5)
    torch.testing.assert_close(crop_corners(theta[0].detach(), 33)[[0, 2]], torch.tensor([[8.0, 8.0], [24.0, 24.0]]))


def test_shift_moves_the_crop() -> None:
    module = transformer("scale_shift", initial_scale=0.5, output_size=17)
    module.parameters_head[-1].bias.data[1] = 0.25  # a quarter of 16 pixels to the right
    x = torch.randn(1, 1, 33, 33)
    torch.testing.assert_close(module(x)[0], x[..., 8:25, 12:29], rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", ["linear", "exponential"])
def test_gradient_reaches_the_localisation_network(scale: str) -> None:
    module = transformer(scale=scale, initial_scale=0.7)
    torch.nn.init.normal_(module.parameters_head[-1].weight)
    module(torch.randn(2, 1, 33, 33))[0].square().sum().backward()
    assert module.localisation[0].weight.grad.abs().sum() > 0


def test_image_too_small_for_the_localisation_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"network\.spatial_transformer\.convolutions: .* larger images than 8 pixels"):
        transformer(size=8)


@needs_parity
def test_resampling_is_that_of_gampen_also_for_flips_and_shears() -> None:
    arrays = golden("grid_sample_33.npz")
    crops = crop_images(torch.from_numpy(arrays["img"]).double(), torch.from_numpy(arrays["theta"]))
    assert crops.numpy() == pytest.approx(arrays["out_f64"], abs=1e-12)


def with_radii(log_radius: float, bias: float = 0.0, **fields) -> tuple[SpatialTransformer, torch.Tensor]:
    """An exponential transformer that takes a measured radius, and the scale of its crops of 64 pixels."""
    module = transformer(size=64, scale="exponential", output_size=16, initial_radii=6.0, **fields)
    module.parameters_head[-1].bias.data += bias
    theta = module(torch.randn(2, 1, 64, 64), None, torch.full((2,), log_radius))[1]
    return module, crop_scale(theta)


def test_exponential_scale_is_a_multiple_of_the_measured_radius_between_bounds() -> None:
    for radius in (0.02, 0.04, 0.08):
        # Six radii on either side of the centre.
        torch.testing.assert_close(with_radii(math.log(radius))[1], torch.full((2,), 12 * radius, dtype=torch.float64))
    # What is learned is at most a factor of 1.5, and the exponential of the output where that is small.
    for bias, factor in ((0.02, math.exp(0.02)), (50.0, 1.5)):
        scale = with_radii(math.log(0.02), bias=bias)[1]
        torch.testing.assert_close(scale.float(), torch.full((2,), 0.24 * factor), rtol=1e-3, atol=0)
    for log_radius, bound in ((-50.0, 16 / 128), (50.0, 1.0)):
        torch.testing.assert_close(with_radii(log_radius)[1].float(), torch.full((2,), bound))
    # Without a measured radius it begins at the initial scale.
    module, _ = with_radii(math.log(0.02), bias=-1.0)
    torch.testing.assert_close(crop_scale(module(torch.randn(1, 1, 64, 64))[1]).float(), torch.tensor([1 / math.e]))


def images_with(*conditions: str, pixel_scale_arcsec: float | None = 0.2) -> ImagePreprocessing:
    """Preprocessing of images of 60 pixels, 12 arcsec, with measured numbers."""
    made = tuple(Condition(name=name, low=0.0, high=9.0, mean=1.0) for name in conditions)
    return ImagePreprocessing(
        bands=("r",),
        size=60,
        softening=1.0,
        channels=1,
        pixel_scale_arcsec=pixel_scale_arcsec,
        measure=True,
        conditions=made,
    )


@pytest.mark.parametrize(
    ("images", "config", "psf"),
    [
        (images_with("redshift", "psf_fwhm_arcsec", "psf_r50_arcsec"), {}, 0.6),
        (images_with("redshift", "psf_fwhm_arcsec"), {}, 0.25),
        (images_with("redshift", "psf_fwhm_arcsec", "psf_r50_arcsec"), {"subtract_psf": False}, 0.0),
        (images_with("psf_r50_arcsec", pixel_scale_arcsec=None), {}, 0.0),
        (images_with("redshift"), {}, 0.0),
    ],
    ids=["half-light radius", "FWHM", "kept", "unknown pixels", "no PSF"],
)
@pytest.mark.parametrize("radius", [0.61, 0.9])
def test_a_crop_begins_at_the_radius_without_the_psf(images, config, psf: float, radius: float) -> None:
    values = {"psf_r50_arcsec": 0.6, "psf_fwhm_arcsec": 0.5, "redshift": 3.0, "log_radius": math.log(radius / 12)}
    transformer_config = SpatialTransformerConfig(initial_radii=6.0, output_size=8, **config)
    made = Network.of(dataclasses.replace(NetworkConfig(), spatial_transformer=transformer_config), images, 2).eval()
    numbers = torch.tensor([[values.get(name, 0.0) for name in images.number_names]]).double()
    # Twelve radii in sides of 12 arcsec.
    scale = crop_scale(made.crop(torch.randn(1, 1, 60, 60), numbers)[1])
    own = max(radius**2 - psf**2, (0.2 * psf) ** 2) ** 0.5
    assert scale.item() == pytest.approx(max(min(own, 1.0), 8 / 120), rel=1e-5)


@pytest.mark.parametrize(("log_radius", "sign"), [(5.0, 1), (-8.0, -1)])
def test_a_crop_at_its_bound_can_only_move_back(log_radius: float, sign: int) -> None:
    for direction in (1, -1):
        module, scale = with_radii(log_radius)
        (direction * scale.sum()).backward()
        # A step down this gradient makes the scale smaller where it should be larger.
        assert (module.parameters_head[-1].bias.grad[0] != 0) == (direction == sign)
