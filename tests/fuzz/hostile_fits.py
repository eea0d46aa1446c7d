"""Hostile FITS files made by hand, each of which must give an image or a reason of one line in time; prints JSON.

``python -m tests.fuzz.hostile_fits``: of all kinds the outcome, the slowest, and the largest memory of the reader; ``--quick``:
of some.
"""

import argparse
import bz2
import functools
import gzip
import json
import resource
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from astropy.io import fits

from gampen_ray.config import ReaderConfig
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.reader_process import File, close, read_files
from tests.fuzz.poison_files import PIXELS, POISON, WCS, compressed, file, image, with_card

__all__ = ["QUICK", "kinds", "run"]

_CARD, _BLOCK, _MOST = 80, 2880, 2**31 - 1
_INTEGERS = PIXELS.astype(np.int16)
Make = Callable[[], bytes]


@functools.cache
def kinds() -> dict[str, Make]:
    """Return how the file of each kind is made, by name."""
    parts = (_plain(), _scaling(), _coordinates(), _compression(), _streams(), _tables(), _cards(), _structure(), _wrapped())
    made = {f"poison-{name}": make for name, (make, _) in POISON.items()}
    for name, make in (pair for part in parts for pair in part):
        assert name not in made, name
        made[name] = make
    return made


def run(names: list[str]) -> dict[str, object]:
    """Read the files of some kinds; return the outcomes by kind, the slowest and the largest memory of the reader."""
    outcomes: dict[str, str] = {}
    slowest = []
    for name in names:
        data, start = kinds()[name](), time.perf_counter()
        (found,) = read_files([File(data, f"{name}.fits", ReaderConfig())], headers=True)
        slowest.append((round(time.perf_counter() - start, 2), name))
        outcomes[name] = str(found) if isinstance(found, CutoutError) else "image"
    close()
    return {
        "kinds": len(names),
        "images": Counter(outcomes.values())["image"],
        "ended": {name: reason for name, reason in outcomes.items() if "reading it" in reason},
        "no_line": [name for name, reason in outcomes.items() if not reason.isprintable()],
        "slowest_s": sorted(slowest, reverse=True)[:5],
        "peak_memory_of_reader_gb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 2),
        "outcomes": outcomes,
    }


def _each(prefix: str, data: Make, **values: tuple[object, ...]) -> Iterator[tuple[str, Make]]:
    """Yield a file with one card changed, or added, for each value."""
    for key, some in values.items():
        for value in some:
            yield f"{prefix}-{key}-{value}", lambda key=key, value=value: _carded(data(), key, value)


def _plain() -> Iterator[tuple[str, Make]]:
    yield from _each(
        "plain",
        image,
        NAXIS=(-1, 0, 1, 3, 999, 1000),
        NAXIS1=(-1, 0, 1, 2**31, 10**18, "'48'"),
        NAXIS2=(-1, 0, 65_536, _MOST),
        BITPIX=(-33, 0, 7, 8, 64, -64, 1 << 40),
        GCOUNT=(-1, 0, _MOST),
        PCOUNT=(-1, 10**12),
        GROUPS=("T",),
        SIMPLE=("F", "''", 3),
        EXTEND=("F", "'x'"),
    )
    yield "random-groups", lambda: _carded(_carded(image(), "NAXIS1", 0), "GROUPS", "T")


def _scaling() -> Iterator[tuple[str, Make]]:
    integers = functools.partial(_integer_image)
    yield from _each(
        "scaled",
        integers,
        BSCALE=(0, "NaN", "1E400", "-1E308", "'x'"),
        BZERO=("NaN", "INF", 2**63, "1E-320"),
        BLANK=(100, 2**40, 1.5, "'x'"),
    )
    yield "asinh-overflow", lambda: image(BSOFTEN=1e300, BOFFSET=1e300)
    yield "asinh-text", lambda: image(BSOFTEN="x", BOFFSET="y")
    yield "float-blank", lambda: image(BLANK=-1)


