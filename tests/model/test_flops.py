import dataclasses

import pytest

from gampen_ray.config import BackboneConfig, NetworkConfig, SpatialTransformerConfig, gampen_vgg16
from gampen_ray.errors import UserError
from gampen_ray.model.flops import inference_flops

NO_CROP = SpatialTransformerConfig(family="none")
SMALL = BackboneConfig(
    plan=(8, "M", 16),
    stem_kernel=5,
    stem_stride=1,
    pool_size=2,
    classifier=(10,),
    dropout_rate=0.1,
    dropout_placement="classifier",
    base=False,
)


def flops(backbone: BackboneConfig, num_passes: int = 1) -> int:
    config = NetworkConfig(likelihood="diagonal", spatial_transformer=NO_CROP, backbone=backbone)
    return inference_flops(config, channels=1, size=12, num_targets=2, num_passes=num_passes)


def test_vgg16_at_143_pixels_is_counted_by_hand() -> None:
    # Multiplications: side^2 of the output, channels out, channels in, side^2 of the kernel.
    transformer = 133**2 * 64 * 3 * 11**2 + 58**2 * 96 * 64 * 9**2 + 96 * 28**2 * 32 + 32
    convolutions = 9 * (
        143**2 * (64 * 3 + 64 * 64)
        + 71**2 * (128 * 64 + 128 * 128)
        + 35**2 * (256 * 128 + 2 * 256 * 256)
        + 17**2 * (512 * 256 + 2 * 512 * 512)
        + 8**2 * 3 * 512 * 512
    )
    classifier = 512 * 7**2 * 4096 + 4096 * 4096 + 4096 * 9
    by_hand = 2 * (transformer + convolutions + classifier)
    got = inference_flops(gampen_vgg16(), channels=3, size=143, num_targets=3, num_passes=1)
    assert got == by_hand
    assert got / 1e9 == pytest.approx(16.2, abs=0.1)


def test_what_precedes_the_first_dropout_is_counted_once() -> None:
    stem, convolution, hidden = 12**2 * 8 * 5**2, 6**2 * 16 * 8 * 9, 16 * 2**2 * 10
    assert flops(SMALL) == 2 * (stem + convolution + hidden + 10 * 4)
    assert flops(SMALL, num_passes=7) == 2 * (stem + convolution + hidden + 7 * 10 * 4)
    early = dataclasses.replace(SMALL, dropout_placement="last_block")
    assert flops(early, num_passes=7) == 2 * (stem + 7 * (convolution + hidden + 10 * 4))


def test_a_residual_block_is_two_convolutions_and_a_projection() -> None:
    block = 6**2 * 16 * (8 * 9 + 16 * 9 + 8)
    assert flops(dataclasses.replace(SMALL, block="residual")) - flops(SMALL) == 2 * (block - 6**2 * 16 * 8 * 9)


def test_an_architecture_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"network\.backbone\.plan: .* pools the image away"):
        flops(dataclasses.replace(SMALL, plan=(8, "M", "M", "M", "M")))
