import logging
import warnings

# Imported in a notebook, Ray and tqdm ask for widgets, which nothing here shows.
logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", "IProgress not found")
