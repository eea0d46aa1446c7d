"""Search for the best network and optimiser on a Ray cluster; `gampen-ray tune` does the same on this machine.

ray job submit --address ADDRESS --working-dir . -- python jobs/tune.py [CONFIG.toml] [--section.field value ...]
"""

import sys

from gampen_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
