"""Files that crash, hang or swell the process that reads them, each made here, cost themselves alone."""

import gzip
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from gampen_ray.config import ReaderConfig
from gampen_ray.data import catalog_formats, catalogs, reader_process
from gampen_ray.data.cutouts import Cutout, CutoutError
from gampen_ray.data.reader_process import File, list_hdus, map_header, read_content, read_file, read_files
from gampen_ray.data.readers import read_cutout
from gampen_ray.errors import UserError
from tests.fuzz.poison_files import PIXELS, POISON, compressed, file, image, with_card
from tests.processes import assert_none_left

_PLUGIN = """
import os, signal
from gampen_ray.data.readers import READERS

@READERS.register("wild")
class WildReader:
    def reads(self, name, head):
        return head.startswith(b"wild")

    def read(self, data, config):
        if data == b"wild crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if data == b"wild exit":
            os._exit(3)
        while data == b"wild loop":
            pass
        return bytearray(1 << 31)
"""


def test_a_file_reads_as_in_this_process() -> None:
    for data in (image(MAGZERO=25.5), compressed("RICE_1"), gzip.compress(image())):
        apart, here = read_file(data, "a.fits", ReaderConfig()), read_cutout(data, "a.fits", ReaderConfig())
        np.testing.assert_array_equal(apart.image_CHW, here.image_CHW)
        assert apart.image_CHW.flags.writeable
        assert repr(apart.header) == repr(here.header)
        facts = ("ra", "dec", "zero_point_mag", "pixel_scale_arcsec", "band", "numbers")
        assert str([getattr(apart, name) for name in facts]) == str([getattr(here, name) for name in facts])


def test_a_batch_keeps_its_order() -> None:
    planes = [np.full((8 + number, 8), number, np.float32) for number in range(9)]
    for number, plane in enumerate(planes):
        plane[0, 0] = number + 1
    files = [File(file(fits.PrimaryHDU(plane)), "a.fits", ReaderConfig()) for plane in planes]
    files[4:4] = [File(CutoutError("absent"), "b", ReaderConfig()), File(b"no image", "c", ReaderConfig())]
    found = read_files(files)
    reasons = [str(one) for one in found if isinstance(one, CutoutError)]
    assert reasons[0] == "absent"
    assert reasons[1].startswith("not a file of a known format")
    images = [one for one in found if isinstance(one, Cutout)]
    for plane, cutout in zip(planes, images, strict=True):
        np.testing.assert_array_equal(cutout.image_CHW[0], plane)
        assert not cutout.header


@pytest.mark.parametrize(("make", "reason"), POISON.values(), ids=POISON)
def test_a_file_that_would_end_its_reader_has_a_reason(make: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(CutoutError, match=reason):
        read_file(make(), "a.fits", ReaderConfig())


@pytest.mark.parametrize(
    ("name", "value"),
    [("WCSAXES", 65536), ("WCSAXES", 20000), ("A_ORDER", 30000), ("CRVAL1", "NaN"), ("CD1_1", "5e-5"), ("CRPIX2", True)],
)
def test_coordinates_that_are_none_or_would_end_the_reader_are_left_out(name: str, value: int) -> None:
    cutout = read_file(image(**{name: value}), "a.fits", ReaderConfig())
    np.testing.assert_array_equal(cutout.image_CHW[0], PIXELS)
    assert math.isnan(cutout.ra)
    mapped = map_header(cutout.header, np.eye(2), np.zeros(2))
    assert "CRVAL1" not in mapped
    assert "WCS left out" in str(mapped["HISTORY"])


def test_a_larger_size_is_a_setting() -> None:
    data = file(fits.PrimaryHDU(np.random.default_rng(0).random((4200, 4200), np.float32)))
    with pytest.raises(CutoutError, match=r"the file has 67.3 MiB, more than 64"):
        read_file(data, "a.fits", ReaderConfig())
    assert read_file(data, "a.fits", ReaderConfig(max_mebibytes=100)).image_CHW.shape == (1, 4200, 4200)


def test_a_file_that_ends_hangs_or_swells_its_reader_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wild_plugin.py").write_text(_PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("GAMPEN_RAY_PLUGINS", "wild_plugin")
    good, config = image(), ReaderConfig()
    contents = [good, b"wild crash", good, b"wild loop", b"wild exit", good, b"wild memory", good]
    found = read_files(File(content, "a.fits", config) for content in contents)
    assert [str(one) if isinstance(one, CutoutError) else one.image_CHW.shape for one in found] == [
        (1, 40, 48),
        f"reading it ended the process that read it (signal {int(signal.SIGSEGV)})",
        (1, 40, 48),
        "reading it took longer than 2 s of processor time",
        "reading it ended the process that read it (exit 3)",
        (1, 40, 48),
        "reading it took more than 1.5 GB of memory",
        (1, 40, 48),
    ]


def test_a_wrong_setting_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"reader.format: 'fitz' is unknown; did you mean 'fits'") as caught:
        read_file(image(), "a.fits", ReaderConfig(format="fitz"))
    assert not isinstance(caught.value, CutoutError)
    assert read_content(image(), "", ReaderConfig(format="hdf5")).image_CHW.shape == (1, 40, 48)


