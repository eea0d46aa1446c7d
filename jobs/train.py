"""Train a model on a Ray cluster; `gampen-ray train` does the same on this machine.

ray job submit --address ADDRESS --working-dir . -- python jobs/train.py [CONFIG.toml] [--section.field value ...]
"""

import sys

from gampen_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
