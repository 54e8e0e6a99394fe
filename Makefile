# Every target works on a bare Debian 12 machine (root, Python 3.11) and uses a Docker engine if one answers.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
REFERENCE := $(VENV)/.reference

.PHONY: setup demo test story faults nightly check clean pins schema bench

setup: $(STAMP) ## the toolkit's own packages, in .venv

demo: $(STAMP) ## a private model -> verified, smoke-tested image in a password-protected registry
	$(BIN)/python scripts/demo

test: $(STAMP) $(REFERENCE) ## every test; starts the engine and the registry that the integration tests need
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile tests/unit
	$(BIN)/python -m pytest tests/integration

story: $(STAMP) $(REFERENCE) ## README's releases on a real registry: promoted, rolled back, lost and restored
	MODELBAKE_STORY=1 $(BIN)/python -m pytest -s tests/integration/test_release_story.py $(ARGS)

faults: $(STAMP) $(REFERENCE) ## every fault against every promise, as a table and bench/faults.json
	$(BIN)/python -m tests.fault_matrix $(ARGS)

nightly: story ## what takes too long for every change
	$(BIN)/python -m tests.fault_matrix --exhaustive $(ARGS)

check: $(STAMP) $(REFERENCE) ## what CI checks before the tests: format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@# The programs of an image have modules of the same name in each folder: one run a folder.
	for folder in builder start embeddings transformers vllm llamacpp diffusers; do \
		MYPYPATH=images/start $(BIN)/mypy images/$$folder/*.py || exit 1; done
	MYPYPATH=scripts $(BIN)/mypy scripts/*.py
	$(BIN)/python build.py check

bench: $(STAMP) ## the figures of the stream lane, as a table and bench/results.json; ARGS="--size-mb 70" makes it small
	$(BIN)/python -m bench $(ARGS)

pins: $(STAMP) ## compile every hash-pinned requirements file again
	scripts/pins

schema: $(STAMP) ## write models.schema.json again
	$(BIN)/python build.py check --schema models.schema.json

clean: ## stop what scripts/engine and scripts/registry started, remove what was made here; images and .venv stay
	-scripts/registry down
	-scripts/engine down
	rm -rf .demo .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info

$(STAMP): requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@# The list is complete: what pip would resolve again may have changed on the index since.
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/dev.txt
	touch $@

# What the tests compare a served embedding with: the same model run directly.
$(REFERENCE): requirements/reference.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --requirement requirements/reference.txt
	touch $@