def _coordinates() -> Iterator[tuple[str, Make]]:
    yield from _each(
        "wcs",
        image,
        WCSAXES=(-1, 0, 1, 3, 20_000, 65_536, _MOST),
        CRVAL1=("NaN", "1E308", "'x'"),
        CRPIX1=("-1E308", "INF"),
        CD1_1=(0, "NaN", "1E-320", "1E300"),
        CTYPE1=("'TLON-TAN'", "'RA---TAB'", "'RA---XYZ'", "'RA---HPX'", "'RA---TSC'", "'RA---COP'", "'-'", 5),
        RADESYS=("'FK9'", 7),
        EQUINOX=("NaN", 1e9, "'J'"),
        CUNIT1=("'parsec'", "'10**(400)deg'"),
        LONPOLE=("NaN", 999),
        PV2_1=("NaN", 1e300),
    )
    sip = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"}
    for order in (-1, 0, 1, 10, 100, 30_000, _MOST):
        yield f"sip-order-{order}", lambda order=order: image(**sip, A_ORDER=order, B_ORDER=order)
        yield (
            f"sip-inverse-order-{order}",
            lambda order=order: image(**sip, A_ORDER=2, B_ORDER=2, AP_ORDER=order, BP_ORDER=order),
        )
    yield "sip-one-sided", lambda: image(**sip, A_ORDER=2)
    yield "sip-huge-terms", lambda: image(**sip, A_ORDER=2, B_ORDER=2, A_2_0=1e300, B_0_2=-1e300)
    yield "sip-missing-suffix", lambda: image(A_ORDER=3, B_ORDER=3, A_3_0=1e-9)
    tpv = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV"}
    yield "tpv-terms", lambda: image(**tpv, **{f"PV1_{i}": 1e9 for i in range(40)})
    yield "tpv-far-term", lambda: image(**tpv, PV1_99=1.0)
    yield "tpd", lambda: image(CTYPE1="RA---TPD", CTYPE2="DEC--TPD", DQ1="x")
    yield "zpx", lambda: image(CTYPE1="RA---ZPX", CTYPE2="DEC--ZPX", WAT1_001="wtype=zpx " * 5)
    yield "zpn-no-terms", lambda: image(CTYPE1="RA---ZPN", CTYPE2="DEC--ZPN")
    yield "cd-and-pc", lambda: image(PC1_1=1.0, PC1_2=0.5, CDELT1=1e-4)
    yield "singular-matrix", lambda: image(CD1_1=1e-5, CD1_2=1e-5, CD2_1=1e-5, CD2_2=1e-5)
    yield "of-2030", lambda: image(**{"CTYPE1": "TLON-TAN", "CTYPE2": "TLAT-TAN", "DATE-OBS": "2030-01-01T00:00:00"})
    yield "of-no-date", lambda: image(**{"DATE-OBS": "99999-99-99", "MJD-OBS": 1e300})
    yield "alternate-systems", lambda: image(**{f"CTYPE{i}{a}": "RA---TAN" for i in (1, 2) for a in "ABCDEFGH"})
    for kind in ("LOOKUP", "TPD", "POLYNOMIAL", "NONE"):
        yield f"distortion-{kind}", lambda kind=kind: _distorted(kind)
    yield "distortion-no-table", lambda: image(CPDIS1="LOOKUP", CPDIS2="LOOKUP", CPERR1=1.0)
    yield (
        "table-coordinates",
        lambda: image(CTYPE1="RA---TAB", CTYPE2="DEC--TAB", PS1_0="WCS-TABLE", PS1_1="COORDS", PV1_3=9999),
    )


def _compression() -> Iterator[tuple[str, Make]]:
    yield from _each(
        "rice",
        functools.partial(compressed, "RICE_1"),
        ZNAXIS=(-1, 0, 1, 3, 999, _MOST),
        ZNAXIS1=(-1, 0, 47, 49, 10**9),
        ZTILE1=(-1, 0, 1, 10**9, _MOST),
        ZTILE2=(0, _MOST),
        ZBITPIX=(-64, 0, 8, 32, 64, 99),
        ZCMPTYPE=("'NOCOMPRESS'", "'GZIP_1'", "'GZIP_2'", "'PLIO_1'", "'HCOMPRESS_1'", "'BOGUS'", "''", 3),
        ZVAL1=(-1, 0, 1, _MOST, "'x'"),
        ZVAL2=(0, 3, 8, 64),
        ZQUANTIZ=("'SUBTRACTIVE_DITHER_9'", 3),
        ZDITHER0=(-1, 0, 10_001, _MOST),
        ZSCALE=("NaN",),
        ZBLANK=(100, 1e300),
        TFIELDS=(-1, 0, 2, 999, 1000),
        NAXIS1=(0, 7, 10**9),
        NAXIS2=(0, 3, 10**9),
        PCOUNT=(-1, 0, 10**12),
        THEAP=(-1, 0, 10**9),
        TFORM1=("'1QB(999999999)'", "'1PE'", "'2PB'", "'A'", "'0PB(0)'", "'9999999999999B'"),
        TTYPE1=("'OTHER'", "''"),
    )
    for scale in (-1, 0, _MOST):
        yield f"hcompress-scale-{scale}", lambda scale=scale: _carded(compressed("HCOMPRESS_1"), "ZVAL1", scale)
    for kind in ("GZIP_1", "GZIP_2", "HCOMPRESS_1", "PLIO_1"):
        for key, value in (("ZTILE1", 3), ("ZBITPIX", -64), ("ZNAXIS2", 10**6)):
            yield f"{kind}-{key}-{value}", lambda kind=kind, key=key, value=value: _carded(compressed(kind), key, value)


