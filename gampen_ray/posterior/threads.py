"""The threads and processes that the arithmetic of posteriors takes."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch

__all__ = ["Mapped", "one_by_one", "one_thread"]

Item = TypeVar("Item")
Result = TypeVar("Result")


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


class Mapped(Protocol):
    """Something like `one_by_one` that may share the items among processes."""

    def __call__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return a function's results."""
        ...


def one_by_one(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return a function's results."""
    return list(map(function, items))
