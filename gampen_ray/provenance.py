"""Where a result comes from: program versions, and the run that owns an output folder."""

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

from gampen_ray import storage
from gampen_ray.config.base import to_dict
from gampen_ray.errors import UserError

RUN_FILE = "run.json"
_PACKAGES = ("gampen_ray", "torch", "ray", "numpy", "pyarrow", "astropy")
# Where a job runs, in what batches, and where its output lies do not make it another run.
_FREE_FIELDS = ("output", "resources", "batch_size", "estimate", "estimate_workers", "checkpoint_steps", "mlflow")


def provenance() -> dict[str, Any]:
    """Return versions, git revision (None outside a checkout) and date (UTC)."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "git_revision": _git_revision(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def content_fingerprint(settings: Mapping[str, Any], *columns: np.ndarray | Sequence[str]) -> str:
    """Return a hash of settings and columns that is the same on every machine.

    Parameters
    ----------
    settings
        Plain values, as JSON knows them.
    *columns
        Numbers or strings, such as the ids.
    """
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    for column in columns:
        values = np.asarray(column)
        if values.dtype.kind in "OUS":
            digest.update("\0".join(str(value) for value in values).encode())
        else:
            little_endian = values.astype(values.dtype.newbyteorder("<"))
            digest.update(little_endian.dtype.str.encode() + little_endian.tobytes())
    return digest.hexdigest()


# Moved to gampen_ray.run_folder; until no caller is left: RUN_FILE, _FREE_FIELDS and from here to first_difference.
def check_output(output: str, config: Any, inputs: Mapping[str, str]) -> bool:
    """Return whether an output folder holds this run already, finished or not; nothing is written.

    Parameters
    ----------
    output
        Folder or s3:// URI.
    config
        Config of the run.
    inputs
        Fingerprint of each input's content, by the name of the config field that says where it lies: the same content may
        lie elsewhere, and other content in the same place makes another run.

    Raises
    ------
    UserError
        If the folder holds another run, or other files.
    """
    uri = storage.join(output, RUN_FILE)
    if not storage.exists(uri):
        if storage.list_files(output):
            raise UserError(f"output: {output} already holds other files; nothing was changed: give a new folder")
        return False
    there, wanted = storage.read_json(uri), _description(config, inputs)
    for name in {**there["inputs"], **wanted["inputs"]}:
        if there["inputs"].get(name) != wanted["inputs"].get(name):
            raise UserError(f"output: {output} holds a run on another {name}; nothing was changed: give a new folder")
    if difference := first_difference(there["config"], wanted["config"]):
        raise UserError(f"output: {output} holds a run with another {difference}; nothing was changed: give a new folder")
    return True


def claim_output(output: str, config: Any, inputs: Mapping[str, str]) -> None:
    """Do as `check_output`, and write ``run.json`` into a folder that is free."""
    if not check_output(output, config, inputs):
        storage.write_json(storage.join(output, RUN_FILE), _description(config, inputs) | {"provenance": provenance()})


def _description(config: Any, inputs: Mapping[str, str]) -> dict[str, Any]:
    fields = {key: value for key, value in to_dict(config).items() if key not in (*_FREE_FIELDS, *inputs)}
    return {"config": fields, "inputs": dict(inputs)}


def first_difference(there: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> str:
    """Return the dotted name of the first field that differs and its values, empty if none does."""
    for key in {**there, **wanted}:
        a, b = there.get(key), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if difference := first_difference(a, b, f"{prefix}{key}."):
                return difference
        elif a != b:
            return f"{prefix}{key} ({a!r}, not {b!r})"
    return ""


def _git_revision() -> str | None:
    """Return the revision of the checkout that this package is run from, None if it is installed, in whatever repository."""
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
