"""Threads of torch in the arithmetic of posteriors."""

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["one_thread"]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread within a block or a decorated function, for chunks of a few galaxies.

    Beside other processes, several threads wait for one another at each small tensor: minutes instead of seconds. The number
    of threads belongs to the process, so this is not for the workers of `infer`, which predict and summarise at once.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
