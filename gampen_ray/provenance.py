"""Where a result comes from: program versions, and the config that owns an output folder."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from gampen_ray import storage
from gampen_ray.config import load_toml, to_dict, to_toml
from gampen_ray.errors import UserError

CONFIG_FILE = "config.toml"
_PACKAGES = ("gampen_ray", "torch", "ray", "numpy", "pyarrow", "astropy")


def provenance() -> dict[str, Any]:
    """Return versions, git revision (None outside a checkout) and date (UTC)."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "git_revision": _git_revision(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def claim_output(output: str, config: Any) -> None:
    """Write ``config.toml`` into an output folder, or see that it is there from an unfinished run of the same config.

    Where the job runs (``resources``) may differ.

    Raises
    ------
    UserError
        If the folder holds a run of another config, or other files; nothing is changed.
    """
    uri = storage.join(output, CONFIG_FILE)
    if not storage.exists(uri):
        if storage.list_files(output):
            raise UserError(f"output: {output} already holds other files; nothing was changed: give a new folder")
        storage.write_bytes_atomic(uri, to_toml(config).encode())
        return
    before, now = load_toml(storage.read_bytes(uri).decode(), uri), to_dict(config)
    if field := _first_difference(before, now, skipped="resources"):
        raise UserError(f"output: {output} holds a run with another {field}; nothing was changed: give a new folder")


def _first_difference(before: dict[str, Any], now: dict[str, Any], *, prefix: str = "", skipped: str = "") -> str:
    """Return the dotted name of the first field that differs, empty if none does."""
    for key in {**before, **now}:
        if key == skipped or before.get(key) == now.get(key):
            continue
        name = prefix + key
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            return _first_difference(a, b, prefix=f"{name}.")
        return f"{name} ({a!r}, not {b!r})"
    return ""


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
