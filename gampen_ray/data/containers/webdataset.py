"""WebDataset's tar files: the members of a sample share the part of their name before the first dot."""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config import ReaderConfig
from gampen_ray.data.containers.stacks import INDEX
from gampen_ray.data.cutouts import Cutout, CutoutError, too_large
from gampen_ray.data.reader_process import read_content
from gampen_ray.errors import UserError

__all__ = ["WebDatasetContainer"]

_IMAGE = re.compile(r"(.*\.)?(fits|fit|npy|jpe?g|png)(\.(gz|fz|bz2))?|fits\.fz", re.IGNORECASE)
_MAX_LABEL_BYTES = 1 << 20


class WebDatasetContainer:
    """A ``.tar`` file with an image a sample (FITS or NumPy), and its columns in ``.json`` and ``.cls`` members.

    ``object_id`` is the sample's key where the columns have none.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".tar",)
    package: ClassVar[str] = ""
    pixel_scale_arcsec: float | None = None
    bands: tuple[str, ...] = ()

    def __init__(self, uri: str, config: ReaderConfig) -> None:
        self._uri, self._config, self._file = uri, config, storage.open_input(uri)

    def rows(self) -> pa.Table:
        samples: dict[str, dict[str, Any]] = {}
        archive: Any
        with tarfile.open(fileobj=self._file, mode="r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if not member.isfile() or not stem:
                    continue
                sample = samples.setdefault(f"{folder}/{stem}".lstrip("/"), {})
                if _IMAGE.fullmatch(ending):
                    # By its place the member is found again.
                    sample[INDEX] = member.offset
                elif member.size <= _MAX_LABEL_BYTES and ending.rpartition(".")[2] in ("json", "cls"):
                    sample |= _labels(ending, archive.extractfile(member).read())
        rows = [{"object_id": key.rpartition("/")[2]} | sample for key, sample in samples.items() if INDEX in sample]
        if not rows:
            raise UserError(f"images: {self._uri} holds no sample with an image (.fits or .npy)")
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: _column([row.get(name) for row in rows]) for name in names})

    def read(self, indices: Sequence[int]) -> Iterator[Cutout | CutoutError]:
        for offset in indices:
            try:
                self._file.seek(offset)
                with tarfile.open(fileobj=self._file, mode="r:") as archive:
                    member: Any = archive.next()
                    if member.size > self._config.max_mebibytes << 20:
                        raise too_large("the file", member.size, self._config)
                    content: Any = archive.extractfile(member)
                    yield read_content(content.read(), member.name, self._config)
            except CutoutError as error:
                yield error
            except (tarfile.TarError, EOFError, AttributeError) as error:
                yield CutoutError(f"damaged tar file: {error}")

    def close(self) -> None:
        self._file.close()


def _labels(ending: str, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {ending.removesuffix(".cls").removesuffix(".json") or "label": found} if not isinstance(found, list) else {}
    return {name: value for name, value in found.items() if isinstance(value, str | int | float | bool)}


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        # Numbers in some samples and texts in others.
        return pa.array([None if value is None else str(value) for value in values])