def test_what_the_hdus_hold_is_listed() -> None:
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1, 2])], name="T")
    data = file(fits.PrimaryHDU(), fits.ImageHDU(PIXELS, name="SCI_r"), fits.ImageHDU(PIXELS, name="SCI_i"), table)
    found = list_hdus(gzip.compress(data), ReaderConfig())
    assert found.images == [False, True, True, False]
    assert found.texts == ["0 PRIMARY empty", "1 SCI_R 40 x 48 BITPIX -32", "2 SCI_I 40 x 48 BITPIX -32", "3 T table of 2 rows"]
    assert found.bands == ["R", "I"]
    assert list_hdus(b"no FITS file", ReaderConfig()).images is None


def test_the_reader_ends_with_its_parent() -> None:
    mark = f"gampen-ray-test-{os.getpid()}-reader"
    code = (
        "import os, signal\nfrom gampen_ray.config import ReaderConfig\nfrom gampen_ray.data.reader_process import *\n"
        "list_hdus(b'', ReaderConfig())\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "GAMPEN_RAY_MARK": mark}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert_none_left(mark)


def test_a_reader_that_is_gone_is_replaced() -> None:
    read_file(image(), "a.fits", ReaderConfig())
    child = reader_process._READER._child
    assert child is not None
    child.kill()
    child.wait()
    assert read_file(image(), "a.fits", ReaderConfig()).image_CHW.shape == (1, 40, 48)


def test_a_compressed_catalogue_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_formats, "_LEAST_BYTES", 1 << 20)
    path = tmp_path / "c.csv.gz"
    path.write_bytes(gzip.compress(b"object_id,x\n" + b"0,0\n" * (1 << 20)))
    with pytest.raises(UserError, match=r"catalog .*c.csv.gz: decompresses to more than 1 MiB \(and 30 times its size\)"):
        catalogs.read_catalog(str(path))
    path.write_bytes(gzip.compress(b"object_id,x\n" + b"".join(b"%d,0\n" % row for row in range(1 << 18))))
    assert len(catalogs.read_catalog(str(path))) == 1 << 18


def test_a_catalogue_with_a_damaged_header_is_refused(tmp_path: Path) -> None:
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1, 2])])
    path = tmp_path / "c.fits"
    path.write_bytes(with_card(file(fits.PrimaryHDU(), table), "TFIELDS", 2**31 - 1))
    with pytest.raises(UserError, match=r"catalog .*c.fits: damaged FITS file: TFIELDS is 2147483647"):
        catalogs.read_catalog(str(path))
