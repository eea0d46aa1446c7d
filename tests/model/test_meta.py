"""Networks without memory."""

import subprocess
import sys

import torch

from gampen_ray.model.meta import without_weights
from gampen_ray.model.network import Network
from tests.networks import NETWORK, SIZE


def test_a_network_without_weights_has_the_shapes_of_one_with_weights() -> None:
    with without_weights():
        empty = Network(NETWORK, channels=1, size=SIZE, num_targets=2)
    full = Network(NETWORK, channels=1, size=SIZE, num_targets=2)
    shapes = {name: (value.shape, value.dtype) for name, value in full.state_dict().items()}
    assert {name: (value.shape, value.dtype) for name, value in empty.state_dict().items()} == shapes
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(full.state_dict(), assign=True)
    image_NCHW = torch.randn(2, 1, SIZE, SIZE)
    torch.testing.assert_close(empty.eval()(image_NCHW), full.eval()(image_NCHW))


def test_a_bundle_is_loaded_without_pytorchs_compiler() -> None:
    code = (
        "import sys; from gampen_ray import load_bundle; load_bundle('builtin:kids-r'); print('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
