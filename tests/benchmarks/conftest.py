import sys
from pathlib import Path

# Scripts, which import each other by their names.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
