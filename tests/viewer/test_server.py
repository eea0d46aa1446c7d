"""The viewer over HTTP: a catalogue that `infer` made, with hostile identifiers, with its images and without."""

import http.client
import re
import shutil
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from gampen_ray.catalog.parquet import mixture_from_catalog
from gampen_ray.commands.infer import InferConfig, infer
from gampen_ray.config import ActorResources
from gampen_ray.errors import UserError
from gampen_ray.viewer.galaxies import Galaxies
from gampen_ray.viewer.server import Server
from tests.browser import layouts
from tests.commands.test_evaluate import COUNT, UNITS, columns, predicted
from tests.networks import bundle, galaxies
from tests.reports.report_cases import Page

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style><b>",
    "{{ 7 * 7 }}",
    "../../etc/passwd",
)


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode()


class Served:
    """A running server."""

    def __init__(self, output: Path, **fields: str) -> None:
        self.output = output
        self.galaxies = Galaxies(str(output), **fields)
        self.server = Server(self.galaxies, str(output))

    def __enter__(self) -> "Served":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def get(self, path: str = "", method: str = "GET", host: str = "", secret: bool = True, **query: Any) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=60)
        target = (self.server.root if secret else "") + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        connection.request(method, target, headers={"Host": host} if host else {})
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        connection.close()
        return answer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = columns()
    table["object_id"] = np.array([*HOSTILE, *(f"galaxy {i}" for i in range(len(HOSTILE), COUNT))])
    return predicted(tmp_path_factory.mktemp("view"), table, **UNITS)


@pytest.fixture(scope="module")
def rows(root: Path) -> pa.Table:
    return pq.read_table(root / "catalog" / "catalog")


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[Served]:
    with Served(root / "catalog") as found:
        yield found


def test_text_from_the_data_is_shown_and_nothing_else(served: Served, rows: pa.Table) -> None:
    for query in ({}, {"row": 0, "gallery": "flagged"}, {"row": 1, "text": HOSTILE[1]}, {"where": HOSTILE[0]}):
        answer = served.get(**query)
        assert "<script" not in answer.text and "<img src=x" not in answer.text
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "script-src" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    shown = Page(served.get(row=0).text)
    assert {*HOSTILE} <= set(shown.texts)
    assert f"Galaxy {rows['object_id'][0]}" in "".join(shown.texts)
    # What is searched for is the identifier itself, not what it would do.
    assert served.get(text=HOSTILE[0]).text.count("&lt;script&gt;alert(1)&lt;/script&gt;</a></th>") == 1


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost:99999999", "[::1]", "127.0.0.1@evil.example"]
)
def test_a_page_from_elsewhere_cannot_ask(served: Served, host: str) -> None:
    answer = served.get(host=host)
    assert (answer.status, answer.text) == (421, "ask for 127.0.0.1 or localhost\n")


