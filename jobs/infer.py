"""Predict a survey into a catalogue of posteriors on a Ray cluster; `gampen-ray infer` does the same on this machine.

ray job submit --address ADDRESS --working-dir . -- python jobs/infer.py [CONFIG.toml] [--section.field value ...]
"""

import sys

from gampen_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["infer", *sys.argv[1:]]))
