# `make train` and `make test` need nothing but Python 3.11-3.13 and a C++ compiler: the first call sets up .venv.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.docs-installed
BUILT_FROM := pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*)

.PHONY: train test lint docs bench gpu clean

train: $(INSTALLED)  ## the recipe `quickstart`: make data, pretrain, meta-train, score an unseen domain
	$(VENV)/bin/python -m fastmfr.train $(ARGS)

test: $(INSTALLED) lint  ## lint, types and the whole test suite
	$(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal

lint: $(INSTALLED)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check --quiet
	$(VENV)/bin/pyright

docs: $(DOCS_INSTALLED)  ## the documentation site, into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet --strict
	@echo "wrote build/site/index.html; to search it: $(PYTHON) -m http.server --directory build/site"

bench: $(INSTALLED)  ## throughput beside the peers; one results file a run in bench/results
	$(VENV)/bin/python -m pytest bench

gpu:  ## all tests and benches for a CUDA device, with the Python at hand: torch, triton and fastmfr installed, no more
	$(or $(wildcard $(VENV)/bin/python),$(PYTHON)) bench/gpu.py $(ARGS)

$(INSTALLED): $(BUILT_FROM)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test,bench]'
	touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info fastmfr/_native*.so
