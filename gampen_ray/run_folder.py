"""Ownership of output folders: ``run.json`` identifies the run, and a lock excludes other processes.

``run.json`` holds the verb, its config, the identity of each input's content, the file that marks the run complete, the
versions of the program, and the version of its own schema. The same command resumes a run: from another machine, with its
folders moved, with other resources, or with a later release whose configs have more fields.
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
from typing import Any, ClassVar, Literal

import pydantic
import pydantic_core

from gampen_ray import documents, storage
from gampen_ray.config.base import fields, to_dict, upgraded, without
from gampen_ray.dry_run import DryRun, is_dry
from gampen_ray.errors import UserError
from gampen_ray.lock import LOCK_FILE, Lock, locked
from gampen_ray.provenance import provenance

__all__ = ["RUN_FILE", "Record", "RunFolder", "Status", "files_identity", "first_difference"]

RUN_FILE = "run.json"
SCHEMA_VERSION = 1
"""Version of run.json. A file without one is older, has no verb either, and omits fields that are None."""
Status = Literal["free", "resumable", "complete"]
"""State of an output folder: empty, or holding this run, unfinished or finished."""
Inputs = Mapping[str, str | Mapping[str, str]]
# Fields that do not identify a run: how and where it is executed, and where its output lies.
_FREE_FIELDS = ("output", "resources", "batch_size", "estimate", "estimate_workers", "checkpoint_steps", "mlflow")
# Fields that locate what a run reads.
_READ = ("bundle", "dataset", "images", "catalog", "tiles", "background", "truth", "prior")
_UNCHANGED = "nothing was changed: give a new folder"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class RunFolder:
    """An output folder owned by one run; see `open`."""

    uri: str
    """Absolute path or s3:// URI."""
    is_complete: bool
    """Whether the run had finished before; its folder is then neither locked nor written."""
    is_resumed: bool
    """Whether an unfinished run of the same config was found."""
    _lock: Lock | None = None

    @classmethod
    def check(
        cls,
        output: str,
        verb: str,
        config: Any,
        inputs: Inputs,
        *,
        complete: str,
        ignored: Collection[str] = (),
        work: str = "",
    ) -> Status:
        """Return the state of an output folder; nothing is written.

        Parameters
        ----------
        output
            Folder or s3:// URI.
        verb
            Name of the command.
        config
            Config of the run.
        inputs
            Identity of each input's content, by the (dotted) name of the config field that locates it. The input may move, but
            other content makes another run. An input of several files may have one identity per file, by its name.
        complete
            File in the folder that is written last, such as ``"manifest.json"``.
        ignored
            (Dotted) names of other config fields that may change between two attempts at one run.
        work
            What the run works on, in words, such as ``"2,000 galaxies in 8 files"``.

        Raises
        ------
        UserError
            If the folder holds another run, or other files.
        DryRun
            Within `gampen_ray.dry_run.dry_run`.
        """
        status = cls._status(output, verb, config, inputs, complete, ignored)
        if is_dry():
            raise DryRun(_plan(output, verb, config, status, work))
        return status

    @staticmethod
    def _status(output: str, verb: str, config: Any, inputs: Inputs, complete: str, ignored: Collection[str]) -> Status:
        uri = storage.join(output, RUN_FILE)
        if not storage.exists(uri):
            lock = storage.join(storage.absolute(output), LOCK_FILE)
            if any(file != lock for file in storage.list_files(output)):
                raise UserError(f"output: {output} already holds other files; {_UNCHANGED}")
            return "free"
        _compare(output, _recorded(output), _description(verb, config, inputs, ignored), type(config), ignored)
        return "complete" if storage.exists(storage.join(output, complete)) else "resumable"

    @staticmethod
    def recorded(output: str) -> "Record | None":
        """Return the record of the run that an output folder holds, None if it holds none; a `UserError` if it is damaged."""
        return _recorded(output) if storage.exists(storage.join(output, RUN_FILE)) else None

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        output: str,
        verb: str,
        config: Any,
        inputs: Inputs,
        *,
        complete: str,
        ignored: Collection[str] = (),
        work: str = "",
    ) -> Iterator["RunFolder"]:
        """Claim an output folder for a run, and exclude other processes until the block ends.

        A finished run is only read. Parameters and errors are those of `check`; a folder that another process uses
        is a `UserError` too.
        """

        def status() -> Status:
            return cls.check(output, verb, config, inputs, complete=complete, ignored=ignored, work=work)

        uri = storage.absolute(output)
        if status() == "complete":
            yield cls(uri, is_complete=True, is_resumed=False)
            return
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(locked(output))
            # Another process may have finished the run, or begun another, just before it released the lock.
            found = status()
            if found == "complete":
                stack.close()
            elif found == "free":
                description = _description(verb, config, inputs, ignored)
                record = description | {"complete": complete, "provenance": provenance()}
                storage.write_json(storage.join(uri, RUN_FILE), record)
            yield cls(uri, is_complete=found == "complete", is_resumed=found == "resumable", _lock=lock)

    @property
    def lost(self) -> bool:
        """Whether another process took over the folder, because this one did not renew its lock in time."""
        return self._lock is not None and self._lock.lost

    def check_lock(self) -> None:
        """Raise a `StorageError` if the folder was lost to another process."""
        if self._lock is not None:
            self._lock.check()

    def path(self, *parts: str) -> str:
        """Return the URI of a file or folder below this one."""
        return storage.join(self.uri, *parts)

    def release_claim(self) -> None:
        """Delete ``run.json``, so that the next run may have another config: for a job without usable output."""
        self.check_lock()
        storage.delete(self.path(RUN_FILE))


