# Everything a newcomer needs; only python3.11 and make are expected.
PYTHON ?= python3.11
BIN := .venv/bin
UV := $(BIN)/uv
READY := .venv/.ready

# the many processes of the tests need not each compile the package again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: build help install demo test test-all test-long test-fiftyone check format docs bench tables clean

help:
	@echo "make install   .venv with pansight and what its tests need; then .venv/bin/pansight works"
	@echo "make demo      train, measure and explain Panoptic FPN on generated shapes (about 4 minutes, CPU)"
	@echo "make test      the newcomer's tests (about 5 minutes on 2 cores)"
	@echo "make test-all  the long ones too: full-size networks, 250 damaged inputs, what other tools read"
	@echo "               (about 15 minutes); ORDER=7 runs either in an order drawn from the number 7"
	@echo "make test-long the rest: every system memorises images, 1,750 other damaged inputs (about 20 minutes)"
	@echo "make test-fiftyone  what FiftyOne makes of our predictions, in an environment of its own"
	@echo "make check     ruff and pyright"
	@echo "make docs      the documentation as a site in site/; warnings are errors"
	@echo "make build     wheel and source distribution in dist/, and the wheel of the runtime alone"
	@echo "make bench     run every benchmark again and rewrite the tables of docs (hours); make tables: only the tables"

# uv comes first, into the environment itself: plain pip may pick a CPU build of torch for which no torchvision exists
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv || python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=.venv $(UV) pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[test]'
	touch $(READY)

install: $(READY)

demo: $(READY)
	$(BIN)/pansight demo --overwrite

# each file in one worker, the longest first (tests/conftest.py), so that all cores work to the end
PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder

test: $(READY)
	PANSIGHT_TEST_ORDER=$(ORDER) $(PYTEST) -m "not slow"

test-all: $(READY)
	PANSIGHT_TEST_ORDER=$(ORDER) $(PYTEST) -m "not long"

test-long: $(READY)
	PANSIGHT_TEST_ORDER=$(ORDER) $(PYTEST) -m long

# FiftyOne and our OpenCV exclude each other
test-fiftyone: $(READY)
	$(PYTHON) -m venv .venv-fiftyone || python3 -m venv .venv-fiftyone
	VIRTUAL_ENV=.venv-fiftyone $(UV) pip install --quiet --constraint constraints-fiftyone.txt --editable '.[fiftyone]' pytest pytest-timeout pytest-xdist hypothesis
	.venv-fiftyone/bin/python -m pytest tests/interop/test_fiftyone.py

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# the variable silences a note of the theme's makers about the successor of mkdocs
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

build: $(READY)
	$(UV) build --quiet --out-dir dist .
	$(UV) build --quiet --wheel --out-dir dist packaging/runtime
	@ls dist

bench: $(READY)
	$(BIN)/python benchmarks/run_all.py
	$(BIN)/python benchmarks/tables.py

tables: $(READY)
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf .venv .venv-fiftyone runs site dist .pytest_cache .ruff_cache
