"""Assign galaxies to train, val and test by a hash of object_id: the same in every run and on every machine."""

import numpy as np

from gampen_ray.config import SplitConfig

__all__ = ["assign_splits"]


def assign_splits(object_ids: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Return the split of each galaxy.

    The hash is SplitMix64 (Steele, Lea & Flood 2014, OOPSLA, fig. 17), chained over the 8-byte words of a string id. An integer
    and its decimal text are different ids.

    Parameters
    ----------
    object_ids
        N integers or strings, not null.
    config
        Shares and seed.

    Returns
    -------
    np.ndarray
        N of ``"train"``, ``"val"`` and ``"test"``.
    """
    seed = _mix(np.array([config.seed % 2**64], dtype=np.uint64))
    ids = np.asarray(object_ids)
    hashed = _mix(ids.astype(np.int64).view(np.uint64) ^ seed) if ids.dtype.kind in "iu" else _hash_text(ids, seed)
    # The upper 53 bits are a double in [0, 1).
    uniform = (hashed >> np.uint64(11)) * 2.0**-53
    # Where train + val = 1, rounding must not leave a test galaxy.
    edges = np.array([config.train, config.train + config.val + 1e-12])
    return np.array(["train", "val", "test"], dtype=object)[np.searchsorted(edges, uniform, side="right")]


def _hash_text(ids: np.ndarray, seed: np.ndarray) -> np.ndarray:
    encoded = np.strings.encode(ids.astype(np.str_), "utf-8")
    lengths = np.strings.str_len(encoded)
    words = -(-encoded.dtype.itemsize // 8)
    # N strings of any length -> N x words, zero-padded.
    padded = encoded.astype(f"S{words * 8}").view("<u8").reshape(len(ids), words).astype(np.uint64)
    hashed = _mix(lengths.astype(np.uint64) ^ seed)
    for word in range(words):
        # Skips words beyond a string's end: its hash must not depend on the longest string.
        hashed = np.where(lengths > 8 * word, _mix(hashed ^ padded[:, word]), hashed)
    return hashed


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
