"""Arrows run one way: nothing outside engine/ imports Ray, and no layer imports one above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gampen_ray"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for path in PACKAGE.rglob("*.py")
)
OUTSIDE_ENGINE = [name for name in MODULES if not name.startswith(("gampen_ray.engine", "gampen_ray.commands"))]
# Lowest first.
LAYERS = [
    "errors",
    "dry_run",
    "messages",
    "plugins",
    "config",
    "progress",
    "s3",
    "storage",
    "documents",
    "provenance",
    "receipts",
    "lock_files",
    "lock",
    "run_folder",
    "data",
    "simulation",
    "model",
    "posterior",
    "plot",
    "inference",
    "catalog",
    "gampen",
    "training",
    "tuning",
    "reports",
    "viewer",
    "engine",
    "commands",
]


def test_nothing_outside_engine_imports_ray_even_indirectly() -> None:
    program = (
        "import importlib, sys\n"
        "sys.modules['ray'] = None\n"
        f"for name in {OUTSIDE_ENGINE!r}:\n"
        "    importlib.import_module(name)\n"
        "assert not [name for name in sys.modules if name.startswith('ray.')]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_check_above_sees_a_module_that_imports_ray() -> None:
    program = "import sys; sys.modules['ray'] = None; import gampen_ray.engine.session"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize("name", [name for name in MODULES if name.count(".") >= 1])
def test_module_imports_no_layer_above_its_own(name: str) -> None:
    layer = name.split(".")[1]
    if layer in ("cli", "__main__"):
        return
    path = PACKAGE.parent.joinpath(*name.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for imported in _imports(source):
        assert LAYERS.index(imported) <= LAYERS.index(layer), f"{name} imports gampen_ray.{imported}"


def _imports(source: Path) -> set[str]:
    """First components below gampen_ray of everything a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "gampen_ray":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gampen_ray."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("gampen_ray.")}
    return found


def test_processes_that_read_for_training_import_no_torch() -> None:
    program = "import sys, gampen_ray.engine.feed; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
