"""The README and the pages of docs/: built without warnings, short, and true."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from gampen_ray import cli
from gampen_ray.commands.registry import load_verbs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    folders = ["-d", tmp_path / "doctrees", ROOT / "docs", tmp_path / "html"]
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / "html" / f"{page.stem}.html").exists()
    commands = (tmp_path / "html" / "reference" / "commands.html").read_text()
    assert all(f'id="{verb}"' in commands for verb in load_verbs())


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert (ROOT / "README.md").stat().st_size <= 7000
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_is_one(page: Path) -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "\n".join(text for language, text in blocks if not language).replace("\\\n", " ").splitlines()
    for line in lines:
        for command in line.partition("  #")[0].split("&&"):
            words = shlex.split(command)
            if words[:1] == ["gampen-ray"]:
                arguments = [word for word in words[1:] if not word.endswith(".toml")]
                # Only a file would complete the command.
                if len(arguments) == len(words) - 1:
                    cli.parse(arguments)
                assert arguments[0] in (*load_verbs(), "config")


def test_the_version_of_the_citation_is_the_packages() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
