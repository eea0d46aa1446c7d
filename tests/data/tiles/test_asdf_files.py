"""Roman's ASDF files: rows of every kind of array, metadata that contradict themselves, damaged and hostile files."""

import io
import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.tiles import asdf_files
from gampen_ray.data.tiles.cutting import Tile
from gampen_ray.data.tiles.describing import describe
from gampen_ray.data.tiles.footprint import BandFile
from gampen_ray.data.tiles.listing import listed
from gampen_ray.data.tiles.surveys import TILE_SURVEYS
from gampen_ray.errors import UserError
from tests.data.tiles.layouts import roman_tree, tile_cards

asdf = pytest.importorskip("asdf", reason="writes the files")
HEIGHT, WIDTH = 40, 30
NAME = "r00001_p_full_270p65x48y69_f158_coadd.asdf"


def tree(**wcsinfo: Any) -> Any:
    """Return a mosaic whose pixels count up from 1; fields of its WCS are replaced."""
    image_HW = np.arange(1, HEIGHT * WIDTH + 1, dtype=np.float32).reshape(HEIGHT, WIDTH)
    cards = tile_cards(0, 10.0, 20.0, 0.055)
    cards["CRPIX1"], cards["CRPIX2"] = WIDTH + 50.5, -12.25
    content = roman_tree(image_HW, image_HW / 10, np.ones_like(image_HW), cards, "F158")
    content["roman"]["meta"]["wcsinfo"] |= wcsinfo
    return content


def content_of(content: Any = None, **options: Any) -> bytes:
    file = io.BytesIO()
    asdf.AsdfFile(content or tree()).write_to(file, **options)
    return file.getvalue()


def described(folder: Path, content: bytes, **options: Any) -> BandFile:
    (folder / NAME).write_bytes(content)
    (entry,) = listed([NAME], TILE_SURVEYS["roman"])
    return describe(entry, TILE_SURVEYS["roman"], str(folder), **options)


def rows(content: bytes, name: str = "data") -> asdf_files.ArrayRows:
    file = io.BytesIO(content)
    array, _ = asdf_files.chosen_hdu(file, (name,))
    return asdf_files.rows_of(file, array.index)[0]


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">i2", "u1"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"all_array_compression": "lz4"},
        {"all_array_compression": "lz4", "compression_kwargs": {"compression_block_size": 512}},
    ],
    ids=["plain", "lz4", "lz4 in pieces"],
)
def test_rows_are_those_that_were_written(dtype: str, options: dict[str, Any]) -> None:
    content = tree()
    image_HW = (content["roman"]["data"] % 200).astype(dtype)
    content["roman"]["data"] = image_HW
    reader = rows(content_of(content, **options))
    for start, stop in ((0, HEIGHT), (3, 4), (17, 33), (HEIGHT - 1, HEIGHT)):
        read_hW = reader.read(start, stop)
        assert read_hW.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(read_hW, image_HW[start:stop])


def test_a_tile_has_band_place_and_zero_point_of_its_metadata(tmp_path: Path) -> None:
    row = described(tmp_path, content_of(all_array_compression="lz4"))
    assert (row.tile, row.band, row.noise_kind, row.mask_bits) == ("r00001_p_full_270p65x48y69", "F158", "error", 0)
    # -6.10 - 2.5 log10(sr), as for JWST.
    assert row.zero_point_mag == pytest.approx(-6.10 - 2.5 * np.log10((0.055 * np.pi / 648000) ** 2), abs=0.001)
    wcs = tree()["roman"]["meta"]["wcsinfo"]
    np.testing.assert_allclose(np.ravel(row.grid.pixels(np.array([wcs["ra_ref"]]), np.array([wcs["dec_ref"]]))), [79.5, -13.25])


def test_pixels_of_no_weight_have_no_value(tmp_path: Path) -> None:
    content = tree()
    content["roman"]["weight"][10, 12:14] = 0, np.nan
    content["roman"]["err"][11, 12] = np.nan
    with Tile([described(tmp_path, content_of(content))], str(tmp_path), 30.0) as tile:
        (cuts,) = tile.cut(np.array([12.0]), np.array([9.0]), 8)
    left, first = 9, 6
    expected_HW = content["roman"]["data"][first : first + 8, left : left + 8].copy()
    expected_HW[[4, 4, 5], [3, 4, 3]] = np.nan
    np.testing.assert_allclose(
        cuts.image_NCHW[0, 0] / 10 ** (0.4 * (30 - tile.files[0].zero_point_mag)), expected_HW, rtol=1e-6
    )


def test_a_scale_in_arcseconds_is_understood(tmp_path: Path) -> None:
    scale = tree()["roman"]["meta"]["wcsinfo"]["pixel_scale_ref"] * 3600
    assert described(tmp_path, content_of(tree(pixel_scale_ref=scale))).pixel_scale_arcsec == pytest.approx(0.055, rel=1e-5)