def _streams() -> Iterator[tuple[str, Make]]:
    for height, width in ((0, 0), (1, 1), (19, 24), (20, 25), (20_000, 24), (24, 20), (_MOST, 1), (1, _MOST)):
        yield (
            f"hcompress-of-{height}x{width}",
            lambda h=height, w=width: _hcompress(h.to_bytes(4, "big") + w.to_bytes(4, "big"), 2),
        )
    for at, size in ((10, 4), (14, 8), (22, 3), (25, 40)):
        yield f"hcompress-ones-at-{at}", lambda at=at, size=size: _hcompress(b"\xff" * size, at)
    for offset in (0, 8, _MOST, 10**9):
        for length in (0, 1, _MOST):
            yield f"heap-{length}-at-{offset}", lambda length=length, offset=offset: _descriptor(length, offset)
    for kind in ("RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1", "PLIO_1"):
        for fill in (0, 255):
            yield f"{kind}-stream-of-{fill}", lambda kind=kind, fill=fill: _filled(compressed(kind), fill)


def _tables() -> Iterator[tuple[str, Make]]:
    yield "only-a-table", lambda: file(fits.PrimaryHDU(), _table(100))
    yield "many-columns", lambda: file(fits.PrimaryHDU(), _table(999), fits.ImageHDU(PIXELS))
    for value in ("'1000000000J'", "'rJ'", "''", 3, "'1PJ(2147483647)'"):
        yield f"table-TFORM1-{value}", lambda value=value: _carded(file(fits.PrimaryHDU(), _table(3)), "TFORM1", value)
    for value in (-1, 0, 10**9):
        yield f"table-THEAP-{value}", lambda value=value: _carded(file(fits.PrimaryHDU(), _table(3)), "THEAP", value)
    yield "table-TDIM", lambda: _carded(file(fits.PrimaryHDU(), _table(3)), "TDIM1", "'(99999999,99999999)'")
    yield "ascii-table", lambda: file(fits.PrimaryHDU(), fits.TableHDU.from_columns([fits.Column("a", "A10", array=["x"])]))


def _cards() -> Iterator[tuple[str, Make]]:
    long = "x" * 60 + "&"
    yield "continue-chain", lambda: _inserted([f"LONG    = '{long}'", *[f"CONTINUE  '{long}'"] * 20_000])
    yield "continue-alone", lambda: _inserted(["CONTINUE  'x&'"] * 50)
    yield "continue-open", lambda: _inserted([f"LONG    = '{long}'", "CONTINUE  'x"])
    yield "many-cards", lambda: _inserted([f"KEY{i:05d}= {i}" for i in range(40_000)])
    yield "same-card-many-times", lambda: _inserted(["NAXIS   =                    2"] * 30_000)
    yield "many-comments", lambda: _inserted(["COMMENT " + "x" * 70] * 30_000)
    yield "hierarch", lambda: _inserted(["HIERARCH " + "A " * 30 + "= 1"] * 100)
    yield "record-valued", lambda: _inserted([f"DP1     = 'AXIS.{i}: {i}'" for i in (40, 100_000, _MOST)])
    yield "long-number", lambda: _inserted(["MAGZERO = " + "9" * 70])
    yield "long-exponent", lambda: _inserted(["MAGZERO = 1E" + "9" * 60])
    yield "complex-number", lambda: _inserted(["MAGZERO = (1.0, NaN)"])
    yield "open-string", lambda: _inserted(["FILTER  = 'r"])
    yield "quotes", lambda: _inserted(["FILTER  = " + "'" * 70])
    yield "slashes", lambda: _inserted(["FILTER  = " + "/" * 70])
    yield "control-characters", lambda: _inserted(["FILTER  = '\x1b[31m\x07\x00'"])
    yield "bytes-beyond-ascii", lambda: _inserted(["FILTER  = '\xe9\xff'"])
    yield "lower-case-keys", lambda: image().replace(b"NAXIS1", b"naxis1")
    yield "no-keys", lambda: _inserted([" " * 80] * 2000)
    yield "unit-of-many-powers", lambda: image(BUNIT="mJy" + "/sr" * 20)
    yield "unit-overflow", lambda: image(BUNIT="1e999 Jy")
    yield "zero-points-that-differ", lambda: image(MAGZERO=25.0, MAGZPT=30.0)
    yield "datasum", lambda: image(DATASUM="0", CHECKSUM="x" * 16)
    yield "inherit", lambda: file(fits.PrimaryHDU(), fits.ImageHDU(PIXELS, fits.Header({"INHERIT": "x"})))
    yield "extname-long", lambda: file(fits.PrimaryHDU(), fits.ImageHDU(PIXELS, fits.Header({"EXTNAME": "x" * 68})))