def test_names_of_this_machine_may_ask_through_any_port(served: Served) -> None:
    assert {served.get(host=host).status for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8000")} == {200}
    assert served.server.server_address[0] == "127.0.0.1"


def test_without_the_secret_nothing_is_answered(served: Served) -> None:
    root = served.server.root
    assert len(root) == 34
    for path in ("/", "/image?row=1", root[:-1], f"{root[:-2]}/", root.swapcase(), f"/x{root}", "/favicon.ico", "*"):
        assert (served.get(path, secret=False).status, served.get(path, secret=False).text) == (404, "not here\n")
    with Served(served.output) as other:
        assert other.server.root != root


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_nothing_but_get_is_answered(served: Served, method: str) -> None:
    assert served.get(method=method).status == 501


@pytest.mark.parametrize(
    "path",
    [
        "etc/passwd",
        "../../etc/passwd",
        "%2e%2e/manifest.json",
        "/etc/passwd",
        "catalog",
        "image",
        *(f"image?{query}" for query in ("row=-1", "row=300", f"row={10**20}", "row=1;2", "row=../x", "file=/etc/passwd")),
    ],
)
def test_no_path_is_a_file(served: Served, path: str) -> None:
    assert (served.get(path).status, served.get(path).text) == (404, "not here\n")


def test_a_galaxy_is_shown_whole(served: Served, rows: pa.Table) -> None:
    page = Page(served.get(row=7).text)
    one = rows.slice(7, 1).to_pylist()[0]
    for name in UNITS:
        for key in ("mean", "median", "mode", "std", "lo68", "hi68", "lo997", "hi997"):
            assert one[f"{name}_{key}"] in page.values
    assert {"Jy", f"RA {one['ra']:.5f}°, Dec {one['dec']:.5f}°"} <= set(page.texts)
    assert one["crop_scale"] in page.values
    place = list(served.galaxies.table.column("object_id").to_pylist()).index(one["object_id"])
    assert place == 7
    known = columns()
    index = int(one["object_id"].split()[-1])
    assert {known["flux"][index], known["concentration"][index]} <= set(page.values)
    text = served.get(row=7).text
    assert text.count('class="cutout"') == 2 and 'class="crop"' in text
    assert 'aria-label="Joint posterior density of flux, concentration"' in text
    assert 'row=6#galaxy">‹ previous' in text and 'row=8#galaxy">next ›' in text


def test_fluxes_are_in_nanojansky_beside_their_magnitudes(root: Path, rows: pa.Table, tmp_path: Path) -> None:
    shutil.copytree(root / "catalog", tmp_path / "catalog")
    for path in (tmp_path / "catalog" / "catalog").iterdir():
        table = pq.read_table(path)
        own = [
            f.with_metadata(f.metadata | {b"unit": b"3.631 nJy"}) if f.metadata[b"unit"] == b"Jy" else f for f in table.schema
        ]
        pq.write_table(table.cast(pa.schema(own)), path)
    one = rows.slice(7, 1).to_pylist()[0]
    with Served(tmp_path / "catalog") as served:
        text = served.get(row=7).text
    page = Page(text)
    assert {"nJy", "mag", "flux (nJy)", "AB mag"} <= set(page.texts)
    assert "whose flux is in 3.631 nJy" in text
    for key in ("mean", "std", "lo68", "hi997"):
        assert any(value == pytest.approx(3.631 * one[f"flux_{key}"]) for value in page.values)
    # In the table of galaxies too; the brightest end is the lower one.
    magnitudes = {key: 30 - 2.5 * np.log10(one[f"flux_{key}"]) for key in ("median", "lo68", "hi68")}
    assert sum(value == pytest.approx(magnitudes["median"]) for value in page.values) == 2
    assert f">{magnitudes['hi68']:.3f}</data> to <data" in text and f">{magnitudes['lo68']:.3f}</data></td>" in text


def test_flags_are_told_with_their_meaning(served: Served, rows: pa.Table) -> None:
    flags = rows["flags"].to_numpy()
    row = int(np.flatnonzero(flags & 8)[0])
    assert "a target&#39;s mean is within 1.3 standard deviations" in served.get(row=row).text
    chosen = served.get(flag="NEAR_TRAINING_EDGE").text
    assert f"of {int(((flags & 8) != 0).sum()):,}, page 1" in chosen
    unflagged = int((flags == 0).sum())
    assert (f"of {unflagged:,}, page 1" if unflagged else "No galaxy fulfils this.") in served.get(flag="none").text


def test_the_table_is_sorted_and_paged(served: Served, rows: pa.Table) -> None:
    ids = rows["object_id"].take(pa.compute.sort_indices(rows["flux_mean"], sort_keys=[("", "descending")])).to_pylist()
    found: list[str] = []
    for page in range(1, 13):
        text = served.get(sort="flux_mean", descending="true", page=page).text
        assert f"page {page} of 12" in text and '<th scope="col" aria-sort="descending">' in text
        found += [id for id in Page(text).texts if id in ids][:25]
    assert found == ids
    assert "page 12 of 12" in served.get(page=10**6).text


def test_mistakes_are_told_in_the_page(served: Served) -> None:
    for query, text in (
        ({"where": "flux_mean >"}, "where: "),
        ({"where": "open('x') == 1"}, "where: "),
        ({"sort": "age"}, "sort: no column &#39;age&#39;; there are: "),
        ({"flag": "ODD"}, "flag: &#39;ODD&#39; is none; there are: "),
        ({"page": "0"}, "page: &#39;0&#39; is not allowed: "),
        ({"row": "300"}, "row: 300 is not one of 300"),
        ({"gallery": "best"}, "gallery: &#39;best&#39; is not allowed: "),
        ({"file": "x"}, "address: &#39;file&#39; is none of "),
        ({"text": "x" * 10_000}, "No galaxy fulfils this"),
    ):
        answer = served.get(**query)
        assert text in answer.text
        assert (answer.status == 400) == ('role="alert"' in answer.text) == ("text" not in query)


def test_images_are_those_of_the_galaxies(served: Served, root: Path, rows: pa.Table) -> None:
    answer = served.get("image", row=11)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/png")
    assert answer.content.startswith(b"\x89PNG")
    index = int(rows["object_id"][11].as_py().split()[-1])
    np.testing.assert_array_equal(served.galaxies.image(11), galaxies(COUNT)["image"][index, 0])


def test_the_worst_have_the_largest_logarithmic_scores(served: Served, rows: pa.Table) -> None:
    known = columns()
    names = [*HOSTILE, *(f"galaxy {i}" for i in range(len(HOSTILE), COUNT))]
    order = [names.index(id) for id in rows["object_id"].to_pylist()]
    truth = np.stack([known[name][order] for name in UNITS], axis=1)
    targets = bundle().targets
    score = -mixture_from_catalog(rows, targets).standardised_log_prob(targets.standardise(truth)[:, None])[:, 0]
    row_M, value_M, what = served.galaxies.worst(np.arange(COUNT), 12)
    np.testing.assert_array_equal(row_M, np.argsort(-score, kind="stable")[:12])
    np.testing.assert_allclose(value_M, np.sort(score)[::-1][:12])
    assert what == "largest logarithmic score of 300 galaxies"
    text = served.get(gallery="worst").text
    assert [int(row) for row in re.findall(r'src="image\?row=(\d+)"', text)] == row_M.tolist()


def test_what_is_gone_is_said_and_the_rest_is_shown(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "catalog", tmp_path / "catalog")
    shutil.copytree(root / "model", tmp_path / "model")
    moved = [(root / name, root / f"{name}-moved") for name in ("data", "model")]
    for here, there in moved:
        here.rename(there)
    try:
        with Served(tmp_path / "catalog") as bare:
            text = bare.get(row=3).text
            assert (
                text.count("Not shown: ") == 2 and "Its image is not there" in text and "joint posterior is not known" in text
            )
            assert "image?row" not in text and "largest" not in bare.get(gallery="worst").text
            assert bare.get("image", row=3).status == 404
        with Served(tmp_path / "catalog", bundle=str(tmp_path / "model")) as some:
            text = some.get(row=3).text
            assert text.count("Not shown: ") == 1 and "Joint posterior density" in text
            # Without true values, by width.
            _, value_M, what = some.galaxies.worst(np.arange(COUNT), 5)
            assert what.startswith("largest width") and (np.diff(value_M) <= 0).all() and (value_M > 0).all()
        with Served(tmp_path / "catalog", dataset=str(moved[0][1])) as some:
            text = some.get(row=3).text
            assert (
                text.count("Not shown: ") == 1 and text.count('class="cutout"') == 1 and "Joint posterior density" not in text
            )
    finally:
        for here, there in moved:
            there.rename(here)


def test_another_dataset_or_bundle_is_refused(root: Path, tmp_path: Path) -> None:
    other = predicted(tmp_path / "other", **UNITS)
    info = (other / "data" / "dataset.json").read_text()
    (other / "data" / "dataset.json").write_text(info.replace('"fingerprint": "f"', '"fingerprint": "g"'))
    with pytest.raises(UserError, match=r"^dataset: .* is not that of the catalogue, or has changed since"):
        Galaxies(str(root / "catalog"), dataset=str(other / "data"))
    with pytest.raises(UserError, match=r"^bundle: builtin:kids-r is not that of the catalogue"):
        Galaxies(str(root / "catalog"), bundle="builtin:kids-r")


def test_a_summary_is_predicted_again_and_files_are_read_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "cutouts").mkdir()
    image_NCHW = galaxies(6)["image"]
    for i, image in enumerate(image_NCHW):
        fits.writeto(tmp_path / "cutouts" / f"g{i}.fits", image[0])
    bundle().save(str(tmp_path / "model"))
    paths = {"bundle": str(tmp_path / "model"), "dataset": str(tmp_path / "cutouts"), "output": str(tmp_path / "catalog")}
    infer(InferConfig(**paths, num_passes=4, resources=ActorResources(engine="local", num_workers=1)))
    found = Galaxies(str(tmp_path / "catalog"))
    assert found.notes == [] and found.has_images and not found.has_truths
    galaxy = found.galaxy(4)
    np.testing.assert_array_equal(galaxy.image_HW, image_NCHW[4, 0])
    assert galaxy.values["object_id"] == "g4" and galaxy.posterior and galaxy.seen
    assert galaxy.posterior.mean()[0] == pytest.approx(
        [galaxy.values["flux_mean"], galaxy.values["concentration_mean"]], rel=1e-6
    )
    # A file that is gone is told beside the numbers.
    (tmp_path / "cutouts" / "g4.fits").unlink()
    lost = found.galaxy(4)
    assert lost.image_HW is None and lost.values == galaxy.values


def test_a_damaged_shard_is_told_beside_the_numbers(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "data", tmp_path / "data")
    with Served(root / "catalog", dataset=str(tmp_path / "data")) as some:
        assert some.get(row=3).text.count('class="cutout"') == 2
        for path in (tmp_path / "data").glob("*.parquet"):
            path.write_bytes(b"PAR1 no")
        text = some.get(row=3).text
        assert "damaged or not Parquet" in text and "Joint posterior density" in text
        assert some.get("image", row=3).status == 404


def test_a_port_in_use_is_a_mistake(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"^port: {port} cannot be used, Address already in use; give another"):
            Server(served.galaxies, "", port)


@pytest.mark.browser
def test_layout_fits_a_desktop_and_a_phone(served: Served, tmp_path: Path) -> None:
    for measured, width in zip(layouts(served.get(row=0, gallery="worst").text, tmp_path), (1280, 768, 400), strict=True):
        assert measured["width"] == measured["viewport"] == width
        assert measured["outside"] == []
        assert measured["zoom"] > 0.7
        assert measured["images"] == 2
