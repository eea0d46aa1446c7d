"""Networks without memory, for sizes and shapes, or whose weights are assigned afterwards."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import init
from torch.overrides import TorchFunctionMode

__all__ = ["without_weights"]

_FILLING = (torch.Tensor.normal_, torch.Tensor.uniform_)


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Make modules on PyTorch's meta device, and fill in no weights, for which it would import a compiler for a second."""
    with torch.device("meta"), _NothingFilled():
        yield


class _NothingFilled(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = kwargs or {}
        if func in _FILLING or getattr(func, "__module__", "") == init.__name__:
            return args[0] if args else given["tensor"]
        return func(*args, **given)
