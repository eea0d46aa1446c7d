"""Mutated files of GaMPEN's weights, imported as `import-gampen` does."""

import functools
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gampen_ray.gampen.weights import network_from_state_dict, read_state_dict
from tests.fuzz.bundles import other_tensor
from tests.fuzz.mutations import damaged
from tests.gampen.test_weights import empty_state, saved


def files(rng: np.random.Generator, number: int, folder: Path) -> tuple[str, Callable[[], Any]]:
    """Mutate the bytes of a file, the parts of its archive, or its tensors."""
    name = ("tensors", "bytes", "archive", "legacy", "objects")[number % 5]
    if name == "tensors":
        state = dict(_state())
        for _ in range(rng.integers(1, 3)):
            key = str(rng.choice(list(state)))
            _change(state, key, rng)
        content = saved(state)
    elif name == "objects":
        content = saved(_object(rng))
    elif name == "archive":
        content = _other_archive(_file(False), rng)
    else:
        content = _file(name == "legacy")
        for _ in range(rng.integers(1, 4)):
            content = damaged(content, rng)

    def read() -> None:
        state = read_state_dict(content, "m.pt")
        network, _, channels = network_from_state_dict(state, num_targets=3, cutout_size=64, dropout_rate=1e-3)
        with torch.device("meta"):
            network.to("meta")(torch.zeros(2, channels, 64, 64))

    return name, read


@functools.cache
def _state() -> dict[str, torch.Tensor]:
    return empty_state()


@functools.cache
def _file(legacy: bool) -> bytes:
    sink = io.BytesIO()
    torch.save(_state(), sink, _use_new_zipfile_serialization=not legacy)
    return sink.getvalue()


def _change(state: dict[str, torch.Tensor], key: str, rng: np.random.Generator) -> None:
    tensor = state[key]
    kind = str(rng.choice(["other", "complex", "sparse", "huge", "quantized", "strided", "nan"]))
    scalar = torch.zeros(())
    if kind == "huge":
        axis = int(rng.integers(max(tensor.ndim, 1)))
        shape = list(tensor.shape) or [1]
        shape[axis] = int(rng.choice([10**6, 10**9, 10**12]))
        state[key] = scalar.expand(shape)
    elif kind == "complex":
        state[key] = scalar.to(torch.complex64).expand(tensor.shape)
    elif kind == "nan":
        state[key] = torch.tensor(float("nan")).expand(tensor.shape)
    elif kind == "strided":
        state[key] = scalar.double().expand(tensor.shape)
    elif tensor.numel() > 10**5 or not tensor.ndim:
        state.pop(key)
    elif kind == "sparse":
        state[key] = tensor.clone().to_sparse()
    elif kind == "quantized":
        state[key] = tensor.half()
    else:
        other_tensor(state, key, rng)


def _object(rng: np.random.Generator) -> Any:
    among: list[Any] = [{}, [], 1, None, {1: torch.zeros(2)}, {"a": None}, {"": torch.zeros(2)}, {"vgg.": torch.zeros(())}]
    among += [
        {"state_dict": dict(_state())},
        [torch.zeros(3)],
        {"module.": torch.zeros(1)},
        torch.nn.Linear(2, 2),
        torch.zeros(3),
    ]
    among += [{(1, 2): torch.zeros(1)}, {"classifier.6.bias": torch.zeros(())}, {b"\xff": torch.zeros(1)}, np.zeros(3)]
    return among[int(rng.integers(len(among)))]


def _other_archive(content: bytes, rng: np.random.Generator) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(sink, "w") as other:
        names = archive.namelist()
        chosen = str(rng.choice([*names[:4], *(name for name in names if name.endswith(("data.pkl", "version")))]))
        for name in names:
            data = archive.read(name)
            if name == chosen:
                if (kind := rng.random()) < 0.1:
                    continue
                if kind < 0.2:
                    # A bomb.
                    other.writestr(name, bytes(int(rng.choice([10**7, 2 * 10**8]))), zipfile.ZIP_DEFLATED)
                    continue
                data = damaged(data, rng)
            other.writestr(name, data)
    return sink.getvalue()
