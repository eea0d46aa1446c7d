"""Sphinx: the pages beside this file, and the reference, which is made from the code."""

import importlib.metadata
import inspect
from pathlib import Path

from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx

import gampen_ray
from gampen_ray.commands.registry import load_verbs
from gampen_ray.config.base import shown
from gampen_ray.config.leaves import Leaf, sections

HERE = Path(__file__).parent
REFERENCE = HERE / "reference"
REFERENCE.mkdir(exist_ok=True)

project, author = "gampen_ray", "the gampen_ray developers"
release = importlib.metadata.version("gampen_ray")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
myst_heading_anchors = 3
autodoc_typehints = "none"
napoleon_use_rtype = False
# Pages of the project beside the documentation, to which its pages link as GitHub shows them.
PROJECT = {"SECURITY.md": "security", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changes"}


def setup(app: Sphinx) -> None:
    """Let links to pages of the project lead to their copies."""
    app.connect("source-read", lambda _, name, source: source.__setitem__(0, linked(source[0])))


def linked(text: str) -> str:
    """Return a page whose links to pages of the project lead to their copies."""
    for file, page in PROJECT.items():
        text = text.replace(f"](../{file})", f"](reference/{page}.md)")
    return text


def write_project() -> None:
    """Copy the pages of the project."""
    for file, page in PROJECT.items():
        (REFERENCE / f"{page}.md").write_text((HERE.parent / file).read_text())


def write_commands() -> None:
    """Write a page of all verbs with their fields, as `--help` shows them."""
    lines = ["# Commands", "", "Each is a function of the package too, with the same fields.", ""]
    for name, verb in load_verbs().items():
        lines += [f"## {name}", "", _plain(verb.config.__doc__), ""]
        for title, text, leaves in sections(verb.config):
            if title:
                lines += [f"### `{title}` of {name}", "", _plain(text), ""]
            lines += [*(_field(leaf) for leaf in leaves), ""]
    (REFERENCE / "commands.md").write_text("\n".join(lines))


def write_functions() -> None:
    """Write a page of what is public in Python."""
    lines = ["# Functions and classes", ""]
    for name in sorted(set(gampen_ray.__all__) - {"__version__", "plot"} - {verb.replace("-", "_") for verb in load_verbs()}):
        lines += [f"```{{eval-rst}}\n.. autofunction:: gampen_ray.{name}\n```", ""]
    for path in ("inference.bundle.Bundle", "posterior.mixture.Mixture"):
        lines += [f"```{{eval-rst}}\n.. autoclass:: gampen_ray.{path}\n   :members:\n```", ""]
    lines += ["```{eval-rst}\n.. automodule:: gampen_ray.plot\n   :members:\n```", ""]
    (REFERENCE / "functions.md").write_text("\n".join(lines))


def _field(leaf: Leaf) -> str:
    default = "required" if leaf.default is PydanticUndefined else f"`{shown(leaf.default)}`"
    return f"* **`--{leaf.name.replace('_', '-')}`** ({default}): {_plain(leaf.description)}"


def _plain(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").split())


write_project()
write_commands()
write_functions()
