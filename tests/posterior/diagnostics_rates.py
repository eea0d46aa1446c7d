"""How often each diagnostic rejects right and wrong posteriors of 2,000 galaxies at 1 and 5 %.

python -m tests.posterior.diagnostics_rates [--right 200] [--wrong 20]
"""

import argparse

import numpy as np

from tests.posterior.wrong_posteriors import WRONG, Case, p_values, right

GALAXIES, DRAWS = 2000, 256


def rates(name: str, repetitions: int) -> dict[str, tuple[float, float]]:
    """Return the shares of p values below 1 and 5 % by diagnostic."""
    found: dict[str, list[float]] = {}
    for seed in range(repetitions):
        case: Case = right(GALAXIES, seed)
        for key, p in p_values(WRONG[name](case) if name in WRONG else case, DRAWS, seed).items():
            found.setdefault(key, []).append(p)
    return {key: (float(np.mean(np.array(p) < 0.01)), float(np.mean(np.array(p) < 0.05))) for key, p in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--right", type=int, default=200)
    parser.add_argument("--wrong", type=int, default=20)
    arguments = parser.parse_args()
    for name in ("right", *WRONG):
        repetitions = arguments.right if name == "right" else arguments.wrong
        cells = ", ".join(f"{key} {at_1:.3f} {at_5:.3f}" for key, (at_1, at_5) in rates(name, repetitions).items())
        print(f"{name} ({repetitions}): {cells}", flush=True)  # noqa: T201
