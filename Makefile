# make demo | test | test-all | bench | bench-decode | bench-gpu | lint | docs | clean. Each target
# that needs Python sets up .venv by itself; docs, the documentation site in site/, sets up
# .venv-docs, which has no JAX.
#
# PYTHON=... picks the interpreter; otherwise the first of the usual names that really runs, is
# new enough and can make a virtual environment (a version manager's stub may exist and not run).

CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
STAMP := .venv/installed
DOCS_STAMP := .venv-docs/installed
RUN := .venv/bin/python
# XLA's CPU backend takes fresh memory in every step; faulting it in by small pages is a tenth of it.
HUGE_PAGES := GLIBC_TUNABLES=glibc.malloc.hugetlb=1

.PHONY: demo test test-all bench bench-decode bench-gpu lint docs clean

demo: $(STAMP)
	@echo "Training a 12 + 6-layer translation network in three ways on the CPU, to cut it afterwards."
	@JAX_PLATFORMS=cpu $(HUGE_PAGES) $(RUN) -m experiments.demo --workdir=runs \
	  --config.data.data_dir=runs/data --processes=2

# By file: what the tests of a file share is made once. A whole file goes to one process, in the
# order of tests/conftest.py.
PYTEST := JAX_PLATFORMS=cpu $(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test: $(STAMP)
	@echo "Running the quick tests under tests/ on the CPU, in two processes; make test-all runs all."
	@$(PYTEST) -m "not slow"
	@echo "The quick tests ran. Options go to pytest directly: $(RUN) -m pytest tests/core -x"

test-all: $(STAMP)
	@echo "Running all tests under tests/ on the CPU, in two processes."
	@$(PYTEST)
	@echo "All of tests/ ran."

bench: $(STAMP)
	@echo "Timing training steps: modes, rates, structured dropouts; beside PyTorch if it is installed."
	@$(HUGE_PAGES) $(RUN) -m benchmarks.step_cost --out=runs/bench

bench-decode: $(STAMP)
	@echo "Timing translation: beside transformers and ctranslate2, each if it is installed."
	@$(HUGE_PAGES) $(RUN) -m benchmarks.decode --out=runs/bench_decode

# With the Python of the machine, which has JAX for its GPU: no package is installed.
bench-gpu:
	@echo "Filling the tables of this machine's accelerator, in nine minutes."
	@$(or $(PYTHON),python3) -m benchmarks.accelerator --out=$(or $(OUT),experiments/results/accelerator)

lint: $(STAMP)
	@echo "Checking lint and format with ruff."
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

docs: $(DOCS_STAMP)
	@echo "Building the documentation site; a link that leads nowhere is an error."
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "Open site/index.html, or, to search too: python3 -m http.server --directory site"

clean:
	@echo "Removing .venv, .venv-docs, site and caches; runs/ stays."
	@rm -rf .venv .venv-docs site .pytest_cache .ruff_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Sets $$found to the first interpreter that will do, or ends the recipe.
define FIND_PYTHON
found=; for python in $(CANDIDATES); do \
  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
    >/dev/null 2>&1; then found=$$python; break; fi; done; \
if [ -z "$$found" ]; then \
  echo "No Python >= 3.11 that can make a virtual environment among: $(CANDIDATES)." \
    "Install one (with its venv module), or name it: make PYTHON=/path/to/python3.12" >&2; \
  exit 1; fi
endef

# pip is silent with -q and prints hundreds of lines without, so awk turns its lines into a count.
$(STAMP): requirements.txt pyproject.toml
	@$(FIND_PYTHON); \
	echo "Setting up .venv with $$("$$found" --version) (once, a minute or two)."; \
	"$$found" -m venv --clear .venv
	@total=$$(grep '^[a-z]' requirements.txt | grep -vc 'sys_platform =='); \
	{ $(RUN) -m pip install --disable-pip-version-check --no-input -r requirements.txt 2>&1 \
	  || echo "pip failed"; } | awk -v total="$$total" \
	  '{ log_text = log_text $$0 "\n" } \
	   /^(Collecting|Processing) / { printf "\r  packages fetched: %d of %d", ++n, total; fflush() } \
	   /^Installing collected/ { printf "\n  unpacking them\n"; fflush() } \
	   /^pip failed/ { failed = 1 } \
	   END { if (failed) { printf "\n%s", log_text; exit 1 } }'
	@$(RUN) -m pip install --disable-pip-version-check -q --no-deps -e .
	@touch $@
	@echo "The environment is ready in .venv."

# The extra alone: mkdocs reads the package's source and imports nothing of it.
DOCS_PACKAGES := import tomllib; \
  print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")

$(DOCS_STAMP): pyproject.toml
	@$(FIND_PYTHON); \
	echo "Setting up .venv-docs with $$("$$found" --version) (once, half a minute)."; \
	"$$found" -m venv --clear .venv-docs
	@.venv-docs/bin/python -c '$(DOCS_PACKAGES)' >.venv-docs/packages.txt
	@.venv-docs/bin/python -m pip install --disable-pip-version-check --no-input -q \
	  -r .venv-docs/packages.txt
	@touch $@
