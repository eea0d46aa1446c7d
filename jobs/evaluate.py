"""Evaluate a catalogue against true values on a Ray cluster; `gampen-ray evaluate` does the same on this machine.

ray job submit --address ADDRESS --working-dir . -- python jobs/evaluate.py [CONFIG.toml] [--section.field value ...]
"""

import sys

from gampen_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
