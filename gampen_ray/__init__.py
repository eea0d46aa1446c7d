"""Bayesian posteriors of galaxy structural parameters from survey cutouts, at any scale.

``load_bundle`` loads a trained model. Each verb of the command line is also a function of that name, such as ``train``.
"""

import sys
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from gampen_ray.inference.bundle import load_bundle

    crop = demo = evaluate = import_gampen = infer = ingest = cast(Any, None)
    report = scan_dropout = simulate = split = train = tune = cast(Any, None)

__all__ = [
    "__version__",
    "crop",
    "demo",
    "evaluate",
    "import_gampen",
    "infer",
    "ingest",
    "load_bundle",
    "report",
    "scan_dropout",
    "simulate",
    "split",
    "train",
    "tune",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazily: importing torch takes seconds, which `gampen-ray --help` must not wait for.
    if name == "load_bundle":
        from gampen_ray.inference.bundle import load_bundle

        return load_bundle
    verb = name.replace("_", "-")
    if name in __all__ or verb in getattr(sys.modules.get("gampen_ray.commands.registry"), "VERBS", ()):
        from gampen_ray.commands.registry import python_function

        return python_function(verb)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
