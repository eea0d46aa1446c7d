# `make demo` and `make test` do all their own set-up on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin

TOOLS := .venv/tools

.PHONY: demo test fuzz kill cluster lint docs models bench lock audit sbom setup clean
setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/gampen-ray demo $(ARGS)

# Two files of tests at a time, each process with a Ray of its own if it needs one.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Thousands of mutated inputs, where `make test` reads a few; ARGS="bundles --count 5000 --seed 2" reads of one kind.
fuzz: setup
	$(BIN)/python -m tests.fuzz $(ARGS)

# More kills than `make test` has: a driver, an actor and a node of an inference on S3, and the driver of a search; `python -m tests.engine.killing` does it at length.
kill: setup
	$(BIN)/python -m pytest -m kill $(ARGS)

# Submits every job to clusters of several nodes on this machine, one of which grows and shrinks, and one loses a node.
cluster: setup
	$(BIN)/python -m pytest -m cluster $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The pages of docs/ with the reference, in docs/_build/html; a warning is an error.
docs: setup
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build/html $(ARGS)

# Trains the built-in bundles again, hours each, and resumes in models/; ARGS="--scale 0.01" is a quick try.
models: setup
	$(BIN)/python benchmarks/models.py models $(ARGS)

# Benchmarks of cost, the quick ones; ARGS="--full --history benchmarks/history.jsonl" runs all, and keeps their ratios.
bench: setup
	$(BIN)/python benchmarks/suite.py $(ARGS)

# The packages of the cluster's image with their hashes, of the versions that constraints.txt names.
lock: $(TOOLS)/.done
	$(TOOLS)/bin/uv pip compile pyproject.toml --extra asdf --extra h5py --extra zarr --extra hats --extra mlflow --group build \
	  --constraints constraints.txt --generate-hashes --no-header --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	  --output-file cluster/requirements.txt $(ARGS)

# Known vulnerabilities of these packages.
audit: $(TOOLS)/.done
	$(TOOLS)/bin/pip-audit --requirement cluster/requirements.txt --require-hashes --disable-pip $(ARGS)

# Their bill of materials, CycloneDX, in sbom.json.
sbom: $(TOOLS)/.done
	$(TOOLS)/bin/cyclonedx-py requirements cluster/requirements.txt --pyproject pyproject.toml --output-reproducible \
	  --output-file sbom.json $(ARGS)

$(TOOLS)/.done: setup
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet uv pip-audit cyclonedx-bom
	touch $@

clean:
	rm -rf .venv
