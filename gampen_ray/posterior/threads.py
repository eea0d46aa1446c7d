"""Threads of torch in the arithmetic of posteriors."""

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["one_thread"]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread within a block or a decorated function.

    Tensors of posteriors are small: several threads wait for one another, where other processes run for minutes instead of
    seconds.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
