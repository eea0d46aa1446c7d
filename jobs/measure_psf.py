"""ray job submit --address ADDRESS --working-dir . -- python jobs/measure_psf.py [CONFIG.toml] [--section.field value ...]"""

from gampen_ray.cli import run_job

if __name__ == "__main__":
    run_job("measure-psf")
