"""Receipts of the finished units of a job: what each has written, by size and hash.

A unit is finished once its receipt is there, which is written last. A resumed job verifies the files of all receipts, and
repeats the units whose files were damaged, exchanged or lost meanwhile.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import pydantic

from gampen_ray import documents, storage
from gampen_ray.errors import UserError

__all__ = ["RECEIPTS", "verified_receipts", "write_receipt"]

RECEIPTS = "receipts"
"""Folder of the receipts in the output of a job, until it is complete."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Receipt(Generic[T]):
    __pydantic_config__: ClassVar = documents.STRICT

    unit: str
    files: Annotated[dict[str, str], pydantic.Field(min_length=1)]
    values: T


def write_receipt(output: str, unit: str, uris: Iterable[str], values: Mapping[str, Any]) -> None:
    """Write the receipt of a finished unit.

    Parameters
    ----------
    output
        Folder of the job.
    unit
        Name of the unit.
    uris
        The files that it has written, below the folder.
    values
        Plain values to keep, such as numbers of rows.
    """
    files = {uri.removeprefix(output).strip("/"): _stamp(uri) for uri in uris}
    storage.write_json(storage.join(output, RECEIPTS, f"{unit}.json"), {"unit": unit, "files": files, "values": dict(values)})


def verified_receipts(output: str, kind: type[T]) -> dict[str, T]:
    """Return the values of the receipts whose files are as they were written, by unit; each file is read once.

    ``kind`` is the type of the values, as for `gampen_ray.documents.parsed`.
    """

    def verified(uri: str) -> dict[str, T]:
        try:
            receipt: _Receipt[T] = documents.read(_Receipt[kind], uri, "")
            files = receipt.files.items()
            if uri.endswith(f"/{receipt.unit}.json") and all(_stamp(storage.join(output, file)) == it for file, it in files):
                return {receipt.unit: receipt.values}
        except UserError:
            # A file is gone, or the receipt itself is damaged.
            pass
        logger.warning("%s: the files of this finished unit are damaged or gone, and are made again", uri)
        return {}

    found = storage.read_each(verified, storage.list_files(storage.join(output, RECEIPTS), ".json"))
    return {unit: values for one in found for unit, values in one.items()}


def _stamp(uri: str) -> str:
    content = storage.read_bytes(uri)
    return f"{len(content)} {hashlib.blake2b(content, digest_size=16).hexdigest()}"
