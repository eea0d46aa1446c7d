"""Credentials and control characters from outside, which reach neither records nor the terminal."""

import io
import json
import logging
import sys
from pathlib import Path

import pytest

import gampen_ray
from gampen_ray import cli, storage
from gampen_ray.config import TrainConfig
from gampen_ray.config.base import build, to_dict
from gampen_ray.errors import UserError
from gampen_ray.messages import printable, redacted, rounded
from gampen_ray.progress import Progress

SECRET = "hunter2"
URIS = {
    "https://user:hunter2@mlflow.example.org/": "https://***@mlflow.example.org/",
    "https://hunter2@mlflow.example.org": "https://***@mlflow.example.org",
    "postgresql+psycopg2://u:hunter2@db:5432/ml": "postgresql+psycopg2://***@db:5432/ml",
    "https://u:p@hunter2@example.org": "https://***@example.org",
    "s3://KEY:hunter2@bucket/prefix": "s3://***@bucket/prefix",
    "https://example.org/x?user=1&token=hunter2&b=2": "https://example.org/x?user=1&token=***&b=2",
    "https://example.org/x?X-Amz-Signature=hunter2": "https://example.org/x?X-Amz-Signature=***",
    "mssql://db/ml;PASSWORD=hunter2;x=1": "mssql://db/ml;PASSWORD=***;x=1",
}


@pytest.mark.parametrize("uri", URIS)
def test_credentials_of_uris_are_replaced_in_any_text(uri: str) -> None:
    for text in ("{}", "cannot reach {} (refused)", '{{"mlflow": "{}"}}', "{} {}"):
        assert redacted(text.format(uri, uri)) == text.format(URIS[uri], URIS[uri])
        assert redacted(redacted(text.format(uri, uri))) == redacted(text.format(uri, uri))


@pytest.mark.parametrize(
    "text",
    ["sqlite:///mlflow.db", "https://example.org/a@b", "s3://bucket/a:b@c.fits", "mail@example.org", "https://a.org b@c.org"],
)
def test_other_texts_stay(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("uri", URIS)
def test_a_config_with_credentials_is_refused_before_anything_is_written(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "train.toml").write_text(f'dataset = "d"\nmlflow = "{uri}"\n')
    calls = [
        ["train", "--dataset", "d", "--output", str(out), "--mlflow", uri],
        ["train", str(tmp_path / "train.toml"), "--output", str(out)],
        ["scan-dropout", "--dataset", "d", "--bundle", "b", "--output", str(out), "--mlflow", uri],
        ["infer", "--bundle", "b", "--dataset", uri, "--output", str(out)],
        # Mistakes that print what they were given.
        ["train", f"--mlfow={uri}"],
        ["train", "--seed", uri],
    ]
    for call in calls:
        assert cli.main(call) == 2
        error = capsys.readouterr().err
        assert error.startswith("gampen-ray: error: ")
        assert SECRET not in error
    assert not out.exists()
    with pytest.raises(UserError, match=r"^mlflow: .*\*\*\*.* holds credentials, .* MLFLOW_TRACKING_PASSWORD"):
        gampen_ray.train(dataset="d", output=str(out), mlflow=uri)


def test_what_an_earlier_version_recorded_is_read_without_its_credentials(tmp_path: Path) -> None:
    uri = next(iter(URIS))
    recorded = {"dataset": "d", "output": "o", "mlflow": uri}
    assert to_dict(build(TrainConfig, recorded, recorded=True))["mlflow"] == URIS[uri]
    # Such as the provenance of a bundle in the manifest of an inference.
    storage.write_json(str(tmp_path / "manifest.json"), {"bundle_provenance": {"config": recorded, "also": [uri]}})
    text = (tmp_path / "manifest.json").read_text()
    assert SECRET not in text
    assert json.loads(text)["bundle_provenance"]["config"]["mlflow"] == URIS[uri]


HOSTILE = "r\x1b]0;owned\x07\x9b31m\u202eevil\r\n"


def test_escape_sequences_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert printable("naïve r² 5″ – 10⁹ galaxies") == "naïve r² 5″ – 10⁹ galaxies"
    assert printable(HOSTILE) == r"r\x1b]0;owned\x07\x9b31m\u202eevil\r\n"
    assert printable(HOSTILE, lines=True) == r"r\x1b]0;owned\x07\x9b31m\u202eevil\r" + "\n"
    # A file name that is not UTF-8.
    assert printable(b"\xff.fits".decode(errors="surrogateescape")) == r"\udcff.fits"
    assert cli.main(["infer", "--bundle", str(tmp_path / HOSTILE), "--dataset", "d", "--output", "o"]) == 2
    logging.getLogger("gampen_ray").warning("bands: %s of https://u:%s@host", HOSTILE, SECRET)
    shown = capsys.readouterr().err
    assert shown.isascii() and shown.replace("\n", "").isprintable() and SECRET not in shown
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("infer", 3, "galaxies") as progress:
        progress.advance(1, HOSTILE)
    assert "owned" in terminal.getvalue()
    assert terminal.getvalue().replace("\r\x1b[K", "").replace("\n", "").isprintable()


def test_rounded_numbers_have_no_exponents() -> None:
    assert [rounded(value) for value in (1009.6, 0.0123456, 3.0, 1234567.0)] == ["1,010", "0.0123", "3", "1,230,000"]
    assert rounded(1009.6, 5) == "1,009.6"
