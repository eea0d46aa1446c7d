"""Bayesian posteriors of galaxy structural parameters from survey cutouts, at any scale."""

__version__ = "0.1.0"
