"""The fuzzers by name."""

from tests.fuzz import bundles, catalogs, configs, datasets, gampen_weights, records, run_folders

FUZZERS = {
    "datasets": datasets.descriptions,
    "shards": datasets.shard_files,
    "bundles": bundles.files,
    "gampen_weights": gampen_weights.files,
    "configs": configs.files,
    "flags": configs.flags,
    "catalogs": catalogs.catalogs,
    "run_folders": run_folders.files,
    "records": records.files,
}
