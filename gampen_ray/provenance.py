"""Provenance of results: versions, git revision and date; fingerprints of content."""

import datetime
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

_PIECE = 1 << 18
"""Texts of an Arrow column that are in Python at once."""
_PACKAGES = ("gampen_ray", "torch", "ray", "numpy", "pyarrow", "astropy")


def provenance() -> dict[str, Any]:
    """Return versions, git revision (None outside a checkout) and date (UTC)."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "git_revision": _git_revision(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def content_fingerprint(settings: Mapping[str, Any], *columns: np.ndarray | Sequence[str] | pa.Array | pa.ChunkedArray) -> str:
    """Return a hash of settings and columns that is the same on every machine.

    Parameters
    ----------
    settings
        JSON values.
    *columns
        Numbers or strings, such as the ids; Arrow's scalars too. Nulls are NaN, or empty texts.
    """
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    for column in columns:
        arrow: Any = column if isinstance(column, pa.Array | pa.ChunkedArray) else None
        if arrow is not None and not (pa.types.is_integer(arrow.type) or pa.types.is_floating(arrow.type)):
            for start in range(0, len(arrow), _PIECE):
                texts = arrow.slice(start, _PIECE).cast(pa.string()).fill_null("").to_pylist()
                digest.update(("\0" if start else "").encode() + "\0".join(texts).encode())
            continue
        values = np.asarray(column)
        if values.dtype.kind in "OUS":
            digest.update("\0".join(str(value) for value in values).encode())
        else:
            little_endian = values.astype(values.dtype.newbyteorder("<"))
            digest.update(little_endian.dtype.str.encode() + little_endian.tobytes())
    return digest.hexdigest()


def _git_revision() -> str | None:
    """Return the revision of the checkout that holds this package; None if it is installed, even inside another repository."""
    package = Path(__file__).resolve().parent
    if _git(package, "rev-parse", "--show-toplevel") != str(package.parent):
        return None
    try:
        project = tomllib.loads((package.parent / "pyproject.toml").read_text())
    except (OSError, ValueError):
        return None
    if project.get("project", {}).get("name") != "gampen_ray":
        return None
    return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
