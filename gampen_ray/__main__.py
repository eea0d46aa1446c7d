"""Entry point of ``python -m gampen_ray``."""

import sys

from gampen_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
