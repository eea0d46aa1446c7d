"""Fuzzers of all that the program reads; prints JSON.

``python -m tests.fuzz bundles catalogs --count 2000 --seed 1``; without a name, all. A finding is reproduced by its number:
``--start 17 --count 1``.
"""

import argparse
import json
import sys

from tests.fuzz.all import FUZZERS
from tests.fuzz.harness import run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *FUZZERS])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    given = parser.parse_args()
    results = {name: run(FUZZERS[name], given.count, given.seed, start=given.start) for name in given.names or FUZZERS}
    sys.stdout.write(json.dumps(results, indent=1) + "\n")
    sys.exit(any(result["found"] for result in results.values()))
