# Two commands matter: `make run` distils a dataset, `make test` checks everything. Both install what they need first.
# A bare machine is enough: Python 3.11 or newer with venv, git and make.

PYTHON  ?= python3
CHAPTER ?= 00_quickstart
ARGS    ?=
UV_ARGS ?=
LOCK    ?= constraints.txt
PORT    ?= 8888
JOBS    ?= 2

VENV := .venv
PY   := $(VENV)/bin/python
UV   := $(PY) -m uv pip install --python $(PY) $(if $(LOCK),--constraint $(LOCK)) $(UV_ARGS)

# glibc gives every block above 32 MiB back when it is freed, so that each large activation is page-faulted afresh: keeping
# the memory makes training 1.4 to 1.9 times faster for up to 2 GB more at the peak. Passive waiting stops idle OpenMP
# threads from spinning: no difference alone, about 2 times when anything else runs on the machine. (Ignored by other
# allocators; ddlib.chapter sets the same for the chapter it runs.)
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 34359738368
export MALLOC_TOP_PAD_ ?= 268435456
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help run test browser lab notebooks book bench lock clean
.DELETE_ON_ERROR:

help:
	@echo 'make run                       distil a dataset: the quickstart chapter, then its table and pictures in runs/'
	@echo 'make run CHAPTER=NAME ARGS=... any chapter, for example CHAPTER=03_distribution_matching ARGS="-p ipc 10"'
	@echo 'make test                      every check: ruff, mypy, tests, all notebooks, the book, a real browser'
	@echo 'make lab                       JupyterLab on this machine only (PORT=8888)'
	@echo 'make notebooks [CHAPTER=NAME]  execute the .py chapters and store them as .ipynb'
	@echo 'make book                      the book in _build/html'
	@echo 'make bench                     timings of this machine'
	@echo 'make lock                      resolve constraints.txt afresh'
	@echo 'make clean                     remove _build and caches; runs/ and .venv stay'
	@echo
	@echo 'PYTHON=python3.12 chooses the interpreter, UV_ARGS=--torch-backend=cpu a torch without the CUDA libraries.'

# Each stamp is written last, so an interrupted installation is taken up again and a finished one costs nothing.
$(VENV)/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "ddlib needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1 | tail -n 1)." \
	       "Install one and name it: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet uv
	@touch $@

$(VENV)/.book: $(VENV)/.uv pyproject.toml constraints.txt
	$(UV) --editable '.[book]'
	@touch $@

$(VENV)/.test: $(VENV)/.uv pyproject.toml constraints.txt
	$(UV) --editable '.[book,test,scale]'
	@touch $@ $(VENV)/.book

run: $(VENV)/.book
	@$(PY) -m ddlib.chapter $(CHAPTER) $(ARGS)

# All checks run, also after one has failed. The notebooks come first because they take longest; one core each, and results
# in a place of their own, so that no checkpoint of an earlier run is taken up.
test: export OMP_NUM_THREADS = 1
test: $(VENV)/.test browser
	@status=0; export DDLIB_RUNS="$$(mktemp -d)"; trap 'rm -rf "$$DDLIB_RUNS"' EXIT; \
	$(PY) -m ruff check . || status=1; \
	$(PY) -m mypy || status=1; \
	$(PY) -m pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder --durations 15 \
	  --nbval-lax --nbval-current-env --nbval-cell-timeout 900 --nbval-sanitize-with tests/sanitize.cfg \
	  notebooks tests || status=1; \
	if [ $$status -ne 0 ]; then echo 'make test: FAILED, see above' >&2; fi; \
	exit $$status

# The browser tests use the system's Chromium: Debian's package is installed where that is allowed.
browser:
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then exit 0; fi; \
	if command -v apt-get >/dev/null; then \
	  if [ "$$(id -u)" = 0 ]; then sudo=; else sudo='sudo -n'; fi; \
	  if [ -z "$$sudo" ] || sudo -n true 2>/dev/null; then \
	    echo 'installing chromium for the browser tests'; \
	    export DEBIAN_FRONTEND=noninteractive; \
	    { $$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends chromium >/dev/null; } && exit 0; \
	  fi; \
	fi; \
	echo '**** NO BROWSER: chromium is missing and cannot be installed here; THE BROWSER TESTS WILL BE SKIPPED ****' >&2

lab: $(VENV)/.book
	@$(PY) -m jupyter lab --ip=127.0.0.1 --port=$(PORT) --ServerApp.root_dir=$(CURDIR) $$([ "$$(id -u)" = 0 ] && echo --allow-root --no-browser) notebooks

notebooks: $(VENV)/.book
	@$(PY) notebooks/write.py $(if $(filter command line,$(origin CHAPTER)),$(CHAPTER))

book: $(VENV)/.book
	@$(VENV)/bin/jupyter-book build . --toc book/_toc.yml -W -n --keep-going --quiet
	@echo 'the book: _build/html/index.html'

bench: $(VENV)/.test
	@$(PY) tests/bench/run.py
	@$(PY) tests/bench/kernels.py book/results/bench.csv

# One resolution for every platform and Python from 3.11 on; no index address and no local path is written into it.
lock: $(VENV)/.uv
	@$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --upgrade --all-extras pyproject.toml \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file constraints.txt
	@echo 'wrote constraints.txt'

clean:
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find ddlib tests notebooks -name __pycache__ -prune -exec rm -rf {} +