def _structure() -> Iterator[tuple[str, Make]]:
    for name, data in (("plain", image), ("rice", functools.partial(compressed, "RICE_1"))):
        size = len(data())
        for at in sorted({1, 9, 79, 80, 81, 240, 2879, 2880, 2881, 5000, 5760, 5761, 8000, 8641, size - 1, size - 2880}):
            if at < size:
                yield f"{name}-cut-at-{at}", lambda data=data, at=at: data()[:at]
        yield f"{name}-no-end", lambda data=data: data().replace(b"END" + b" " * 77, b" " * 80)
        yield f"{name}-early-end", lambda data=data: data()[:160] + b"END".ljust(80) + data()[240:]
        yield f"{name}-shifted", lambda data=data: data()[:2880] + b" " + data()[2880:]
        yield f"{name}-twice", lambda data=data: data() * 2
        yield f"{name}-rubbish-after", lambda data=data: data() + bytes(range(256)) * 100
    yield "zeros", lambda: bytes(_BLOCK * 4)
    yield "spaces", lambda: b" " * _BLOCK * 4
    yield "first-card-alone", lambda: b"SIMPLE  =                    T".ljust(_BLOCK)
    yield "header-without-end", lambda: image()[:80].ljust(60 << 20)
    yield "extension-first", lambda: fits.ImageHDU(PIXELS).header.tostring().encode() + PIXELS.astype(">f4").tobytes()
    yield "unknown-extension", lambda: _carded(file(fits.PrimaryHDU(), fits.ImageHDU(PIXELS)), "XTENSION", "'FOREIGN'")
    yield "foreign-extensions", lambda: file(fits.PrimaryHDU()) + 500 * _header_of("FOREIGN")
    yield "50000-hdus", lambda: file(fits.PrimaryHDU()) + 50_000 * fits.ImageHDU().header.tostring().encode()[:80].ljust(_BLOCK)
    yield (
        "20000-hdus-of-one-name",
        lambda: file(fits.PrimaryHDU()) + 20_000 * fits.ImageHDU(name="SCI").header.tostring().encode(),
    )
    yield "cube-of-1000", lambda: file(fits.PrimaryHDU(np.zeros((1000, 4, 4), np.float32)))
    yield "nine-axes", lambda: file(fits.PrimaryHDU(np.zeros((1,) * 7 + (8, 8), np.float32)))
    yield "one-pixel", lambda: file(fits.PrimaryHDU(np.ones((1, 1), np.float32)))
    yield "one-row", lambda: file(fits.PrimaryHDU(np.ones((1, 500_000), np.float32)))
    yield "all-nan", lambda: file(fits.PrimaryHDU(np.full_like(PIXELS, np.nan)))
    yield "all-infinite", lambda: file(fits.PrimaryHDU(np.full_like(PIXELS, -np.inf)))
    yield "largest-doubles", lambda: file(fits.PrimaryHDU(np.full((40, 48), 1.7e308)))
    yield "largest-integers", lambda: file(fits.PrimaryHDU(np.full((40, 48), 2**63 - 1)))


