"""Bayesian posteriors of galaxy structural parameters from survey cutouts, at any scale.

``load_bundle`` loads a trained model, and ``plot`` draws galaxies and their posteriors. Each verb of the command line or of a
plugin is also a function of that name, such as ``train``.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from gampen_ray import plot
    from gampen_ray.inference.bundle import load_bundle

    crop = demo = describe = evaluate = footprint = import_gampen = infer = ingest = inspect = cast(Any, None)
    measure_psf = report = scan_dropout = simulate = split = status = train = tune = view = cast(Any, None)

__all__ = [
    "__version__",
    "crop",
    "demo",
    "describe",
    "evaluate",
    "footprint",
    "import_gampen",
    "infer",
    "ingest",
    "inspect",
    "load_bundle",
    "measure_psf",
    "plot",
    "report",
    "scan_dropout",
    "simulate",
    "split",
    "status",
    "train",
    "tune",
    "view",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazily: importing torch takes seconds, which `gampen-ray --help` must not wait for.
    if name == "plot":
        return importlib.import_module(f"{__name__}.plot")
    if name == "load_bundle":
        from gampen_ray.inference.bundle import load_bundle

        return load_bundle
    # `from gampen_ray import storage` asks here too, before it imports the module.
    if name in __all__ or not (name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}")):
        from gampen_ray.commands.registry import load_verbs, python_function

        if (verb := name.replace("_", "-")) in load_verbs():
            return python_function(verb)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
