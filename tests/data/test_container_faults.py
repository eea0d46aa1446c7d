"""Files of many galaxies that are damaged, incomplete or made to take memory."""

import errno
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gampen_ray.config import ReaderConfig
from gampen_ray.data.containers import open_container
from gampen_ray.data.containers.faults import row_faults
from gampen_ray.data.containers.stacks import StackContainer
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.errors import StorageError, UserError
from tests.data.stacks import COUNT, ONE, RA, SIZE, read_plan, write_hdf5


def test_a_truncated_stack_loses_its_last_rows_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", ONE)
    data = (tmp_path / "s.npy").read_bytes()
    (tmp_path / "s.npy").write_bytes(data[: -ONE[0].nbytes * 3 - 5])
    reasons = read_plan(tmp_path / "s.npy")["reason"]
    assert (reasons == "").sum() == COUNT - 4
    assert reasons[-1] == "row 39 of the file is damaged: the file is truncated"


@pytest.mark.parametrize("format_", [2, 3])
@pytest.mark.parametrize("kind", ["f4", "u2"])
def test_a_lost_chunk_of_zarr_has_no_value(tmp_path: Path, kind: str, format_: Any) -> None:
    zarr = pytest.importorskip("zarr")
    pixels = (1000 + 10 * ONE).astype(kind)
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=format_)
    group.create_array("images", data=pixels, chunks=(4, SIZE, SIZE // 2))
    group.create_array("z", data=RA, chunks=(4,))
    group.create_array("label", data=np.zeros(COUNT, int), chunks=(4,))
    read = read_plan(tmp_path / "a.zarr", nan_policy="quarantine")
    assert (set(read["reason"]), set(read["label"])) == ({""}, {0})
    np.testing.assert_array_equal(read["image"][:, 0], pixels)
    for name in ("images/2.0.1", "z/5") if format_ == 2 else ("images/c/2/0/1", "z/c/5"):
        (tmp_path / "a.zarr" / name).unlink()
    read = read_plan(tmp_path / "a.zarr", nan_policy="quarantine")
    assert np.flatnonzero(read["reason"] != "").tolist() == [8, 9, 10, 11]
    assert read["reason"][8].startswith("72 of 144 pixels are without a value")
    assert np.flatnonzero(np.isnan(read["z"])).tolist() == [20, 21, 22, 23]


@pytest.mark.parametrize("kind", ["f4", "u2"])
def test_what_was_never_written_to_hdf5_has_no_value(tmp_path: Path, kind: str) -> None:
    h5py = pytest.importorskip("h5py")
    pixels = (1000 + 10 * ONE).astype(kind)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        images = file.create_dataset("images", pixels.shape, kind, chunks=(4, SIZE, SIZE // 2))
        images[:21] = pixels[:21]
        images[24:28, :, :6] = pixels[24:28, :, :6]
        file.create_dataset("z", COUNT, "f8")
        file.create_dataset("away", COUNT, "f8", external=[(str(tmp_path / "other"), 0, 8 * COUNT)])
    (tmp_path / "other").write_bytes(RA.tobytes())
    read = read_plan(tmp_path / "a.h5", nan_policy="quarantine")
    # A chunk of which one row was written holds zeros in the others.
    assert np.flatnonzero(read["reason"] == "").tolist() == list(range(21))
    assert read["reason"][21] == "all pixels have the same value 0"
    assert read["reason"][24].startswith("72 of 144 pixels are without a value")
    assert read["reason"][39].startswith("all pixels are without a value")
    np.testing.assert_array_equal(read["image"][:21, 0], pixels[:21])
    assert np.isnan(read["z"]).all()
    assert "away" not in read


class Declared:
    """A header without the values that it declares."""

    def __init__(self, *shape: int, chunks: tuple[int, ...] | None = None) -> None:
        self.shape, self.dtype, self.chunks = shape, np.dtype("f4"), chunks

    def __getitem__(self, key: Any) -> np.ndarray:
        raise AssertionError("read")


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"images": Declared(10**11, SIZE, SIZE)}, r"declares 100,000,000,000 galaxies, more than 100,000,000: it is damaged"),
        ({"images": Declared(2, 5000, 5000)}, r"an image has 95\.4 MiB, more than 64 \(reader\.max_mebibytes\)"),
        ({"images": Declared(10**6, 9, 9, chunks=(10**6, 9, 9))}, r"images has chunks of 0\.3 GiB"),
        ({"images": Declared(10**8, 9, 9), "z": Declared(10**8, 60)}, r"declares columns of 22\.4 GiB"),
    ],
)
def test_no_memory_is_taken_because_a_header_declares_it(arrays: Any, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gampen_ray.data.containers.stacks._MOST_CHUNK_BYTES", 1 << 28)
    with pytest.raises(UserError, match=line):
        StackContainer("a.h5", arrays, ReaderConfig()).rows()


def test_a_run_of_rows_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gampen_ray.data.containers.stacks._RUN_BYTES", 3 * ONE[0].nbytes)
    np.save(tmp_path / "s.npy", ONE)
    assert read_plan(tmp_path / "s.npy")["image"].tobytes() == ONE.tobytes()


def test_a_row_of_parquet_is_bounded_though_few_bytes_stand_for_it(tmp_path: Path) -> None:
    lists = pa.ListArray.from_arrays(np.arange(601, dtype=np.int32) * 600, pa.array(np.zeros(600 * 600, np.float32)))
    image = pa.ListArray.from_arrays(pa.array([0, 600], pa.int32()), lists)
    pq.write_table(pa.table({"object_id": [1], "image": image}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    with open_container(str(tmp_path / "a.parquet"), ReaderConfig(max_mebibytes=1)) as container:
        (found,) = container.read([0])
    assert str(found) == "the image has 1.4 MiB, more than 1 (reader.max_mebibytes)"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.h5").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'a.h5 needs h5py; pip install "gampen_ray\[h5py\]"'):
        read_plan(tmp_path / "a.h5")


def test_a_row_is_read_without_the_rest_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "s.npy", ONE)
    read: list[int] = []
    with open_container(str(tmp_path / "s.npy"), ReaderConfig()) as container:
        file: Any = container._arrays["images"]._file  # type: ignore[attr-defined]

        class Counting:
            seek = staticmethod(file.seek)

            def read(self, size: int) -> bytes:
                read.append(size)
                return file.read(size)

        monkeypatch.setattr(container._arrays["images"], "_file", Counting())  # type: ignore[attr-defined]
        cutouts = list(container.read([20, 21]))
    np.testing.assert_array_equal([cutout.image_CHW[0] for cutout in cutouts], ONE[20:22])  # type: ignore[union-attr]
    assert read == [2 * ONE[0].nbytes]


@pytest.mark.parametrize(
    ("name", "plane"),
    [
        ("image_mask", np.ones((COUNT, 5, 5), bool)),
        ("image_ivar", np.ones((COUNT, 5, 5), np.float32)),
        ("image_ivar", np.ones((COUNT - 1, SIZE, SIZE), np.float32)),
    ],
    ids=["mask-size", "ivar-size", "ivar-count"],
)
def test_a_plane_that_does_not_fit_its_images_is_a_reason(tmp_path: Path, name: str, plane: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", images=ONE, **{name: plane})
    with open_container(str(tmp_path / "a.npz"), ReaderConfig()) as container:
        *_, last = container.read([0, COUNT - 1])
    assert isinstance(last, CutoutError)
    assert re.match(rf"row {COUNT - 1} of the file is damaged: ", str(last))


def test_columns_that_no_table_can_hold_are_left_out(tmp_path: Path) -> None:
    columns = {"pairs": np.zeros(COUNT, [("a", "f4"), ("b", "i4")]), "waves": np.zeros(COUNT, complex)}
    write_hdf5(tmp_path / "a.h5", images=ONE, object_id=np.array([b"\xff%d" % row for row in range(COUNT)]), **columns)
    read = read_plan(tmp_path / "a.h5")
    assert read["object_id"][3] == r"\xff3"
    assert read.keys().isdisjoint(columns)


def test_a_failing_disk_quarantines_no_row() -> None:
    with pytest.raises(StorageError, match=r"a\.h5: Input/output error"), row_faults("a.h5", 3):
        raise OSError(errno.EIO, "Input/output error")
    with pytest.raises(StorageError), row_faults("s3://bucket/a.h5", 3):
        raise OSError("When reading: AWS Error NETWORK_CONNECTION during GetObject operation: no answer")
    with pytest.raises(CutoutError, match="row 3 of the file is damaged: filter returned failure"), row_faults("a.h5", 3):
        raise OSError("filter returned failure")
