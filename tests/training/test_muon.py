"""The optimiser Muon, against PyTorch's and singular values."""

import pytest
import torch

from gampen_ray.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(96, 96), (96, 20), (20, 96)])
def test_a_step_has_the_singular_vectors_of_the_gradient_and_equal_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    left, values, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(3, 2, len(values))
    found = left.T @ orthogonal(left * values @ right) @ right.T
    assert (found - torch.diag(found.diagonal())).abs().max() < 1e-4
    assert 0.6 < found.diagonal().min() < found.diagonal().max() < 1.25


def test_no_gradient_gives_no_step() -> None:
    assert (orthogonal(torch.zeros(3, 4)) == 0).all()
    weight = torch.ones(3, 4, requires_grad=True)
    Muon([weight], lr=0.1, weight_decay=0.1).step()
    assert (weight == 1).all()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on")
def test_steps_are_those_of_pytorch_to_its_precision() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.ones(64, 32, requires_grad=True) for _ in range(2))
    first = Muon([ours], lr=0.01, weight_decay=0.1)
    second = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, ns_steps=3, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        gradient = torch.randn(64, 32)
        for weight, optimizer in ((ours, first), (theirs, second)):
            weight.grad = gradient.clone()
            optimizer.step()
    step = (1 - theirs).norm()
    assert (ours - theirs).norm() < 0.02 * step
