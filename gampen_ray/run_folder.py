"""An output folder belongs to one run: ``run.json`` says to which, and a lock keeps every other process out.

``run.json`` holds the verb, its config, the identity of each input by content, the versions of the program, and the version
of its own schema. A run may be continued by the same command, from another machine, with its folders moved, with other
resources, or by a later release whose configs have more fields.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import posixpath
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

import pydantic
import pydantic_core

from gampen_ray import storage
from gampen_ray.config.base import fields, upgraded
from gampen_ray.errors import UserError
from gampen_ray.lock import LOCK_FILE, Lock, locked
from gampen_ray.provenance import provenance

__all__ = ["RUN_FILE", "RunFolder", "Status", "files_identity", "first_difference"]

RUN_FILE = "run.json"
SCHEMA_VERSION = 1
"""Of run.json. Files without one are older, have no verb either, and leave out fields that are None."""
Status = Literal["free", "resumable", "complete"]
"""Of an output folder: holds nothing yet, or this run, unfinished or finished."""
# Where a job runs, in what batches, and where its output lies do not make it another run.
_FREE_FIELDS = ("output", "resources", "batch_size", "estimate", "estimate_workers", "checkpoint_steps", "mlflow")
_UNCHANGED = "nothing was changed: give a new folder"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class RunFolder:
    """An output folder that belongs to one run; see `open`."""

    uri: str
    """Absolute path or s3:// URI."""
    is_complete: bool
    """Whether the run was finished before; its folder is then neither locked nor written."""
    is_resumed: bool
    """Whether an unfinished run of the same config was found."""
    _lock: Lock | None = None

    @classmethod
    def check(
        cls,
        output: str,
        verb: str,
        config: Any,
        inputs: Mapping[str, str],
        *,
        complete: str,
        ignored: Collection[str] = (),
    ) -> Status:
        """Return what an output folder holds; nothing is written.

        Parameters
        ----------
        output
            Folder or s3:// URI.
        verb
            Name of the command.
        config
            Config of the run.
        inputs
            Identity of each input's content, by the (dotted) name of the config field that says where it lies: the same content
            may lie elsewhere, and other content in the same place makes another run.
        complete
            File below the folder that is written last, such as ``"manifest.json"``.
        ignored
            Further (dotted) names of config fields that may change between two attempts at one run.

        Raises
        ------
        UserError
            If the folder holds another run, or other files.
        """
        uri = storage.join(output, RUN_FILE)
        if not storage.exists(uri):
            lock = storage.join(storage.absolute(output), LOCK_FILE)
            if any(file != lock for file in storage.list_files(output)):
                raise UserError(f"output: {output} already holds other files; {_UNCHANGED}")
            return "free"
        _compare(output, storage.read_json(uri), _description(verb, config, inputs, ignored), type(config), ignored)
        return "complete" if storage.exists(storage.join(output, complete)) else "resumable"

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        output: str,
        verb: str,
        config: Any,
        inputs: Mapping[str, str],
        *,
        complete: str,
        ignored: Collection[str] = (),
    ) -> Iterator["RunFolder"]:
        """Claim an output folder for a run and keep other processes out until the block ends.

        A folder that holds the finished run is only read. Parameters and errors are those of `check`; a folder on which another
        process works is a `UserError` too.
        """

        def status() -> Status:
            return cls.check(output, verb, config, inputs, complete=complete, ignored=ignored)

        uri = storage.absolute(output)
        if status() == "complete":
            yield cls(uri, is_complete=True, is_resumed=False)
            return
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(locked(output))
            # Another process may have finished the run, or begun another, just before it left the lock.
            found = status()
            if found == "complete":
                stack.close()
            elif found == "free":
                description = _description(verb, config, inputs, ignored)
                storage.write_json(storage.join(uri, RUN_FILE), description | {"provenance": provenance()})
            yield cls(uri, is_complete=found == "complete", is_resumed=found == "resumable", _lock=lock)

    @property
    def lost(self) -> bool:
        """Whether another process took the folder over, because this one did not renew its lock in time."""
        return self._lock is not None and self._lock.lost

    def check_lock(self) -> None:
        """Raise a `StorageError` if the folder was lost to another process."""
        if self._lock is not None:
            self._lock.check()

    def path(self, *parts: str) -> str:
        """Return the URI of a file or folder below this one."""
        return storage.join(self.uri, *parts)

    def release_claim(self) -> None:
        """Forget the run, so that the next may have another config: for a job that ends with nothing usable."""
        self.check_lock()
        storage.delete(self.path(RUN_FILE))


