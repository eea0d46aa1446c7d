"""Bayesian posteriors of galaxy structural parameters from survey cutouts, at any scale."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gampen_ray.inference.bundle import load_bundle

__all__ = ["__version__", "load_bundle"]
__version__ = "0.1.0"


def __getattr__(name: str):
    # Importing torch takes seconds; `gampen-ray --help` must not.
    if name == "load_bundle":
        from gampen_ray.inference.bundle import load_bundle

        return load_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
