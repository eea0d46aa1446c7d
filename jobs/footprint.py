"""ray job submit --address ADDRESS --working-dir . -- python jobs/footprint.py [CONFIG.toml] [--section.field value ...]"""

from gampen_ray.cli import run_job

if __name__ == "__main__":
    run_job("footprint")
