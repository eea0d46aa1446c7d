"""Ingest FITS cutouts into a dataset of shards on a Ray cluster; `gampen-ray ingest` does the same on this machine.

ray job submit --address ADDRESS --working-dir . -- python jobs/ingest.py [CONFIG.toml] [--section.field value ...]
"""

import sys

from gampen_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["ingest", *sys.argv[1:]]))
