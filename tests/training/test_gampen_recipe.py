"""Our optimiser on an imported network against losses that GaMPEN's own training gave."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from gampen_ray.config import OptimizerConfig
from gampen_ray.gampen.weights import network_from_state_dict
from gampen_ray.training.loop import make_optimizer
from gampen_ray.training.worker import Plan
from tests.parity import FOLDER, golden_state, needs_parity, recipe


@needs_parity
@pytest.mark.slow
def test_four_steps_give_the_losses_of_the_original() -> None:
    made, summary = recipe(), json.loads((FOLDER / "forward_summary.json").read_text())
    expected = summary["sgd_nesterov=True_float64"]
    state = golden_state("vgg16_w_stn_oc_drp")
    network, _, _ = network_from_state_dict(state, num_targets=3, cutout_size=64, dropout_rate=0.0)
    network.double()
    raw = torch.from_numpy(made.images(4, 3, 64, seed=5000))
    # As the original computes it. The last float32 digit of a logarithm is another on each machine, and 1e-7 of the input is
    # 1e-8 of the loss: that is the tolerance.
    x = torch.log(raw + torch.sqrt(raw**2 + 1)).double()
    targets = torch.from_numpy(made.v(78, 12).reshape(4, 3))
    config = OptimizerConfig(name="sgd", learning_rate=1e-6, momentum=0.9, weight_decay=1e-4, nesterov=True)
    inputs: Any = None
    optimizer = make_optimizer(Plan(network=network, inputs=inputs, optimizer=config, seed=0))
    losses = []
    for _ in range(4):
        loss = network.likelihood.loss(network(x), targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(expected["losses"], rel=2e-8)
    with torch.no_grad():
        assert network(x).numpy() == pytest.approx(np.array(expected["out_after"]), abs=1e-6)
