"""Simulate galaxies into a dataset of shards on a Ray cluster; `gampen-ray simulate` does the same on this machine.

ray job submit --address ADDRESS --working-dir . -- python jobs/simulate.py [CONFIG.toml] [--section.field value ...]
"""

import sys

from gampen_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["simulate", *sys.argv[1:]]))