def _wrapped() -> Iterator[tuple[str, Make]]:
    for depth in (2, 3, 50):
        yield f"gz-in-gz-{depth}", lambda depth=depth: functools.reduce(lambda data, _: _gz(data), range(depth), image())
    yield "bz2-in-gz", lambda: _gz(bz2.compress(image()))
    yield "gz-in-bz2", lambda: bz2.compress(_gz(image()))
    yield "rice-in-gz", lambda: _gz(compressed("RICE_1"))
    yield "bz2-bomb", lambda: bz2.compress(bytes(1 << 28))
    yield "gz-bomb-of-headers", lambda: _gz(file(fits.PrimaryHDU()) + 20_000 * fits.ImageHDU().header.tostring().encode())
    yield "gz-members", lambda: _gz(b"") * 20_000 + _gz(image())
    yield "gz-cut", lambda: _gz(image())[:-9]
    yield "gz-wrong-sum", lambda: _gz(image())[:-8] + bytes(8)
    yield "gz-rubbish-after", lambda: _gz(image()) + b"x" * 1000
    yield "gz-magic-alone", lambda: b"\x1f\x8b"
    yield "gz-empty", lambda: _gz(b"")
    yield "gz-long-name", lambda: b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 1_000_000
    yield "bz2-cut", lambda: bz2.compress(image())[:-5]
    yield "zlib", lambda: zlib.compress(image())
    yield "compress-magic", lambda: b"\x1f\x9d\x90" + image()
    yield "zip-magic", lambda: b"PK\x03\x04" + image()
    yield "empty", lambda: b""


def _gz(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def _carded(data: bytes, key: str, value: object) -> bytes:
    """Change a card of the last header that has it, or add it to the last header."""
    start, text = data.rfind(f"{key:<8}=".encode()), f"{key:<8}= {value!s:>20}"
    if start < 0:
        end = data.rindex(b"END" + b" " * 77)
        # In place of the first blank card after the header, whose own end moves down by one.
        return data[:end] + text.ljust(_CARD).encode() + b"END".ljust(_CARD) + data[end + 2 * _CARD :]
    return data[:start] + with_card(data[start:], key, value)


def _inserted(cards: list[str]) -> bytes:
    """Add cards to the header of an image."""
    data = image()
    end = data.index(b"END" + b" " * 77)
    header = data[:end] + b"".join(card.encode("latin1").ljust(_CARD)[:_CARD] for card in cards) + b"END".ljust(_CARD)
    return header.ljust(-(-len(header) // _BLOCK) * _BLOCK) + PIXELS.astype(">f4").tobytes().ljust(3 * _BLOCK, b"\0")


def _integer_image() -> bytes:
    return file(fits.PrimaryHDU(_INTEGERS, fits.Header(WCS | {"BSCALE": 1.0, "BZERO": 0.0, "BLANK": -1})))


def _distorted(kind: str) -> bytes:
    header = fits.Header(WCS | {"CPDIS1": kind, "CPDIS2": kind, "DP1": "EXTVER: 1", "DP2": "EXTVER: 9999", "D2IMDIS1": kind})
    tables = [fits.ImageHDU(np.full((2, 2), np.nan, np.float32), name="WCSDVARR", ver=ver) for ver in (1, 2)]
    return file(fits.PrimaryHDU(PIXELS, header), *tables)


def _hcompress(new: bytes, at: int) -> bytes:
    """Overwrite a part of the first HCOMPRESS stream, whose magic number has two bytes."""
    data = compressed("HCOMPRESS_1")
    start = data.index(b"\xdd\x99") + at
    return data[:start] + new + data[start + len(new) :]


def _data_start(data: bytes) -> int:
    end = data.rindex(b"END" + b" " * 77) + _CARD
    return -(-end // _BLOCK) * _BLOCK


def _descriptor(length: int, offset: int) -> bytes:
    """Change where the first tile lies in the heap."""
    data = compressed("RICE_1")
    start = _data_start(data)
    return data[:start] + length.to_bytes(4, "big") + offset.to_bytes(4, "big") + data[start + 8 :]


def _filled(data: bytes, value: int) -> bytes:
    """Overwrite all streams, after the descriptors of the four tiles."""
    start = _data_start(data) + 4 * 8
    return data[:start] + bytes([value]) * (len(data) - start)


def _table(num_columns: int) -> fits.BinTableHDU:
    return fits.BinTableHDU.from_columns([fits.Column(f"c{i}", "J", array=[1, 2]) for i in range(num_columns)])


def _header_of(extension: str) -> bytes:
    return _carded(fits.ImageHDU().header.tostring().encode(), "XTENSION", f"'{extension}'")


# Those that once ended the reader, and a part of the others without the slow ones.
_SLOW = {"continue-chain", "many-cards", "same-card-many-times", "header-without-end", "poison-large", "poison-endless"}
QUICK = ["continue-open", "record-valued", *[name for name in list(kinds())[::4] if name not in _SLOW]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    sys.stdout.write(json.dumps(run(QUICK if parser.parse_args().quick else list(kinds())), indent=1) + "\n")