def files_identity(uris: Iterable[str]) -> str:
    """Return a hash of the names, sizes and times of change (on S3 ETags) of files, which no file's content is read for.

    Names count from the folder that holds all files: moving the folder changes nothing.
    """
    stamps = sorted(storage.stamps(uris).items())
    folder = posixpath.commonprefix([uri.rpartition("/")[0] + "/" for uri, _ in stamps]).rpartition("/")[0]
    digest = hashlib.blake2b(digest_size=16)
    for uri, stamp in stamps:
        digest.update(os.fsencode(f"{uri.removeprefix(folder)}\0{stamp}\0"))
    return digest.hexdigest()


def first_difference(there: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> str:
    """Return the dotted name of the first field that differs and its values, empty if none does."""
    for key in {**there, **wanted}:
        a, b = there.get(key), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if difference := first_difference(a, b, f"{prefix}{key}."):
                return difference
        elif a != b:
            return f"{prefix}{key} ({a!r}, not {b!r})"
    return ""


def _description(verb: str, config: Any, inputs: Mapping[str, str], ignored: Collection[str]) -> dict[str, Any]:
    values = pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")
    return {
        "schema_version": SCHEMA_VERSION,
        "verb": verb,
        "config": _without(values, (*_FREE_FIELDS, *ignored, *inputs)),
        "inputs": dict(inputs),
    }


def _compare(output: str, there: Any, wanted: dict[str, Any], cls: type, ignored: Collection[str]) -> None:
    """Raise a `UserError` if the run that a folder holds is not the one wanted."""
    if not isinstance(there, dict) or not {"config", "inputs"} <= there.keys():
        raise UserError(f"output: {output} holds a {RUN_FILE} of another program; {_UNCHANGED}")
    version = there.get("schema_version", 0)
    if version > SCHEMA_VERSION:
        raise UserError(
            f"output: {output} was made by a newer gampen_ray ({RUN_FILE} has schema version {version}, this one reads up to "
            f"{SCHEMA_VERSION}); nothing was changed: upgrade gampen_ray"
        )
    if (verb := there.get("verb", wanted["verb"])) != wanted["verb"]:
        raise UserError(f"output: {output} holds a run of {verb!r}, not {wanted['verb']!r}; {_UNCHANGED}")
    unknown: dict[str, Any] = {}
    values = _completed(cls, upgraded(cls, there["config"]), "", unknown)
    # The free fields of an earlier release may be other ones.
    values = _without(values, (*_FREE_FIELDS, *ignored, *wanted["inputs"]))
    if difference := first_difference(values, wanted["config"]):
        raise UserError(f"output: {output} holds a run with another {difference}; {_UNCHANGED}")
    # The identity of an input may depend on the config, which says more.
    for name in {**there["inputs"], **wanted["inputs"]}:
        if there["inputs"].get(name) != wanted["inputs"].get(name):
            raise UserError(f"output: {output} holds a run on another {name}; {_UNCHANGED}")
    if unknown and not version and any("." not in name for name in unknown):
        # Without a verb, a field of no known name may well be that of another verb.
        raise UserError(f"output: {output} holds a run of another verb or release (with {_listed(unknown)}); {_UNCHANGED}")
    if unknown:
        logger.warning("%s: fields that this release does not know are not compared: %s", output, _listed(unknown))


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def _completed(kind: Any, value: Any, name: str, unknown: dict[str, Any]) -> Any:
    """Return a stored value with the defaults of the fields that it lacks; those that its class lacks go to ``unknown``."""
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kind = next((argument for argument in arguments if dataclasses.is_dataclass(argument)), kind)
    if isinstance(value, dict) and dataclasses.is_dataclass(kind) and isinstance(kind, type):
        known = fields(kind)
        unknown |= {name + key: inner for key, inner in value.items() if key not in known}
        return {
            key: _completed(field.annotation, value[key], f"{name}{key}.", unknown) if key in value else _default(field)
            for key, field in known.items()
            if key in value or not field.is_required()
        }
    if isinstance(value, dict) and typing.get_origin(kind) is dict:
        return {key: _completed(arguments[1], inner, f"{name}{key}.", unknown) for key, inner in value.items()}
    if isinstance(value, list) and arguments and typing.get_origin(kind) in (list, tuple):
        return [_completed(arguments[0], inner, f"{name}{i}.", unknown) for i, inner in enumerate(value)]
    return value


def _default(field: Any) -> Any:
    return pydantic_core.to_jsonable_python(field.get_default(call_default_factory=True))


def _without(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return nested values without the fields of some dotted names."""
    kept = {key: value for key, value in values.items() if key not in names}
    for key, value in kept.items():
        below = [name.removeprefix(f"{key}.") for name in names if name.startswith(f"{key}.")]
        if below and isinstance(value, dict):
            kept[key] = _without(value, below)
    return kept
