# `make train` and `make test` need nothing but Python 3.11-3.13 and a C++ compiler: the first call sets up .venv.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.docs-installed
RELEASE_INSTALLED := $(VENV)/.release-installed
SANITIZED := -std=c++17 -O1 -g -fno-omit-frame-pointer -Wall -Wextra
BUILT_FROM := pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*)

# The tests start many processes, each of which would compile the sources again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: train test suite lint install docs bench wheel sanitize fuzz exports gpu clean

train: $(INSTALLED)  ## the recipe `quickstart`: make data, pretrain, meta-train, score an unseen domain
	$(VENV)/bin/python -m fastmfr.train $(ARGS)

test: $(INSTALLED)  ## lint, types and the whole test suite
	$(MAKE) --no-print-directory --jobs 2 --output-sync lint suite

suite: $(INSTALLED)
	$(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal --durations 20 $(ARGS)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check --quiet
	$(VENV)/bin/pyright

install: $(INSTALLED)  ## .venv, with the package as it is edited and all that its tests need

docs: $(DOCS_INSTALLED)  ## the documentation site, into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet --strict
	@echo "wrote build/site/index.html; to search it: $(PYTHON) -m http.server --directory build/site"

bench: $(INSTALLED)  ## throughput beside the peers; one results file a run in bench/results; ARGS=--quick, ARGS=--resume
	$(VENV)/bin/python -m pytest bench $(ARGS)

wheel: $(RELEASE_INSTALLED)  ## dist/: sdist, and the wheel made of it, which is then tried; PLAT=manylinux_2_28_x86_64
	rm -rf dist build/wheel fastmfr.egg-info
	$(VENV)/bin/python -m build --outdir build/wheel
	PATH="$(abspath $(VENV)/bin):$$PATH" $(VENV)/bin/python -m auditwheel repair --wheel-dir dist \
	    $(if $(PLAT),--plat $(PLAT)) build/wheel/*.whl
	cp build/wheel/*.tar.gz dist
	FASTMFR_DIST=dist $(VENV)/bin/python -m pytest tests/test_packages.py

sanitize: $(INSTALLED)  ## csrc under AddressSanitizer and UBSan in the tests that reach it, its threads under ThreadSanitizer
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --target build/sanitize 'pybind11>=3.0,<4'
	$(CXX) $(SANITIZED) -fsanitize=address,undefined -fno-sanitize-recover=all -shared -fPIC -fvisibility=hidden \
	    $$(PYTHONPATH=build/sanitize $(VENV)/bin/python -m pybind11 --includes) csrc/*.cpp -o build/sanitize/_native.so
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=tests/native FASTMFR_NATIVE=build/sanitize \
	    $(VENV)/bin/python -m pytest -p built_elsewhere tests/test_recordio.py tests/test_recordio_damage.py tests/test_recordio_fuzz.py \
	    tests/test_sampler.py tests/test_sampler_draws.py tests/test_gather.py tests/test_warp.py
	$(CXX) $(SANITIZED) -fsanitize=thread -pthread -Icsrc tests/native/threads.cpp \
	    $(filter-out csrc/bindings.cpp,$(wildcard csrc/*.cpp)) -o build/sanitize/threads
	build/sanitize/threads

fuzz: $(INSTALLED)  ## damaged files of every format, a minute each, with draws of their own
	FASTMFR_FUZZ_SECONDS=$${FASTMFR_FUZZ_SECONDS:-60} FASTMFR_FUZZ_SEED=$${FASTMFR_FUZZ_SEED:-$$(date +%s)} \
		$(VENV)/bin/python -m pytest --numprocesses auto -rP tests/test_fuzz.py

exports: $(INSTALLED)  ## whole models to ONNX, as `fastmfr export` writes them, compared with torch
	FASTMFR_WHOLE_EXPORTS=1 $(VENV)/bin/python -m pytest tests/test_export.py -k whole

gpu:  ## all tests and benches for a CUDA device, with the Python at hand: torch, triton and fastmfr installed, no more
	$(or $(wildcard $(VENV)/bin/python),$(PYTHON)) bench/gpu.py $(ARGS)

$(INSTALLED): $(BUILT_FROM)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test,bench,export]'
	touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

$(RELEASE_INSTALLED): $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[release]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info fastmfr/_native*.so