def files_identity(uris: Iterable[str]) -> str:
    """Return a hash of the names, sizes and modification times (on S3 ETags) of files, without reading their content.

    Names are relative to the folder that holds all files, which may move.
    """
    stamps = sorted(storage.stamps(uris).items())
    folder = posixpath.commonprefix([uri.rpartition("/")[0] + "/" for uri, _ in stamps]).rpartition("/")[0]
    digest = hashlib.blake2b(digest_size=16)
    for uri, stamp in stamps:
        digest.update(os.fsencode(f"{uri.removeprefix(folder)}\0{stamp}\0"))
    return digest.hexdigest()


def first_difference(there: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> str:
    """Return the dotted name of the first field that differs, with both values; empty if none differs."""
    for key in {**there, **wanted}:
        a, b = there.get(key), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if difference := first_difference(a, b, f"{prefix}{key}."):
                return difference
        elif a != b:
            return f"{prefix}{key} ({a!r}, not {b!r})"
    return ""


def _plan(output: str, verb: str, config: Any, status: Status, work: str) -> str:
    """Return what a run would do, in lines."""
    outcome = {
        "free": "would start a new run",
        "resumable": "would resume the unfinished run that is there",
        "complete": "is complete; nothing would be done",
    }
    values = to_dict(config)
    # Of a number, 0 leaves the choice to the program.
    asked = {name: value for name, value in values.get("resources", {}).items() if value not in (None, 0, "", "auto")}
    lines = {
        "run": f"{verb} {outcome[status]}",
        "reads": ", ".join(f"{name} {uri}" for name in _READ if isinstance(uri := values.get(name), str) and uri),
        "work": work,
        "writes": output,
        "asks for": ", ".join(f"{name} {value}" for name, value in asked.items()) or "what this machine or cluster has",
    }
    return "\n".join(f"{name + ':':<10} {text}" for name, text in lines.items() if text)


def _description(verb: str, config: Any, inputs: Inputs, ignored: Collection[str]) -> dict[str, Any]:
    values = pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")
    return {
        "schema_version": SCHEMA_VERSION,
        "verb": verb,
        "config": _identifying(values, (*ignored, *inputs)),
        "inputs": dict(inputs),
    }


@dataclasses.dataclass(frozen=True)
class Record:
    """What is read of run.json: what identifies the run, and for `status` the file that marks it complete and its origin."""

    __pydantic_config__: ClassVar = documents.LENIENT

    config: dict[str, Any]
    inputs: dict[str, str | dict[str, str]]
    schema_version: int = 0
    verb: str = ""
    complete: str = ""
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)


def _recorded(output: str) -> Record:
    where = f"output: {output} holds a {RUN_FILE} of another program, or a damaged one"
    return documents.parsed(Record, storage.read_bytes(storage.join(output, RUN_FILE)), where, _UNCHANGED)


def _compare(output: str, there: Record, wanted: dict[str, Any], cls: type, ignored: Collection[str]) -> None:
    """Raise a `UserError` if the run that a folder holds is not the one wanted."""
    version = there.schema_version
    if version > SCHEMA_VERSION:
        raise UserError(
            f"output: {output} was made by a newer gampen_ray ({RUN_FILE} has schema version {version}, this one reads up to "
            f"{SCHEMA_VERSION}); nothing was changed: upgrade gampen_ray"
        )
    if there.verb not in ("", wanted["verb"]):
        raise UserError(f"output: {output} holds a run of {there.verb!r}, not {wanted['verb']!r}; {_UNCHANGED}")
    unknown: dict[str, Any] = {}
    values = _completed(cls, upgraded(cls, there.config), "", unknown)
    # An earlier release may have stored fields that are free now.
    values = _identifying(values, (*ignored, *wanted["inputs"]))
    if difference := first_difference(values, wanted["config"]):
        raise UserError(f"output: {output} holds a run with another {difference}; {_UNCHANGED}")
    # After the config, on which the identity of an input may depend.
    for name in {**there.inputs, **wanted["inputs"]}:
        a, b = (inputs.get(name) for inputs in (there.inputs, wanted["inputs"]))
        # Earlier runs have no identities of single files.
        if a != b and not (a is None and isinstance(b, dict)):
            if isinstance(a, dict) and isinstance(b, dict):
                name += next(f" {file}" for file in {**a, **b} if a.get(file) != b.get(file))
            raise UserError(f"output: {output} holds a run on another {name}; {_UNCHANGED}")
    if unknown and not version and any("." not in name for name in unknown):
        # Without a verb, an unknown field may belong to another verb.
        raise UserError(f"output: {output} holds a run of another verb or release (with {_listed(unknown)}); {_UNCHANGED}")
    if unknown:
        logger.warning("%s: fields unknown to this release are not compared: %s", output, _listed(unknown))


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def _completed(kind: Any, value: Any, name: str, unknown: dict[str, Any]) -> Any:
    """Return a stored value with defaults for missing fields; fields that its class lacks are added to ``unknown``."""
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


def _identifying(values: dict[str, Any], others: Iterable[str]) -> dict[str, Any]:
    """Return the values of a config that identify a run: all but the free fields and some others, by dotted name."""
    return without(values, {tuple(name.split(".")) for name in (*_FREE_FIELDS, *others)})
