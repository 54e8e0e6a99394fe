# Every target works on a bare Debian 12 machine (root, Python 3.11) and uses a Docker engine if one answers.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
REFERENCE := $(VENV)/.reference
STORES := $(VENV)/stores/.installed
AZURITE := $(VENV)/azurite/.installed

.PHONY: setup demo test sources story faults nightly check clean pins schema bench

setup: $(STAMP) ## the toolkit's own packages, in .venv

demo: $(STAMP) ## a private model -> verified, smoke-tested image in a password-protected registry
	$(BIN)/python scripts/demo

test: $(STAMP) $(REFERENCE) $(STORES) $(AZURITE) ## every test; starts the engine and the registry that the integration tests need
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile tests/unit
	$(BIN)/python -m pytest tests/integration

sources: $(STAMP) $(STORES) $(AZURITE) ## every source against its real store, by both ways into an image
	MODELBAKE_FAULTS=full $(BIN)/python -m pytest tests/integration/test_store_servers.py \
		tests/integration/test_sources*.py $(ARGS)

story: $(STAMP) $(REFERENCE) ## README's releases on a real registry: promoted, rolled back, lost and restored
	MODELBAKE_STORY=1 $(BIN)/python -m pytest -s tests/integration/test_release_story.py $(ARGS)

faults: $(STAMP) $(REFERENCE) $(STORES) $(AZURITE) ## every fault against every promise, as a table and bench/faults.json
	$(BIN)/python -m tests.fault_matrix $(ARGS)

nightly: story sources $(STORES) $(AZURITE) ## what takes too long for every change
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

# The stores whose servers tests start; their packages stay out of the toolkit's own environment.
$(STORES): requirements/stores.txt | $(STAMP)
	$(PYTHON) -m venv $(VENV)/stores
	$(VENV)/stores/bin/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/stores.txt
	touch $@

# Azurite comes from npm's registry, by the Node.js of the stores; nothing of it is run at installation.
$(AZURITE): tests/servers/azurite/package.json tests/servers/azurite/package-lock.json | $(STORES)
	mkdir -p $(VENV)/azurite
	cp tests/servers/azurite/package.json tests/servers/azurite/package-lock.json $(VENV)/azurite
	cd $(VENV)/azurite && PATH="$(CURDIR)/$(VENV)/stores/bin:$$PATH" npm ci --ignore-scripts --no-audit --no-fund --loglevel error
	touch $@