@pytest.mark.parametrize(
    ("wcsinfo", "message"),
    [
        ({"x_ref": 80.5}, "its centre is 1 pixels from"),
        ({"pixel_scale_ref": 1e-5}, "its centre is .* pixels from"),
        ({"ra_ref": None}, "meta.wcsinfo.ra_ref is no number"),
        ({"rotation_matrix": [[1, 0], 3]}, "rotation_matrix is no list of 4 numbers"),
        ({"rotation_matrix": [[0.0, 0], [0, 0]], "ra": 0.0}, "the WCS cannot be used"),
        ({"projection": "SIN"}, "projection is SIN, not TAN"),
        ({"s_region": "POLYGON ICRS 1 2 3 4 5 6 7 8"}, "s_region is .* pixels from the image's corners"),
        ({"x_ref": 1e300}, "its pixels have no area"),
    ],
)
def test_coordinates_that_contradict_themselves_are_refused(wcsinfo: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CutoutError, match=message):
        described(tmp_path, content_of(tree(**wcsinfo)))


def test_a_mirrored_projection_is_refused_by_its_corners(tmp_path: Path) -> None:
    content = tree(x_ref=(WIDTH - 1) / 2, y_ref=(HEIGHT - 1) / 2)
    wcsinfo = content["roman"]["meta"]["wcsinfo"]
    wcsinfo |= {"ra": wcsinfo["ra_ref"], "dec": wcsinfo["dec_ref"], "rotation_matrix": [[1.0, 0.0], [0.0, 1.0]]}
    half = np.array([WIDTH, HEIGHT]) / 2 * wcsinfo["pixel_scale_ref"]
    east, north = half[0] / np.cos(np.radians(wcsinfo["dec_ref"])), half[1]
    # East to the left.
    corners = [(wcsinfo["ra"] + a * east, wcsinfo["dec"] + b * north) for a, b in ((1, -1), (1, 1), (-1, 1), (-1, -1))]
    wcsinfo["s_region"] = "POLYGON ICRS " + " ".join(f"{value:.9f}" for value in np.ravel(corners))
    with pytest.raises(CutoutError, match="s_region is 30 pixels from the image's corners"):
        described(tmp_path, content_of(content))
    wcsinfo["rotation_matrix"] = [[-1.0, 0.0], [0.0, 1.0]]
    described(tmp_path, content_of(content))


def test_a_mosaic_whose_fluxes_are_not_calibrated_needs_a_zero_point(tmp_path: Path) -> None:
    content = tree()
    content["roman"]["meta"]["cal_step"]["flux"] = "SKIPPED"
    with pytest.raises(CutoutError, match="no zero point; state zero_point_mag"):
        described(tmp_path, content_of(content))
    assert described(tmp_path, content_of(content), zero_point_mag=25.0).zero_point_mag == 25.0


def test_a_quantity_has_its_own_unit(tmp_path: Path) -> None:
    plain = content_of()
    found = re.search(rb"  data: (!core/ndarray-\S+)\n((?:    .*\n)+)", plain)
    assert found

    def quantity(unit: bytes) -> bytes:
        value = b"    unit: " + unit + b"\n    value: " + found[1] + b"\n" + found[2].replace(b"    ", b"      ")
        return plain.replace(found[0], b"  data: !unit/quantity-1.2.0\n" + value)

    row = described(tmp_path, quantity(b"!unit/unit-1.0.0 uJy.arcsec**-2"))
    assert row.zero_point_mag == pytest.approx(23.9 - 5 * np.log10(0.055), abs=0.001)
    with pytest.raises(CutoutError, match="no zero point"):
        described(tmp_path, quantity(b"electron / s"))


def patched(content: bytes, offset: int, value: bytes) -> bytes:
    """Return a file with other bytes at a place of its first block."""
    at = content.index(b"\xd3BLK") + offset
    return content[:at] + value + content[at + len(value) :]


HOSTILE = {
    "truncated": (lambda: content_of()[:-5000], "the file is truncated: .* by its headers|the ASDF file is truncated"),
    "cut in its text": (lambda: content_of()[:300], "has no end: the file is truncated"),
    "empty": (lambda: b"", "not an ASDF file"),
    "another format": (lambda: b"SIMPLE  = T", "not an ASDF file: it begins with b'SIMPLE"),
    "zlib": (
        lambda: content_of(all_array_compression="zlib"),
        "data is compressed with zlib, which is not read; write it with lz4",
    ),
    "inline": (lambda: content_of(all_array_storage="inline"), "data is no array in a block of this file"),
    "elsewhere": (
        lambda: content_of().replace(b"source: 0", b"source: other.asdf"),
        r"data is no array in a block of this file \(ndarray-.*\); others are not read",
    ),
    "a reference": (
        lambda: content_of({"roman": {"meta": tree()["roman"]["meta"], "data": {"$ref": "file:///etc/passwd#data"}}}),
        "data is no array in a block",
    ),
    "external array": (
        lambda: re.sub(rb"!core/ndarray-\S+", b"!core/externalarray-1.0.0", content_of()),
        r"\(externalarray-1.0.0\); others",
    ),
    "no mosaic": (lambda: content_of({"data": np.ones((4, 4))}), "has no roman: it is no mosaic of Roman's"),
    "no image": (lambda: content_of({"roman": {"meta": {}}}), "no array named data below roman; there are meta"),
    "long text": (
        lambda: content_of(tree() | {"x": "y" * asdf_files.MAX_TEXT_BYTES}),
        "YAML text of the ASDF file is longer than",
    ),
    "deep text": (
        lambda: content_of().replace(b"asdf_library:", b"x: " + b"[" * 90000 + b"]" * 90000 + b"\nasdf_library:"),
        "nested more than 64 deep",
    ),
    "many parts": (
        lambda: content_of().replace(b"asdf_library:", b"x: [" + b"1," * 300_000 + b"]\nasdf_library:"),
        "has more than 250,000 parts",
    ),
    "a tag of two lines": (
        lambda: re.sub(rb"!core/ndarray-\S+", b"!core/x%0Ay", content_of()),
        r"in a block of this file \(x\?y\)",
    ),
    "no YAML": (lambda: content_of().replace(b"roman:", b"roman: }{"), "damaged ASDF file: "),
    "no text": (lambda: content_of().replace(b"roman:", b"\xff\xfe:"), "damaged ASDF file: "),
    "many blocks": (lambda: content_of().replace(b"source: 0", b"source: 99999999999999999999"), "the first 1000 are read"),
    "a block that is not there": (
        lambda: content_of().replace(b"source: 0", b"source: 40"),
        "block 4 has no header|is truncated",
    ),
    "a huge block": (lambda: patched(content_of(), 14, struct.pack(">QQQ", *3 * [1 << 62])), "lies in a block of 4,611"),
    "a huge image": (
        lambda: content_of().replace(b"shape: [40, 30]", b"shape: [99999999, 99999999]"),
        "lies in a block of 4,800 bytes",
    ),
    "a streamed block": (lambda: patched(content_of(), 6, struct.pack(">I", 1)), "block 0 has no header"),
    "strides": (lambda: content_of().replace(b"shape: [40, 30]", b"shape: [40, 30]\n    strides: [0, 0]"), "data has strides"),
    "a cube": (lambda: content_of().replace(b"shape: [40, 30]", b"shape: [1, 40, 30]"), "data is no image of two dimensions"),
    "complex": (lambda: content_of().replace(b"datatype: float32", b"datatype: complex64"), "is of the type complex64"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_cannot_be_read_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    make, message = HOSTILE[name]
    with pytest.raises(CutoutError, match=message) as caught:
        described(tmp_path, make())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_tags_make_no_object_and_aliases_are_not_copied_out(tmp_path: Path) -> None:
    bomb = b"a0: &a0 [x, x]\n" + b"".join(
        b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 40)
    )
    bomb += b"m: {<<: [*a39, *a39]}\n"
    attack = bomb + b"run: !!python/object/apply:os.system ['touch %s/pwned']\n" % str(tmp_path).encode()
    row = described(tmp_path, content_of().replace(b"asdf_library:", attack + b"asdf_library:"))
    assert row.band == "F158"
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("offset", "value"),
    # The length of a piece, and the size that it states.
    [
        (0, struct.pack(">I", 1 << 31)),
        (0, struct.pack(">I", 0)),
        (4, struct.pack("<I", 1 << 31)),
        (4, struct.pack("<I", 4799)),
        (8, b"\x0f"),
    ],
)
def test_compressed_pieces_are_checked(offset: int, value: bytes) -> None:
    with pytest.raises(CutoutError, match=r"^damaged ASDF file: [^\n]*$"):
        rows(patched(content_of(all_array_compression="lz4"), 54 + offset, value)).read(0, HEIGHT)


def test_a_file_cut_after_it_was_indexed_is_the_reason_of_its_sources(tmp_path: Path) -> None:
    content = content_of()
    row = described(tmp_path, content)
    with Tile([row], str(tmp_path), 30.0) as tile:
        (tmp_path / NAME).write_bytes(content[: content.index(b"\xd3BLK") + 2000])
        (cuts,) = tile.cut(np.array([20.0]), np.array([30.0]), 4)
    assert cuts.reason_N[0] == f"{NAME}: the ASDF file is truncated: it is shorter than its header says"


def test_without_lz4_a_compressed_file_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, compressed = content_of(), content_of(all_array_compression="lz4")
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    described(tmp_path, plain)
    with pytest.raises(UserError, match=r'need lz4; pip install "gampen_ray\[asdf\]"'):
        described(tmp_path, compressed)


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_changed_bytes_raise_nothing_else(compression: str | None) -> None:
    content = content_of(all_array_compression=compression)
    rng = np.random.default_rng(3)
    end = content.index(b"\xd3BLK") + 80
    refused = 0
    for _ in range(200):
        changed = bytearray(content)
        for at in rng.integers(0, end, rng.integers(1, 4)):
            changed[at] = rng.integers(256)
        try:
            rows(bytes(changed)).read(0, HEIGHT)
        except CutoutError:
            refused += 1
    assert refused > 50
